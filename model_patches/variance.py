"""Variance scale-up of text tokens, for rare concepts: before each joint-attention block, per dimension,

    z~ = alpha (z - mean(z)) + mean(z)        the mean over the prompt's tokens

The formula, and figures for it (CLIP-T on rare prompts 0.285 to 0.328 at alpha 1.5), come from one summary of "Rare Text Semantics Were
Always There in Your Diffusion Transformer" (NeurIPS 2025, arXiv 2510.03886). No second source has them: the paper describes another
method, ToRA.

Every row of the batch is scaled, unconditional ones with their own text: the formula makes no difference between prompts.
Padding is left as it is and out of the mean. Where a row's encoder gives an attention mask (HunyuanVideo, Qwen-Image, Mochi), or
padding is zeros, the inputs of the model tell it. FLUX.1, SD3 and HiDream-I1 get padded tokens without a mask: there the tokens
of the prompts must be counted (`prompt_tokens`), and without that all tokens are the prompt's.
Tokens that other nodes put beside the prompt's are no text: those in the model (`post_input` patches) are always left as they are,
those in a conditioning (Redux) where the prompt's are counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter

import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key, get_wrappers_with_key
from torch import Tensor

from .calls import CallPatch
from .counting import COUNTED, PromptTokens, count_in, count_tokens, counted_rows
from .families import FAMILIES, BlockInput, Call, Family, refuse_wrapped
from .guidance import check_percents, in_window
from .host_model import HostModel
from .injection import Edit, Made
from .layers import as_applied, remember
from .schedules import LayerSchedule
from .shifts import for_rows, views
from .telling import Teller, of_scaling
from .text_place import PostInputPatches, placed

TOKENS = ("prompt", "all")

# How large the numbers in scaled tokens may become, see `held`. A block adds to the tokens what must fit above this, and its norm squares
# them: in fp32, whatever the model's dtype. Of fp16, whose numbers end at 65,504, half; of bf16 and fp32 what is far from overflowing.
LARGEST = 1e15
LARGEST_ALPHA = 1e15  # of one block; LARGEST times this is a number in fp32


@dataclass(frozen=True)
class WhichTokens:
    """Which of a row's text tokens are scaled.

    all: padding too. counted: those that `count_in` counted; else as far as the model's inputs tell.
    """

    all: bool = False
    counted: bool = False

    def kept(self, family: Family, call: Call) -> Tensor:
        """(R, L, 1) in fp32, 1 for the tokens that are scaled and 0 for the others."""
        present = call.cast(family.text_tokens.present(call))
        if self.all:
            present = torch.ones_like(present)
        if self.counted:
            present = present & call.cast(counted_rows(call.conds))
        return present.unsqueeze(-1).float()


@dataclass(frozen=True)
class Scaling:
    """One scale-up on one model: alpha is 1 + weight (scale - 1) at each layer, of which the first `joint` are joint blocks.

    prompts: whose tokens are counted, on all nodes together; () where none are. family, teller: as in Guidance.
    """

    family: str
    scale: float
    layer_weights: tuple[float, ...]
    joint: int
    tokens: WhichTokens
    prompts: tuple[PromptTokens, ...]
    start_percent: float
    end_percent: float
    teller: Teller | None = None

    def alpha(self, layer: int) -> float:
        return 1 + self.layer_weights[layer] * (self.scale - 1)


def scale_variance(
    model,
    scale: float,
    schedule: LayerSchedule | None = None,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    every_token: bool = False,
    prompts: tuple[PromptTokens, ...] = (),
    teller: Teller | None = None,
):
    """A clone of the ModelPatcher `model` with the variance of its text tokens scaled; several multiply.

    every_token: padding too. prompts: what `prompt_tokens` made of all prompts that are sampled with. teller: as in `guide`.
    schedule None scales before the joint blocks alone, not before those where text and image share one stream.
    Raises ValueError for a model, schedule or number that cannot work, with what to do about it.
    """
    check_percents(start_percent, end_percent)
    if not (math.isfinite(scale) and scale >= 0):
        raise ValueError(f"Scale Text Variance: scale is {scale}; it must be 0 or more, and 1 changes nothing.")
    host = HostModel.of(model)
    family = joint_family_of(host)
    joint_layers, layers = _layers(family, host)
    joint, depth = len(joint_layers), len(layers)
    if schedule is None:
        layer_weights = (1.0,) * joint + (0.0,) * (depth - joint)
    elif schedule.final_layer:
        raise ValueError(
            f"Layer schedule: final_layer is {schedule.final_layer}, but no text tokens reach the final output layer. Set it to 0."
        )
    else:
        layer_weights = schedule.resolve(depth)
    tokens = WhichTokens(every_token, counted=bool(prompts))
    scaling = Scaling(family.name, scale, layer_weights, joint, tokens, prompts, start_percent, end_percent, teller)
    before = model.model_options["transformer_options"].get(_PATCH.key, ())
    _check_alpha([*(other for other in before if len(other.layer_weights) == depth), scaling])
    remember(host.diffusion_model, _LAYERS, layers)
    model = _PATCH.put_on(model, scaling)
    # In its options, where the host finds it for each model of a guider that runs two.
    place = (WrappersMP.PREPARE_SAMPLING, COUNTED)
    if prompts and not get_wrappers_with_key(*place, model.model_options, is_model_options=True):
        add_wrapper_with_key(*place, _counted_sampling, model.model_options, is_model_options=True)
    return model


def _check_alpha(scalings: list[Scaling]) -> None:
    """Raises ValueError where the last of them, with those before it, multiplies a block's tokens by what fp32 cannot hold."""
    last, (layer, alpha) = scalings[-1], largest_alpha(scalings)
    if alpha > LARGEST_ALPHA:
        beside = f" with the {len(scalings) - 1} Scale Text Variance before it" if len(scalings) > 1 else ""
        raise ValueError(
            f"Scale Text Variance: scale {last.scale:g}{beside} multiplies the text tokens of layer {layer} by {alpha:.2g}. Beyond "
            f"{LARGEST_ALPHA:g}, numbers overflow and the image becomes NaN. Lower scale or the schedule's weights."
        )


def largest_alpha(scalings: Sequence[Scaling]) -> tuple[int, float]:
    """The layer with the largest |alpha|, and that: those multiplied whose windows meet.

    Whatever their tokens: the prompt's are scaled by all of them.
    """
    edges = sorted({percent for scaling in scalings for percent in (scaling.start_percent, scaling.end_percent)})
    products: list[tuple[int, float]] = []
    for percent in (*edges, *((one + next) / 2 for one, next in pairwise(edges))):
        acting = [scaling for scaling in scalings if scaling.start_percent <= percent <= scaling.end_percent]
        products += ((layer, math.prod(abs(scaling.alpha(layer)) for scaling in acting)) for layer in range(len(scalings[0].layer_weights)))
    return max(products, key=itemgetter(1))


def joint_family_of(host: HostModel) -> Family:
    """The family of a host model whose blocks attend to text and image jointly. Raises ValueError with its class if there is none."""
    families = [family for family in FAMILIES if family.text_tokens]
    for family in families:
        if family.has(host):
            return family
    refuse_wrapped(host)
    raise ValueError(
        f"Scale Text Variance works on models whose blocks attend to text and image tokens jointly (MM-DiT): "
        f"{', '.join(family.name for family in families)}. This model is a {host.name} (class {host.cls.__name__}), "
        "which is not among them: its text reaches the image by cross-attention or in another way. Connect a model of a supported kind."
    )


def prompt_tokens(model, clip, texts: list[str]) -> tuple[PromptTokens, ...]:
    """The tokens of each text, encoded anew; none for families whose inputs tell the padding.

    Raises ValueError if the encoder is not of the kind that the model uses.
    """
    family = joint_family_of(HostModel.of(model))
    if family.text_tokens.counting is None:
        return ()
    return tuple(prompt for text in dict.fromkeys(texts) for prompt in count_tokens(family, clip, text))


def _counted_sampling(executor, model, noise_shape, conds, *args, **kwargs):
    """PREPARE_SAMPLING wrapper: the host batches conditionings, and copies them where areas differ, after this."""
    scalings = model.model_options["transformer_options"].get(_PATCH.key)
    if scalings:  # inspecting takes them off
        count_in(conds, [prompt for scaling in scalings for prompt in scaling.prompts])
    return executor(model, noise_shape, conds, *args, **kwargs)


KEY, _LAYERS = "text_variance", "text tokens"


def _layers(family: Family, host: HostModel) -> tuple[list[BlockInput], list[BlockInput]]:
    """The joint blocks, and with them those of mixed streams."""
    joint = family.text_tokens.joint(host.diffusion_model)
    return joint, [*joint, *family.text_tokens.mixed(host.diffusion_model)]


def _edits(scalings: Sequence[Scaling], host: HostModel, call: Call, conditional: list[bool | None]) -> list[Edit]:
    """One Edit per block and choice of tokens, and one per block of mixed streams if a schedule names any of them.

    Blocks that are not scaled get alpha 1, so that another schedule is other numbers for torch.compile and not another graph.
    """
    scalings = [
        scaling
        for scaling in scalings
        if scaling.scale != 1 and any(scaling.layer_weights) and in_window(call, scaling.start_percent, scaling.end_percent)
    ]
    if not scalings:
        return []
    for scaling in scalings if call.sampling else ():
        call.sampling.acted(scaling)
    family = joint_family_of(host)
    in_mixed = scaled_first if family.text_tokens.mixed_text_first else scaled_last
    joint, depths = scalings[0].joint, {len(scaling.layer_weights) for scaling in scalings}
    blocks = as_applied(host.diffusion_model, _LAYERS, _layers(family, host)[1], depths, "Scale Text Variance")
    if not any(any(scaling.layer_weights[joint:]) for scaling in scalings):
        blocks = blocks[:joint]
    start, patches = None, call.options.get("patches", {})
    if "post_input" in patches:
        start = torch.zeros(1, dtype=torch.long, device=call.x.device)
        call.options["patches"] = patches | {"post_input": [PostInputPatches(patches["post_input"], start)]}
    edits = []
    for tokens in dict.fromkeys(scaling.tokens for scaling in scalings):
        kept = views(tokens.kept(family, call), len(blocks))
        for layer, block in enumerate(blocks):
            added = math.prod(scaling.alpha(layer) for scaling in scalings if scaling.tokens == tokens) - 1
            function = scaled if layer < joint else in_mixed
            # No views of `start`, which is filled in within the model: torch.compile would have to keep them in step.
            tensors = (torch.full((1,), added, dtype=torch.float32, device=kept[layer].device), kept[layer], start)
            edits.append(Edit(block, function, tensors, matters=added != 0))
    return edits


_PATCH = CallPatch("Scale Text Variance", KEY, _edits, of_scaling)


def scaled(tokens: Tensor, added: Tensor, kept: Tensor, start: Tensor | None, made: Made) -> Tensor:
    """z + (alpha - 1) (z - mean(z)), which is alpha (z - mean(z)) + mean(z), and z itself at alpha 1.

    tokens: (B, L, D). added: (1,), alpha - 1. kept: (R, L, 1), see `for_rows`, 1 for tokens that are scaled and make the mean, 0 for
    the others. start: (1,), where the tokens of `kept` begin among those that patches put beside them; None without patches.
    """
    if start is not None:
        kept = placed(kept, start, tokens.shape[1])
    if tokens.shape[1] != kept.shape[1]:
        raise ValueError(
            f"Scale Text Variance: {tokens.shape[1]} text tokens reach a block, but the model was given {kept.shape[1]}: another node "
            "changes their number within the model, where nothing says which ones are the prompt's. Use only one of the two nodes."
        )
    z = tokens.float()
    kept = for_rows(kept, len(z), made, "Scale Text Variance: set tokens to all, and disconnect clip and the texts")
    mean = (kept * z).sum(dim=1, keepdim=True) / kept.sum(dim=1, keepdim=True).clamp_min(1)
    return held(z + added * kept * (z - mean), z, kept, tokens.dtype).to(tokens.dtype)


def held(scaled: Tensor, z: Tensor, kept: Tensor, dtype: torch.dtype) -> Tensor:
    """`scaled`, made of z, with each row's kept tokens shortened together, where one of them holds a number too large for the dtype.

    What one block scales, the next scales again, as blocks add to the tokens and never norm what they pass on: 1.5 over 24 blocks is
    17,000 times. But each block reads them through a norm of each token, and the scaling is linear, so that a factor common to all of
    them is lost on both; only what blocks add weighs more beside it. Tokens are never made shorter than they came.
    """
    largest = min(torch.finfo(dtype).max / 2, LARGEST)
    before, after = ((kept * tokens).abs().amax(dim=(1, 2), keepdim=True) for tokens in (z, scaled))
    factor = (before.clamp_min(largest) / after).clamp_max(1)
    return scaled * (kept * factor + (1 - kept))


def scaled_first(stream: Tensor, added: Tensor, kept: Tensor, start: Tensor | None, made: Made) -> Tensor:
    """`scaled` on the first tokens of a stream, as many as `kept` has, or on those from `start` on."""
    if start is not None:
        return scaled(stream, added, kept, start, made)
    text, image = stream.tensor_split([kept.shape[1]], dim=1)
    return torch.cat((scaled(text, added, kept, None, made), image), dim=1)


def scaled_last(stream: Tensor, added: Tensor, kept: Tensor, start: Tensor | None, made: Made) -> Tensor:
    """`scaled` on the last tokens of a stream, as many as `kept` has. No model with the text there runs patches that fill `start`."""
    image, text = stream.tensor_split([stream.shape[1] - kept.shape[1]], dim=1)
    return torch.cat((image, scaled(text, added, kept, None, made)), dim=1)

"""Variance scale-up of text tokens, for rare concepts: before each joint-attention block, per dimension,

    z~ = alpha (z - mean(z)) + mean(z)        the mean over the prompt's tokens

"Rare Text Semantics Were Always There in Your Diffusion Transformer", NeurIPS 2025, arXiv 2510.03886.

Every row of the batch is scaled, unconditional ones with their own text: the formula makes no difference between prompts.
Padding is left as it is and out of the mean. Where a row's encoder gives an attention mask (HunyuanVideo, Qwen-Image, Mochi), or
padding is zeros, the inputs of the model tell it. FLUX.1, SD3 and HiDream-I1 get padded tokens without a mask: there the tokens
of the prompts must be counted (`prompt_tokens`), and without that all tokens are the prompt's.
Tokens that other nodes put beside the prompt's are no text: those in the model (`post_input` patches) are always left as they are,
those in a conditioning (Redux) where the prompt's are counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from .counting import COUNTED, PromptTokens, count_in, count_tokens, counted_rows
from .families import FAMILIES, BlockInput, Call, Family
from .guidance import check_percents, in_window
from .injection import Edit, edited, uncompiled
from .schedules import LayerSchedule
from .shifts import views
from .text_place import PostInputPatches, placed

KEY = "text_variance"  # constant, as guidance's and for the same reason

TOKENS = ("prompt", "all")


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
    """One scale-up on one model: alpha is 1 + weight (scale - 1) at each layer.

    prompts: whose tokens are counted, on all nodes together; () where none are.
    """

    scale: float
    layer_weights: tuple[float, ...]
    tokens: WhichTokens
    prompts: tuple[PromptTokens, ...]
    start_percent: float
    end_percent: float


def scale_variance(
    model,
    scale: float,
    schedule: LayerSchedule | None = None,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    every_token: bool = False,
    prompts: tuple[PromptTokens, ...] = (),
):
    """A clone of the ModelPatcher `model` with the variance of its text tokens scaled; several multiply.

    every_token: padding too. prompts: what `prompt_tokens` made of all prompts that are sampled with.
    schedule None scales before the joint blocks alone, not before those where text and image share one stream.
    Raises ValueError for a model, schedule or number that cannot work, with what to do about it.
    """
    check_percents(start_percent, end_percent)
    if not (math.isfinite(scale) and scale >= 0):
        raise ValueError(f"Scale Text Variance: scale is {scale}; it must be 0 or more, and 1 changes nothing.")
    diffusion_model = uncompiled(model.get_model_object("diffusion_model"))
    family = joint_family_of(diffusion_model, type(model.model).__name__)
    joint = len(family.text_tokens.joint(diffusion_model))
    depth = family.depth(diffusion_model)
    if schedule is None:
        layer_weights = (1.0,) * joint + (0.0,) * (depth - joint)
    elif schedule.final_layer:
        raise ValueError(
            f"Layer schedule: final_layer is {schedule.final_layer}, but no text tokens reach the output head. Set it to 0."
        )
    else:
        layer_weights = schedule.resolve(depth)
    tokens = WhichTokens(every_token, counted=bool(prompts))
    scaling = Scaling(scale, layer_weights, tokens, prompts, start_percent, end_percent)
    model = model.clone()
    options = model.model_options["transformer_options"]
    options[KEY] = (*options.get(KEY, ()), scaling)
    if not model.get_wrappers(WrappersMP.APPLY_MODEL, KEY):
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _scaled_call)
        # The host batches conditionings, and copies them where areas differ, after this.
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _counted_sampling)
    return model


def joint_family_of(diffusion_model: nn.Module, model_name: str) -> Family:
    """The family of a host model whose blocks attend to text and image jointly. Raises ValueError with its class if there is none."""
    families = [family for family in FAMILIES if family.text_tokens]
    for family in families:
        if family.matches(diffusion_model):
            return family
    raise ValueError(
        f"Scale Text Variance works on models whose blocks attend to text and image tokens jointly (MM-DiT): "
        f"{', '.join(family.name for family in families)}. This model is a {model_name} (class {type(diffusion_model).__name__}), "
        "which is not among them: its text reaches the picture by cross-attention or in another way. Connect a model of a supported kind."
    )


def prompt_tokens(model, clip, texts: list[str]) -> tuple[PromptTokens, ...]:
    """The tokens of each text, encoded anew; none for families whose inputs tell the padding.

    Raises ValueError if the encoder is not of the kind that the model uses.
    """
    family = joint_family_of(uncompiled(model.get_model_object("diffusion_model")), type(model.model).__name__)
    if family.text_tokens.counting is None:
        return ()
    return tuple(prompt for text in dict.fromkeys(texts) for prompt in count_tokens(family, clip, text))


def _counted_sampling(executor, *args, **kwargs):
    guider = executor.class_obj
    scalings = guider.model_options["transformer_options"].get(KEY, ())
    if prompts := [prompt for scaling in scalings for prompt in scaling.prompts]:
        count_in(guider.conds, prompts)
    return executor(*args, **kwargs)


def _scaled_call(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
    """APPLY_MODEL wrapper: outside any compiled region, the only place of a call where scales and layer numbers are read."""
    base_model = executor.class_obj
    call = Call(base_model, x, t, len(transformer_options.get("cond_or_uncond", [0])), c_crossattn, kwargs)
    scalings = [
        scaling for scaling in transformer_options.get(KEY, ())
        if scaling.scale != 1 and any(scaling.layer_weights) and in_window(call, scaling.start_percent, scaling.end_percent)
    ]
    # Taken out, so that a wrapper list merged twice by somebody does not scale twice, and that torch.compile sees no new object.
    transformer_options = {name: value for name, value in transformer_options.items() if name != KEY}
    conds = {name: value for name, value in kwargs.items() if name != COUNTED}
    args = (x, t, c_concat, c_crossattn, control, transformer_options)
    if not scalings:
        return executor(*args, **conds)
    start = None
    patches = transformer_options.get("patches", {})
    if "post_input" in patches:
        start = torch.zeros(1, dtype=torch.long, device=x.device)
        transformer_options["patches"] = patches | {"post_input": [PostInputPatches(patches["post_input"], start)]}
    diffusion_model = uncompiled(base_model.diffusion_model)
    with edited(diffusion_model, _edits(scalings, diffusion_model, call, start)):
        return executor(*args, **conds)


def _edits(scalings: list[Scaling], diffusion_model: nn.Module, call: Call, start: Tensor | None):
    """One Edit per block and choice of tokens, and one per block of mixed streams if a schedule names any of them.

    start: where the text begins among the tokens that patches make of it, (1,), known once they have run; None without patches.
    Blocks that are not scaled get alpha 1, so that another schedule is other numbers for torch.compile and not another graph.
    """
    family = joint_family_of(diffusion_model, type(call.base_model).__name__)
    joint, mixed = family.text_tokens.joint(diffusion_model), family.text_tokens.mixed(diffusion_model)
    in_mixed = scaled_first if family.text_tokens.mixed_text_first else scaled_last
    layers: list[tuple[BlockInput, object]] = [*((block, scaled) for block in joint), *((block, in_mixed) for block in mixed)]
    for scaling in scalings:
        if len(scaling.layer_weights) != len(layers):
            raise ValueError(
                f"Scale Text Variance was applied to a model of {len(scaling.layer_weights)} layers and now runs on one of "
                f"{len(layers)}. Apply it after the node that changes the model, and to each model of a guider on its own."
            )
    if not any(any(scaling.layer_weights[len(joint):]) for scaling in scalings):
        layers = layers[:len(joint)]
    for tokens in dict.fromkeys(scaling.tokens for scaling in scalings):
        kept = tokens.kept(family, call)
        added = {}  # alpha - 1, as tensors
        for layer, (block, function) in enumerate(layers):
            alpha = math.prod(
                1 + scaling.layer_weights[layer] * (scaling.scale - 1) for scaling in scalings if scaling.tokens == tokens
            )
            if alpha not in added:
                added[alpha] = torch.full((1,), alpha - 1, dtype=torch.float32, device=kept.device)
            # No views of `start`: torch.compile would have to keep them and what is filled in apart.
            yield Edit(block, function, (views(added[alpha]), views(kept), start))


def scaled(tokens: Tensor, added: Tensor, kept: Tensor, start: Tensor | None) -> Tensor:
    """z + (alpha - 1) (z - mean(z)), which is alpha (z - mean(z)) + mean(z), and z itself at alpha 1.

    tokens: (R, L, D). added: (1,), alpha - 1. kept: (R, L, 1), 1 for tokens that are scaled and make the mean, 0 for the others.
    start: (1,), where the tokens of `kept` begin among others, None where there are no others.
    """
    if start is not None:
        kept = placed(kept, start, tokens.shape[1])
    if tokens.shape[:2] != kept.shape[:2]:
        raise ValueError(
            f"Scale Text Variance: {tokens.shape[0]} rows of {tokens.shape[1]} text tokens reach a block, but the model was given "
            f"{kept.shape[0]} of {kept.shape[1]}: another node changes them within the model, where it can't be told which ones are the "
            "prompt's. Use only one of the two nodes."
        )
    z = tokens.float()
    mean = (kept * z).sum(dim=1, keepdim=True) / kept.sum(dim=1, keepdim=True).clamp_min(1)
    return (z + added * kept * (z - mean)).to(tokens.dtype)


def scaled_first(stream: Tensor, added: Tensor, kept: Tensor, start: Tensor | None) -> Tensor:
    """`scaled` on the first tokens of a stream, as many as `kept` has, or on those from `start` on."""
    if start is not None:
        return scaled(stream, added, kept, start)
    text, image = stream.tensor_split([kept.shape[1]], dim=1)
    return torch.cat((scaled(text, added, kept, None), image), dim=1)


def scaled_last(stream: Tensor, added: Tensor, kept: Tensor, start: Tensor | None) -> Tensor:
    """`scaled` on the last tokens of a stream, as many as `kept` has. No model with the text there runs patches that fill `start`."""
    image, text = stream.tensor_split([stream.shape[1] - kept.shape[1]], dim=1)
    return torch.cat((image, scaled(text, added, kept, None)), dim=1)

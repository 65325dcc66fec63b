"""Variance scale-up of text tokens, for rare concepts: before each joint-attention block, per dimension,

    z~ = alpha (z - mean(z)) + mean(z)        the mean over the prompt's tokens

"Rare Text Semantics Were Always There in Your Diffusion Transformer", NeurIPS 2025, arXiv 2510.03886.

Every row of the batch is scaled, unconditional ones with their own text: the formula makes no difference between prompts.
Padding is left as it is and out of the mean. Where a row's encoder gives an attention mask (HunyuanVideo, Qwen-Image, Mochi), or
padding is zeros, the inputs of the model tell it. FLUX.1, SD3 and HiDream-I1 get padded tokens without a mask: there the tokens
of the prompt must be counted (`prompt_tokens`), and without that all tokens are the prompt's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from .conditionings import check_known, conditional_chunks, tell_conditionings_apart
from .families import FAMILIES, BlockInput, Call, Family, refuse_wrapped
from .guidance import check_percents, in_window
from .injection import Edit, edited, uncompiled
from .schedules import LayerSchedule
from .shifts import views

KEY = "text_variance"  # constant, as guidance's and for the same reason
NUMBERS = f"{KEY}_numbers"

TOKENS = ("prompt", "all")

# The host's names of encoders whose modules are called otherwise.
_MODULES = {"l": "clip_l", "g": "clip_g"}


@dataclass(frozen=True)
class WhichTokens:
    """Which of a row's text tokens are scaled.

    all: padding too. positive, negative: for the conditional and the other rows, True for each token of the prompt; None: as far
    as the model's inputs tell.
    """

    all: bool = False
    positive: tuple[bool, ...] | None = None
    negative: tuple[bool, ...] | None = None

    def kept(self, family: Family, call: Call, conditional: list[bool]) -> Tensor:
        """(R, L, 1) in fp32, 1 for the tokens that are scaled and 0 for the others."""
        present = family.text_tokens.present(call)
        if self.all:
            present = torch.ones_like(present)
        if self.positive is not None:
            check_known(conditional, "Scale Text Variance reads their tokens off the prompts connected to it: disconnect these.")
            rows = [self.positive if is_conditional else self.negative for is_conditional in conditional]
            for tokens in rows:
                if len(tokens) != present.shape[1]:
                    raise ValueError(
                        f"Scale Text Variance: the prompt and negative_prompt connected to it make {len(tokens)} text tokens, but a "
                        f"conditioning that is sampled with has {present.shape[1]}. Connect the very texts and encoder that the "
                        "conditionings are made of, or disconnect them."
                    )
            counted = torch.tensor(rows, device=present.device).repeat_interleave(call.rows // call.chunks, dim=0)
            present = present & counted
        return present.unsqueeze(-1).float()


@dataclass(frozen=True)
class Scaling:
    """One scale-up on one model: alpha is 1 + weight (scale - 1) at each layer; tokens: which ones."""

    scale: float
    layer_weights: tuple[float, ...]
    tokens: WhichTokens
    start_percent: float
    end_percent: float


def scale_variance(
    model,
    scale: float,
    schedule: LayerSchedule | None = None,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    tokens: WhichTokens = WhichTokens(),
):
    """A clone of the ModelPatcher `model` with the variance of its text tokens scaled; several multiply.

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
    scaling = Scaling(scale, layer_weights, tokens, start_percent, end_percent)
    model = model.clone()
    options = model.model_options["transformer_options"]
    options[KEY] = (*options.get(KEY, ()), scaling)
    if not model.get_wrappers(WrappersMP.APPLY_MODEL, KEY):
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _scaled_call)
        tell_conditionings_apart(model, KEY, NUMBERS)
    return model


def joint_family_of(diffusion_model: nn.Module, model_name: str) -> Family:
    """The family of a host model whose blocks attend to text and image jointly. Raises ValueError with its class if there is none."""
    families = [family for family in FAMILIES if family.text_tokens]
    for family in families:
        if family.matches(diffusion_model):
            return family
    refuse_wrapped(diffusion_model, model_name)
    raise ValueError(
        f"Scale Text Variance works on models whose blocks attend to text and image tokens jointly (MM-DiT): "
        f"{', '.join(family.name for family in families)}. This model is a {model_name} (class {type(diffusion_model).__name__}), "
        "which is not among them: its text reaches the picture by cross-attention or in another way. Connect a model of a supported kind."
    )


def prompt_tokens(model, clip, prompt: str) -> tuple[bool, ...] | None:
    """For each text token that the model gets of this prompt, True for the prompt's (start and end included), False for padding.

    None for families whose inputs tell the padding. Raises ValueError if the encoder is not of the kind that the model uses.
    """
    diffusion_model = uncompiled(model.get_model_object("diffusion_model"))
    family = joint_family_of(diffusion_model, type(model.model).__name__)
    if not family.text_tokens.encoders:
        return None
    chunks = clip.tokenize(prompt, return_word_ids=True)
    kept = []
    for names in family.text_tokens.encoders:
        loaded = [name for name in names.split() if getattr(clip.cond_stage_model, _MODULES.get(name, name), None) is not None]
        if not any(name in chunks for name in names.split()):
            raise ValueError(
                f"Scale Text Variance: the text encoder on clip makes tokens for {', '.join(chunks)}, but {family.name} reads those of "
                f"{names.replace(' ', ' or ')}. Connect the text encoder the model uses: {family.encoder}."
            )
        for name in loaded[:1]:
            tokenizer = getattr(clip.tokenizer, _MODULES.get(name, name))
            for chunk in chunks[name]:
                words = [position for position, (_, _, word) in enumerate(chunk) if word]
                last = max(words, default=0 if tokenizer.start_token is not None else -1)
                count = last + 1 + (tokenizer.end_token is not None)
                kept += [position < count for position in range(len(chunk))]
    return tuple(kept)


def _scaled_call(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
    """APPLY_MODEL wrapper: outside any compiled region, the only place of a call where scales and layer numbers are read."""
    base_model = executor.class_obj
    conditional = conditional_chunks(transformer_options, NUMBERS, len(x))
    call = Call(base_model, x, t, len(conditional), c_crossattn, kwargs)
    scalings = [
        scaling for scaling in transformer_options.get(KEY, ())
        if scaling.scale != 1 and any(scaling.layer_weights) and in_window(call, scaling.start_percent, scaling.end_percent)
    ]
    # Taken out, so that a wrapper list merged twice by somebody does not scale twice, and that torch.compile sees no new object.
    transformer_options = {name: value for name, value in transformer_options.items() if name not in (KEY, NUMBERS)}
    args = (x, t, c_concat, c_crossattn, control, transformer_options)
    if not scalings:
        return executor(*args, **kwargs)
    diffusion_model = uncompiled(base_model.diffusion_model)
    with edited(diffusion_model, _edits(scalings, diffusion_model, call, conditional)):
        return executor(*args, **kwargs)


def _edits(scalings: list[Scaling], diffusion_model: nn.Module, call: Call, conditional: list[bool]):
    """One Edit per block and choice of tokens, and one per block of mixed streams if a schedule names any of them.

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
                f"{len(layers)}. Apply it after the node that changes the model; a guider that runs a second model with the first one's "
                "options needs one of as many layers."
            )
    if not any(any(scaling.layer_weights[len(joint):]) for scaling in scalings):
        layers = layers[:len(joint)]
    for tokens in dict.fromkeys(scaling.tokens for scaling in scalings):
        kept = tokens.kept(family, call, conditional)
        added = {}  # alpha - 1, as tensors
        for layer, (block, function) in enumerate(layers):
            alpha = math.prod(
                1 + scaling.layer_weights[layer] * (scaling.scale - 1) for scaling in scalings if scaling.tokens == tokens
            )
            if alpha not in added:
                added[alpha] = torch.full((1,), alpha - 1, dtype=torch.float32, device=kept.device)
            yield Edit(block, function, (views(added[alpha]), views(kept)))


def scaled(tokens: Tensor, added: Tensor, kept: Tensor) -> Tensor:
    """z + (alpha - 1) (z - mean(z)), which is alpha (z - mean(z)) + mean(z), and z itself at alpha 1.

    tokens: (B, L, D). added: (1,), alpha - 1. kept: (B, L, 1), 1 for tokens that are scaled and make the mean, 0 for the others.
    """
    z = tokens.float()
    mean = (kept * z).sum(dim=1, keepdim=True) / kept.sum(dim=1, keepdim=True).clamp_min(1)
    return (z + added * kept * (z - mean)).to(tokens.dtype)


def scaled_first(stream: Tensor, added: Tensor, kept: Tensor) -> Tensor:
    """`scaled` on the first tokens of a stream, as many as `kept` has."""
    text, image = stream.tensor_split([kept.shape[1]], dim=1)
    return torch.cat((scaled(text, added, kept), image), dim=1)


def scaled_last(stream: Tensor, added: Tensor, kept: Tensor) -> Tensor:
    """`scaled` on the last tokens of a stream, as many as `kept` has."""
    image, text = stream.tensor_split([stream.shape[1] - kept.shape[1]], dim=1)
    return torch.cat((image, scaled(text, added, kept)), dim=1)

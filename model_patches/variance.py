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
from torch import Tensor

from .calls import CallPatch
from .conditionings import check_known
from .families import FAMILIES, BlockInput, Call, Family, refuse_wrapped
from .guidance import check_percents, in_window
from .host_model import HostModel
from .injection import Edit, Made
from .layers import as_applied, remember
from .schedules import LayerSchedule
from .shifts import for_rows, views

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
    """One scale-up on one model: alpha is 1 + weight (scale - 1) at each layer, of which the first `joint` are joint blocks.

    tokens: which ones.
    """

    scale: float
    layer_weights: tuple[float, ...]
    joint: int
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
    host = HostModel.of(model)
    family = joint_family_of(host)
    joint_layers, layers = _layers(family, host)
    joint, depth = len(joint_layers), len(layers)
    if schedule is None:
        layer_weights = (1.0,) * joint + (0.0,) * (depth - joint)
    elif schedule.final_layer:
        raise ValueError(
            f"Layer schedule: final_layer is {schedule.final_layer}, but no text tokens reach the output head. Set it to 0."
        )
    else:
        layer_weights = schedule.resolve(depth)
    scaling = Scaling(scale, layer_weights, joint, tokens, start_percent, end_percent)
    remember(host.diffusion_model, _LAYERS, layers)
    return _PATCH.put_on(model, scaling)


def joint_family_of(host: HostModel) -> Family:
    """The family of a host model whose blocks attend to text and image jointly. Raises ValueError with its class if there is none."""
    families = [family for family in FAMILIES if family.text_tokens]
    for family in families:
        if family.matches(host.diffusion_model, host.cls):
            return family
    refuse_wrapped(host)
    raise ValueError(
        f"Scale Text Variance works on models whose blocks attend to text and image tokens jointly (MM-DiT): "
        f"{', '.join(family.name for family in families)}. This model is a {host.name} (class {host.cls.__name__}), "
        "which is not among them: its text reaches the picture by cross-attention or in another way. Connect a model of a supported kind."
    )


def prompt_tokens(model, clip, prompt: str) -> tuple[bool, ...] | None:
    """For each text token that the model gets of this prompt, True for the prompt's (start and end included), False for padding.

    None for families whose inputs tell the padding. Raises ValueError if the encoder is not of the kind that the model uses.
    """
    family = joint_family_of(HostModel.of(model))
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


_LAYERS = "text tokens"


def _layers(family: Family, host: HostModel) -> tuple[list[BlockInput], list[BlockInput]]:
    """The joint blocks, and with them those of mixed streams."""
    joint = family.text_tokens.joint(host.diffusion_model)
    return joint, [*joint, *family.text_tokens.mixed(host.diffusion_model)]


def _edits(scalings: tuple[Scaling, ...], host: HostModel, call: Call, conditional: list[bool | None]) -> list[Edit]:
    """One Edit per block and choice of tokens, and one per block of mixed streams if a schedule names any of them.

    Blocks that are not scaled get alpha 1, so that another schedule is other numbers for torch.compile and not another graph.
    """
    scalings = [
        scaling for scaling in scalings
        if scaling.scale != 1 and any(scaling.layer_weights) and in_window(call, scaling.start_percent, scaling.end_percent)
    ]
    if not scalings:
        return []
    family = joint_family_of(host)
    in_mixed = scaled_first if family.text_tokens.mixed_text_first else scaled_last
    joint, depths = scalings[0].joint, {len(scaling.layer_weights) for scaling in scalings}
    blocks = as_applied(host.diffusion_model, _LAYERS, _layers(family, host)[1], depths, "Scale Text Variance")
    if not any(any(scaling.layer_weights[joint:]) for scaling in scalings):
        blocks = blocks[:joint]
    edits = []
    for tokens in dict.fromkeys(scaling.tokens for scaling in scalings):
        kept = views(tokens.kept(family, call, conditional), len(blocks))
        for layer, block in enumerate(blocks):
            added = math.prod(
                1 + scaling.layer_weights[layer] * (scaling.scale - 1) for scaling in scalings if scaling.tokens == tokens
            ) - 1
            function = scaled if layer < joint else in_mixed
            tensors = (torch.full((1,), added, dtype=torch.float32, device=kept[layer].device), kept[layer])
            edits.append(Edit(block, function, tensors, matters=added != 0))
    return edits


_PATCH = CallPatch("Scale Text Variance", "text_variance", _edits)


def scaled(tokens: Tensor, added: Tensor, kept: Tensor, made: Made) -> Tensor:
    """z + (alpha - 1) (z - mean(z)), which is alpha (z - mean(z)) + mean(z), and z itself at alpha 1.

    tokens: (B, L, D). added: (1,), alpha - 1. kept: (R, L, 1), see `for_rows`, 1 for tokens that are scaled and make the mean, 0 for
    the others.
    """
    z = tokens.float()
    kept = for_rows(kept, len(z), made)
    mean = (kept * z).sum(dim=1, keepdim=True) / kept.sum(dim=1, keepdim=True).clamp_min(1)
    return (z + added * kept * (z - mean)).to(tokens.dtype)


def scaled_first(stream: Tensor, added: Tensor, kept: Tensor, made: Made) -> Tensor:
    """`scaled` on the first tokens of a stream, as many as `kept` has."""
    text, image = stream.tensor_split([kept.shape[1]], dim=1)
    return torch.cat((scaled(text, added, kept, made), image), dim=1)


def scaled_last(stream: Tensor, added: Tensor, kept: Tensor, made: Made) -> Tensor:
    """`scaled` on the last tokens of a stream, as many as `kept` has."""
    image, text = stream.tensor_split([stream.shape[1] - kept.shape[1]], dim=1)
    return torch.cat((image, scaled(text, added, kept, made)), dim=1)

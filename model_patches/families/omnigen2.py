"""OmniGen 2.

Text-blind: y = time_caption_embed.timestep_embedder(1 - t). The refiners keep the plain time.
There is no reference for its settings: start layer a tenth of the depth, both rows, plain head.
"""

import torch
from comfy.ldm.omnigen.omnigen2 import OmniGen2Transformer2DModel

from ..directions import EncodedPrompt
from .base import Family
from .blocks import BlockInput, Injection, in_width, runs_as
from .text import TextContext


def _time_embedding(model, call):
    """(R, D)"""
    embedder = model.time_caption_embed
    return embedder.timestep_embedder(embedder.time_proj(1 - call.timestep).to(call.dtype))


def _blank(model):
    """With a mask: without one the host does not say how many tokens there are."""
    return EncodedPrompt(None, torch.zeros(1, 8, _text_width(model)), {"attention_mask": torch.ones(1, 8, dtype=torch.int64)})


def _text_width(model):
    return in_width(model.time_caption_embed.caption_embedder[1])


OMNIGEN2 = Family(
    name="OmniGen 2",
    # Boogu, of a host class derived from OmniGen 2's, runs a model class of its own.
    matches=lambda model, cls: runs_as(cls, OmniGen2Transformer2DModel),
    host_models=("Omnigen2",),
    injections={
        "time embedding": Injection(
            blocks=lambda model: [BlockInput(block, "temb", 3) for block in model.layers],
            head=lambda model: BlockInput(model.norm_out, "conditioning_embedding", 1),
            y=_time_embedding,
            width=lambda model: in_width(model.norm_out.linear_1),
        )
    },
    text=None,
    context=TextContext(_text_width),
    blank=_blank,
    encoder="Qwen2.5-VL 3B, with CLIPLoader and type omnigen2",
)

"""PixArt-alpha and PixArt-Sigma.

Text-blind: y = t_embedder(t), with the picture's size and shape in PixArt-alpha's 1024 px models. One layer makes from it what modulates
every block; the head takes y itself.
There is no reference for its settings: start layer a tenth of the depth, both rows, plain head.
"""

import torch
from comfy.ldm.pixart.pixartms import PixArtMS

from ..shifts import carried
from .base import Family
from .blocks import BlockInput, Injection, in_width, runs_as
from .text import TextContext


def _time_embedding(model, call):
    """(R, D)"""
    y = model.t_embedder(call.timestep, call.dtype)
    if not model.micro_conditioning:
        return y
    height, width = call.x.shape[-2:]
    size = call.conds.get("c_size", torch.tensor([[8.0 * height, 8.0 * width]]))
    shape = call.conds.get("c_ar", torch.tensor([[height / width]]))
    return y + torch.cat([model.csize_embedder(call.cast(size), call.rows), model.ar_embedder(call.cast(shape), call.rows)], dim=1)


def _carry(model, call, shifts):
    """What the shifts of y change in the blocks' modulation, (R, 6 D) each."""
    return carried(model.t_block, _time_embedding(model, call), shifts)


PIXART = Family(
    name="PixArt",
    matches=lambda model, cls: runs_as(cls, PixArtMS),
    host_models=("PixArt",),
    injections={
        "time embedding": Injection(
            blocks=lambda model: [BlockInput(block, "t", 2, _carry) for block in model.blocks],
            head=lambda model: BlockInput(model.final_layer, "t", 1),
            y=_time_embedding,
            width=lambda model: model.hidden_size,
        )
    },
    text=None,
    context=TextContext(lambda model: in_width(model.y_embedder.y_proj.fc1)),
    encoder="T5-XXL, with CLIPLoader and type pixart",
)

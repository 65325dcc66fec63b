"""Ernie-Image.

Text-blind: y = time_embedding(t). One layer makes from it what modulates every block; the head takes y itself.
There is no reference for its settings: start layer a tenth of the depth, both rows, plain head.
"""

from comfy.ldm.ernie.model import ErnieImageModel

from ..shifts import carried
from .base import Family
from .blocks import BlockInput, Injection, in_width, runs_as
from .text import TextContext


def _time_embedding(model, call):
    """(R, D)"""
    return model.time_embedding(model.time_proj(call.timestep).to(call.dtype))


def _carry(model, call, shifts):
    """What the shifts of y change in the blocks' modulation, six of (R, 1, D) each."""
    changes = carried(model.adaLN_modulation, _time_embedding(model, call), shifts)
    return [change.unsqueeze(1).chunk(6, dim=-1) for change in changes]


ERNIE_IMAGE = Family(
    name="Ernie-Image",
    matches=lambda model, cls: runs_as(cls, ErnieImageModel),
    host_models=("ErnieImage",),
    injections={
        "time embedding": Injection(
            blocks=lambda model: [BlockInput(block, "temb", 2, _carry) for block in model.layers],
            head=lambda model: BlockInput(model.final_norm, "conditioning", 1),
            y=_time_embedding,
            width=lambda model: model.hidden_size,
        )
    },
    text=None,
    # Without a layer for it, the text is as wide as the model.
    context=TextContext(lambda model: model.hidden_size if model.text_proj is None else in_width(model.text_proj)),
    encoder="Ministral 3 3B, with CLIPLoader",
)

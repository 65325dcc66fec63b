"""Lumina 2 and Z-Image.

Text-blind: y = t_embedder(1 - t). Refiners keep the plain y. With reference pictures at a time of their own, y holds both times, and
both are shifted.
There is no reference for its settings: start layer a tenth of the depth, both rows, plain head.
"""

from comfy.ldm.lumina.model import NextDiT

from .base import Family
from .blocks import BlockInput, Injection, in_width, runs_as
from .text import TextContext

LUMINA2 = Family(
    name="Lumina 2 / Z-Image",
    # Its subclass for pixel space has another head.
    matches=lambda model, cls: runs_as(cls, NextDiT) and model.clip_text_pooled_proj is None,
    host_models=("Lumina2",),
    injections={
        "time embedding": Injection(
            blocks=lambda model: [BlockInput(block, "adaln_input", 3, repeats=True) for block in model.layers],
            head=lambda model: BlockInput(model.final_layer, "c", 1, repeats=True),
            y=lambda model, call: model.t_embedder((1.0 - call.timestep) * model.time_scale, dtype=call.dtype),
            width=lambda model: in_width(model.layers[0].adaLN_modulation[-1]),
        )
    },
    text=None,
    context=TextContext(lambda model: in_width(model.cap_embedder[1])),
    encoder="Gemma 2 2B (Lumina 2) or Qwen3 4B (Z-Image), with CLIPLoader and type lumina2",
)

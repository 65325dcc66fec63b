"""NewBie (the Lumina 2 class with a pooled text path).

y = time_text_embed([t_embedder(1 - t), clip_text_pooled_proj(Jina CLIP pooled)]), a SiLU and a linear layer: time and text add up in
it, so the difference of two prompts is the same at every step, and is taken beside a time of zeros. Refiners keep the plain y.
There is no reference implementation of modulation guidance for it: start layer a tenth of the depth, both rows, plain head.
"""

from comfy.ldm.lumina.model import NextDiT
from torch.nn import functional

from .base import Family
from .blocks import BlockInput, Injection, in_width, runs_as
from .text import PooledText, blank


def _modulation(model, pooled):
    text = model.clip_text_pooled_proj(pooled)
    time_and_text = in_width(model.time_text_embed[-1])
    return model.time_text_embed(functional.pad(text, (time_and_text - text.shape[-1], 0)))


NEWBIE = Family(
    name="NewBie",
    matches=lambda model, cls: runs_as(cls, NextDiT) and model.clip_text_pooled_proj is not None,
    host_models=("Lumina2",),
    injections={
        "modulation": Injection(
            blocks=lambda model: [BlockInput(block, "adaln_input", 3, repeats=True) for block in model.layers],
            head=lambda model: BlockInput(model.final_layer, "c", 1, repeats=True),
            width=lambda model: in_width(model.layers[0].adaLN_modulation[-1]),
        )
    },
    text=PooledText(width=lambda model: model.clip_text_dim, modulation=_modulation),
    blank=blank(lambda model: in_width(model.cap_embedder[1]), lambda model: model.clip_text_dim),
    encoder="Gemma 3 4B and Jina CLIP v2, with DualCLIPLoader and type newbie",
)

"""FLUX.1: schnell, dev, Kontext, Fill, Krea, and finetunes of any depth.

y = time_in(t) + guidance_in(g) + vector_in(CLIP-L pooled); the guidance term only in models that have it.
Reference settings: github.com/quickjkee/modulation-guidance, FLUX schnell and dev: w 3, start layer 5, every row, plain head.
"""

from comfy.ldm.flux.model import Flux

from .base import Family
from .blocks import BlockInput, Injection, runs_as
from .text import Counting, PooledText, TextTokens, blank


def _matches(model, cls):
    # FLUX.2 is the same class without a pooled text path.
    return runs_as(cls, Flux) and model.vector_in is not None


def _blocks(model):
    return [
        *(BlockInput(block, "vec", 2, repeats=True) for block in model.double_blocks),
        *(BlockInput(block, "vec", 1, repeats=True) for block in model.single_blocks),
    ]


FLUX = Family(
    name="FLUX.1",
    matches=_matches,
    host_models=("Flux",),
    # Where the head reads y, and not the head itself: some packs run its parts one by one.
    injections={
        "modulation": Injection(
            _blocks,
            head=lambda model: BlockInput(model.final_layer.adaLN_modulation, "input", 0, repeats=True),
            width=lambda model: model.hidden_size,
        )
    },
    text=PooledText(width=lambda model: model.params.vec_in_dim, modulation=lambda model, pooled: model.vector_in(pooled)),
    blank=blank(lambda model: model.params.context_in_dim, lambda model: model.params.vec_in_dim),
    encoder="CLIP-L, with DualCLIPLoader and type flux",
    w=3.0,
    start_layer=5,
    # The host pads T5's tokens to 256 and gives no mask: nothing in the inputs tells the padding. Small models read CLIP's.
    text_tokens=TextTokens(
        joint=lambda model: [BlockInput(block, "txt", 1) for block in model.double_blocks],
        mixed=lambda model: [BlockInput(block, "x", 0) for block in model.single_blocks],
        counting=Counting(("t5xxl l",), in_order=lambda masks: masks.get("t5xxl", masks.get("l", []))),
    ),
)

"""Kandinsky 5, image and video, lite and pro.

y = time_embeddings(t) + pooled_text_embeddings(CLIP-L pooled). The text blocks before the visual ones keep the plain y.
There is no reference implementation of modulation guidance for it: start layer a tenth of the depth, both rows, plain head.
"""

from comfy.ldm.kandinsky5.model import Kandinsky5

from .base import Family
from .blocks import BlockInput, Injection, in_width, out_width, runs_as
from .text import PooledText, blank

KANDINSKY5 = Family(
    name="Kandinsky 5",
    matches=lambda model, cls: runs_as(cls, Kandinsky5),
    host_models=("Kandinsky5", "Kandinsky5Image"),
    injections={
        "modulation": Injection(
            blocks=lambda model: [BlockInput(block, "time_embed", 2) for block in model.visual_transformer_blocks],
            head=lambda model: BlockInput(model.out_layer, "time_embed", 1),
            width=lambda model: out_width(model.time_embeddings.out_layer),
        )
    },
    text=PooledText(
        width=lambda model: in_width(model.pooled_text_embeddings.in_layer),
        modulation=lambda model, pooled: model.pooled_text_embeddings(pooled),
    ),
    blank=blank(lambda model: in_width(model.text_embeddings.in_layer), lambda model: in_width(model.pooled_text_embeddings.in_layer)),
    encoder="CLIP-L, with DualCLIPLoader and type kandinsky5 or kandinsky5_image",
)

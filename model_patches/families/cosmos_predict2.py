"""Cosmos-Predict2: text to image and image to video, 2B and 14B.

Text-blind. Reference settings, with the distilled CLIP projection: github.com/quickjkee/modulation-guidance, COSMOS: w 3, start
layer 0, conditional rows, plain head.
"""

from comfy.ldm.cosmos.predict2 import MiniTrainDIT

from .base import Family
from .blocks import runs_as
from .minitrain import INJECTIONS, context_width
from .text import TextContext

COSMOS_PREDICT2 = Family(
    name="Cosmos-Predict2",
    matches=lambda model, cls: runs_as(cls, MiniTrainDIT),
    host_models=("CosmosPredict2",),
    injections=INJECTIONS,
    text=None,
    context=TextContext(context_width),
    encoder="T5-XXL 1.0, with CLIPLoader and type cosmos",
    w=3.0,
    start_layer=0,
    cfg_rows="cond",
)

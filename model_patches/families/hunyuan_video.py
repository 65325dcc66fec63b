"""HunyuanVideo 13B: text to video, and image to video, with token replacement too.

y = time_in(t) + vector_in(CLIP-L pooled) + guidance_in(g). With token replacement y is (B, 2, D), one row for the replaced
frame and one for the others; both hold the pooled text, and both are shifted.
Reference settings: github.com/quickjkee/modulation-guidance, HunyuanVideo: w 3.5, start layer 5, every row, plain head.
"""

from comfy.ldm.hunyuan_video.model import HunyuanVideo

from .base import Family
from .blocks import BlockInput, Injection, runs_as
from .text import PooledText, TextTokens, blank


def _matches(model, cls):
    # HunyuanVideo 1.5 and HunyuanImage 2.1 are the same class without a pooled text path.
    return runs_as(cls, HunyuanVideo) and model.vector_in is not None


def _blocks(model):
    return [
        *(BlockInput(block, "vec", 2) for block in model.double_blocks),
        *(BlockInput(block, "vec", 1) for block in model.single_blocks),
    ]


HUNYUAN_VIDEO = Family(
    name="HunyuanVideo",
    matches=_matches,
    host_models=("HunyuanVideo", "HunyuanVideoI2V", "HunyuanVideoSkyreelsI2V"),
    injections={
        "modulation": Injection(_blocks, head=lambda model: BlockInput(model.final_layer, "vec", 1), width=lambda model: model.hidden_size)
    },
    text=PooledText(width=lambda model: model.params.vec_in_dim, modulation=lambda model, pooled: model.vector_in(pooled)),
    blank=blank(lambda model: model.params.context_in_dim, lambda model: model.params.vec_in_dim),
    encoder="CLIP-L, with DualCLIPLoader and type hunyuan_video",
    w=3.5,
    start_layer=5,
    # The host does not pad Llama's tokens, and gives its mask where a prompt holds padding all the same.
    text_tokens=TextTokens(
        joint=lambda model: [BlockInput(block, "txt", 1) for block in model.double_blocks],
        mixed=lambda model: [BlockInput(block, "x", 0) for block in model.single_blocks],
    ),
)

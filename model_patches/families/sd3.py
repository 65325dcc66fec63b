"""SD3 and SD3.5: medium, large, turbo, and with the DMD2 LoRA.

y = t_embedder(t) + y_embedder(CLIP-L and CLIP-G pooled, 2048).
Reference settings: github.com/quickjkee/modulation-guidance, SD3.5 Large, with and without DMD2: w 2, start layer 2, both rows, plain head.
"""

from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

from .base import Family
from .blocks import BlockInput, Injection, in_width, runs_as
from .text import Counting, PooledText, TextTokens, blank


def _in_order(masks):
    """CLIP-L's and CLIP-G's tokens beside each other, as many as both have, then T5's."""
    clip = zip(*(masks[name] for name in ("l", "g") if name in masks))
    return [*map(any, clip), *masks.get("t5xxl", ())]


SD3 = Family(
    name="SD3",
    matches=lambda model, cls: runs_as(cls, OpenAISignatureMMDITWrapper) and model.y_embedder is not None,
    host_models=("SD3",),
    injections={
        "modulation": Injection(
            blocks=lambda model: [BlockInput(block, "c", 2) for block in model.joint_blocks],
            head=lambda model: BlockInput(model.final_layer, "c", 1),
            width=lambda model: model.hidden_size,
        )
    },
    text=PooledText(width=lambda model: in_width(model.y_embedder.mlp[0]), modulation=lambda model, pooled: model.y_embedder(pooled)),
    blank=blank(lambda model: in_width(model.context_embedder), lambda model: in_width(model.y_embedder.mlp[0])),
    encoder="CLIP-L and CLIP-G, with DualCLIPLoader and type sd3, or TripleCLIPLoader",
    w=2.0,
    start_layer=2,
    # CLIP's tokens, 77 at a time, then T5's, 77 at least; the host pads both and gives no mask.
    text_tokens=TextTokens(
        joint=lambda model: [BlockInput(block, "context", 0) for block in model.joint_blocks],
        counting=Counting(("l g", "t5xxl"), _in_order),
    ),
)

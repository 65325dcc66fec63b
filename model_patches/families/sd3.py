"""SD3 and SD3.5: medium, large, turbo, and with the DMD2 LoRA.

y = t_embedder(t) + y_embedder(CLIP-L and CLIP-G pooled, 2048).
Reference settings: github.com/quickjkee/modulation-guidance, SD3.5 Large, with and without DMD2: w 2, start layer 2, both rows, plain head.
"""

from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT

from .base import BlockInput, Family, Injection, PooledText

SD3 = Family(
    name="SD3",
    matches=lambda model: isinstance(model, MMDiT) and model.y_embedder is not None,
    injections={"modulation": Injection(
        blocks=lambda model: [BlockInput(block, "c", 2) for block in model.joint_blocks],
        head=lambda model: BlockInput(model.final_layer, "c", 1),
    )},
    text=PooledText(
        width=lambda model: model.y_embedder.mlp[0].in_features,
        modulation=lambda model, pooled: model.y_embedder(pooled),
    ),
    encoder="CLIP-L and CLIP-G, with DualCLIPLoader and type sd3, or TripleCLIPLoader",
    start_layer=2,
)

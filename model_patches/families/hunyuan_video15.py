"""HunyuanVideo 1.5 and HunyuanImage 2.1, HunyuanVideo's class without its pooled text.

Text-blind: y = time_in(t) + guidance_in(g), plus a second time in models distilled with mean flow.
There is no reference for its settings: start layer a tenth of the depth, both rows, plain head.
"""

from comfy.ldm.hunyuan_video.model import HunyuanVideo

from .base import BlockInput, Family, Injection, TextContext

HUNYUAN_VIDEO15 = Family(
    name="HunyuanVideo 1.5",
    matches=lambda model: isinstance(model, HunyuanVideo) and model.vector_in is None,
    injections={"time embedding": Injection(
        blocks=lambda model: [
            *(BlockInput(block, "vec", 2) for block in model.double_blocks),
            *(BlockInput(block, "vec", 1) for block in model.single_blocks),
        ],
        head=lambda model: BlockInput(model.final_layer, "vec", 1),
        width=lambda model: model.hidden_size,
    )},
    text=None,
    context=TextContext(lambda model: model.txt_in.input_embedder.in_features),
    encoder="Qwen2.5-VL 7B, with DualCLIPLoader and type hunyuan_video_15 or hunyuan_image",
)

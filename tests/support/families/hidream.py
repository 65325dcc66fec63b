"""HiDream-I1, and HiDream-E1, which is given the picture to edit beside the noise."""

from dataclasses import replace

import comfy.ops
import comfy.supported_models
from comfy.ldm.hidream.model import HiDreamImageTransformer2DModel

from .small import Small, drawing

DIMS = dict(
    attention_head_dim=32,
    axes_dims_rope=[16, 8, 8],
    num_attention_heads=2,
    caption_channels=[16, 24],
    max_resolution=[16, 16],
    in_channels=16,
    out_channels=16,
    patch_size=2,
    num_layers=3,
    num_single_layers=5,
    llama_layers=[0, 1, 2, 3, 3, 3, 3, 3],
    num_routed_experts=4,
    num_activated_experts=4,  # the model activates two; which two may turn on the rounding of the last digit
    text_emb_dim=32,
)


def _prompt(draw):
    return draw(1, 6, 16), {
        "pooled_output": draw(1, 32),
        "conditioning_llama3": draw(1, 4, 5, 24),  # tokens of each layer of Llama
    }


HIDREAM_I1 = Small(
    name="HiDream-I1",
    model=lambda: HiDreamImageTransformer2DModel(**DIMS, operations=comfy.ops.disable_weight_init),
    config=lambda: comfy.supported_models.HiDream(DIMS),
    output="final_layer.linear.weight",
    prompt=_prompt,
    latent=(16, 8, 8),
    text=("y",),
    joint=(("double_stream_blocks", "text_tokens", "all"), ("single_stream_blocks", "image_tokens", "last")),
    layers=(("double_stream_blocks", "adaln_input"), ("single_stream_blocks", "adaln_input")),
    head=("final_layer", "vec"),
    depth=8,
    start_layer=5,
    final_layer=1.0,
    cfg_rows="opposed",
)
HIDREAM_E1 = replace(HIDREAM_I1, name="HiDream-E1", settings=(("concat_latent_image", drawing(3)(1, 16, 8, 8)),))

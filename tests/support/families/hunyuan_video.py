"""HunyuanVideo 13B: text to video; image to video with the first frame beside the noise (SkyReels too), and in place of tokens."""

from dataclasses import replace

import comfy.ops
import torch
from comfy.ldm.hunyuan_video.model import HunyuanVideo

from tools.dimensions import HUNYUAN_VIDEO

from .small import Small, drawing

DIMS = HUNYUAN_VIDEO | dict(
    in_channels=16,
    out_channels=16,
    vec_in_dim=768,
    context_in_dim=16,
    hidden_size=128,
    mlp_ratio=4.0,
    num_heads=1,
    depth=2,
    depth_single_blocks=6,
    axes_dim=[16, 56, 56],
    guidance_embed=True,
)


def _model(**changed):
    return HunyuanVideo(**DIMS | changed, operations=comfy.ops.disable_weight_init)


TEXT_TO_VIDEO = Small(
    name="HunyuanVideo",
    model=_model,
    output="final_layer.linear.weight",
    prompt=lambda draw: (draw(1, 8, 16), {"pooled_output": draw(1, 768)}),
    settings=(("guidance", 6.0),),
    latent=(16, 3, 4, 4),
    text=("y",),
    joint=(("double_blocks", "txt", "all"), ("single_blocks", "x", "first")),
    layers=(("double_blocks", "vec"), ("single_blocks", "vec")),
    head=("final_layer", "vec"),
    depth=8,
    start_layer=5,
)
_first_frame = drawing(3)(1, 16, 3, 4, 4)
_but_the_first = torch.ones(1, 1, 3, 4, 4).index_fill(2, torch.tensor([0]), 0.0)
CONCAT = replace(
    TEXT_TO_VIDEO,
    name="HunyuanVideo I2V, concat",
    model=lambda: _model(in_channels=33),
    settings=(("concat_latent_image", _first_frame), ("concat_mask", _but_the_first)),
)
SKYREELS = replace(CONCAT, name="SkyReels I2V", model=lambda: _model(in_channels=32), settings=(("concat_latent_image", _first_frame),))
# y is (B, 2, D): the replaced frame has a time of its own.
REPLACE = replace(
    TEXT_TO_VIDEO,
    name="HunyuanVideo I2V, token replacement",
    model=lambda: _model(guidance_embed=False),
    settings=(("guiding_frame_index", 0),),
)
REPLACE_EMBEDDED_GUIDANCE = replace(
    REPLACE,
    name="HunyuanVideo I2V, token replacement, embedded guidance",
    model=_model,
    settings=(("guiding_frame_index", 0), ("guidance", 6.0)),
)

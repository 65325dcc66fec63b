"""Qwen-Image. Its y holds no text: it takes part where text tokens are tested, not in guidance without a projection."""

import comfy.ops
import comfy.supported_models
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

from .small import Small

DIMS = dict(
    patch_size=2, in_channels=64, out_channels=16, num_layers=4, attention_head_dim=32, num_attention_heads=2,
    joint_attention_dim=24, axes_dims_rope=(8, 12, 12),
)

QWEN_IMAGE = Small(
    name="Qwen-Image",
    model=lambda: QwenImageTransformer2DModel(**DIMS, operations=comfy.ops.disable_weight_init),
    config=lambda: comfy.supported_models.QwenImage(DIMS),
    output="proj_out.weight",
    prompt=lambda draw: (draw(1, 8, 24), {}),
    latent=(16, 1, 8, 8),
    text=(),
    layers=(("transformer_blocks", "temb"),),
    head=("norm_out", "conditioning_embedding"),
    depth=4,
    start_layer=0,
)

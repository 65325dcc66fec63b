"""Mochi 1."""

import comfy.ops
import comfy.supported_models
import torch
from comfy.ldm.genmo.joint_model.asymm_models_joint import AsymmDiTJoint

from .small import Small

DIMS = dict(
    patch_size=2,
    in_channels=12,
    hidden_size_x=64,
    hidden_size_y=32,
    depth=6,
    num_heads=2,
    learn_sigma=False,
    qk_norm=True,
    mlp_ratio_x=192.0,  # the host insists on a hidden width of 12288
    mlp_ratio_y=4.0,
    qkv_bias=False,
    use_t5=True,
    t5_feat_dim=32,
    t5_token_length=8,
    timestep_scale=1000.0,
)


def _prompt(draw):
    mask = (torch.arange(8) < 3 + 4 * draw(1, 1).sigmoid()).long()  # padded prompts, of any length
    return draw(1, 8, 32), {"attention_mask": mask}


MOCHI = Small(
    name="Mochi",
    model=lambda: AsymmDiTJoint(**DIMS, operations=comfy.ops.disable_weight_init),
    config=lambda: comfy.supported_models.GenmoMochi(DIMS),
    output="final_layer.linear.weight",
    prompt=_prompt,
    latent=(12, 2, 4, 4),
    text=("context", "attention_mask"),
    joint=(("blocks", "y", "all"),),
    layers=(("blocks", "c"),),
    head=("final_layer", "c"),
    depth=6,
    start_layer=1,
)

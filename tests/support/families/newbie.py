"""NewBie: the Lumina 2 class with a pooled text path."""

import comfy.ops
import comfy.supported_models
from comfy.ldm.lumina.model import NextDiT

from .small import Small

DIMS = dict(
    patch_size=2,
    in_channels=16,
    dim=64,
    n_layers=6,
    n_refiner_layers=1,
    n_heads=2,
    n_kv_heads=1,
    multiple_of=16,
    qk_norm=True,
    ffn_dim_multiplier=4.0,
    cap_feat_dim=16,
    axes_dims=[8, 12, 12],
    axes_lens=[32, 32, 32],
    clip_text_dim=24,
)

NEWBIE = Small(
    name="NewBie",
    model=lambda: NextDiT(**DIMS, operations=comfy.ops.disable_weight_init),
    config=lambda: comfy.supported_models.Lumina2(DIMS),
    output="final_layer.linear.weight",
    prompt=lambda draw: (draw(1, 8, 16), {"pooled_output": draw(1, 24)}),
    latent=(16, 8, 8),
    text=("clip_text_pooled",),
    joint=(),
    # The refiners take the same y before the layers do, and keep the plain one.
    layers=(("layers", "adaln_input"),),
    head=("final_layer", "c"),
    depth=6,
    start_layer=1,
)

"""Hunyuan-DiT 1.2, and 1.0 and 1.1, whose y also holds the picture's size and a style."""

from functools import partial

import comfy.ops
import comfy.supported_models
import torch
from comfy.ldm.hydit.models import HunYuanDiT

from .small import Small

DIMS = dict(
    hidden_size=64,
    depth=6,
    num_heads=2,
    text_states_dim=16,
    text_states_dim_t5=32,
    text_len=5,
    text_len_t5=8,
    size_cond=False,
    use_style_cond=False,
)


def _prompt(draw):
    return draw(1, 5, 16), {
        "attention_mask": torch.ones(1, 5),
        "conditioning_mt5xl": draw(1, 8, 32),
        "attention_mask_mt5xl": torch.ones(1, 8),
    }


def _small(name, config, **variant):
    dims = DIMS | variant
    return Small(
        name=name,
        model=lambda: HunYuanDiT(**dims, operations=comfy.ops.disable_weight_init),
        config=partial(config, dims),
        output="final_layer.linear.weight",
        prompt=_prompt,
        settings=(("width", 640), ("height", 1024)),
        latent=(4, 8, 8),
        steps=5,  # it samples from sigma 420 down
        text=("encoder_hidden_states_t5", "text_embedding_mask_t5"),
        joint=(),
        layers=(("blocks", "c"),),
        head=("final_layer", "c"),
        depth=6,
        start_layer=1,
    )


HUNYUAN_DIT_12 = _small("Hunyuan-DiT 1.2", comfy.supported_models.HunyuanDiT)
HUNYUAN_DIT_11 = _small("Hunyuan-DiT 1.1", comfy.supported_models.HunyuanDiT1, size_cond=True, use_style_cond=True)

"""Kandinsky 5, video and image."""

import comfy.ops
import comfy.supported_models
from comfy.ldm.kandinsky5.model import Kandinsky5

from .small import Small

DIMS = dict(model_dim=128, time_dim=64, ff_dim=64, num_text_blocks=2, num_visual_blocks=6)
IMAGE = dict(in_text_dim=16, in_text_dim2=32, visual_embed_dim=64, rope_scale_factor=(1.0, 1.0, 1.0))


def _small(name, latent, tokens, pooled, config=None, **dims):
    return Small(
        name=name,
        model=lambda: Kandinsky5(**DIMS, **dims, operations=comfy.ops.disable_weight_init),
        config=config,
        output="out_layer.out_layer.weight",
        prompt=lambda draw: (draw(1, 8, tokens), {"pooled_output": draw(1, pooled)}),
        latent=latent,
        text=("y",),
        joint=(),
        layers=(("visual_transformer_blocks", "time_embed"),),
        head=("out_layer", "time_embed"),
        depth=6,
        start_layer=1,
    )


KANDINSKY5_VIDEO = _small("Kandinsky 5, video", (16, 2, 4, 4), tokens=3584, pooled=768, visual_embed_dim=132)
KANDINSKY5_IMAGE = _small(
    "Kandinsky 5, image", (16, 8, 8), tokens=16, pooled=32, **IMAGE, config=lambda: comfy.supported_models.Kandinsky5Image(DIMS | IMAGE)
)

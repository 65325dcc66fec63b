"""SD3 as it was, and SD3.5: normalised queries and keys, in the medium model a second attention in the first blocks."""

import comfy.ops
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

from .small import Small

DEPTH, WIDTH, CONTEXT, POOLED = 4, 256, 16, 32  # the host makes the width 64 x depth


def _model(**variant):
    return OpenAISignatureMMDITWrapper(
        input_size=None,
        in_channels=16,
        depth=DEPTH,
        adm_in_channels=POOLED,
        num_patches=64,
        pos_embed_max_size=8,
        context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": CONTEXT, "out_features": WIDTH}},
        operations=comfy.ops.disable_weight_init,
        **variant,
    )


def _small(name, **variant):
    return Small(
        name=name,
        model=lambda: _model(**variant),
        output="final_layer.linear.weight",
        prompt=lambda draw: (draw(1, 8, CONTEXT), {"pooled_output": draw(1, POOLED)}),
        latent=(16, 8, 8),
        text=("y",),
        joint=(("joint_blocks", "context", "all"),),
        layers=(("joint_blocks", "c"),),
        head=("final_layer", "c"),
        depth=DEPTH,
        start_layer=2,
    )


SD3 = _small("SD3")
SD35_LARGE = _small("SD3.5 Large", qk_norm="rms")
SD35_MEDIUM = _small("SD3.5 Medium", qk_norm="rms", x_block_self_attn_layers=[0, 1, 2])

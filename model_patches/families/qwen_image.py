"""Qwen-Image: text to image and Edit.

Text-blind: y = time_text_embed(t), and the text reaches the blocks by joint attention alone.
There is no reference implementation of modulation guidance for it: start layer a tenth of the depth, both rows, plain head.
"""

from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

from .base import Family
from .blocks import BlockInput, Injection, in_width, runs_as
from .text import TextContext, TextTokens


def _time_embedding(model, call):
    """(R, D)"""
    return model.time_text_embed(call.timestep, call.cast(call.x), call.conds.get("additional_t_cond"))


QWEN_IMAGE = Family(
    name="Qwen-Image",
    matches=lambda model, cls: runs_as(cls, QwenImageTransformer2DModel, "NunchakuQwenImageTransformer2DModel"),
    host_models=("QwenImage",),
    injections={
        "time embedding": Injection(
            blocks=lambda model: [BlockInput(block, "temb", 3, repeats=True) for block in model.transformer_blocks],
            head=lambda model: BlockInput(model.norm_out, "conditioning_embedding", 1, repeats=True),
            y=_time_embedding,
            width=lambda model: model.inner_dim,
        )
    },
    text=None,
    context=TextContext(lambda model: in_width(model.txt_in)),
    encoder="Qwen2.5-VL 7B, with CLIPLoader and type qwen_image",
    # The host does not pad the tokens, and gives their mask where a prompt holds padding all the same.
    text_tokens=TextTokens(joint=lambda model: [BlockInput(block, "encoder_hidden_states", 1) for block in model.transformer_blocks]),
)

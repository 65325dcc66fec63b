"""CogVideoX 1.0 and 1.5.

Text-blind: y = time_embedding_linear_2(silu(time_embedding_linear_1(t))), and in 1.5's image to video one of `ofs` beside it.
There is no reference for its settings: start layer a tenth of the depth, both rows, plain head.
"""

try:
    from comfy.ldm.cogvideo.model import CogVideoXTransformer3DModel, get_timestep_embedding
except ModuleNotFoundError:  # ComfyUI before 0.24
    CogVideoXTransformer3DModel = None

from .base import Family
from .blocks import BlockInput, Injection, in_width, out_width, runs_as
from .text import TextContext, TextTokens


def _time_embedding(model, call):
    """(R, D)"""

    def embedded(numbers, width, kind):
        first, act, second = (getattr(model, f"{kind}_embedding_{part}") for part in ("linear_1", "act", "linear_2"))
        waves = get_timestep_embedding(numbers, width, model.time_proj_flip, model.time_proj_shift)
        return second(act(first(waves.to(call.dtype))))

    y = embedded(call.timestep, model.time_proj_dim, "time")
    ofs = call.conds.get("ofs")
    return y if ofs is None or model.ofs_embedding_linear_1 is None else y + embedded(ofs, model.ofs_proj_dim, "ofs")


COGVIDEOX = Family(
    name="CogVideoX",
    matches=lambda model, cls: CogVideoXTransformer3DModel is not None and runs_as(cls, CogVideoXTransformer3DModel),
    host_models=("CogVideoX",),
    injections={
        "time embedding": Injection(
            blocks=lambda model: [BlockInput(block, "temb", 2) for block in model.blocks],
            head=lambda model: BlockInput(model.norm_out, "temb", 1),
            y=_time_embedding,
            width=lambda model: out_width(model.time_embedding_linear_2),
        )
    },
    text=None,
    context=TextContext(lambda model: in_width(model.patch_embed.text_proj)),
    encoder="T5-XXL, with CLIPLoader and type cogvideox",
    text_tokens=TextTokens(joint=lambda model: [BlockInput(block, "encoder_hidden_states", 1) for block in model.blocks]),
)

"""HunyuanVideo 1.5 and HunyuanImage 2.1, HunyuanVideo's class without its pooled text.

Text-blind: y = time_in(t) + guidance_in(g), with the next step's time in models distilled with mean flow, and (R, 2, D) where a
frame is replaced: that frame's first.
There is no reference for its settings: start layer a tenth of the depth, both rows, plain head.
"""

import torch
from comfy.ldm.flux.layers import timestep_embedding
from comfy.ldm.hunyuan_video.model import HunyuanVideo

from .base import Family
from .blocks import BlockInput, Injection, in_width, runs_as
from .text import TextContext, TextTokens, blank, unmasked


def _present(call):
    """The tokens of what the prompt quotes stand before those of the prompt in 1.5 and behind them in Image 2.1; a picture's are no text."""
    model = call.base_model.diffusion_model
    parts = [unmasked(call)]
    quoted, picture = call.conds.get("txt_byt5"), call.conds.get("clip_fea")
    if quoted is not None and model.byt5_in is not None:
        parts.insert(1 if model.cond_type_embedding is None else 0, quoted.any(dim=-1))
    if picture is not None:
        parts.insert(0, torch.zeros(picture.shape[:2], dtype=torch.bool))
    return torch.cat([part.to(call.x.device) for part in parts], dim=1)


def _embedded(embedder, value, call, **options):
    return embedder(timestep_embedding(value, 256, **options).to(call.dtype))


def _next_time(call):
    """(1,), or None where this step is not one of the sampling, as where a sampler looks between two."""
    if call.sample_sigmas is None or call.conds.get("disable_time_r", False):
        return None
    step = torch.where(call.sigma[0] == call.sample_sigmas)[0]
    return call.sample_sigmas[step[0] + 1].unsqueeze(0).to(call.timestep) if len(step) else None


def _time_embedding(model, call):
    """(R, D), or (R, 2, D)."""
    y = _embedded(model.time_in, call.timestep, call, time_factor=1.0)
    if model.time_r_in is not None and (next_time := _next_time(call)) is not None:
        y = y + _embedded(model.time_r_in, next_time, call, time_factor=1000.0)
        y = y if model.params.meanflow_sum else y / 2
    frame = call.conds.get("guiding_frame_index")
    if frame is not None:
        y = torch.stack((_embedded(model.time_in, call.cast(frame), call, time_factor=1.0), y), dim=1)
    if model.params.guidance_embed and call.conds.get("guidance") is not None:
        y = y + _embedded(model.guidance_in, call.cast(call.conds["guidance"]), call)
    return y


HUNYUAN_VIDEO15 = Family(
    name="HunyuanVideo 1.5",
    matches=lambda model, cls: runs_as(cls, HunyuanVideo) and model.vector_in is None,
    host_models=("HunyuanVideo15", "HunyuanVideo15_SR_Distilled", "HunyuanImage21", "HunyuanImage21Refiner"),
    injections={
        "time embedding": Injection(
            blocks=lambda model: [
                *(BlockInput(block, "vec", 2) for block in model.double_blocks),
                *(BlockInput(block, "vec", 1) for block in model.single_blocks),
            ],
            head=lambda model: BlockInput(model.final_layer, "vec", 1),
            y=_time_embedding,
            width=lambda model: model.hidden_size,
        )
    },
    text=None,
    context=TextContext(lambda model: in_width(model.txt_in.input_embedder)),
    blank=blank(lambda model: in_width(model.txt_in.input_embedder), lambda model: 1),  # the host asks for a pooled output all the same
    encoder="Qwen2.5-VL 7B, with DualCLIPLoader and type hunyuan_video_15 or hunyuan_image",
    # The host does not pad the tokens, and gives their mask where a prompt holds padding all the same.
    text_tokens=TextTokens(
        joint=lambda model: [BlockInput(block, "txt", 1) for block in model.double_blocks],
        mixed=lambda model: [BlockInput(block, "x", 0) for block in model.single_blocks],
        present=_present,
    ),
    next_level=lambda model: model.time_r_in is not None,
)

"""FLUX.2: dev and Klein.

Text-blind: y = time_in(t) + guidance_in(g). Three layers make from it what modulates all double blocks' picture, their text, and
all single blocks; the head takes y itself.
There is no reference for its settings: start layer a tenth of the depth, both rows, plain head.
"""

import torch
from comfy.ldm.flux.layers import timestep_embedding
from comfy.ldm.flux.model import Flux
from torch.nn import functional

from ..shifts import carried
from .base import Family
from .blocks import BlockInput, Injection, in_width, runs_as
from .text import TextContext, TextTokens


def _at(model, call, timestep):
    y = model.time_in(timestep_embedding(timestep, 256).to(call.dtype))
    guidance = call.conds.get("guidance")
    if model.params.guidance_embed and guidance is not None:
        y = y + model.guidance_in(timestep_embedding(call.cast(guidance), 256).to(call.dtype))
    return y


def _time_embedding(model, call):
    """(R, D)"""
    return _at(model, call, call.timestep)


def _of_picture(model, call):
    """(R, D), or (R, 2, D) where reference pictures have a time of their own, zero."""
    method = call.conds.get("ref_latents_method", model.params.default_ref_method)
    y = _time_embedding(model, call)
    if method != "index_timestep_zero" or not call.conds.get("ref_latents"):
        return y
    return torch.stack((y, _at(model, call, 0 * call.timestep)), dim=1)


def _carry_double(model, call, shifts):
    picture = carried(model.double_stream_modulation_img, _of_picture(model, call), shifts)
    text = carried(model.double_stream_modulation_txt, _time_embedding(model, call), shifts)
    return [*zip(picture, text, strict=True)]


def _carry_single(model, call, shifts):
    return carried(lambda y: model.single_stream_modulation(y)[0], _of_picture(model, call), shifts)


def _padded(model, prompt, call):
    """As the host pads the tokens of every prompt, zeros before, to 512."""
    tokens = call.cast(prompt.tokens)
    return functional.pad(tokens, (0, 0, max(512 - tokens.shape[1], 0), 0))


FLUX2 = Family(
    name="FLUX.2",
    matches=lambda model, cls: runs_as(cls, Flux) and model.params.global_modulation,
    host_models=("Flux2",),
    injections={
        "time embedding": Injection(
            blocks=lambda model: [
                *(BlockInput(block, "vec", 2, _carry_double, repeats=True) for block in model.double_blocks),
                *(BlockInput(block, "vec", 1, _carry_single, repeats=True) for block in model.single_blocks),
            ],
            head=lambda model: BlockInput(model.final_layer, "vec", 1, repeats=True),
            y=_time_embedding,
            width=lambda model: model.hidden_size,
        )
    },
    text=None,
    context=TextContext(lambda model: in_width(model.txt_in), of_prompt=_padded),
    encoder="Mistral 3 (dev) or Qwen3 (Klein), with CLIPLoader and type flux2",
    # The host pads with zeros; the padding of the encoder itself, before that, can't be told.
    text_tokens=TextTokens(
        joint=lambda model: [BlockInput(block, "txt", 1) for block in model.double_blocks],
        mixed=lambda model: [BlockInput(block, "x", 0) for block in model.single_blocks],
    ),
)

"""Chroma.

Text-blind, and without one y: a small network, the approximator, makes all blocks' modulations from time and guidance, one row for
each. Its hidden state after in_proj, of that many rows, is taken for the time embedding; a layer's shift is added to the rows that the
layer reads. The network takes each row by itself, so that one run makes what all layers read, however their shifts differ.
There is no reference for its settings: start layer a tenth of the depth, both rows, plain head.
"""

from functools import partial

import torch
from comfy.ldm.chroma.model import Chroma
from comfy.ldm.flux.layers import timestep_embedding

from ..shifts import shifted
from .base import Family
from .blocks import BlockInput, Injection, in_width, out_width, runs_as
from .text import TextContext, TextTokens

_ROWS = 344  # of modulations that the host asks the approximator for


def _hidden(model, call):
    """(R, rows, H), the approximator's state after in_proj, as in the host's forward_orig."""
    device = call.x.device
    index = timestep_embedding(torch.arange(_ROWS, device=device), 32).to(call.dtype)
    time, guidance = (timestep_embedding(value, 16).to(call.dtype) for value in (call.timestep, call.cast(call.conds["guidance"])))
    beside_index = torch.cat((time, guidance), dim=1).unsqueeze(1).expand(-1, _ROWS, -1)
    return model.distilled_guidance_layer.in_proj(torch.cat((beside_index, index.expand(call.rows, -1, -1)), dim=-1))


def _modulations(model, hidden):
    """(R, rows, D), the rest of the approximator."""
    approximator = model.distilled_guidance_layer
    for layer, norm in zip(approximator.layers, approximator.norms, strict=True):
        hidden = hidden + layer(norm(hidden))
    return approximator.out_proj(hidden)


def _carry(model, call, shifts):
    hidden = _hidden(model, call)
    added, norm_kept = (_by_row(model, of_layers) for of_layers in zip(*shifts, strict=True))
    return _modulations(model, shifted(hidden, added, norm_kept)) - _modulations(model, hidden)


def _by_row(model, shifts):
    """(R, D) or (R, rows, D) for each layer and the head -> (R, rows, D), in the order of the host's get_modulations."""
    if shifts[0] is None:
        return None
    *layers, head = shifts
    doubles, singles = layers[: len(model.double_blocks)], layers[len(model.double_blocks) :]
    counted = [*((shift, 3) for shift in singles), *((shift, 6) for _ in ("img", "txt") for shift in doubles)]
    counted.append((head, _ROWS - sum(count for _, count in counted)))  # and rows that nobody reads
    parts, first = [], 0
    for shift, count in counted:
        parts.append(shift.unsqueeze(1).expand(-1, count, -1) if shift.ndim == 2 else shift[:, first : first + count])
        first += count
    return torch.cat(parts, dim=1)


def _double(model, modulations, i):
    return tuple(model.get_modulations(modulations, stream, idx=i) for stream in ("double_img", "double_txt"))


def _single(model, modulations, i):
    return model.get_modulations(modulations, "single", idx=i)


def _final(model, modulations):
    return model.get_modulations(modulations, "final")


CHROMA = Family(
    name="Chroma",
    # Radiance, a subclass, ends in another head.
    matches=lambda model, cls: runs_as(cls, Chroma),
    host_models=("Chroma",),
    injections={
        "time embedding": Injection(
            blocks=lambda model: [
                *(BlockInput(block, "vec", 2, part=partial(_double, i=i)) for i, block in enumerate(model.double_blocks)),
                *(BlockInput(block, "vec", 1, part=partial(_single, i=i)) for i, block in enumerate(model.single_blocks)),
            ],
            head=lambda model: BlockInput(model.final_layer, "vec", 1, part=_final),
            y=_hidden,
            carry_all=_carry,
            width=lambda model: out_width(model.distilled_guidance_layer.in_proj),
        )
    },
    text=None,
    context=TextContext(lambda model: in_width(model.txt_in)),
    encoder="T5-XXL, with CLIPLoader and type chroma",
    # The host does not pad the tokens.
    text_tokens=TextTokens(
        joint=lambda model: [BlockInput(block, "txt", 1) for block in model.double_blocks],
        mixed=lambda model: [BlockInput(block, "x", 0) for block in model.single_blocks],
    ),
)

"""AuraFlow.

Text-blind: y = t_embedder(t). The head is two layers; y enters the one that makes its modulation.
There is no reference for its settings: start layer a tenth of the depth, both rows, plain head.
"""

import torch
from comfy.ldm.aura.mmdit import MMDiT

from .base import Family
from .blocks import BlockInput, Injection, in_width, out_width, runs_as
from .text import TextContext, TextTokens, unmasked


def _present(call):
    """The model's own register tokens stand before those of the prompt."""
    text = unmasked(call)
    registers = text.new_zeros(len(text), call.base_model.diffusion_model.register_tokens.shape[1])
    return torch.cat([registers, text], dim=1)


AURAFLOW = Family(
    name="AuraFlow",
    matches=lambda model, cls: runs_as(cls, MMDiT),
    host_models=("AuraFlow",),
    injections={
        "time embedding": Injection(
            blocks=lambda model: [
                *(BlockInput(block, "global_cond", 2) for block in model.double_layers),
                *(BlockInput(block, "global_cond", 1) for block in model.single_layers),
            ],
            head=lambda model: BlockInput(model.modF, "input", 0),
            y=lambda model, call: model.t_embedder(call.timestep, call.dtype),
            width=lambda model: out_width(model.t_embedder.mlp[2]),
        )
    },
    text=None,
    context=TextContext(lambda model: in_width(model.cond_seq_linear)),
    encoder="Pile-T5 XL, of AuraFlow's checkpoint or with CLIPLoader",
    text_tokens=TextTokens(
        joint=lambda model: [BlockInput(block, "c", 0) for block in model.double_layers],
        mixed=lambda model: [BlockInput(block, "cx", 0) for block in model.single_layers],
        present=_present,
    ),
)

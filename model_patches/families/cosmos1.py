"""Cosmos 1: text and video to video.

Text-blind. Its blocks are modulated by the normalised time embedding through layers of their own, plus adaln_lora where the
checkpoint has it, a vector of three times the width made from the time embedding before the norm.
Settings as COSMOS's reference has them (github.com/quickjkee/modulation-guidance): w 3, start layer 0, conditional rows, plain head.
"""

from comfy.ldm.cosmos.model import GeneralDIT

from .base import Family
from .blocks import BlockInput, Injection, in_width, runs_as
from .text import TextContext


def _time_embedding(model, call):
    """(R, D)"""
    embedding = model.t_embedder[0](call.timestep.flatten()).to(call.dtype)
    if not model.t_embedder[1].use_adaln_lora:  # with it those layers make adaln_lora alone
        embedding = model.t_embedder[1](embedding)[0]
    return model.affline_norm(embedding)


def _context_width(model):
    attentions = (layer.block.attn for layer in model.blocks["block0"].blocks if layer.block_type in ("cross_attn", "ca"))
    return in_width(next(attentions).to_k[0])


COSMOS1 = Family(
    name="Cosmos 1",
    matches=lambda model, cls: runs_as(cls, GeneralDIT),
    host_models=("CosmosVideo",),
    injections={
        "time embedding": Injection(
            blocks=lambda model: [BlockInput(block, "emb_B_D", 1) for block in model.blocks.values()],
            head=lambda model: BlockInput(model.final_layer, "emb_B_D", 1),
            y=_time_embedding,
            width=lambda model: model.model_channels,
        ),
        "adaln lora": Injection(
            blocks=lambda model: [BlockInput(block, "adaln_lora_B_3D", 5) for block in model.blocks.values()],
            head=None,
            width=lambda model: 3 * model.model_channels,
        ),
    },
    text=None,
    context=TextContext(_context_width),
    encoder="T5-XXL 1.0, with CLIPLoader and type cosmos",
    w=3.0,
    start_layer=0,
    cfg_rows="cond",
)

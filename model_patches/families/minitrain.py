"""Where shifts enter the host's MiniTrainDIT.

Its blocks are modulated by the normalised time embedding, through layers of their own, plus adaln_lora, a vector of three times
the width made from the time embedding before the norm.
"""

from .blocks import BlockInput, Injection


def _time_embedding(model, call):
    """(R, D), or (R, T, D) where frames have a time of their own."""
    timestep = call.timestep
    embedding = model.t_embedder[0](timestep.reshape(call.rows, -1)).to(call.dtype)
    if not model.t_embedder[1].use_adaln_lora:  # with it those layers make adaln_lora alone
        embedding = model.t_embedder[1](embedding)[0]
    # Past hooks: other packs add text to the norm's output by one, and this is the time alone.
    embedding = model.t_embedding_norm.forward(embedding)
    return embedding if timestep.ndim == 2 else embedding.squeeze(1)


INJECTIONS = {
    "time embedding": Injection(
        blocks=lambda model: [BlockInput(block, "emb_B_T_D", 1) for block in model.blocks],
        head=lambda model: BlockInput(model.final_layer, "emb_B_T_D", 1),
        y=_time_embedding,
        width=lambda model: model.model_channels,
    ),
    "adaln lora": Injection(
        blocks=lambda model: [BlockInput(block, "adaln_lora_B_T_3D", 4) for block in model.blocks],
        head=None,
        width=lambda model: 3 * model.model_channels,
    ),
}


def context_width(model):
    """Of the text tokens that the blocks attend to."""
    return model.blocks[0].cross_attn.context_dim

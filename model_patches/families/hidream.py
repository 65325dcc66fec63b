"""HiDream-I1 (fast, dev, full) and HiDream-E1.

y = t_embedder(t) + p_embedder(CLIP-L and CLIP-G pooled, 2048).
Reference settings: github.com/quickjkee/modulation-guidance, HiDream: w 3, start layer 5, unconditional rows with -w, guided head.
"""

import torch
from comfy.ldm.hidream.model import HiDreamImageTransformer2DModel

from ..directions import EncodedPrompt
from .base import Family
from .blocks import BlockInput, Injection, in_width, runs_as
from .text import Counting, PooledText, TextTokens


def _blocks(model):
    return [BlockInput(block, "adaln_input", 3) for block in (*model.double_stream_blocks, *model.single_stream_blocks)]


def _present(call):
    """Every block reads T5's tokens and those of two layers of Llama; missing encoders leave zeros."""
    t5 = call.context.any(dim=-1)
    llama = call.conds["encoder_hidden_states_llama3"].any(dim=-1).any(dim=1).to(t5.device)
    return torch.cat((t5, llama, llama), dim=1)


def _in_order(masks):
    """The host gives 128 zeros for a T5 that is not loaded, and one for Llama."""
    llama = masks.get("llama", [False])
    return [*masks.get("t5xxl", [False] * 128), *llama, *llama]


def _given(tokens, extras):
    """Of Llama's layers one tells prompts apart as well as all, and of the wider tokens as many features as the others have."""
    llama = extras["conditioning_llama3"][:, 0]
    width = min(tokens.shape[-1], llama.shape[-1])
    return torch.cat([part[..., :width] for part in (tokens, llama, llama)], dim=1)


def _blank(model):
    t5, llama = (in_width(model.caption_projection[number].linear) for number in (-1, 0))
    layers = torch.zeros(1, 1 + max(model.llama_layers), 8, llama)
    return EncodedPrompt(
        torch.zeros(1, in_width(model.p_embedder.pooled_embedder.linear_1)), torch.zeros(1, 8, t5), {"conditioning_llama3": layers}
    )


HIDREAM = Family(
    name="HiDream-I1",
    matches=lambda model, cls: runs_as(cls, HiDreamImageTransformer2DModel),
    host_models=("HiDream",),
    # Where the head reads y, and not the head itself: some packs run its parts one by one.
    injections={
        "modulation": Injection(
            _blocks, head=lambda model: BlockInput(model.final_layer.adaLN_modulation, "input", 0), width=lambda model: model.inner_dim
        )
    },
    text=PooledText(
        width=lambda model: in_width(model.p_embedder.pooled_embedder.linear_1), modulation=lambda model, pooled: model.p_embedder(pooled)
    ),
    blank=_blank,
    encoder="CLIP-L and CLIP-G, with QuadrupleCLIPLoader",
    w=3.0,
    start_layer=5,
    final_layer=1.0,
    cfg_rows="opposed",
    # The host pads T5's tokens and Llama's to 128 and gives no mask.
    text_tokens=TextTokens(
        joint=lambda model: [BlockInput(block, "text_tokens", 2) for block in model.double_stream_blocks],
        mixed=lambda model: [BlockInput(block, "image_tokens", 0) for block in model.single_stream_blocks],
        mixed_text_first=False,
        present=_present,
        counting=Counting(("t5xxl", "llama"), _in_order, _given),
    ),
)

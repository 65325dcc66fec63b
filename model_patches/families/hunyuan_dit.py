"""Hunyuan-DiT 1.0 to 1.2.

y = t_embedder(t) + extra_embedder([pooler(mT5 tokens), picture size, style], the last two in 1.0 and 1.1): the model pools the mT5
tokens itself, and layers mix them with the size, so the difference of two prompts is taken at this call's size.
There is no reference implementation of modulation guidance for it: start layer a tenth of the depth, both rows, plain head.
"""

import torch
from comfy.ldm.hydit.models import HunYuanDiT
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding

from ..directions import EncodedPrompt
from .base import Family
from .blocks import BlockInput, Injection, runs_as
from .call import OncePerPrompt
from .text import TextPath

TOKENS = "conditioning_mt5xl"  # where the host's text encoder puts the mT5 tokens


class _PooledTokens(TextPath):
    def __init__(self):
        self.pooled = OncePerPrompt()

    def check(self, family, model, prompt):
        tokens = prompt.extras.get(TOKENS)
        if tokens is None:
            raise ValueError(
                f"The guidance direction has no mT5 tokens, which guiding {family.name} needs. "
                f"Encode it with the text encoder the model uses: {family.encoder}."
            )
        expected = (model.text_len_t5, model.text_states_dim_t5)
        if tokens.shape[1] < expected[0] or tokens.shape[2] != expected[1]:
            raise ValueError(
                f"The guidance direction's mT5 tokens are {tuple(tokens.shape[1:])}, but this {family.name} model reads "
                f"{expected}. Encode it with the text encoder the model uses: {family.encoder}."
            )

    def contributions(self, model, texts, call):
        beside_text = []
        if model.size_cond:
            sizes = call.cast(call.conds["image_meta_size"])
            beside_text.append(timestep_embedding(sizes.view(-1), 256).to(call.dtype).view(-1, 6 * 256))
        if model.use_style_cond:
            style = torch.zeros(call.rows, device=call.x.device, dtype=torch.int)
            beside_text.append(model.style_embedder(style, out_dtype=call.dtype))
        return {
            prompt: model.extra_embedder(torch.cat((call.to_rows(self._pooled(model, prompt, call)), *beside_text), dim=1)).float()
            for prompt in texts
        }

    def _pooled(self, model, prompt, call):
        return self.pooled.get(model, prompt, call, lambda: model.pooler(call.cast(prompt.extras[TOKENS])))


def _blank(model):
    return EncodedPrompt(
        None,
        torch.zeros(1, model.text_len, model.text_states_dim),
        {
            "attention_mask": torch.ones(1, model.text_len),
            TOKENS: torch.zeros(1, model.text_len_t5, model.text_states_dim_t5),
            "attention_mask_mt5xl": torch.ones(1, model.text_len_t5),
        },
    )


HUNYUAN_DIT = Family(
    name="Hunyuan-DiT",
    matches=lambda model, cls: runs_as(cls, HunYuanDiT),
    host_models=("HunyuanDiT",),
    injections={
        "modulation": Injection(
            blocks=lambda model: [BlockInput(block, "c", 1) for block in model.blocks],
            head=lambda model: BlockInput(model.final_layer, "c", 1),
            width=lambda model: model.hidden_size,
        )
    },
    text=_PooledTokens(),
    blank=_blank,
    encoder="CLIP and mT5-XL, which its checkpoint holds, with CheckpointLoaderSimple",
)

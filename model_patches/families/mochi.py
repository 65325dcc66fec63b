"""Mochi 1 (Genmo).

y = t_embedder(1 - t) + t5_y_embedder(T5 tokens, mask): the model pools the T5 tokens itself, so a direction comes from them.
There is no reference implementation of modulation guidance for it: start layer a tenth of the depth, both rows, plain head.
"""

import torch
from comfy.ldm.genmo.joint_model.asymm_models_joint import AsymmDiTJoint

from ..directions import EncodedPrompt
from .base import Family
from .blocks import BlockInput, Injection, runs_as
from .call import OncePerPrompt
from .text import TextPath, TextTokens


class _PooledTokens(TextPath):
    same_for_rows = True

    def __init__(self):
        self.pooled = OncePerPrompt()

    def check(self, family, model, prompt):
        width = model.t5_feat_dim
        if prompt.tokens.shape[-1] != width:
            raise ValueError(
                f"The guidance direction's tokens are {prompt.tokens.shape[-1]} wide, but this {family.name} model reads {width}. "
                f"Encode it with the text encoder the model uses: {family.encoder}."
            )

    def contributions(self, model, texts, call):
        return {prompt: call.to_rows(self.pooled.get(model, prompt, call, lambda: self._pooled(model, prompt, call))) for prompt in texts}

    def _pooled(self, model, prompt, call):
        mask = prompt.extras.get("attention_mask")
        mask = torch.ones(prompt.tokens.shape[:2]) if mask is None else mask
        return model.t5_y_embedder(call.cast(prompt.tokens), call.cast(mask)).float()


MOCHI = Family(
    name="Mochi",
    matches=lambda model, cls: runs_as(cls, AsymmDiTJoint),
    host_models=("GenmoMochi",),
    injections={
        "modulation": Injection(
            blocks=lambda model: [BlockInput(block, "c", 1) for block in model.blocks],
            head=lambda model: BlockInput(model.final_layer, "c", 1),
            width=lambda model: model.hidden_size_x,
        )
    },
    text=_PooledTokens(),
    blank=lambda model: EncodedPrompt(None, torch.zeros(1, 8, model.t5_feat_dim), {"attention_mask": torch.ones(1, 8)}),
    encoder="T5-XXL, with CLIPLoader and type mochi",
    # The host gives T5's mask.
    text_tokens=TextTokens(joint=lambda model: [BlockInput(block, "y", 2) for block in model.blocks]),
)

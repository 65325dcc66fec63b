"""NewBie (the Lumina 2 class with a pooled text path).

y = time_text_embed([t_embedder(1 - t), clip_text_pooled_proj(Jina CLIP pooled)]): a layer over both, so the difference of two
prompts depends on the step and is taken at this step's time. Refiners keep the plain y.
There is no reference implementation of modulation guidance for it: start layer a tenth of the depth, both rows, plain head.
"""

import torch
from comfy.ldm.lumina.model import NextDiT

from .base import BlockInput, Family, Injection, PooledText


class _TextWithTime(PooledText):
    def difference(self, model, pair, call):
        time = model.t_embedder((1.0 - call.timestep) * model.time_scale, dtype=call.dtype)  # (R, T)
        toward, away = (
            self.modulation(model, torch.cat((time, model.clip_text_pooled_proj(call.to_rows(pooled))), dim=-1)).float()
            for pooled in self._pooled(model, pair, call)
        )
        return toward - away


NEWBIE = Family(
    name="NewBie",
    matches=lambda model: isinstance(model, NextDiT) and model.clip_text_pooled_proj is not None,
    injections={"modulation": Injection(
        blocks=lambda model: [BlockInput(block, "adaln_input", 3) for block in model.layers],
        head=lambda model: BlockInput(model.final_layer, "c", 1),
    )},
    text=_TextWithTime(
        width=lambda model: model.clip_text_dim,
        modulation=lambda model, time_and_text: model.time_text_embed(time_and_text),
    ),
    encoder="Gemma 3 4B and Jina CLIP v2, with DualCLIPLoader and type newbie",
)

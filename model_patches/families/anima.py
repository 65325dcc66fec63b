"""Anima.

Text-blind; its blocks attend to what a small adapter makes of the Qwen3 embeddings and the T5 token ids.
Published projections add the maximum over those tokens to the time embedding (w 3 on blocks 8 to 26 of 28, profiles of
github.com/sorryhyun/ComfyUI-Spectrum-KSampler), or CLIP-L's pooled output, layer by layer, to adaln_lora (COSMOS's own projection and
its w, 3, from block 0, as Anzhc's node and Forge's port have it); every row.
"""

from comfy.ldm.anima.model import Anima

from .anima_lineage import LINEAGE
from .base import Family
from .blocks import runs_as
from .minitrain import INJECTIONS, context_width
from .text import TextContext


def _adapted(model, call, tokens, ids, weights):
    """What the adapter makes of (N, L, C) tokens, with 512 tokens at least, zeros behind; as they are without T5 ids, as in the host."""
    if ids is None:
        return call.cast(tokens)
    return model.preprocess_text_embeds(call.cast(tokens), call.cast(ids), t5xxl_weights=None if weights is None else call.cast(weights))


def _of_prompt(model, prompt, call):
    ids, weights = prompt.extras.get("t5xxl_ids"), prompt.extras.get("t5xxl_weights")
    if ids is not None:
        ids = ids.unsqueeze(0).expand(len(prompt.tokens), -1)
    if weights is not None:
        weights = weights.unsqueeze(0).unsqueeze(-1)
    return _adapted(model, call, prompt.tokens, ids, weights)


def _of_rows(model, call):
    # The host runs the adapter once before sampling; while training it leaves that to the model.
    return _adapted(model, call, call.context, call.conds.get("t5xxl_ids"), call.conds.get("t5xxl_weights"))


ANIMA = Family(
    name="Anima",
    matches=lambda model, cls: runs_as(cls, Anima),
    host_models=("Anima",),
    injections=INJECTIONS,
    text=None,
    context=TextContext(context_width, _of_prompt, _of_rows),
    encoder="Qwen3 0.6B, with CLIPLoader",
    w=3.0,
    start_layer=0,
    lineage=LINEAGE,
)

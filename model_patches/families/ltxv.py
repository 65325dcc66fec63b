"""LTX-Video.

Text-blind: y = adaln_single.emb(t), (R, T, D), with a time of its own for each token where a mask keeps some of the picture; a
layer makes from it what modulates every block. The head's table takes y outside of any module, and is not shifted.
There is no reference for its settings: start layer a tenth of the depth, both rows.
"""

from comfy.ldm.lightricks.model import LTXVModel

from ..shifts import shifted
from .base import BlockInput, Family, Injection, TextContext


def _time_embedding(model, call):
    """(R, T, D), T 1 or the number of tokens."""
    if call.conds.get("keyframe_idxs") is not None:
        raise ValueError(
            "Modulation guidance does not work on LTX-Video with keyframes, where the host drops tokens in the middle of its forward "
            "pass. Remove the keyframe node (LTXVAddGuide), or the guidance."
        )
    timestep = (call.timestep * model.timestep_scale_multiplier).flatten()
    y = model.adaln_single.emb(timestep, resolution=None, aspect_ratio=None, batch_size=call.rows, hidden_dtype=call.dtype)
    return y.view(call.rows, -1, y.shape[-1])


def _carry(model, call, added, norm_kept):
    y, layer = _time_embedding(model, call), model.adaln_single
    return layer.linear(layer.silu(shifted(y, added, norm_kept))) - layer.linear(layer.silu(y))


LTXV = Family(
    name="LTX-Video",
    # LTXAV, of the same base class, has two streams.
    matches=lambda model: type(model) is LTXVModel,
    injections={"time embedding": Injection(
        blocks=lambda model: [BlockInput(block, "timestep", 3, _carry) for block in model.transformer_blocks],
        head=None,
        y=_time_embedding,
        width=lambda model: model.adaln_single.linear.in_features,
    )},
    text=None,
    context=TextContext(lambda model: model.caption_channels),
    encoder="T5-XXL, with CLIPLoader and type ltxv",
)

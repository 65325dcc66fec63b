"""LTX-Video.

Text-blind: y = adaln_single.emb(t), (R, T, D), with a time of its own for each token where a mask keeps some of the picture; a
layer makes from it what modulates every block. The head is no module of its own: it takes y as adaln_single returns it.
There is no reference for its settings: start layer a tenth of the depth, both rows, plain head.
"""

from comfy.ldm.lightricks.model import LTXVModel

from ..shifts import OfKinds, carried
from .base import Family
from .blocks import RESULT, BlockInput, Injection, in_width, runs_as
from .text import TextContext


def _times(model, call):
    """(R, T), T 1 or the number of tokens."""
    timestep = call.timestep
    keyframes = call.conds.get("keyframe_idxs")
    if keyframes is not None and keyframes.shape[2]:  # the host drops the tokens that their mask marks
        mask = model.patchifier.patchify(call.cast(call.conds["denoise_mask"]))[0]
        timestep = timestep[:, ~(mask < 0).any(dim=-1)[0]]
    return (timestep * model.timestep_scale_multiplier).reshape(call.rows, -1)


def _embedded(model, call, times):
    """(N, D) of N times."""
    return model.adaln_single.emb(times, resolution=None, aspect_ratio=None, batch_size=call.rows, hidden_dtype=call.dtype)


def _time_embedding(model, call):
    """(R, T, D)."""
    y = _embedded(model, call, _times(model, call).flatten())
    return y.view(call.rows, -1, y.shape[-1])


def _carry(model, call, shifts):
    layer = model.adaln_single

    def changed(y):
        return carried(lambda y: layer.linear(layer.silu(y)), y, shifts)

    times = _times(model, call)
    reads_time = any(part is not None and part.ndim > 2 for pair in shifts if pair is not None for part in pair)  # through a FiLM
    if times.shape[1] == 1 or reads_time:
        return changed(_time_embedding(model, call))
    kinds, of_each = times.unique(return_inverse=True)  # two, as a rule: what the mask keeps, and what it does not
    y = _embedded(model, call, kinds)
    return [OfKinds(change, of_each) for change in changed(y.expand(call.rows, *y.shape))]


def _carry_to_head(model, call, shifts):
    """What the shifts change in y as adaln_single returns it, (R * T, D) each."""
    return [change.flatten(0, 1) for change in carried(lambda y: y, _time_embedding(model, call), shifts)]


LTXV = Family(
    name="LTX-Video",
    # LTXAV, of the same base class, has two streams.
    matches=lambda model, cls: runs_as(cls, LTXVModel),
    host_models=("LTXV",),
    injections={
        "time embedding": Injection(
            blocks=lambda model: [BlockInput(block, "timestep", 3, _carry) for block in model.transformer_blocks],
            head=lambda model: BlockInput(model.adaln_single, RESULT, 1, _carry_to_head),
            y=_time_embedding,
            width=lambda model: in_width(model.adaln_single.linear),
        )
    },
    text=None,
    context=TextContext(lambda model: model.caption_channels),
    encoder="T5-XXL, with CLIPLoader and type ltxv",
)

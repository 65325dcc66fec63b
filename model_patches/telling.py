"""What is told of a sampling when it is over: what was done to the model in it, or why nothing was."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, groupby
from typing import Any

import torch
from torch import Tensor

# A shift this long beside y breaks pictures, at 1 nothing of them is left. Seen on the small world's model (tools/small_world), all
# layers guided; the later guidance starts, the more it takes.
BURNING = 0.6
_NOTHING = 1e-6  # a shift at w 1 this long beside y is a rounding


@dataclass(frozen=True)
class Told:
    """text: in one line. warns: whether it says that nothing was done, or too much."""

    text: str
    warns: bool


Teller = Callable[[Told], None]


def without_harm(tell: Callable, *args: Any) -> None:
    """tell(*args); what goes wrong in it is no reason to lose a picture."""
    try:
        tell(*args)
    except Exception:
        logging.debug("Modulation guidance: what was done could not be told.", exc_info=True)


def longest(lengths: Tensor, y: Tensor) -> Tensor:
    """The largest of shifts beside y, of no dimension.

    lengths: (R,), or (R, T), of the shifts. y: (R, ..., D), or another number of rows, of which nothing says which is which.
    """
    norms = torch.linalg.vector_norm(y, dim=-1, dtype=torch.float32)
    if len(lengths) == len(norms):
        lengths = lengths.reshape(len(lengths), *[1] * (norms.ndim - lengths.ndim), *lengths.shape[1:])
    else:
        lengths = lengths.max()
    return (lengths / norms).max()


def burning(subject: str, w: float, strongest: float, where: str = "") -> str:
    return (
        f"{subject} burn the image: its shift is {strongest:.2f} times as long as y{where}, and {BURNING:g} is much. "
        f"Stay below w {abs(w) * BURNING / strongest:.2g}."
    )


def nothing_in(direction) -> str:
    """What of a GuidanceDirection makes that it shifts nothing."""
    if not any(term.weight for term in (*direction.pairs, *direction.learned)):
        return "weights are 0"
    return "positive and negative are the same to this model" if direction.pairs else "learned shifts are all zeros"


def of_guidance(guidance, sampling, missed: str | None) -> Told:
    """guidance: a Guidance. sampling: the Sampling it was in. missed: what says that layers were not reached."""
    tally, weights = sampling.tally(guidance), guidance.layer_weights
    strongest = tally.strongest
    strength = abs(guidance.w) * max(map(abs, weights))
    if guidance.w == 0:
        why = "w is 0, so that only the projection's base was added" if guidance.text.base_texts else "w is 0"
    elif not any(weights):
        why = "all layer weights are 0"
    elif not (tally.steps or sampling.interrupted):
        whole = (guidance.start_percent, guidance.end_percent) == (0, 1)
        why = f"no side of CFG was sampled that cfg_rows {guidance.cfg_rows} guides" if whole else _outside(guidance)
    elif strongest is not None and strongest <= _NOTHING * strength:
        why = f"the direction's {nothing_in(guidance.direction)}"
    else:
        why = None
    burns = strongest is not None and strongest >= BURNING
    warnings = (
        _lost("w", tally, sampling),
        _nothing("guided", why, sampling) or missed,
        burning(f"w {guidance.w:g} will", guidance.w, strongest) if burns else None,
    )
    shift = "" if strongest is None else f", longest shift {strongest:.2g} of y"
    facts = f"{_layers(weights[:-1])}{' and the final output layer' if weights[-1] else ''}, w {guidance.w:g}, cfg_rows {guidance.cfg_rows}"
    return _told(warnings, f"{guidance.family}, {facts}{_steps(0 if why else len(tally.steps), sampling)}{shift}")


def of_scaling(scaling, sampling, missed: str | None) -> Told:
    """scaling: a Scaling. The others as in `of_guidance`."""
    tally, weights = sampling.tally(scaling), scaling.layer_weights
    if scaling.scale == 1:
        why = "scale is 1"
    elif not any(weights):
        why = "all layer weights are 0"
    else:
        why = None if tally.steps or sampling.interrupted else _outside(scaling)
    facts = f"{_layers(weights)}, scale {scaling.scale:g}, both sides of CFG, {'all' if scaling.tokens.all else 'prompt'} tokens"
    warnings = (_lost("scale", tally, sampling), _nothing("scaled", why, sampling) or missed)
    return _told(warnings, f"{scaling.family}, {facts}{_steps(0 if why else len(tally.steps), sampling)}")


def _told(warnings: Sequence[str | None], facts: str) -> Told:
    warning = " ".join(filter(None, warnings))
    return Told(f"{warning} ({facts})" if warning else facts, bool(warning))


def _lost(knob: str, tally, sampling) -> str | None:
    if not sampling.lost:
        return None
    acted = f"Lower {knob}; if it is so without this node too, the cause is another."
    return f"What was sampled is NaN or infinite, and the image is lost. {acted if tally.steps else 'The cause is another than this node.'}"


def _nothing(done: str, why: str | None, sampling) -> str | None:
    never_called = sampling.calls == 0 and not sampling.interrupted  # what is missed says so
    return None if why is None or never_called else f"Nothing was {done}: {why}."


def _outside(value) -> str:
    return f"no step lies between start_percent {value.start_percent:g} and end_percent {value.end_percent:g}"


def _layers(weights: Sequence[float]) -> str:
    """Those with a weight, as ranges, of how many."""
    numbers = [layer for layer, weight in enumerate(weights) if weight]
    counter = count()
    runs = [[*run] for _, run in groupby(numbers, key=lambda layer: layer - next(counter))]
    if len(runs) > 4:
        return f"{len(numbers)} of {len(weights)} layers"
    written = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f"layers {written or 'none'} of {len(weights)}"


def _steps(acted: int, sampling) -> str:
    """acted: in how many it acted."""
    if sampling.interrupted:
        return f", {min(acted, sampling.done)} of {sampling.done} steps, interrupted after {sampling.done} of {sampling.steps}"
    # A sampler that reports no step leaves nothing to count.
    return f", {min(acted, sampling.done)} of {sampling.done} steps" if sampling.done else ""

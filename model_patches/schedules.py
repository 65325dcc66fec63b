"""Layer schedules: how strongly each layer is guided.

A schedule holds unitless weights that multiply the guidance scale w. Layers are counted over the whole model, double (joint)
blocks first, then single blocks, from 0. `resolve(depth)` gives one weight per layer of a model with `depth` layers.
Why layers: guiding the first ones too weakens prompt adherence (Starodubcev et al., ICLR 2026, section 4).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from .quoting import quoted

LAST_LAYER = 1000  # far beyond any model's; what is drawn and checked layer by layer must end somewhere
LARGEST_WEIGHT = 100.0  # ten times what the sliders give; numbers without a bound end as a picture of NaN

_LONGEST_TEXT = 100_000  # characters


@dataclass(frozen=True)
class RangeSchedule:
    """Weight 1 from start_layer to end_layer (inclusive; -1 is the last), 0 elsewhere.

    The last `taper_layers` scheduled layers get `taper_scale` instead. final_layer is the weight at the output head.
    """

    start_layer: int
    end_layer: int = -1
    taper_layers: int = 0
    taper_scale: float = 1.0
    final_layer: float = 0.0

    def __post_init__(self):
        if not (0 <= self.start_layer <= LAST_LAYER and -1 <= self.end_layer <= LAST_LAYER):
            raise ValueError(
                f"Layer schedule: layers count from 0 and go up to {LAST_LAYER}, but start_layer is {quoted(self.start_layer)} and end_layer "
                f"{quoted(self.end_layer)}. Only end_layer may be -1, for the last layer."
            )
        if self.taper_layers < 0:
            raise ValueError(f"Layer schedule: taper_layers is {quoted(self.taper_layers)}; it counts layers, so 0 or more.")
        if 0 <= self.end_layer < self.start_layer:
            raise ValueError(
                f"Layer schedule: start_layer {self.start_layer} is past end_layer {self.end_layer}. "
                "Lower start_layer, or set end_layer to -1 for the last layer."
            )
        _check_weight(self.taper_scale, "taper_scale")
        _check_weight(self.final_layer, "final_layer")

    def resolve(self, depth: int) -> tuple[float, ...]:
        _check_depth(max(self.start_layer, self.end_layer), depth)
        end = depth - 1 if self.end_layer == -1 else self.end_layer
        taper_from = end - self.taper_layers + 1
        return tuple(
            0.0 if not self.start_layer <= layer <= end else self.taper_scale if layer >= taper_from else 1.0 for layer in range(depth)
        )


@dataclass(frozen=True)
class CurveSchedule:
    """Weights read off a curve: x is the relative depth (0 first layer, 1 last), y the weight."""

    curve: Callable[[float], float]
    final_layer: float = 0.0

    def __post_init__(self):
        _check_weight(self.final_layer, "final_layer")

    def resolve(self, depth: int) -> tuple[float, ...]:
        weights = tuple(float(self.curve(layer / max(depth - 1, 1))) for layer in range(depth))
        for layer, weight in enumerate(weights):
            _check_weight(weight, f"the curve at layer {layer}")
        return weights


@dataclass(frozen=True)
class TextSchedule:
    """Weights written out: ranges (first, last, weight), both ends inclusive; layers not named weigh 0."""

    ranges: tuple[tuple[int, int, float], ...]
    final_layer: float = 0.0

    def __post_init__(self):
        _check_weight(self.final_layer, "final_layer")

    def resolve(self, depth: int) -> tuple[float, ...]:
        _check_depth(max(last for _, last, _ in self.ranges), depth)
        weights = [0.0] * depth
        for first, last, weight in self.ranges:
            weights[first : last + 1] = [weight] * (last + 1 - first)
        return tuple(weights)


@dataclass(frozen=True)
class ProportionalSchedule:
    """The ranges of a TextSchedule written for a model of `depth` layers, carried over in proportion to any other depth.

    Every range keeps at least one layer, so that none is lost in a shallower model; of two that meet in one layer the first has it.
    On a model that is known to be made of one of `depth` layers by inserting others, `placed` is right.
    """

    ranges: tuple[tuple[int, int, float], ...]
    depth: int
    final_layer: float = 0.0

    def __post_init__(self):
        _check_weight(self.final_layer, "final_layer")
        last = max(last for _, last, _ in self.ranges)
        if not last < self.depth <= LAST_LAYER + 1:
            raise ValueError(
                f"Layer schedule: layers up to {last} are named for a depth of {quoted(self.depth)}. Layers count from 0, so the depth is "
                f"{last + 1} at least, and {LAST_LAYER + 1} at most."
            )

    def resolve(self, depth: int) -> tuple[float, ...]:
        weights = [0.0] * depth
        for first, last, weight in reversed(self.ranges):
            start = min(round(first * depth / self.depth), depth - 1)
            stop = max(start + 1, round((last + 1) * depth / self.depth))
            weights[start:stop] = [weight] * (stop - start)
        return tuple(weights)

    def placed(self, places: tuple[int, ...]) -> TextSchedule:
        """For a model in which the layers stand at `places`; those inserted between two named ones go with the one before."""
        weights = {layer: weight for first, last, weight in self.ranges for layer in range(first, last + 1)}
        ranges = (
            (places[layer], places[layer + 1] - 1 if layer + 1 in weights else places[layer], weight) for layer, weight in weights.items()
        )
        return TextSchedule(tuple(ranges), self.final_layer)


@dataclass(frozen=True)
class LateSchedule:
    """Another schedule's weights from start_layer on, 0 before."""

    schedule: CurveSchedule | TextSchedule | ProportionalSchedule | LateSchedule
    start_layer: int

    @property
    def final_layer(self) -> float:
        return self.schedule.final_layer

    def resolve(self, depth: int) -> tuple[float, ...]:
        _check_depth(self.start_layer, depth)
        return tuple(weight if layer >= self.start_layer else 0.0 for layer, weight in enumerate(self.schedule.resolve(depth)))


LayerSchedule = RangeSchedule | CurveSchedule | TextSchedule | ProportionalSchedule | LateSchedule


def starting_at(schedule: LayerSchedule, start_layer: int) -> LayerSchedule:
    """The schedule from start_layer on: a range is moved there, anything else loses what is before."""
    if isinstance(schedule, RangeSchedule):
        if 0 <= schedule.end_layer < start_layer:
            raise ValueError(
                f"Layer schedule: start_layer {start_layer} is past layer {schedule.end_layer}, the last that is guided there. Lower start_layer, or "
                "connect a Layer Schedule, whose end_layer is -1 for the last layer of the model."
            )
        return replace(schedule, start_layer=start_layer)
    return LateSchedule(schedule, start_layer)


_ENTRY = re.compile(r"(\d+)\s*(?:-\s*(\d+)\s*)?:\s*(\S+)")


def parse_ranges(text: str) -> tuple[tuple[int, int, float], ...]:
    """Read "5-18: 1, 19-55: 0.5, 56: 0" as ((5, 18, 1.0), (19, 55, 0.5), (56, 56, 0.0)).

    Raises ValueError naming the part that does not parse, a range that runs backwards, a layer beyond LAST_LAYER or one named twice.
    """
    if len(text) > _LONGEST_TEXT:
        raise ValueError(
            f"Layer schedule: the text {quoted(text)} is {len(text)} characters long, and {_LONGEST_TEXT} are more than any model's layers "
            "take. Shorten it."
        )
    ranges: list[tuple[int, int, float]] = []
    named: set[int] = set()
    for part in filter(None, (part.strip() for part in re.split(r"[,;\n]", text))):
        first, last, weight = _range(part)
        layers = range(first, last + 1)
        twice = next((layer for layer in layers if layer in named), None)
        if twice is not None:
            raise ValueError(f"Layer schedule: layer {twice} in {quoted(part)} already has a weight; name each layer once.")
        named.update(layers)
        ranges.append((first, last, weight))
    if not ranges:
        raise ValueError("Layer schedule: the text is empty. Write e.g. 5-56: 1")
    return tuple(ranges)


def _range(part: str) -> tuple[int, int, float]:
    entry = _ENTRY.fullmatch(part)
    weight = _number(entry[3]) if entry else None
    if weight is None:
        raise ValueError(
            f"Layer schedule: cannot read {quoted(part)}. Write layers, a colon and a weight, "
            "separated by commas, e.g. 5-18: 1, 19-55: 0.5, 56: 0"
        )
    _check_weight(weight, f"the weight in {quoted(part)}")
    first, last = _layer(entry[1]), _layer(entry[2] or entry[1])
    if max(first, last) > LAST_LAYER:
        raise ValueError(f"Layer schedule: {quoted(part)} names layers beyond {LAST_LAYER}, and no model has as many. Lower them.")
    if last < first:
        raise ValueError(f"Layer schedule: the range in {quoted(part)} runs backwards; write {last}-{first}.")
    return first, last, weight


def _layer(digits: str) -> int:
    """The number, or one beyond LAST_LAYER: more digits than some thousand are refused by int()."""
    return int(digits.lstrip("0")[:9] or 0)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _check_weight(weight: float, what: str) -> None:
    if not abs(weight) <= LARGEST_WEIGHT:
        raise ValueError(
            f"Layer schedule: {what} is {weight:g}; it must be a finite number from {-LARGEST_WEIGHT:g} to {LARGEST_WEIGHT:g}."
        )


def _check_depth(layer: int, depth: int) -> None:
    if layer >= depth:
        raise ValueError(
            f"Layer schedule: layer {layer} is beyond this model, which has {depth} layers (0 to {depth - 1}). "
            "Lower the layer numbers of the schedule."
        )

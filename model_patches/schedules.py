"""Layer schedules: how strongly each layer is guided.

A schedule holds unitless weights that multiply the guidance scale w. Layers are counted over the whole model, double (joint)
blocks first, then single blocks, from 0. `resolve(depth)` gives one weight per layer of a model with `depth` layers.
Why layers: guiding the first ones too weakens prompt adherence (Starodubcev et al., ICLR 2026, section 4).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace


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
        if self.start_layer < 0 or self.end_layer < -1:
            raise ValueError(
                f"Layer schedule: layers count from 0, but start_layer is {self.start_layer} and end_layer {self.end_layer}. "
                "Only end_layer may be -1, for the last layer."
            )
        if self.taper_layers < 0:
            raise ValueError(f"Layer schedule: taper_layers is {self.taper_layers}; it counts layers, so 0 or more.")
        if 0 <= self.end_layer < self.start_layer:
            raise ValueError(
                f"Layer schedule: start_layer {self.start_layer} is past end_layer {self.end_layer}. "
                "Lower start_layer, or set end_layer to -1 for the last layer."
            )

    def resolve(self, depth: int) -> tuple[float, ...]:
        _check_depth(max(self.start_layer, self.end_layer), depth)
        end = depth - 1 if self.end_layer == -1 else self.end_layer
        taper_from = end - self.taper_layers + 1
        return tuple(
            0.0 if not self.start_layer <= layer <= end else self.taper_scale if layer >= taper_from else 1.0
            for layer in range(depth)
        )


@dataclass(frozen=True)
class CurveSchedule:
    """Weights read off a curve: x is the relative depth (0 first layer, 1 last), y the weight."""

    curve: Callable[[float], float]
    final_layer: float = 0.0

    def resolve(self, depth: int) -> tuple[float, ...]:
        return tuple(float(self.curve(layer / max(depth - 1, 1))) for layer in range(depth))


@dataclass(frozen=True)
class TextSchedule:
    """Weights written out: ranges (first, last, weight), both ends inclusive; layers not named weigh 0."""

    ranges: tuple[tuple[int, int, float], ...]
    final_layer: float = 0.0

    def resolve(self, depth: int) -> tuple[float, ...]:
        _check_depth(max(last for _, last, _ in self.ranges), depth)
        weights = [0.0] * depth
        for first, last, weight in self.ranges:
            weights[first:last + 1] = [weight] * (last + 1 - first)
        return tuple(weights)


@dataclass(frozen=True)
class LateSchedule:
    """Another schedule's weights from start_layer on, 0 before."""

    schedule: CurveSchedule | TextSchedule
    start_layer: int

    @property
    def final_layer(self) -> float:
        return self.schedule.final_layer

    def resolve(self, depth: int) -> tuple[float, ...]:
        _check_depth(self.start_layer, depth)
        return tuple(weight if layer >= self.start_layer else 0.0 for layer, weight in enumerate(self.schedule.resolve(depth)))


LayerSchedule = RangeSchedule | CurveSchedule | TextSchedule | LateSchedule


def starting_at(schedule: LayerSchedule, start_layer: int) -> LayerSchedule:
    """The schedule from start_layer on: a range is moved there, anything else loses what is before."""
    if isinstance(schedule, RangeSchedule):
        return replace(schedule, start_layer=start_layer)
    return LateSchedule(schedule, start_layer)


_ENTRY = re.compile(r"(\d+)\s*(?:-\s*(\d+)\s*)?:\s*(\S+)")


def parse_ranges(text: str) -> tuple[tuple[int, int, float], ...]:
    """Read "5-18: 1, 19-55: 0.5, 56: 0" as ((5, 18, 1.0), (19, 55, 0.5), (56, 56, 0.0)).

    Raises ValueError naming the part that does not parse, a range that runs backwards, or a layer named twice.
    """
    ranges = []
    for part in filter(None, (part.strip() for part in re.split(r"[,;\n]", text))):
        entry = _ENTRY.fullmatch(part)
        weight = _finite(entry[3]) if entry else None
        if weight is None:
            raise ValueError(
                f"Layer schedule: cannot read {part!r}. Write layers, a colon and a weight, "
                "separated by commas, e.g. 5-18: 1, 19-55: 0.5, 56: 0"
            )
        first, last = int(entry[1]), int(entry[2] or entry[1])
        if last < first:
            raise ValueError(f"Layer schedule: the range in {part!r} runs backwards; write {last}-{first}.")
        for other_first, other_last, _ in ranges:
            if first <= other_last and other_first <= last:
                twice = max(first, other_first)
                raise ValueError(f"Layer schedule: layer {twice} in {part!r} already has a weight; name each layer once.")
        ranges.append((first, last, weight))
    if not ranges:
        raise ValueError("Layer schedule: the text is empty. Write e.g. 5-56: 1")
    return tuple(ranges)


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _check_depth(layer: int, depth: int) -> None:
    if layer >= depth:
        raise ValueError(
            f"Layer schedule: layer {layer} is beyond this model, which has {depth} layers (0 to {depth - 1}). "
            "Lower the layer numbers of the schedule."
        )

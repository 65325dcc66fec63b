"""Learned directions on a model: y_i + w g_i delta_i at layer i, g_i the schedule's weight and delta_i the shift learned for it.

The output head takes none of it. Learned on one model of a family, they fit all of its depth and width, and deeper ones of its lineage.
"""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_management
import torch
from torch import Tensor, nn

from .directions import LearnedDirection
from .families import Call, Family
from .places import Placed
from .quoting import quoted


@dataclass(frozen=True, eq=False)
class LearnedShifts:
    """What the learned terms of a direction add to y at w 1.

    injection: the name of the family's injection that takes it. shifts: (L, D) in fp32, L the model's depth.
    guided: whether each layer is one that was learned. moved: whether its shift is not all zeros.
    """

    injection: str
    shifts: Tensor
    guided: tuple[bool, ...]
    moved: tuple[bool, ...]

    @classmethod
    def of(cls, learned: tuple[LearnedDirection, ...], family: Family, model: nn.Module) -> LearnedShifts | None:
        """None of none. Raises ValueError, naming both sides, if one was learned for another family, depth or width."""
        if not learned:
            return None
        for one in learned:
            _check_fits(one, family, model)
        placed = [Placed.of(len(one.shifts), family, model) for one in learned]
        shifts = [one.weight * place.rows(one.shifts.float()) for one, place in zip(learned, placed, strict=True)]
        guided = tuple(any(layer in place.places for place in placed) for layer in range(family.depth(model)))
        summed = sum(shifts[1:], shifts[0])
        return cls(family.place_of_y, summed, guided, tuple(summed.any(dim=1).tolist()))

    def weights(self, weights: tuple[float, ...]) -> tuple[float, ...]:
        """Those of layers that were not learned set to 0."""
        return tuple(weight if guided else 0.0 for weight, guided in zip(weights, self.guided, strict=True))

    def acts(self, layer: int) -> bool:
        """Whether it changes anything at that layer; the head comes last."""
        return layer < len(self.moved) and self.moved[layer]

    def at(self, call: Call, w: float, layer_weights: tuple[float, ...]) -> Tensor:
        """(L + 1, D) in fp32, w g_i delta_i at each layer, and zeros at the head; made once in a sampling."""
        known = {} if call.sampling is None else call.sampling.known
        key = (self, w, layer_weights, call.x.device)
        if key not in known:
            scales = w * torch.tensor(layer_weights[:-1], dtype=torch.float32, device=self.shifts.device)
            rows = nn.functional.pad(scales[:, None] * self.shifts, (0, 0, 0, 1))
            known[key] = comfy.model_management.cast_to_device(rows, call.x.device, torch.float32)
        return known[key]


def _check_fits(one: LearnedDirection, family: Family, model: nn.Module) -> None:
    depth, width = family.depth(model), family.injections[family.place_of_y].width(model)
    layers, learned_width = one.shifts.shape
    words = f"The guidance direction learned from {quoted(one.positive)} and {quoted(one.negative)}"
    if one.family != family.name:
        raise ValueError(
            f"{words} was learned on {one.family}, but the model is a {family.name}. Load a direction learned on {family.name}, or "
            f"connect a {one.family} model."
        )
    if family.places(layers, depth) is None:
        raise ValueError(
            f"{words} is for {layers} layers, but this {family.name} model has {depth}. Load a direction learned on a model of as many."
        )
    if learned_width != width:
        raise ValueError(
            f"{words} is {learned_width} wide, but the modulation of this {family.name} model is {width} wide. Load a direction learned on "
            "a model of that width."
        )

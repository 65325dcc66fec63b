"""Where the layers that something was made for stand in the model at hand, which may be a deeper one of their lineage."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .families import Family


class Placed(NamedTuple):
    """Where numbers of layers act in a model of `depth` layers: at `places`, which their layers stand at there, and at no other."""

    depth: int
    places: tuple[int, ...]

    @classmethod
    def of(cls, count: int | None, family: Family, model: nn.Module) -> Placed:
        """Of numbers for `count` layers, which fit; None for every layer."""
        depth = family.depth(model)
        return cls(depth, family.places(depth if count is None else count, depth))

    def weights(self, weights: tuple[float, ...]) -> tuple[float, ...]:
        """Those of the layers between set to 0."""
        return tuple(weight if layer in self.places else 0.0 for layer, weight in enumerate(weights))

    def rows(self, rows: Tensor) -> Tensor:
        """(count, D) -> (depth, D), zeros between."""
        if len(rows) == self.depth:
            return rows
        # By rows and not by an index, which would have to be copied to the device at every step.
        placed = [rows.new_zeros(rows.shape[1])] * self.depth
        for place, row in zip(self.places, rows.unbind(), strict=True):
            placed[place] = row
        return torch.stack(placed)

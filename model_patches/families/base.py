"""What a model family must answer, and nothing more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ..schedules import LayerSchedule, RangeSchedule


@dataclass(frozen=True)
class ModulationInput:
    """A module and the argument of its forward that is the modulation vector y."""

    module: nn.Module
    name: str
    position: int


@dataclass(frozen=True)
class Family:
    """A family of diffusion transformers that share a class of the host.

    matches: is this host model mine.
    blocks: the main blocks, in global order (double, then single); refiners and text-only blocks are left out.
    head: the output head.
    pooled_width: how many features of the pooled text the model reads.
    pooled_to_modulation: what a pooled text embedding (N, P) adds to y, (N, D).
    start_layer, final_layer, cfg_rows: the reference implementation's settings, used where the user gives none.
    encoder: how to load the text encoder whose pooled output the model reads.
    """

    name: str
    matches: Callable[[nn.Module], bool]
    blocks: Callable[[nn.Module], list[ModulationInput]]
    head: Callable[[nn.Module], ModulationInput]
    pooled_width: Callable[[nn.Module], int]
    pooled_to_modulation: Callable[[nn.Module, Tensor], Tensor]
    encoder: str
    start_layer: int
    final_layer: float = 0.0
    cfg_rows: str = "both"

    def default_schedule(self, depth: int) -> LayerSchedule:
        """The reference start layer; a tenth of the depth for models too shallow (pruned, toy) to have that layer."""
        start = self.start_layer if self.start_layer < depth else round(depth / 10)
        return RangeSchedule(start, final_layer=self.final_layer)

"""What a model family must answer, and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..directions import EncodedPrompt
from ..host_model import HostModel
from ..schedules import LayerSchedule, RangeSchedule
from .blocks import Injection
from .text import TextContext, TextPath, TextTokens


@dataclass(frozen=True)
class Family:
    """A family of diffusion transformers that share a class of the host.

    matches: (model, its class) -> is this host model mine. host_models: the names by which the host knows them, those of its classes
    around the diffusion model; one of another name is another model that runs on the same class.
    injections: where shifts may enter, by name, first at y itself; each has the same number of blocks.
    text: how the model itself takes text into y; None for text-blind models, which need a projection.
    start_layer (None: a tenth of the depth), final_layer, cfg_rows: the reference's settings, used where the user gives none.
    w: the reference's guidance scale; None where there is no reference.
    encoder: how to load the text encoder that the model uses.
    context: the text-blind model's own text, which a projection may pool.
    blank: a prompt of zeros that the model can read; None where it is as wide as its context, and nothing else is read.
    text_tokens: where the text tokens enter the blocks; None where they do by cross-attention alone.
    next_level: whether y is made from the next noise level too, of which the host gives all rows of a call that of the first.
    lineage: deeper models made by inserting layers: (depth, the numbers there of those inserted), each into the one before.
    """

    name: str
    matches: Callable[[nn.Module, type], bool]
    host_models: tuple[str, ...]
    injections: dict[str, Injection]
    text: TextPath | None
    encoder: str
    w: float | None = None
    start_layer: int | None = None
    final_layer: float = 0.0
    cfg_rows: str = "both"
    context: TextContext | None = None
    blank: Callable[[nn.Module], EncodedPrompt] | None = None
    text_tokens: TextTokens | None = None
    next_level: Callable[[nn.Module], bool] = lambda model: False
    lineage: tuple[tuple[int, tuple[int, ...]], ...] = ()

    @property
    def place_of_y(self) -> str:
        """The name of the injection at y itself."""
        return next(iter(self.injections))

    def has(self, host: HostModel) -> bool:
        """Whether the host's model is of this family."""
        return host.kind in (None, *self.host_models) and self.matches(host.diffusion_model, host.cls)

    def places(self, of: int, depth: int) -> tuple[int, ...] | None:
        """Where the layers of a model with `of` layers stand in one with `depth`; None where one is not known to be made of the other."""
        places: Sequence[int] = range(of)
        for deeper, inserted in self.lineage:
            if of == deeper - len(inserted) and deeper <= depth:
                inherited = [layer for layer in range(deeper) if layer not in inserted]
                places, of = [inherited[layer] for layer in places], deeper
        return tuple(places) if of == depth else None

    def blank_prompt(self, model: nn.Module) -> EncodedPrompt:
        """Of zeros, for y where no prompt is at hand."""
        return EncodedPrompt(None, torch.zeros(1, 8, self.context.width(model))) if self.blank is None else self.blank(model)

    def depth(self, model: nn.Module) -> int:
        """The number of layers."""
        return len(self.injections[self.place_of_y].blocks(model))

    def default_schedule(self, depth: int) -> LayerSchedule:
        """The reference start layer; a tenth of the depth for models too shallow (pruned, toy) to have that layer."""
        start = self.start_layer
        if start is None or start >= depth:
            start = round(depth / 10)
        return RangeSchedule(start, final_layer=self.final_layer)

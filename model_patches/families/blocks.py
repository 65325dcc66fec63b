"""Where a shift enters a model: which argument of which blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from .call import Call

RESULT = "(result)"


class BlockInput(NamedTuple):
    """A module and one argument of its forward, by name and by position among the positional ones.

    Named RESULT: not an argument but a part of the tuple that the module returns, by position.
    carry: for an argument that is made from y by a layer before the block: (model, call, y's two shifts at several blocks, see `carried`)
    -> what is added to the argument of each at this call, a tensor or a structure of them like the argument's; None where the argument
    is y.
    repeats: whether the argument holds the rows of the batch several times over where reference pictures have a time of their own.
    part: (model, what `carry` or the injection's `carry_all` makes) -> a block's part of it, where one layer makes the arguments of all
    blocks at once.
    """

    module: nn.Module
    name: str
    position: int
    carry: Callable[[nn.Module, Call, list[tuple[Tensor | None, Tensor | None] | None]], list] | None = None
    part: Callable[[nn.Module, Any], Any] | None = None
    repeats: bool = False


def in_width(layer: nn.Module) -> int:
    """How many features a linear layer reads, whatever its class."""
    return _features(layer, "in_features", 1)


def out_width(layer: nn.Module) -> int:
    """How many features a linear layer makes, whatever its class."""
    return _features(layer, "out_features", 0)


def _features(layer: nn.Module, name: str, dimension: int) -> int:
    if hasattr(layer, name):
        return getattr(layer, name)
    # Layers of loaders that quantise with bitsandbytes hold a weight and nothing else, and its own shape is that of packed bytes. The
    # true one is kept beside it; on the layer too, since the weight loses it where the host makes a new parameter of it.
    states = (getattr(holder, "quant_state", None) for holder in (layer, layer.weight))
    return next((state for state in states if state is not None), layer.weight).shape[dimension]


@dataclass(frozen=True)
class Injection:
    """Where a shift enters.

    blocks: the main blocks, in global order (double, then single); refiners and text-only blocks are left out.
    head: the output head; None where it takes no shift.
    width: D, of what is shifted. y: the vector itself at this call, (R, D) or (R, T, D); needed where a projection adds the pooled text.
    carry_all: in place of each block's `carry`: (model, call, y's two shifts at each layer and the head) -> what the blocks' `part` takes.
    """

    blocks: Callable[[nn.Module], list[BlockInput]]
    head: Callable[[nn.Module], BlockInput] | None
    width: Callable[[nn.Module], int]
    y: Callable[[nn.Module, Call], Tensor] | None = None
    carry_all: Callable[[nn.Module, Call, list[tuple[Tensor | None, Tensor | None]]], Any] | None = None

    def carries(self, model: nn.Module) -> bool:
        """Whether what the blocks take is made from y before them."""
        return self.carry_all is not None or self.blocks(model)[0].carry is not None


def runs_as(cls: type, known: type, *kin: str) -> bool:
    """Whether a model of class `cls` runs as the host's class `known` does: it is that class, or one that leaves all its methods alone.

    A subclass with another forward, or another part of it, is another model. kin: the names of those that are known all the same.
    """
    if known not in cls.__mro__:
        return False
    parts = (vars(base).items() for base in known.__mro__ if base not in nn.Module.__mro__)
    methods = {name for part in parts for name, value in part if callable(value) and not name.startswith("__")}
    for base in cls.__mro__:
        if base is known or base.__name__ in kin:
            return True
        if methods & vars(base).keys():
            return False
    return False

"""The layers of a model that another node has put in a wrapper of its own for the time of a call."""

from __future__ import annotations

import weakref

from torch import nn

from .families import BlockInput

# By diffusion model: the layers as they were when something was last applied to it.
_SEEN: weakref.WeakKeyDictionary[nn.Module, dict[str, list[BlockInput]]] = weakref.WeakKeyDictionary()


def remember(diffusion_model: nn.Module, name: str, layers: list[BlockInput]) -> None:
    """Keeps the layers under that name, for `as_applied`."""
    _SEEN.setdefault(diffusion_model, {})[name] = layers


def as_applied(diffusion_model: nn.Module, name: str, layers: list[BlockInput], depths: set[int], what: str) -> list[BlockInput]:
    """The model's layers, or those remembered, where another node has put them all into a block of its own, as some caches do.

    depths: how many there must be. Raises ValueError where they can't be told; what: who needs them.
    """
    if depths == {len(layers)}:
        return layers
    seen = _SEEN.get(diffusion_model, {}).get(name, [])
    if depths == {len(seen)} and {layer.module for layer in seen} <= {*diffusion_model.modules()}:
        return seen
    kinds = ", ".join(sorted({type(layer.module).__name__ for layer in layers}))
    raise ValueError(
        f"{what} was applied to a model of {' and '.join(map(str, sorted(depths)))} layers and now runs on one of {len(layers)} ({kinds}). "
        "Apply it after the node that changes the model; a guider that runs a second model with the first one's options needs one of as many "
        "layers. If another node puts the layers into a block of its own while the model runs, it hides them: remove that node."
    )

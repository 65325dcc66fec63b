"""Which of the host's models a ModelPatcher holds, whatever other nodes have put on it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, NamedTuple

import comfy.model_base
from torch import nn

EDITED_CLASS = "modulation_class"  # on the classes that modules have while a call edits them

_SWAP = "diffusion_model.__class__"


class HostModel(NamedTuple):
    """diffusion_model: without torch.compile's wrapper. cls: its own class. base_cls: of what the host has around it."""

    diffusion_model: nn.Module
    cls: type
    base_cls: type

    @property
    def name(self) -> str:
        """What the model is called, by the host or by the pack that brought it."""
        return self.base_cls.__name__

    @property
    def kind(self) -> str | None:
        """Which of the host's models it is or is made of; None where the host does not say."""
        hosts = (base for base in self.base_cls.__mro__ if base.__module__ == comfy.model_base.__name__)
        return next((base.__name__ for base in hosts if base is not comfy.model_base.BaseModel), None)

    @classmethod
    def of(cls, patcher) -> HostModel:
        """Of a ModelPatcher."""
        return cls._of(patcher.model, patcher.get_model_object("diffusion_model"), patcher)

    @classmethod
    def called(cls, base_model: Any) -> HostModel:
        """Of a model that is being called."""
        return cls._of(base_model, base_model.diffusion_model, base_model.current_patcher)

    @classmethod
    def _of(cls, base_model, diffusion_model, patcher):
        diffusion_model = uncompiled(diffusion_model)
        # Some packs swap the class by an object patch, which stays on the model until a patcher without it is loaded.
        swapped = None if patcher is None else patcher.object_patches_backup.get(_SWAP)
        return cls(diffusion_model, swapped or host_class(diffusion_model), type(base_model))

    @contextmanager
    def naming_a_stand_in(self):
        """Within it, what is missing from a class that another pack has put in place of the model's own is said so, as a ValueError."""
        try:
            yield
        except AttributeError as error:
            now = host_class(self.diffusion_model)
            if issubclass(now, self.cls):
                raise
            raise ValueError(
                f"Another node has put a class of its own, {now.__module__}.{now.__qualname__}, in place of this model's {self.cls.__name__}, "
                f"and it lacks a part that is needed here ({error}). Remove that node."
            ) from error


def host_class(module: nn.Module) -> type:
    """The module's class, without the edits of a call that is under way."""
    return vars(type(module)).get(EDITED_CLASS, type(module))


def uncompiled(module: nn.Module) -> nn.Module:
    """The module inside torch.compile's wrapper, or the module itself."""
    return getattr(module, "_orig_mod", module)

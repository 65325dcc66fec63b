"""Adding a tensor to the modulation input of blocks, for the duration of one model call.

The blocks' `forward` is overridden on the instances and put back in `finally`, so no hook slot is taken from other nodes,
no weight is touched, and nothing outlives the call.

Under torch.compile everything that varies reaches the compiled region as a tensor: a Python number read there would be baked
into the graph, silently, since the host drops guards on transformer_options. Blocks of a class share one override, since one
closure a block would mean one graph a block, and blocks of another class have another, since all graphs of one override count
against dynamo's recompile limit. The model itself gets an override too: it keeps the graphs of guided and unguided calls apart
even where the guards on modules are dropped, as torch.compiler.skip_guard_on_all_nn_modules_unsafe does for speed.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from types import FunctionType, MethodType

import torch
from torch import Tensor, nn

from .families import ModulationInput


@dataclass(frozen=True)
class Shift:
    """What is added to y, one row per row of the batch, (B, D).

    added: added as it is. norm_kept: added first, and the sum rescaled to the norm of the plain y.
    """

    added: Tensor | None
    norm_kept: Tensor | None


def shifted(y: Tensor, added: Tensor | None, norm_kept: Tensor | None) -> Tensor:
    """y + added, or rescale(y + norm_kept) + added with the norm of y kept per row."""
    guided = y if norm_kept is None else _with_norm_of(y, y + norm_kept)
    return guided if added is None else guided + added


def _with_norm_of(plain: Tensor, guided: Tensor) -> Tensor:
    # In fp32: the squares of a half-precision y overflow.
    wanted = torch.linalg.vector_norm(plain, dim=-1, keepdim=True, dtype=torch.float32)
    norm = torch.linalg.vector_norm(guided, dim=-1, keepdim=True, dtype=torch.float32)
    return guided * (wanted / norm.clamp_min(torch.finfo(torch.float32).tiny)).to(guided.dtype)


@contextmanager
def shifted_modulation(model: nn.Module, shifts: Iterable[tuple[ModulationInput, Shift]]):
    """Within the context, each module named in `shifts` sees its y shifted."""
    shifts = list(shifts)
    terms = "".join(f"_{name}" for name, tensor in vars(shifts[0][1]).items() if tensor is not None)
    with ExitStack() as stack:
        stack.enter_context(_overridden(model, _marked_forward, terms))
        for site, shift in shifts:
            stack.enter_context(_overridden(
                uncompiled(site.module),
                _shifted_forward,
                terms,
                modulation_input=(site.name, site.position),
                modulation_added=shift.added,
                modulation_norm_kept=shift.norm_kept,
            ))
        yield


def uncompiled(module: nn.Module) -> nn.Module:
    """The module inside torch.compile's wrapper, or the module itself."""
    return getattr(module, "_orig_mod", module)


def _marked_forward(self, *args, **kwargs):
    return _inner_forward(self, args, kwargs)


def _shifted_forward(self, *args, **kwargs):
    name, position = self.modulation_input
    if name in kwargs:
        kwargs[name] = shifted(kwargs[name], self.modulation_added, self.modulation_norm_kept)
    else:
        y = shifted(args[position], self.modulation_added, self.modulation_norm_kept)
        args = (*args[:position], y, *args[position + 1:])
    return _inner_forward(self, args, kwargs)


def _inner_forward(module, args, kwargs):
    # A forward that another pack has put on the instance goes on working under ours.
    if module.modulation_inner_forward is not None:
        return module.modulation_inner_forward(*args, **kwargs)
    return type(module).forward(module, *args, **kwargs)


@cache
def _copied_for(cls: type, function, suffix: str):
    """A copy of `function` with a code object and a name of its own, which is what dynamo keeps graphs and seen shapes by."""
    name = f"{function.__name__}_{cls.__name__}{suffix}"
    return FunctionType(function.__code__.replace(co_name=name), function.__globals__, name)


@contextmanager
def _overridden(module: nn.Module, forward, suffix: str, **attributes):
    attributes["modulation_inner_forward"] = module.__dict__.get("forward")
    attributes["forward"] = MethodType(_copied_for(type(module), forward, suffix), module)
    before = {name: module.__dict__[name] for name in attributes if name in module.__dict__}
    try:
        module.__dict__.update(attributes)
        yield
    finally:
        for name in attributes:
            module.__dict__.pop(name, None)
        module.__dict__.update(before)

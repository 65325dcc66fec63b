"""Changing arguments of blocks, or parts of what they return, for the duration of one model call.

The blocks' `forward` is overridden on the instances and put back in `finally`, so no hook slot is taken from other nodes,
no weight is touched, and nothing outlives the call.

Under torch.compile everything that varies reaches the compiled region as a tensor: a Python number read there would be baked
into the graph, silently, since the host drops guards on transformer_options. Blocks of a class share one override, since one
closure a block would mean one graph a block, and blocks of another class have another, since all graphs of one override count
against dynamo's recompile limit. The model itself gets an override too: it keeps the graphs of changed and unchanged calls apart
even where the guards on modules are dropped, as torch.compiler.skip_guard_on_all_nn_modules_unsafe does for speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from types import FunctionType, MethodType

from torch import Tensor, nn

from .families import RESULT, BlockInput


@dataclass(frozen=True)
class Edit:
    """`function(argument, *tensors)` in place of what `target` names; `function` is one of a module, not a closure."""

    target: BlockInput
    function: Callable
    tensors: tuple[Tensor | None, ...]


@contextmanager
def edited(model: nn.Module, edits: Iterable[Edit]):
    """Within the context, the blocks of `model` named in `edits` see their arguments changed, in the order of `edits`.

    One `edited` within another adds its edits to the blocks that both change.
    """
    of_block = {}
    for edit in edits:
        block = uncompiled(edit.target.module)
        of_block.setdefault(block, [*block.__dict__.get("modulation_edits", ())]).append(
            (edit.target.name, edit.target.position, edit.function, edit.tensors)
        )
    for block_edits in of_block.values():
        block_edits.sort(key=itemgetter(0))  # of two arguments, whichever came first: the graph is the same
    kinds = {**model.__dict__.get("modulation_kinds", {}), **{block: _kind(block_edits) for block, block_edits in of_block.items()}}
    with ExitStack() as stack:
        stack.enter_context(_overridden(model, _marked_forward, "_".join(sorted({*kinds.values()})), modulation_kinds=kinds))
        for block, block_edits in of_block.items():
            stack.enter_context(_overridden(block, _edited_forward, kinds[block], modulation_edits=tuple(block_edits)))
        yield


def _kind(block_edits) -> str:
    """What tells the graphs of two sets of edits apart."""
    return "_".join(
        function.__name__ + "".join("01"[tensor is not None] for tensor in tensors) for _, _, function, tensors in block_edits
    )


def uncompiled(module: nn.Module) -> nn.Module:
    """The module inside torch.compile's wrapper, or the module itself."""
    return getattr(module, "_orig_mod", module)


def _marked_forward(self, *args, **kwargs):
    return _inner_forward(self, args, kwargs)


def _edited_forward(self, *args, **kwargs):
    for name, position, function, tensors in self.modulation_edits:
        if name in kwargs:
            kwargs[name] = function(kwargs[name], *tensors)
        elif name != RESULT:
            args = _with(args, position, function, tensors)
    result = _inner_forward(self, args, kwargs)
    for name, position, function, tensors in self.modulation_edits:
        if name == RESULT:
            result = _with(result, position, function, tensors)
    return result


def _with(values: tuple, position: int, function, tensors) -> tuple:
    return (*values[:position], function(values[position], *tensors), *values[position + 1:])


def _inner_forward(module, args, kwargs):
    # A forward that another pack has put on the instance goes on working under ours.
    if module.modulation_inner_forward is not None:
        return module.modulation_inner_forward(*args, **kwargs)
    return type(module).forward(module, *args, **kwargs)


@cache
def _copied_for(cls: type, function, suffix: str):
    """A copy of `function` with a code object and a name of its own, which is what dynamo keeps graphs and seen shapes by."""
    name = f"{function.__name__}_{cls.__name__}_{suffix}"
    return FunctionType(function.__code__.replace(co_name=name), function.__globals__, name)


@contextmanager
def _overridden(module: nn.Module, forward, suffix: str, **attributes):
    if "modulation_inner_forward" not in module.__dict__:
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

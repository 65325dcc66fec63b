"""Changing arguments of modules, or parts of what they return, for the duration of one model call.

For that time each edited module is given a subclass of its class, which edits around `nn.Module._call_impl`: whatever forward the
module has by then, from whomever, runs inside. No hook slot is taken from other nodes, no weight is touched, and nothing outlives
the call. Calls of one model from several threads take turns; what other packs' function wrappers run around those does not, and the
last to end takes off what was left on by the others.

Under torch.compile everything that varies reaches the compiled region as a tensor: a Python number read there would be baked
into the graph, silently, since the host drops guards on transformer_options. Modules of a class share one subclass for each kind of
edit, kept for ever: dynamo's guards on types keep the graphs of changed and unchanged calls apart. So do the subclasses' own code
objects, where the guards on modules are dropped, as torch.compiler.skip_guard_on_all_nn_modules_unsafe does for speed; for these the
model itself gets a subclass too. A block that is compiled by itself is edited around its compiled form, outside its graph.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, repeat
from operator import itemgetter
from types import FunctionType, new_class
from typing import Any, NamedTuple

from torch import Tensor, nn

from .families import RESULT, BlockInput
from .host_model import EDITED_CLASS, host_class


class Edit(NamedTuple):
    """`function(argument, *tensors, made)` in place of what `target` names; `function` is one of a module, not a closure.

    made: a `Made`. alike: whether the tensors are known to be the same for every row of the batch; own: whether they hold something of
    each row, as its text. around: whether it also holds where a function wrapper runs that part of the model by itself. matters:
    whether it changes anything; another one is there to keep the graph of torch.compile the same. see: gets the argument as it came,
    after the call, where `function` keeps it (as `shifted_in_sight` does) and the edit came to be made.
    """

    target: BlockInput
    function: Callable
    tensors: tuple[Any, ...]
    alike: bool = False
    own: bool = False
    around: bool = False
    matters: bool = True
    see: Callable[[Tensor], None] | None = None


@dataclass
class Watch:
    """Over several calls of a model: how many ran with edits, and which of the edits that matter were due and came to be made.

    Edits are told by their number in a call.
    """

    calls: int = 0
    due: set[int] = field(default_factory=set)
    made: set[int] = field(default_factory=set)


class Made:
    """What is not a tensor in an edit: alike and own, as in Edit; repeats, as in BlockInput; owner, whose it is; reached, whether it came
    to be made; y, the argument as it came, where the edit's function keeps it.

    One object for each edit: torch.compile would guard on one that two modules share. It guards on no attribute that is not read.
    """

    def __init__(self, alike: bool, own: bool, repeats: bool, owner: str):
        self.alike, self.own, self.repeats, self.owner = alike, own, repeats, owner
        self.reached = False
        self.y: Tensor | None = None


def run_edited(model: nn.Module, edits: Iterable[Edit], run: Callable[[], Any], watch: Watch, owner: str) -> Any:
    """run(), in which the modules of `model` named in `edits` see their arguments changed, in the order of `edits`.

    A call within another's adds its edits to the modules that both change; within one of the same owner, they take its edits' place.
    """
    of_module: dict[nn.Module, list] = {}
    watched, sights = {}, []
    for number, (target, function, tensors, alike, own, _, matters, see) in enumerate(edits):
        known = of_module.get(target.module)
        if known is None:
            known = of_module[target.module] = [edit for edit in target.module.__dict__.get(_EDITS, ()) if edit[-1].owner != owner]
        made = Made(alike, own, target.repeats, owner)
        known.append((target.name, target.position, function, tensors, made))
        if matters:
            watched[number] = made
        if see is not None:
            sights.append((see, made))
    for module_edits in of_module.values():
        module_edits.sort(key=itemgetter(0))  # of two arguments, whichever came first: the graph is the same
    kinds = {module: _joined(map(_kind, module_edits)) for module, module_edits in of_module.items()}
    outer = vars(type(model)).get(_KIND, "").split("+")
    of_module[model], kinds[model] = [], _joined(sorted({*outer, *chain(*(kind.split("+") for kind in {*kinds.values()}))}))
    result = _run_as(
        {module: _edited_class(host_class(module), kinds[module]) for module in of_module},
        {module: tuple(module_edits) for module, module_edits in of_module.items()},
        run,
    )
    watch.calls += 1
    watch.due |= watched.keys()
    watch.made |= {number for number, made in watched.items() if made.reached}
    for see, made in sights:
        if made.y is not None:
            see(made.y)
    return result


_EDITS, _KIND, _RUN = "modulation_edits", "modulation_kind", "modulation_run"


class _Run:
    """What edits were put on for, kept beside them."""

    over = False


def _run_as(classes: dict[nn.Module, type], edits: dict[nn.Module, tuple], run):
    # An interrupt may come from another thread between any two lines. Each deque below runs in C as a whole, and is ready before
    # the modules are touched, so that either all of them are changed or none.
    this = _Run()
    modules, attributes = [*classes], [module.__dict__ for module in classes]
    before = [{name: of_module[name] for name in (_EDITS, _RUN) if name in of_module} for of_module in attributes]
    new = [of_module for of_module, edited in zip(attributes, before, strict=True) if not edited]
    change = chain(
        map(dict.update, attributes, [{_EDITS: edits[module], _RUN: this} for module in modules]),
        map(object.__setattr__, modules, repeat("__class__"), classes.values()),
    )
    undo = chain(
        map(setattr, [this], ["over"], [True]),
        map(object.__setattr__, modules, repeat("__class__"), [*map(type, modules)]),
        map(dict.update, attributes, before),
        map(dict.pop, new, repeat(_EDITS), repeat(None)),
        map(dict.pop, new, repeat(_RUN), repeat(None)),
    )
    try:
        deque(change, 0)
        return run()
    finally:
        deque(undo, 0)
        _take_off_what_is_over(modules)


def _take_off_what_is_over(modules: list[nn.Module]) -> None:
    """What another thread's run had on them when this one began, and ended before it, is back on."""
    for module in modules:
        on_it = module.__dict__.get(_RUN)
        if on_it is not None and on_it.over:
            module.__class__ = host_class(module)
            for name in (_EDITS, _RUN):
                module.__dict__.pop(name, None)  # the thread whose it was may be at it too


def _kind(edit) -> str:
    """What tells the graph of one edit from another's."""
    _, _, function, tensors, _ = edit
    return function.__name__ + "".join("01"[tensor is not None] for tensor in tensors)


def _joined(kinds: Iterable[str]) -> str:
    return "+".join(filter(None, kinds))


@cache
def _edited_class(cls: type, kind: str) -> type:
    """A subclass of `cls`, of the same name, whose calls are edited."""

    def fill(namespace):
        namespace.update({"__module__": cls.__module__, "__qualname__": cls.__qualname__, EDITED_CLASS: cls, _KIND: kind})
        namespace["_call_impl"] = _copied_for(cls, kind, _edited_call)
        # Of its own, or dynamo would take the short way from nn.Module's straight to forward.
        if cls.__call__ is nn.Module.__call__:
            namespace["__call__"] = _copied_for(cls, kind, _call)

    return new_class(cls.__name__, (cls,), exec_body=fill)


def _copied_for(cls: type, kind: str, function) -> FunctionType:
    """A copy of `function` with a code object and a name of its own, which is what dynamo keeps graphs and seen shapes by."""
    name = f"{function.__name__}_{cls.__name__}_{kind}"
    return FunctionType(function.__code__.replace(co_name=name), function.__globals__, name)


def _call(self, *args, **kwargs):
    return self._call_impl(*args, **kwargs)


def _edited_call(self, *args, **kwargs):
    for name, position, function, tensors, made in self.modulation_edits:
        made.reached = True
        if name in kwargs:
            kwargs[name] = function(kwargs[name], *tensors, made)
        elif name != RESULT:
            args = _with(args, position, function, tensors, made)
    if self._compiled_call_impl is None:
        result = self.modulation_class._call_impl(self, *args, **kwargs)
    else:  # by nn.Module.compile
        result = self._compiled_call_impl(*args, **kwargs)
    for name, position, function, tensors, made in self.modulation_edits:
        if name == RESULT:
            result = _with(result, position, function, tensors, made)
    return result


def _with(values: tuple, position: int, function, tensors, made) -> tuple:
    return (*values[:position], function(values[position], *tensors, made), *values[position + 1 :])

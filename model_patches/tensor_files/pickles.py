"""What a pickle of torch says, without doing any of it.

A pickle is a program. Here it only moves plain values about: nothing it names is imported or called, calls that rebuild tensors become
`Stored`, all others nothing. Python's own unpickler cannot be bounded: it hashes keys, and nested tuples overflow its stack or take for
ever. Here keys are texts alone. The operations are those torch.load(weights_only=True) knows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .stored import DIMENSIONS, Damaged, Stored, too_long
from .text import VALUES, shown

_DTYPES = {f"torch.{name}": dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}
_KINDS = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "QInt8": torch.qint8,
    "QUInt8": torch.quint8,
    "QInt32": torch.qint32,
    "QUInt4x2": torch.quint4x2,
    "QUInt2x4": torch.quint2x4,
}
_STORAGES = {f"{module}.{kind}Storage": dtype for module in ("torch", "torch.cuda") for kind, dtype in _KINDS.items()}
_STORAGES["torch.storage.UntypedStorage"] = torch.uint8
_UNREADABLE = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without numbers (meta)",
    "torch._utils._rebuild_qtensor": "a quantized tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of another library's kind",
    "torch._utils._rebuild_device_tensor_from_numpy": "a tensor of another device",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
}
_TENSORS = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"}
_PARAMETERS = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state", "torch.nn.parameter.Parameter"}
_SUBCLASSED = "torch._tensor._rebuild_from_type_v2"
_DICTS = {"collections.OrderedDict", "collections.Counter"}
# What else training scripts leave in checkpoints, and torch and ComfyUI take: it is not looked at.
_OTHERS = {
    "torch.Tensor",
    "torch.device",
    "torch.serialization._get_layout",
    "_codecs.encode",
    "builtins.bytearray",
    "builtins.set",
    "builtins.complex",
    "torch.per_tensor_affine",
    "torch.per_tensor_symmetric",
    "torch.per_channel_affine",
    "torch.per_channel_symmetric",
    "torch.per_channel_affine_float_qparams",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.dtypes.Float64DType",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    *(f"{module}.{kind}Tensor" for module in ("torch", "torch.cuda") for kind in _KINDS),
}
_ARGUMENTS = 8  # that a call of them has at most
_KNOWN = {*_DTYPES, *_STORAGES, *_UNREADABLE, *_TENSORS, *_PARAMETERS, _SUBCLASSED, *_DICTS, "torch.Size", *_OTHERS}


@dataclass(frozen=True)
class _Global:
    """Something of a module, by its full name."""

    name: str


@dataclass(frozen=True)
class _Storage:
    name: str
    dtype: torch.dtype


class Pickles:
    """Reads the pickles of `data`, one after another. whole: whether data is all there is of the file.

    at: where the last one ended. storages: the dtype of each storage they named.
    """

    def __init__(self, data: bytes, whole: bool = True):
        self.data, self.whole = data, whole
        self.at = 0
        self.left = VALUES
        self.storages: dict[str, torch.dtype] = {}

    def read(self) -> Any:
        """None, bool, int, str, tuple, list, dict by texts, or Stored; whatever else it is, None. Raises ValueError."""
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        try:
            while self.data[self.at] != _STOP:
                self.at += 1
                self._count(1)
                _OPERATIONS[self.data[self.at - 1]](self)
            self.at += 1
            return self.stack.pop()
        except (LookupError, UnicodeDecodeError) as error:
            if self.at >= len(self.data) and not self.whole:
                raise too_long("its pickle") from None
            raise Damaged(f"its pickle breaks at byte {self.at:,}") from error

    def _count(self, values: int) -> None:
        self.left -= values
        if self.left < 0:
            raise ValueError(f"cannot be read: its pickle has more than {VALUES:,} steps. Save its weights alone, or use another file.")

    def _take(self, length: int) -> bytes:
        taken = self.data[self.at : self.at + length]
        self.at += length
        if len(taken) < length:
            raise IndexError
        return taken

    def _number(self, form: str) -> int:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise IndexError
        return self._take(end + 1 - self.at)[:-1].decode("utf-8")

    def _push(self, value: Any) -> None:
        self.stack.append(value)

    def _mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def _marked(self) -> list[Any]:
        """What was pushed since the mark."""
        items, self.stack = self.stack, self.marked.pop()
        return items

    def _last(self, count: int) -> list[Any]:
        items = self.stack[-count:]
        if len(items) < count:
            raise IndexError
        del self.stack[-count:]
        return items

    def _remember(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def _global(self) -> None:
        module, name = self._line(), self._line()
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full not in _KNOWN:
            raise ValueError(
                f"holds code that would run when it is loaded ({shown(full)}), or is damaged. It was not loaded. "
                "Use a safetensors file, or a pickle of tensors alone."
            )
        self._push(_Global(full))

    def _reduce(self) -> None:
        function, arguments = self._last(2)
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise Damaged(f"its pickle calls something else than a function, at byte {self.at:,}")
        self._push(self._called(function.name, arguments))

    def _called(self, name: str, arguments: tuple) -> Any:
        """What the call gives, told from its name and arguments."""
        if name in _UNREADABLE:
            return Stored.unreadable(_UNREADABLE[name])
        match arguments[:_ARGUMENTS]:
            case (_Storage(), offset, tuple(shape), tuple(stride), *rest) if name in _TENSORS:
                return _stored(name, arguments[0], offset, shape, stride, rest)
            case (Stored() as data, *_) if name in _PARAMETERS:
                return data
            case (_Global(inner), _, tuple(inner_arguments), _) if name == _SUBCLASSED and inner in (_TENSORS | _UNREADABLE.keys()):
                return self._called(inner, inner_arguments)
            case (list(sizes) | tuple(sizes),) if name == "torch.Size":
                self._count(len(sizes))
                return tuple(sizes)
            case (list(pairs),) if name in _DICTS:
                self._count(len(pairs))
                made: dict[str, Any] = {}
                _set(made, [value for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2 for value in pair])
                return made
            case (dict(given),) if name in _DICTS:
                return given
            case _ if name in _DICTS:
                return {}
        if name in _TENSORS | _PARAMETERS | {_SUBCLASSED}:
            return Stored.unreadable("a tensor that is described in another way than torch does")
        return None

    def _append(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def _set(self, items: list[Any]) -> None:
        _set(self.stack[-1], items)

    def _persistent(self) -> None:
        match self._last(1)[0]:
            case ("storage", _Global(kind), str(name), _, int(_)) | ("storage", _Global(kind), str(name), _, int(_), None) if (
                kind in _STORAGES
            ):
                self.storages.setdefault(name, _STORAGES[kind])
                self._push(_Storage(name, _STORAGES[kind]))
            case _:
                raise Damaged(f"its pickle names something else than a storage, at byte {self.at:,}")


def _set(target: Any, items: list[Any]) -> None:
    """Values by name; what has another kind of key than a text or a number has no name."""
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=False):
            if type(key) in (str, int):
                target[str(key)] = value


def _stored(name: str, storage: _Storage, offset: Any, shape: tuple, stride: tuple, rest: list) -> Stored:
    """rest: requires_grad, hooks, with v3 the dtype, then whether it is conjugated or negated."""
    sizes = (offset, *shape[:DIMENSIONS], *stride[:DIMENSIONS])
    if len(shape) != len(stride) or len(shape) > DIMENSIONS or not all(type(size) is int and 0 <= size < 2**63 for size in sizes):
        return Stored.unreadable("a tensor of impossible sizes")
    dtype = storage.dtype
    if name.endswith("v3"):
        if len(rest) < 3 or not isinstance(rest[2], _Global) or rest[2].name not in _DTYPES:
            return Stored.unreadable("a tensor that is described in another way than torch does")
        dtype = _DTYPES[rest.pop(2).name]
    if any(rest[2:]):
        return Stored.unreadable("a conjugated or negated view")
    return Stored(shape, dtype, storage.name, offset, stride)


_STOP = ord(".")

_OPERATIONS: dict[int, Callable[[Pickles], None]] = {
    ord(code): operation
    for code, operation in {
        "\x80": lambda pickle: pickle._take(1),  # the protocol
        "c": Pickles._global,
        "R": Pickles._reduce,
        "\x81": Pickles._reduce,  # a new object
        "b": lambda pickle: pickle._last(1),  # attributes of what was made: of no interest
        "Q": Pickles._persistent,
        "(": Pickles._mark,
        "a": lambda pickle: pickle._append(pickle._last(1)),
        "e": lambda pickle: pickle._append(pickle._marked()),
        "s": lambda pickle: pickle._set(pickle._last(2)),
        "u": lambda pickle: pickle._set(pickle._marked()),
        ")": lambda pickle: pickle._push(()),
        "t": lambda pickle: pickle._push(tuple(pickle._marked())),
        "\x85": lambda pickle: pickle._push(tuple(pickle._last(1))),
        "\x86": lambda pickle: pickle._push(tuple(pickle._last(2))),
        "\x87": lambda pickle: pickle._push(tuple(pickle._last(3))),
        "]": lambda pickle: pickle._push([]),
        "}": lambda pickle: pickle._push({}),
        "\x8f": lambda pickle: pickle._push(None),  # a set
        "N": lambda pickle: pickle._push(None),
        "\x88": lambda pickle: pickle._push(True),
        "\x89": lambda pickle: pickle._push(False),
        "J": lambda pickle: pickle._push(pickle._number("<i")),
        "K": lambda pickle: pickle._push(pickle._number("B")),
        "M": lambda pickle: pickle._push(pickle._number("<H")),
        "\x8a": lambda pickle: pickle._push(int.from_bytes(pickle._take(pickle._number("B")), "little", signed=True)),
        "G": lambda pickle: pickle._push(pickle._take(8) and None),  # no tensor depends on a float
        "X": lambda pickle: pickle._push(pickle._take(pickle._number("<I")).decode("utf-8", "surrogatepass")),
        "U": lambda pickle: pickle._push(pickle._take(pickle._number("B")).decode("latin-1")),
        "h": lambda pickle: pickle._push(pickle.memo[pickle._number("B")]),
        "j": lambda pickle: pickle._push(pickle.memo[pickle._number("<I")]),
        "q": lambda pickle: pickle._remember(pickle._number("B")),
        "r": lambda pickle: pickle._remember(pickle._number("<I")),
    }.items()
}

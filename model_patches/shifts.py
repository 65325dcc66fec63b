"""Adding to the modulation vector y, or to what a layer makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

ROWS_AT_ONCE = 1024  # from about there on a layer computes longer than it reads its weights


@dataclass(frozen=True)
class OfKinds:
    """A shift of T vectors in each row that are of few kinds: kinds (R, N, D), and which of them each is, of_each (R, T).

    Where a vector is that of one token, tens of thousands of rows for each layer would stay in memory for the whole call.
    """

    kinds: Tensor
    of_each: Tensor


def shifted(y, added, norm_kept: Tensor | None, made=None):
    """y + added, or rescale(y + norm_kept) + added with the norm of y kept per row.

    y: (B, D), or (B, ..., D) with several vectors a row; added, norm_kept: (R, D), or of y's rank, and made: see `for_rows`.
    Where y is a structure of tensors (tuples, lists, dataclasses), so is added, and norm_kept is None.
    """
    if isinstance(y, (tuple, list)):
        return tuple(None if part is None else shifted(part, shift, None, made) for part, shift in zip(y, added, strict=True))
    if is_dataclass(y):
        return replace(y, **{field.name: shifted(getattr(y, field.name), getattr(added, field.name), None, made) for field in fields(y)})
    guided = y if norm_kept is None else _with_norm_of(y, y + _fitting(y, norm_kept, made))
    return guided if added is None else guided + _fitting(y, added, made)


def shifted_in_sight(y: Tensor, added: Tensor | None, norm_kept: Tensor | None, made):
    """`shifted`, of y itself, which can be looked at on `made` until the call is over."""
    made.y = y
    return shifted(y, added, norm_kept, made)


def difference(tensors, minus):
    """tensors - minus, for tensors or structures of them."""
    if isinstance(tensors, tuple):
        return tuple(None if part is None else difference(part, other) for part, other in zip(tensors, minus, strict=True))
    if is_dataclass(tensors):
        names = [field.name for field in fields(tensors)]
        return replace(tensors, **{name: difference(getattr(tensors, name), getattr(minus, name)) for name in names})
    return tensors - minus


def views(tensors, count: int) -> list:
    """The same tensor, or structure of tensors, `count` times as new objects: one object on two blocks is a guard of torch.compile."""
    return _several(tensors, count, lambda tensor: tensor.expand(count, *tensor.shape).unbind())


def _several(tensors, count: int, taken: Callable[[Tensor], Sequence[Tensor]]) -> list:
    """What `taken` makes of each tensor, `count` of them, as so many structures."""
    if isinstance(tensors, Tensor):
        return [*taken(tensors)]
    if isinstance(tensors, tuple):
        return [*zip(*(_several(part, count, taken) for part in tensors), strict=True)]
    if is_dataclass(tensors):
        parts = {field.name: _several(getattr(tensors, field.name), count, taken) for field in fields(tensors)}
        return [replace(tensors, **{name: copies[i] for name, copies in parts.items()}) for i in range(count)]
    return [tensors] * count


def carried(layer: Callable[[Tensor], Any], y: Tensor, shifts: Sequence[tuple[Tensor | None, Tensor | None] | None]) -> list:
    """What each of the shifts of y, see `shifted`, changes in what `layer` makes of y; None of them changes nothing.

    The layer takes the rows of many shifts in one call, which reads its weights once, up to ROWS_AT_ONCE.
    """
    plain = layer(y)
    acting = [pair for pair in shifts if pair is not None]
    at_once = max(1, ROWS_AT_ONCE // y[..., 0].numel())
    changes = []
    for first in range(0, len(acting), at_once):
        ys = [shifted(y, *pair) for pair in acting[first : first + at_once]]
        made = _several(layer(torch.cat(ys)), len(ys), partial(torch.chunk, chunks=len(ys)))
        changes += [difference(guided, plain) for guided in made]
    found = iter(changes)
    return [difference(plain, plain) if pair is None else next(found) for pair in shifts]


def for_rows(tensor: Tensor, rows: int, made, advice: str) -> Tensor:
    """(R, ...), made for a batch of R rows -> for the `rows` that come, or one row for all of them.

    made: has what is known of the rows, see `Edit`. Another node may add rows within the model, or hand it one row at a time: right
    where all R are alike, which is looked at where it is not known, and nothing in them is a row's own. Raises ValueError otherwise:
    nothing says which row is which. advice: how its owner makes them alike.
    """
    given = tensor.shape[0]
    if given == rows:
        return tensor
    if made.repeats and rows % given == 0:
        return tensor.repeat(rows // given, *[1] * (tensor.ndim - 1))
    if not made.own and (given == 1 or made.alike or bool((tensor == tensor[:1]).all())):
        return tensor[:1]
    raise ValueError(
        f"Another node runs the model's blocks on {rows} rows where its batch has {given}, and what is added differs from row to row, so "
        f"that nothing says which row gets what. {advice}; or remove that node."
    )


_ALIKE = (
    "Modulation guidance: set cfg_rows to both, guide by a direction of one prompt, and leave out what adds each row's own text (a "
    "max-pool projection, base prompts)"
)


def _fitting(y: Tensor, shift: Tensor | OfKinds, made) -> Tensor:
    if isinstance(shift, OfKinds):
        kinds, of_each = (for_rows(part, y.shape[0], made, _ALIKE) for part in (shift.kinds, shift.of_each))
        return torch.take_along_dim(kinds, of_each.unsqueeze(-1), dim=1)
    shift = for_rows(shift, y.shape[0], made, _ALIKE)
    return shift.reshape(shift.shape[0], *[1] * (y.ndim - shift.ndim), *shift.shape[1:])


def _with_norm_of(plain: Tensor, guided: Tensor) -> Tensor:
    # In fp32: the squares of a half-precision y overflow.
    wanted = torch.linalg.vector_norm(plain, dim=-1, keepdim=True, dtype=torch.float32)
    norm = torch.linalg.vector_norm(guided, dim=-1, keepdim=True, dtype=torch.float32)
    return guided * (wanted / norm.clamp_min(torch.finfo(torch.float32).tiny)).to(guided.dtype)

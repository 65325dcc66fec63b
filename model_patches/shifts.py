"""Adding to the modulation vector y, or to what a layer makes of it."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace

import torch
from torch import Tensor


def shifted(y, added, norm_kept: Tensor | None):
    """y + added, or rescale(y + norm_kept) + added with the norm of y kept per row.

    y: (B, D), or (B, ..., D) with several vectors a row; added, norm_kept: (B, D), or of y's rank. The rows may come several times
    over in y, as where reference pictures have a time of their own. Where y is a structure of tensors (tuples, dataclasses), so is
    added, and norm_kept is None.
    """
    if isinstance(y, tuple):
        return tuple(None if part is None else shifted(part, shift, None) for part, shift in zip(y, added, strict=True))
    if is_dataclass(y):
        return replace(y, **{field.name: shifted(getattr(y, field.name), getattr(added, field.name), None) for field in fields(y)})
    guided = y if norm_kept is None else _with_norm_of(y, y + _fitting(y, norm_kept))
    return guided if added is None else guided + _fitting(y, added)


def difference(tensors, minus):
    """tensors - minus, for tensors or structures of them."""
    if isinstance(tensors, tuple):
        return tuple(None if part is None else difference(part, other) for part, other in zip(tensors, minus, strict=True))
    if is_dataclass(tensors):
        return replace(tensors, **{field.name: difference(getattr(tensors, field.name), getattr(minus, field.name)) for field in fields(tensors)})
    return tensors - minus


def views(tensors):
    """The same tensor, or structure of tensors, as new objects: one object in two blocks would be a guard of torch.compile."""
    if isinstance(tensors, Tensor):
        return tensors.view(tensors.shape)
    if isinstance(tensors, tuple):
        return tuple(map(views, tensors))
    if is_dataclass(tensors):
        return replace(tensors, **{field.name: views(getattr(tensors, field.name)) for field in fields(tensors)})
    return tensors


def _fitting(y: Tensor, shift: Tensor) -> Tensor:
    shift = shift.reshape(shift.shape[0], *[1] * (y.ndim - shift.ndim), *shift.shape[1:])
    return shift.repeat(y.shape[0] // shift.shape[0], *[1] * (y.ndim - 1)) if y.shape[0] > shift.shape[0] else shift


def _with_norm_of(plain: Tensor, guided: Tensor) -> Tensor:
    # In fp32: the squares of a half-precision y overflow.
    wanted = torch.linalg.vector_norm(plain, dim=-1, keepdim=True, dtype=torch.float32)
    norm = torch.linalg.vector_norm(guided, dim=-1, keepdim=True, dtype=torch.float32)
    return guided * (wanted / norm.clamp_min(torch.finfo(torch.float32).tiny)).to(guided.dtype)

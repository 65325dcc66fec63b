"""What files of this pack's own say of themselves, and of their numbers. Each complaint follows the file's name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from heapq import nsmallest
from typing import Any

import torch
from torch import Tensor

from .text import shown


def of_another_version(metadata: Mapping[str, str], version: str) -> ValueError:
    return ValueError(
        f"is of format version {shown(metadata.get('format_version'))}, and this pack reads version {version}. Update the pack."
    )


def check_family(family: Any) -> None:
    """Raises ValueError unless it is the name of a family."""
    if not (isinstance(family, str) and len(family) <= 100 and family.isprintable()):
        raise ValueError(f"says its family is {shown(family)}; it must be a name. It is damaged. Use another file.")


def check_record(record: Any) -> None:
    """Raises ValueError unless it is a record of training, whose runs can be gone on with."""
    if not isinstance(record, dict) or not isinstance(record.get("runs", []), list):
        raise ValueError(f"has a record of its training that is none: {shown(record)}. It is damaged. Use another file.")


def check_finite(name: str, tensor: Tensor) -> None:
    """Raises ValueError for NaN and infinity."""
    if not all(_finite(part) for part in tensor.flatten().split(2**24)):
        raise ValueError(f"holds NaN or infinite numbers in {name}: its training went wrong, or its file is damaged. Use another.")


def _finite(numbers: Tensor) -> bool:
    """By the lowest and the highest, which NaN spreads to: sixty times as fast as torch.isfinite of each."""
    plain = numbers if numbers.dtype in (torch.float32, torch.bfloat16, torch.float16) else numbers.float()
    return all(bound.isfinite() for bound in torch.aminmax(plain))


def listed(keys: Collection[str]) -> str:
    """The first of a file's keys, for a message."""
    return ", ".join(shown(key, 50) for key in nsmallest(12, keys)) + more(keys, 12) or "no tensors"


def more(things: Collection, named: int) -> str:
    """How many are left when that many were named."""
    return f" and {len(things) - named} more" if len(things) > named else ""

"""A tensor as its file announces it, and how what is announced is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

DESCRIPTION = 4 * 1024**2  # bytes, that a file may describe itself with
NAMES = 50_000
# Bytes that may be read of one file: as much as the scaled form needs for the widest model it fits, Cosmos-Predict2 14B, in fp32.
LARGEST = 1024**3
DIMENSIONS = 16
NAME_LENGTH = 300

# Kinds of numbers that are read and written, by their names in safetensors.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Damaged(ValueError):
    """What a file says of itself cannot be. The text follows the file's name."""

    def __init__(self, reason: str):
        super().__init__(f"cannot be read: it is cut off, damaged or no model file ({reason}). Get it again.")


@dataclass(frozen=True)
class Stored:
    """shape and dtype; storage: the name of the bytes it lies in; offset: of its first number there; stride: between its numbers.

    Offset and stride are in numbers. problem: what makes it unreadable, e.g. "a sparse tensor"; None if it is a plain one.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    storage: str
    offset: int
    stride: tuple[int, ...]
    problem: str | None = None

    @classmethod
    def unreadable(cls, problem: str) -> Stored:
        return cls((), None, "", 0, (), problem)

    @property
    def bytes(self) -> int:
        """It takes in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def span(self) -> int:
        """How many numbers lie between its first and its last, both included."""
        return 0 if 0 in self.shape else 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The stride of a tensor of that shape whose numbers follow each other."""
    stride = [1] * len(shape)
    for axis in range(len(shape) - 1, 0, -1):
        stride[axis - 1] = stride[axis] * shape[axis]
    return tuple(stride)


def too_long(what: str) -> ValueError:
    return ValueError(
        f"cannot be read: {what} is longer than the {DESCRIPTION:,} bytes that this pack reads of it. Save the weights alone, or use another "
        "file."
    )

"""Opening a file of tensors, and reading what is wanted of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor

from . import safetensors_header, torch_files
from .stored import DTYPES, LARGEST, Damaged, Stored
from .text import shown


@dataclass(frozen=True)
class TensorFile:
    """An open file. tensors: what it announces, by name; metadata: texts by name, of safetensors alone.

    place: where a storage lies, (first byte, bytes). swapped: whether its numbers have their bytes in the other order.
    """

    file: BufferedReader
    size: int
    tensors: dict[str, Stored]
    metadata: dict[str, str]
    place: Callable[[str], tuple[int, int]]
    swapped: bool = False

    def check(self, names: Iterable[str]) -> None:
        """Raises ValueError unless all of them are plain tensors, whose shape and dtype can be looked at."""
        for name in names:
            stored = self.tensors[name]
            problem = stored.problem or (None if stored.dtype in DTYPES.values() else f"{stored.dtype} numbers")
            if problem:
                raise ValueError(f"holds {shown(name)} as {problem}, which this pack does not read. Save it as a plain tensor of numbers.")

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Those tensors, on the CPU, contiguous, in memory of their own. Raises ValueError for what is not plain or not in the file."""
        names = list(names)
        self.check(names)
        for name in names:
            # An expanded tensor says more than its file holds; one of no numbers may say anything else of itself.
            if 0 in self.tensors[name].shape or self.tensors[name].bytes > self.size:
                raise Damaged(f"{shown(name)} is {shown(self.tensors[name].shape)}, in a file of {self.size:,} bytes")
        total = sum(self.tensors[name].bytes for name in names)
        if total > LARGEST:
            raise ValueError(f"holds {total:,} bytes of tensors, and this pack reads {LARGEST:,} at most. Use another file.")
        return {name: self._read(name, self.tensors[name]) for name in names}

    def _read(self, name: str, stored: Stored) -> Tensor:
        start, room = self.place(stored.storage)
        first, length = stored.offset * stored.dtype.itemsize, stored.span * stored.dtype.itemsize
        if first + length > room or start + first + length > self.size:
            raise Damaged(f"{shown(name)} goes beyond its end")
        data = torch.empty(length, dtype=torch.uint8)
        self.file.seek(start + first)
        if self.file.readinto(data.numpy()) < length:
            raise Damaged(f"{shown(name)} goes beyond its end")
        if self.swapped:
            data = data.view(-1, stored.dtype.itemsize).flip(1).flatten()
        return data.view(stored.dtype).as_strided(stored.shape, stored.stride).contiguous()


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[TensorFile]:
    """The file, to be read within the context. Raises ValueError, also for what the system says while the file is read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for somebody to write to it
            raise ValueError("is a folder, a pipe or a device. Choose a file.")
        with Path(path).open("rb") as file:
            yield _announced(file)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}. Look whether it is there, and whether ComfyUI may read it.") from None


def _announced(file: BufferedReader) -> TensorFile:
    size = os.fstat(file.fileno()).st_size
    start = file.read(9)
    if start[8:] == b"{":  # the header of safetensors, after its length
        return TensorFile(file, size, *safetensors_header.read(file, size))
    if start.startswith(torch_files.ZIP):
        return TensorFile(file, size, *torch_files.read_zip(file, size))
    if start.startswith(torch_files.PICKLE):
        return TensorFile(file, size, *torch_files.read_legacy(file, size))
    raise Damaged("neither safetensors nor a file of torch")

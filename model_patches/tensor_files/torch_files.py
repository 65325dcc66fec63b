"""Files of torch.save: a zip archive of a pickle and its storages, or, before torch 1.6, pickles with the storages behind them."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from io import BufferedReader
from typing import Any

from .pickles import Pickles
from .stored import DESCRIPTION, NAME_LENGTH, NAMES, Damaged, Stored
from .zip_archive import Archive

ZIP = b"PK\x03\x04"
PICKLE = b"\x80"
_LEGACY = 0x1950A86A20F9469CFC6C

_Announced = tuple[dict[str, Stored], dict[str, str], Callable[[str], tuple[int, int]], bool]


def read_zip(file: BufferedReader, size: int) -> _Announced:
    """The tensors, no metadata, where a storage lies, and whether its bytes are swapped. file: of that many bytes."""
    archive = Archive.of(file, size)
    folder = next((name.removesuffix("data.pkl") for name in archive.records if name.endswith("/data.pkl")), None)
    if folder is None:
        raise Damaged("a zip archive without data.pkl")
    if folder + "constants.pkl" in archive.records:
        raise ValueError("is a program (TorchScript), not a file of tensors. Save its state_dict alone.")
    pickles = Pickles(archive.read(folder + "data.pkl"))
    tensors = _flat(pickles.read())
    order = archive.read(folder + "byteorder") if folder + "byteorder" in archive.records else b"little"
    return tensors, {}, lambda storage: archive.place(f"{folder}data/{storage}"), order == b"big"


def read_legacy(file: BufferedReader, size: int) -> _Announced:
    """As read_zip. A magic number, a version, the system, the value, the names of its storages; then each storage after its length."""
    file.seek(0)
    pickles = Pickles(file.read(DESCRIPTION), whole=size <= DESCRIPTION)
    if pickles.read() != _LEGACY:
        raise Damaged("a pickle, but not one of torch")
    pickles.read(), pickles.read()
    tensors = _flat(pickles.read())
    names = pickles.read()
    if not isinstance(names, list):
        raise Damaged("it does not name its storages")
    places, at = {}, pickles.at
    for name in names:
        if not isinstance(name, str) or name not in pickles.storages:
            raise Damaged("it names a storage that no tensor uses")
        file.seek(at)
        (numbers,) = struct.unpack("<q", file.read(8).ljust(8, b"\xff"))  # nothing there: -1
        room = numbers * pickles.storages[name].itemsize
        if not 0 <= room <= size - at - 8:
            raise Damaged("its storages go beyond its end")
        places[name] = at + 8, room
        at += 8 + room
    return tensors, {}, lambda storage: places.get(storage, (0, 0)), False


def _flat(value: Any) -> dict[str, Stored]:
    """The tensors of nested dicts, keys joined by dots; whatever is no tensor is left out, and what has an endless name.

    Counted by what is looked at: 60 dicts, each twice in the next, are 2^60 names.
    """
    tensors, waiting, left = {}, deque([("", value)]), NAMES
    while waiting:
        name, part = waiting.popleft()
        if isinstance(part, Stored):
            tensors[name] = part
        elif isinstance(part, dict):
            left -= len(part)
            if left < 0:
                raise ValueError(f"cannot be read: it holds more than {NAMES:,} names. Save its weights alone, or use another file.")
            waiting.extend(
                (f"{name}.{key}" if name else key, inner)
                for key, inner in part.items()
                if isinstance(inner, dict | Stored) and len(name) + len(key) < NAME_LENGTH
            )
    return tensors

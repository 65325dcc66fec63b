"""The header of a safetensors file: 8 bytes, its length; JSON, {name: {dtype, shape, data_offsets: [first, end]}, "__metadata__": {}}."""

from __future__ import annotations

import struct
from collections.abc import Callable
from io import BufferedReader
from typing import Any

from .stored import DESCRIPTION, DIMENSIONS, DTYPES, Damaged, Stored, contiguous, too_long
from .text import bounded_json, shown

_DEPTH = 3  # of its brackets


def read(file: BufferedReader, size: int) -> tuple[dict[str, Stored], dict[str, str], Callable[[str], tuple[int, int]]]:
    """The tensors, the metadata, and where the bytes of a tensor lie. file: of that many bytes."""
    file.seek(0)
    (length,) = struct.unpack("<Q", file.read(8))
    if length > size - 8:
        raise Damaged("its header goes beyond its end")
    if length > DESCRIPTION:
        raise too_long("its header")
    try:
        header = bounded_json(file.read(length).decode("utf-8"), _DEPTH)
    except ValueError as error:
        raise Damaged(f"its header holds {shown(error)}") from None
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise Damaged("its metadata is not texts by name")
    places: dict[str, tuple[int, int]] = {}
    tensors = {name: _stored(name, entry, 8 + length, places) for name, entry in header.items()}
    if max((first + room for first, room in places.values()), default=8 + length) != size:
        raise Damaged("its tensors do not end where it ends")
    return tensors, metadata, places.__getitem__


def _stored(name: str, entry: Any, start: int, places: dict[str, tuple[int, int]]) -> Stored:
    """start: of the numbers in the file. Notes the tensor's place."""
    match entry:
        case {"dtype": str(code), "shape": [*shape], "data_offsets": [first, end]} if _are_sizes([*shape[:DIMENSIONS], first, end]):
            pass
        case _:
            raise Damaged(f"its header does not say what {shown(name)} is")
    if len(shape) > DIMENSIONS or first > end:
        raise Damaged(f"{shown(name)} has {len(shape)} dimensions, and lies from {first} to {end}")
    places[name] = start + first, end - first
    if code not in DTYPES:
        return Stored.unreadable(f"numbers of the kind {shown(code)}")
    stored = Stored(tuple(shape), DTYPES[code], name, 0, contiguous(tuple(shape)))
    if stored.bytes != end - first:
        raise Damaged(f"{shown(name)} is {stored.shape} {code}, which is not the {end - first} bytes it has")
    return stored


def _are_sizes(values: list) -> bool:
    return all(type(value) is int and value >= 0 for value in values)

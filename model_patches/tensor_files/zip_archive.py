"""The records of a zip archive as torch writes it: stored, not compressed. Its directory is read within limits, nothing is unpacked."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from io import BufferedReader

from .stored import DESCRIPTION, Damaged, too_long
from .text import shown

_END = struct.Struct("<4s4H2LH")  # signature, disk, disk, records here, records, bytes and place of the directory, bytes of a comment
_END_64 = struct.Struct("<4sQ2H2L4Q")  # signature, bytes, versions, disks, records here, records, bytes and place of the directory
_LOCATOR_64 = struct.Struct("<4sLQL")  # signature, disk, place of _END_64, disks
_RECORD = struct.Struct("<4s6H3L5H2L")  # signature, versions, flags, method, time, date, crc, bytes packed, bytes, lengths, disk ..., place
_HEADER = struct.Struct("<4s5H3L2H")  # at the record: ..., bytes of its name and of extra fields


@dataclass(frozen=True)
class Record:
    """place: of its header in the file. bytes: of its content. problem: why it cannot be read, or None."""

    place: int
    bytes: int
    problem: str | None


@dataclass(frozen=True)
class Archive:
    file: BufferedReader
    size: int
    records: dict[str, Record]

    @classmethod
    def of(cls, file: BufferedReader, size: int) -> Archive:
        place, length = _directory(file, size)
        if place + length > size:
            raise Damaged("its directory goes beyond its end")
        if length > DESCRIPTION:
            raise too_long("its directory")
        file.seek(place)
        return cls(file, size, _records(file.read(length)))

    def place(self, name: str) -> tuple[int, int]:
        """(first byte, bytes) of the content of a record."""
        record = self.records.get(name)
        if record is None:
            raise Damaged(f"{shown(name)} is missing")
        if record.problem:
            raise Damaged(f"{shown(name)} is {record.problem}, which torch never writes")
        self.file.seek(min(record.place, self.size))
        header = self.file.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(b"PK\x03\x04"):
            raise Damaged(f"{shown(name)} is not where its directory says")
        *_, name_length, extra_length = _HEADER.unpack(header)
        start = record.place + _HEADER.size + name_length + extra_length
        if start + record.bytes > self.size:
            raise Damaged(f"{shown(name)} goes beyond its end")
        return start, record.bytes

    def read(self, name: str) -> bytes:
        """All of a record that describes others."""
        start, length = self.place(name)
        if length > DESCRIPTION:
            raise too_long(shown(name))
        self.file.seek(start)
        return self.file.read(length)


def _directory(file: BufferedReader, size: int) -> tuple[int, int]:
    """(place, bytes) of the directory; its end is the last thing in the file but for a comment."""
    start = max(0, size - _END.size - 0xFFFF)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise Damaged("a zip archive without its end")
    *_, length, place, _ = _END.unpack_from(tail, at)
    if 0xFFFFFFFF not in (length, place):
        return place, length
    if at < _LOCATOR_64.size:
        raise Damaged("a zip archive without its end")
    _, _, end_64, _ = _LOCATOR_64.unpack_from(tail, at - _LOCATOR_64.size)
    if end_64 > size - _END_64.size:
        raise Damaged("a zip archive without its end")
    file.seek(end_64)
    *_, length, place = _END_64.unpack(file.read(_END_64.size))
    return place, length


def _records(directory: bytes) -> dict[str, Record]:
    records, at = {}, 0
    while at + _RECORD.size <= len(directory):
        (signature, _, _, flags, method, _, _, _, packed, length, name_length, extra_length, comment_length, _, _, _, place) = (
            _RECORD.unpack_from(directory, at)
        )
        if signature != b"PK\x01\x02":
            break
        name_end = at + _RECORD.size + name_length
        name = directory[at + _RECORD.size : name_end].decode("utf-8", "replace")
        extra = directory[name_end : name_end + extra_length]
        length, packed, place = _wide(extra, length, packed, place)
        problem = "encrypted" if flags & 1 else "compressed" if method or packed != length else None
        records[name] = Record(place, length, problem)
        at = name_end + extra_length + comment_length
    return records


def _wide(extra: bytes, *values: int) -> tuple[int, ...]:
    """The values, those that do not fit into 4 bytes from the extra field that has them in 8."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{min(length, len(extra) - at - 4) // 8}Q", extra, at + 4))
            return tuple(next(wide, value) if value == 0xFFFFFFFF else value for value in values)
        at += 4 + length
    return values

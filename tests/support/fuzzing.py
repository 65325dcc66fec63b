"""Mutations of files of tensors, and what may come of reading one: it is loaded, or refused by ValueError, and soon."""

import contextlib
import io
import json
import pickletools
import random
import struct
import time
from collections import Counter

from support.harmful import SECONDS, archive_of, compressed, headed, records_of

NUMBERS = [0, 1, 2, 3, 7, 16, 40, 64, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -1]
LONGEST = 4_000_000  # bytes of a mutated file
TEXTS = [
    "",
    "scales",
    "0.weight",
    "model.",
    "ema.0.bias",
    "F32",
    "F8_E5M2",
    "BF16",
    "C64",
    "x" * 5000,
    "\u4e00",
    "\ud800",
    "\0",
    "null",
    "{",
    "[]",
    "NaN",
    "1e999",
]

OPERATIONS = [b"N", b"]", b"}", b")", b"(", b"\x88", b"\x8a\x09" + b"\xff" * 9, b"G" + b"\x7f" * 8, b"ctorch\nSize\n", b"h\x00"]


def fuzz(goods, load, numbers, path):
    """Counts what became of the mutations of those numbers. goods: files; load: of a path; path: where each is written.

    Fails at the first file that ends in something else than a value or a ValueError with its name, or takes over SECONDS; it stays there.
    """
    became = Counter()
    for number in numbers:
        path.unlink(missing_ok=True)  # a file written over costs a disk more than a new one
        path.write_bytes(mutated(goods, random.Random(number)))
        started = time.process_time()
        try:
            load(path)
            became["loaded"] += 1
        except ValueError as error:
            assert is_sentence(str(error), path), f"{path}, number {number}: {error}"
            became["refused"] += 1
        except BaseException as error:
            raise AssertionError(f"{path}, number {number}: {type(error).__name__}: {error}") from error
        seconds = time.process_time() - started
        assert seconds < SECONDS, f"{path}, number {number}: {seconds:.1f} s"
    return became


def is_sentence(text, path):
    """Whether a refusal names the file and can be shown: short, printable, without torch's advice."""
    named = text.startswith("The ") and f" file {path.name} " in text[:100] and text.endswith(".")
    return named and len(text) < 1500 and text.isprintable() and "weights_only" not in text


def mutated(goods, draw):
    data = draw.choice(goods)
    for _ in range(draw.choice([1, 1, 2, 5])):
        data = draw.choice([in_structure, in_structure, in_bytes])(data, draw, goods)[:LONGEST]
    return data


def in_structure(data, draw, goods):
    """A change that leaves the file whole around it, where it is whole."""
    with contextlib.suppress(Exception):  # mutated before, beyond what can be taken apart
        if data[8:9] == b"{":
            return in_header(data, draw)
        if data.startswith(b"PK"):
            return in_records(data, draw, goods)
        if data.startswith(b"\x80"):
            return in_pickle(data, draw)
    return in_bytes(data, draw, goods)


def in_header(data, draw):
    (length,) = struct.unpack("<Q", data[:8])
    header, numbers = json.loads(data[8 : 8 + length]), data[8 + length :]
    name = draw.choice(list(header))
    change = draw.randrange(6)
    if change == 0:
        header[str(draw.choice(TEXTS))] = header.pop(name)
    elif change == 1:
        header[name] = value(draw)
    elif change == 2:
        key = draw.choice(["format", "format_version", "pooling", "injection", "family", "record", "learned", "encoded"])
        header.setdefault("__metadata__", {})[key] = value(draw)
    elif change == 3:
        del header[name]
    else:
        key = draw.choice(list(header[name]))
        inner = header[name][key]
        if isinstance(inner, list) and inner and draw.random() < 0.7:
            inner[draw.randrange(len(inner))] = value(draw)
        else:
            header[name][key] = value(draw)
    return headed(header, numbers)


def value(draw, depth=0):
    kind = draw.randrange(8 if depth < 3 else 5)
    if kind < 2:
        return draw.choice(NUMBERS)
    if kind < 4:
        return draw.choice(TEXTS)
    if kind == 4:
        return draw.choice([None, True, False, 0.5, 1e300])
    if kind == 5:
        return {str(draw.choice(TEXTS)): value(draw, depth + 1) for _ in range(draw.randrange(3))}
    return [value(draw, depth + 1) for _ in range(draw.randrange(4))]


def in_records(data, draw, goods):
    records = records_of(data)
    name = draw.choice(list(records))
    if draw.random() < 0.5:
        name = next((name for name in records if name.endswith(".pkl")), name)
    change = draw.randrange(8)
    if change == 0:
        del records[name]
    elif change == 1:
        records[draw.choice(list(records))] = records[name]
    elif change == 2:
        other = draw.choice(["/byteorder", "/constants.pkl", "/data/0", "/data.pkl"])
        records[name.rpartition("/")[0] + other] = draw.choice([b"big", b"", records[name]])
    elif change == 3:
        return compressed(archive_of(records))
    elif name.endswith(".pkl") and change < 7:
        records[name] = in_pickle(records[name], draw)
    else:
        records[name] = in_bytes(records[name], draw, goods)
    return archive_of(records)


def in_pickle(data, draw):
    """Whole operations moved, doubled, lost or given another number."""
    places, file = [0], io.BytesIO(data)
    with contextlib.suppress(Exception):  # the numbers behind the pickles of a legacy file are none
        while True:
            places += [place for _, _, place in pickletools.genops(file)][1:] + [file.tell()]
    pieces = [data[first:last] for first, last in zip(places, [*places[1:], len(data)], strict=True)]
    for _ in range(draw.choice([1, 1, 2, 4])):
        at, other = draw.randrange(len(pieces)), draw.randrange(len(pieces))
        change = draw.randrange(6)
        if change == 0:
            pieces[at] = pieces[other]
        elif change == 1:
            pieces[at], pieces[other] = pieces[other], pieces[at]
        elif change == 2:
            pieces.insert(at, pieces[other][:1000] * draw.choice([1, 2, 1000]))
        elif change == 3:
            del pieces[at]
        elif change == 4:
            pieces[at] = draw.choice([b"J" + struct.pack("<I", draw.choice(NUMBERS) % 2**32), *OPERATIONS])
        elif pieces[at]:
            pieces[at] = pieces[at][:1] + bytes(draw.randrange(256) for _ in pieces[at][1:])
    return b"".join(pieces)


def in_bytes(data, draw, goods):
    data = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8])):
        at, length = draw.randrange(len(data) + 1), draw.choice([1, 2, 4, 8, 64, 1000])
        change = draw.randrange(8)
        if change == 0:
            data[at : at + 1] = bytes([draw.randrange(256)])
        elif change == 1:
            del data[at : at + length]
        elif change == 2:
            data[at:at] = data[at : at + length] * draw.choice([1, 1, 100])
        elif change == 3:
            del data[at:]
        elif change == 4:
            data[at : at + 8] = struct.pack("<Q", draw.choice(NUMBERS) % 2**64)
        elif change == 5:
            data[at : at + 4] = struct.pack("<I", draw.choice(NUMBERS) % 2**32)
        elif change == 6:
            other = draw.choice(goods)
            start = draw.randrange(len(other) + 1)
            data[at : at + length] = other[start : start + length]
        else:
            end = min(len(data), draw.choice([200, 2000]))  # where a file says what it is
            data[min(at, end) : min(at, end) + 1] = bytes([draw.randrange(256)])
    return bytes(data)

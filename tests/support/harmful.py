"""Files that cost a reader more than they are worth: time, memory, its stack or its patience. Made here, of a few kB to a few MB each."""

import contextlib
import io
import json
import math
import pickle
import struct
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import torch

from support.text_blind import CONTEXT, WIDTH, form_b

SECONDS = 2.0
MEMORY = 300 * 1024**2  # and ten times the file
DEEP = 150_000


def zipped(pickled):
    """A file of torch.save with that pickle."""
    return archive_of({"archive/data.pkl": pickled, "archive/version": b"3\n"})


def archive_of(records, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return file.getvalue()


def records_of(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def compressed(archive):
    return archive_of(records_of(archive), zipfile.ZIP_DEFLATED)


def saved(value, legacy=False):
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def headed(header, data=b""):
    """A safetensors file with that header, JSON or text."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + data


def pickled(operations):
    return b"\x80\x02" + operations + b"."


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


def shared(opening, again, times):
    """A value that stands twice in the next, and so on. opening: of a container; again: puts in it the value of the memo, twice."""
    return b"".join(opening + again(b"j" + struct.pack("<I", number)) + b"r" + struct.pack("<I", number + 1) for number in range(times))


def tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return file.getvalue()


def torchscript():
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    return file.getvalue()


def header_of(shapes, dtype="F32", **entries):
    """Of form B with those sizes; what it claims need not be there."""
    header, end = dict(entries), 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    return header, end


def metadata_of(**metadata):
    header, end = header_of({"linear_1.weight": (2, 2), "linear_1.bias": (2,), "linear_2.weight": (2, 2), "linear_2.bias": (2,)})
    common = {"format": "modulation guidance pooled projection", "format_version": "1", "pooling": "max", "injection": "time embedding"}
    return headed({"__metadata__": common | metadata} | header, b"\0" * end)


def direction_of(**metadata):
    """A file of a direction with that metadata, and one tensor."""
    header, end = header_of({"learned.0": (2, 2)})
    common = {"format": "modulation guidance direction", "format_version": "1", "encoded": "[]"}
    return headed({"__metadata__": common | metadata} | header, b"\0" * end)


def entry_of(text="", **changes):
    """The JSON of a learned direction's entry; text: written into it as it is."""
    entry = json.dumps([{"family": "Wan", "positive": "", "negative": "", "weight": 1.0, "record": {}} | changes])
    return entry.replace("}]", f"{text}}}]") if text else entry


BIG = 30_000
EXPANDED = {
    "0.weight": torch.zeros(1).expand(BIG, BIG),
    "0.bias": torch.zeros(1).expand(BIG),
    "2.weight": torch.zeros(1).expand(BIG, BIG),
    "2.bias": torch.zeros(1).expand(BIG),
}
SPARSE = torch.ones(WIDTH, CONTEXT).to_sparse()

HARMFUL = {
    # what a pickle can do
    "nested tuples as a key": lambda: zipped(pickled(b"})" + b"\x85" * DEEP + b"Ns")),
    "tuples twice in the next as a key": lambda: zipped(
        pickled(b"](" + b")q\x00" + shared(b"", lambda memo: memo * 2 + b"\x86", 60) + b"e}j" + struct.pack("<I", 60) + b"Ns")
    ),
    "dicts twice in the next": lambda: zipped(
        pickled(b"](}q\x00" + shared(b"}(", lambda memo: text(b"a") + memo + text(b"b") + memo + b"u", 60) + b"ej" + struct.pack("<I", 60))
    ),
    "a dict in itself": lambda: zipped(pickled(b"}q\x00" + text(b"a") + b"h\x00s")),
    "nested lists": lambda: zipped(pickled(b"]" * 3_000_000)),
    "nested dicts": lambda: zipped(pickled(b"".join(b"}" + text(b"a") for _ in range(100_000)) + b"N" + b"s" * 100_000)),
    "marks": lambda: zipped(pickled(b"(" * 3_000_000)),
    "numbers as keys": lambda: zipped(pickled(b"}(" + b"".join(b"J" + struct.pack("<i", n) + b"N" for n in range(600_000)) + b"u")),
    "numbers with one hash as keys": lambda: zipped(
        pickled(b"}(" + b"".join(b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"N" for n in range(100_000)) + b"u")
    ),
    "a long key in many dicts": lambda: zipped(
        pickled(b"}(" + text(b"k" * 10**6) + b"q\x00N" + b"".join(b"J" + struct.pack("<i", n) + b"}h\x00}s" for n in range(20_000)) + b"u")
    ),
    "pairs again and again": lambda: zipped(
        pickled(b"](" + b"N)\x86" * 50_000 + b"eq\x00" + b"ccollections\nOrderedDict\nq\x01" + b"h\x01h\x00\x85R" * 50_000)
    ),
    "arguments again and again": lambda: zipped(
        pickled(b"(" + b"N" * 100_000 + b"tq\x00" + b"ctorch\nSize\nq\x01" + b"h\x01h\x00R" * 100_000)
    ),
    "the end of the memo": lambda: zipped(pickled(b"}r\xff\xff\xff\xff")),
    "nothing on the stack": lambda: zipped(pickled(b"s")),
    "a legacy file of nothing but names": lambda: saved({"0.weight": torch.ones(1)}, legacy=True)[:-40] + text(b"n" * 5_000_000),
    "no end": lambda: zipped(b"\x80\x02}"),
    "an unknown operation": lambda: zipped(pickled(b"\xfe")),
    "text that is none": lambda: zipped(pickled(text(b"\xff"))),
    "a storage that is none": lambda: zipped(pickled(b"K\x01Q")),
    "a call of a number": lambda: zipped(pickled(b"K\x01)R")),
    # tensors that are not as plain as they look
    "stride 0": lambda: saved(EXPANDED),
    "stride 0, legacy": lambda: saved(EXPANDED, legacy=True),
    "a sparse tensor": lambda: saved(form_b() | {"0.weight": SPARSE}),
    "a sparse tensor of rows": lambda: saved(form_b() | {"0.weight": torch.ones(WIDTH, CONTEXT).to_sparse_csr()}),
    "a meta tensor": lambda: saved(form_b() | {"0.weight": torch.ones(WIDTH, CONTEXT, device="meta")}),
    "a quantized tensor": lambda: saved(
        form_b() | {"0.weight": torch.quantize_per_tensor(torch.ones(WIDTH, CONTEXT), 0.1, 0, torch.qint8)}
    ),
    "a nested tensor": lambda: saved(form_b() | {"0.weight": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}),
    "complex numbers": lambda: saved(form_b() | {"0.weight": torch.ones(WIDTH, CONTEXT, dtype=torch.complex64)}),
    "no numbers": lambda: saved(
        {"0.weight": torch.ones(0, 5), "0.bias": torch.ones(0), "2.weight": torch.ones(4, 0), "2.bias": torch.ones(4)}
    ),
    # archives
    "compressed": lambda: compressed(
        saved(
            {
                "0.weight": torch.zeros(4096, 4096),
                "0.bias": torch.zeros(4096),
                "2.weight": torch.zeros(4096, 4096),
                "2.bias": torch.zeros(4096),
            }
        )
    ),
    "many records": lambda: archive_of({f"a/{number}": b"" for number in range(80_000)}),
    "a directory alone": lambda: b"PK\x03\x04" + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 46, 2**31, 0),
    "a wide directory": lambda: (
        b"PK\x03\x04"
        + b"\0" * 56
        + struct.pack("<4sLQL", b"PK\6\7", 0, 2**63, 1)
        + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 2**32 - 1, 0, 0)
    ),
    "no pickle": lambda: archive_of({"a/1": b"", "a/2": b""}),
    "TorchScript": torchscript,
    "tar": tar,
    "a pickle of another kind": lambda: pickle.dumps({"a": 1}, protocol=2),
    # headers
    "nested brackets": lambda: headed('{"a":' + "[" * 500_000),
    "nested brackets that close": lambda: headed('{"a":' + "[" * 500_000 + "]" * 500_000 + "}"),
    "quotes without an end": lambda: headed('{"' + '\\"' * 1_000_000),
    "a number without an end": lambda: headed('{"a":{"dtype":"F32","shape":[' + "9" * 3_000_000 + '],"data_offsets":[0,4]}}'),
    "a fraction without an end": lambda: headed('{"a":0.' + "9" * 3_000_000 + "}"),
    "many lists": lambda: headed('{"a":[' + "[]," * 1_000_000 + "[]]}"),
    "many dimensions": lambda: headed('{"a":{"dtype":"F32","shape":[' + "9999999999999," * 200_000 + '1],"data_offsets":[0,4]}}'),
    "many tensors": lambda: headed({f"{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(60_000)}),
    "a header of 20 MB": lambda: headed("{" + " " * 20 * 1024**2 + "}"),
    "claims without bytes": lambda: headed(
        header_of({"0.weight": (BIG, BIG), "0.bias": (BIG,), "2.weight": (BIG, BIG), "2.bias": (BIG,)})[0]
    ),
    "half a surrogate in a name": lambda: headed('{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
    "a list as an entry": lambda: headed({"0.weight": [1, 2]}),
    "true as a size": lambda: headed({"0.weight": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, b"\0"),
    "numbers as metadata": lambda: headed({"__metadata__": {"format": 1}}),
    "no objects as metadata": lambda: headed({"__metadata__": []}),
    # metadata of our own format
    **{
        f"a record that is {name}": lambda record=record: metadata_of(record=record)
        for name, record in {
            "a list": "[1]",
            "a number": "4000",
            "a text": '"abc"',
            "true": "true",
            "of runs that are none": '{"runs": 5}',
            "nested": "[" * 100_000,
            "an endless number": '{"seed": ' + "9" * 500_000 + "}",
        }.items()
    },
    "a family that is a list": lambda: metadata_of(family="[1]"),
    "a family of 1 MB": lambda: metadata_of(family=json.dumps("f" * 10**6)),
    **{
        f"{name} of 1 MB": lambda name=name: metadata_of(**{name: "\u4e00\n" * 500_000})
        for name in ("format_version", "pooling", "injection", "family", "record")
    },
    "names of 1 MB": lambda: headed({"n" * 10**6: {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}, b"\0" * 4),
    "projections without an end": lambda: headed(
        header_of(
            {
                "model." * count + name: shape
                for count in range(1, 300)
                for name, shape in {"0.weight": (1, 1), "0.bias": (1,), "2.weight": (1, 1), "2.bias": (1,)}.items()
            }
        )[0],
        b"\0" * 4 * 4 * 299,
    ),
}


HARMFUL_DIRECTIONS = {
    **{
        f"{name} in what is learned": lambda text=text: direction_of(learned=text)
        for name, text in {
            "nested brackets": "[" * 500_000,
            "brackets that close": "[" * 500_000 + "]" * 500_000,
            "many entries": "[" + "{}," * 300_000 + "{}]",
            "many lists": "[" + "[]," * 1_000_000 + "[]]",
            "an endless number": entry_of(', "seed": ' + "9" * 3_000_000),
            "a nested record": entry_of(', "record": ' + "[" * 100_000 + "]" * 100_000),
            "a record that is a list": entry_of(record=[1]),
            "runs that are none": entry_of(record={"runs": 5}),
            "a family of 1 MB": entry_of(family="f" * 10**6),
            "a family that is a list": entry_of(family=["Wan"]),
            "words that are a list": entry_of(positive=["a"] * 100_000),
            "an infinite weight": entry_of(', "weight": 1e999'),
            "true as a weight": entry_of(weight=True),
            "a text": '"learned"',
            "a number": "1",
            "a surrogate": '["\\ud800"]',
        }.items()
    },
    **{
        f"{name} in what is encoded": lambda text=text: direction_of(learned=entry_of(), encoded=text)
        for name, text in {"nested brackets": "[" * 500_000, "many entries": "[" + "{}," * 300_000 + "{}]", "a number": "3"}.items()
    },
    "a direction of 1 MB of words and another width": lambda: direction_of(
        learned=entry_of(positive="\u4e00\n" * 300_000), format_version="2"
    ),
    **{
        f"a tensor called {name}": lambda name=name: headed(
            {
                "__metadata__": {"format": "modulation guidance direction", "format_version": "1", "learned": entry_of()},
                name: {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
            },
            b"\0" * 16,
        )
        for name in ("learned.00", "learned.-0", "learned.\u0660", "learned. 0", "learned.0.0", "learned." + "9" * 10**6)
    },
    "a direction that claims what is not there": lambda: headed(
        {"__metadata__": {"format": "modulation guidance direction", "format_version": "1", "learned": entry_of()}}
        | header_of({"learned.0": (BIG, BIG)})[0]
    ),
}


def write_sparse(path):
    """A safetensors file of 10 GB of holes: all it claims is there."""
    header, end = header_of({"0.weight": (BIG, BIG), "0.bias": (BIG,), "2.weight": (2 * BIG, BIG), "2.bias": (2 * BIG,)})
    start = headed(header)
    path.write_bytes(start)
    with path.open("r+b") as file:
        file.truncate(len(start) + end)
    return path


@contextlib.contextmanager
def bounded(size):
    """Fails over SECONDS, and on Linux lets the process take no more than MEMORY and ten times `size` on top of what it has."""
    with room(MEMORY + 10 * size) if sys.platform == "linux" else contextlib.nullcontext():
        started = time.process_time()
        yield
        seconds = time.process_time() - started
    assert seconds < SECONDS, f"took {seconds:.1f} s"


@contextlib.contextmanager
def room(size):
    """The process gets that many bytes of addresses and no more."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)

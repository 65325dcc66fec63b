"""What torch.save makes of checkpoints, read without being run: the same tensors that torch.load gives."""

import collections
import io

import pytest
import torch
from support.harmful import archive_of, records_of, saved
from support.text_blind import HIDDEN, form_a, form_b, loaded, own
from test_projections_files import assert_holds, refused
from torch import nn

LEGACY = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


def module():
    """Of form B."""
    made = nn.Sequential(nn.Linear(16, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, 64))
    made.load_state_dict(form_b())
    return made


def with_attribute(tensor):
    tensor.note = "a tensor of torch's own class, described by its class"
    return tensor


def in_one_storage(tensors):
    whole = torch.cat([torch.zeros(3), *(tensor.flatten() for tensor in tensors.values())])
    parts = whole[3:].split([tensor.numel() for tensor in tensors.values()])
    return {name: part.view(tensor.shape) for part, (name, tensor) in zip(parts, tensors.items(), strict=True)}


CHECKPOINTS = {
    "a state_dict": lambda: module().state_dict(),
    "parameters": lambda: dict(module().named_parameters()),
    "attributes": lambda: {name: with_attribute(tensor) for name, tensor in form_b().items()},
    "turned": lambda: {name: tensor.T.contiguous().T if tensor.ndim == 2 else tensor for name, tensor in form_b().items()},
    "one storage": lambda: in_one_storage(form_b(film=True)),
    "an expanded bias": lambda: form_b() | {"2.bias": torch.ones(1).expand(64)},
    "fp64": lambda: {name: tensor.double() for name, tensor in form_a().items()},
    "8 bits": lambda: {name: tensor.to(torch.float8_e4m3fn) for name, tensor in form_b().items()},
    "nested": lambda: {"state_dict": {"module": form_b()}},
    "names in parts": lambda: {
        "0": {"weight": form_b()["0.weight"], "bias": form_b()["0.bias"]},
        2: {"weight": form_b()["2.weight"], "bias": form_b()["2.bias"]},
    },
    "what scripts leave": lambda: {
        "model": form_b(),
        "step": torch.tensor(3),
        "rate": 1e-4,
        "on": True,
        "nothing": None,
        "name": "\u8a13\u7df4",
        "large": 2**70,
        "words": ["a", ("b", 2)],
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "size": torch.Size([1, 2]),
        "bytes": b"\xff",
        "set": {1, 2},
        "counted": collections.Counter("aab"),
        "ordered": collections.OrderedDict(a=1),
        (1, 2): "a pair as a key",
        "mask": torch.ones(3, dtype=torch.bool),
        "halves": torch.ones(2, dtype=torch.complex64),
        "few": torch.ones(4, 4).to_sparse(),
        "far": torch.ones(2, device="meta"),
        "many": torch.ones(3, dtype=torch.uint16),
    },
}


@LEGACY
@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.filterwarnings("ignore")
def test_checkpoints(tmp_path, name, legacy):
    checkpoint = CHECKPOINTS[name]()
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(saved(checkpoint, legacy))
    expected = torch.load(io.BytesIO(saved(checkpoint)), weights_only=True)
    if name == "nested":
        expected = expected["state_dict"]["module"]
    elif name == "names in parts":
        expected = {f"{part}.{kind}": tensor for part, inner in expected.items() for kind, tensor in inner.items()}
    expected = expected.get("model", expected)
    projection = loaded(path)
    assert_holds(projection, {key: tensor.detach() for key, tensor in expected.items()})
    assert all(type(tensor) is torch.Tensor and tensor.is_contiguous() for tensor in projection.weights.values())


def test_the_other_order_of_bytes(tmp_path):
    records = records_of(saved(form_b()))
    for name, content in records.items():
        if "/data/" in name:
            records[name] = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, 4).flip(1).numpy().tobytes()
    path = tmp_path / "swapped.pt"
    path.write_bytes(archive_of({name: b"big" if name.endswith("byteorder") else content for name, content in records.items()}))
    assert_holds(loaded(path), torch.load(path, weights_only=True))


def test_only_the_tensors_of_the_form_are_read(tmp_path):
    """The numbers of the others may be missing."""
    records = records_of(saved({"model": form_b(), "optimizer": torch.zeros(10**6)}))
    records["archive/data/4"] = b""
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(archive_of(records))
    assert_holds(loaded(path), form_b())


@pytest.mark.parametrize(
    "tensor, problem",
    [
        (torch.ones(HIDDEN, 16).to_sparse(), "a sparse tensor"),
        (torch.ones(HIDDEN, 16, device="meta"), r"a tensor without numbers \(meta\)"),
        (torch.quantize_per_tensor(torch.ones(HIDDEN, 16), 0.1, 0, torch.qint8), "a quantized tensor"),
        (torch.ones(HIDDEN, 16, dtype=torch.complex64), "torch.complex64 numbers"),
        (torch.ones(HIDDEN, 16, dtype=torch.complex64).conj().imag, "a conjugated or negated view"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_of_other_layouts_are_named(tmp_path, tensor, problem):
    words = rf"holds 0\.weight as {problem}, which this pack does not read"
    refused(tmp_path, saved(form_b() | {"0.weight": tensor}), words, name="other.pt")


def test_own_format_is_safetensors_alone(tmp_path):
    refused(tmp_path, saved(own(form_b(), "max", "time embedding")[0]), r"it holds linear_1\.bias", name="own.pt")

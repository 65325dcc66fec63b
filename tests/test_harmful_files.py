"""Whatever a file of a projection or a direction holds, it is loaded or refused in a sentence, soon and within a small multiple of its size.

    MODULATION_GUIDANCE_FUZZ=600000 python tools/test.py tests/test_harmful_files.py -k mutated -s

is the long form: that many mutated files instead of a few hundred, some 1,200 a second on one core, so about eight minutes. What became of them is printed.
MODULATION_GUIDANCE_FUZZ_FIRST=N begins with number N, so that other files are made. One that fails is left where the message says.
"""

import faulthandler
import importlib
import os

import pytest
import torch
from support.fuzzing import fuzz, is_sentence
from support.harmful import HARMFUL, HARMFUL_DIRECTIONS, bounded, saved, write_sparse
from support.learned import file_of, learned, loaded_direction, saved_direction, shifts
from support.text_blind import ANIMA, form_a, form_b, loaded, own, registered, write

import nodes
from benchmarks.in_process import node

PACK = nodes.NODE_CLASS_MAPPINGS["LoadPooledProjection"].__module__.rpartition(".nodes.")[0]
load = importlib.import_module(f"{PACK}.pooled_proj.formats").load

FILES = int(os.environ.get("MODULATION_GUIDANCE_FUZZ", 500))
FIRST = int(os.environ.get("MODULATION_GUIDANCE_FUZZ_FIRST", 0))

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, about the kinds of tensors that are made here


@pytest.fixture(scope="module", autouse=True)
def warmed_up(tmp_path_factory):
    """What torch sets up once is not a file's fault."""
    loaded(write(tmp_path_factory.mktemp("good") / "good.pt", form_b()))


@pytest.fixture(autouse=True)
def not_for_ever():
    """A reader that hangs where no exception reaches it ends the tests, and shows where."""
    faulthandler.dump_traceback_later(120 + FILES, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def assert_refused(path, words="", read=load):
    with pytest.raises(ValueError, match=words) as error:
        read(path)
    assert is_sentence(str(error.value), path), str(error.value)


@pytest.mark.parametrize("read", [loaded, loaded_direction], ids=["projection", "direction"])
@pytest.mark.parametrize("name", [*HARMFUL, *HARMFUL_DIRECTIONS])
def test_a_harmful_file(tmp_path, name, read):
    path = tmp_path / "harmful.pt"
    path.write_bytes((HARMFUL | HARMFUL_DIRECTIONS)[name]())
    with bounded(path.stat().st_size):
        assert_refused(path, read=read)


def test_a_file_of_10_gb_of_holes(tmp_path):
    path = write_sparse(tmp_path / "sparse.safetensors")
    with bounded(0):
        assert_refused(path, "holds 10,800,360,000 bytes of tensors, and this pack reads", read=loaded)


def test_what_is_no_file(tmp_path):
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "dangling.pt").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe.pt")
    for name, words in (("folder.pt", "is a folder"), ("dangling.pt", "No such file"), ("pipe.pt", "a pipe"), ("gone.pt", "No such file")):
        with bounded(0):
            assert_refused(tmp_path / name, words)
        with registered(tmp_path), pytest.raises(ValueError, match=f"there is no file '{name}' in models/pooled_projections"):
            nodes.NODE_CLASS_MAPPINGS["LoadPooledProjection"].execute(projection_name=name)


def test_a_name_that_cannot_be_shown(tmp_path):
    path = tmp_path / os.fsdecode(b"bad\xff\n.pt")
    path.write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"^The projection file bad\\udcff\\n\.pt cannot be read"):
        loaded(path)


def test_mutated_files(tmp_path):
    whole = {"model": form_b(), "epoch": 3, "loss": [0.5], "optimizer": {"state": {0: {"exp_avg": torch.zeros(4)}}}}
    goods = [saved(whole), saved(whole, legacy=True)]
    for tensors in (form_a(), form_b(), form_b(film=True)):
        goods += [write(tmp_path / "good.safetensors", tensors).read_bytes(), saved(tensors), saved(tensors, legacy=True)]
    record = '{"runs": [{"steps": 4000, "last loss": 0.5}]}'
    goods.append(write(tmp_path / "own.safetensors", *own(form_b(film=True), "max", "time embedding", "Anima", record=record)).read_bytes())
    harmful = [data for data in (made() for made in HARMFUL.values()) if len(data) < 20_000]
    became = fuzz([*goods * 6, *harmful], loaded, range(FIRST, FIRST + FILES), tmp_path / "mutated.pt")
    print(dict(became))
    assert became["refused"] > FILES / 4 and became["loaded"] > FILES / 100


def test_mutated_directions(tmp_path):
    record = {"runs": [{"steps": 400, "last loss": 0.5}]}
    one = learned(shifts(4, 8), "Anima", record=record)
    made = [one, ANIMA.direction(), ANIMA.pooled_direction()]
    both = {f"direction{number}": direction for number, direction in enumerate(made)}
    made.append(node("CombineGuidanceDirections", directions=both, weights="1, -0.5, 2")[0])
    goods = [saved_direction(direction, tmp_path).read_bytes() for direction in made]
    tensors, metadata = file_of(shifts(4, 8), "Anima", record=record)
    goods.append(write(tmp_path / "given.safetensors", tensors, metadata).read_bytes())
    harmful = [data for data in (made() for made in HARMFUL_DIRECTIONS.values()) if len(data) < 20_000]
    became = fuzz([*goods * 6, *harmful], loaded_direction, range(FIRST, FIRST + FILES), tmp_path / "mutated.safetensors")
    print(dict(became))
    assert became["refused"] > FILES / 4 and became["loaded"] > FILES / 100

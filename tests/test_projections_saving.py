"""Saved projections: bit for bit, never in the place of another file, and never lost where a file cannot be written."""

import json
import os
import resource
import shutil
import signal
import stat
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import folder_paths
import pytest
import torch
from safetensors import safe_open
from support.text_blind import CLIP, DEPTH, WIDTH, form_a, form_b, loaded, own, registered, write
from test_projections_files import canonical

import nodes
from benchmarks.in_process import node

NODE = nodes.NODE_CLASS_MAPPINGS["SavePooledProjection"]


@pytest.fixture
def output(tmp_path):
    before = folder_paths.get_output_directory()
    folder = tmp_path / "output"
    folder.mkdir()
    folder_paths.set_output_directory(str(folder))
    yield folder
    folder_paths.set_output_directory(before)


@pytest.fixture
def projection(tmp_path):
    return loaded(write(tmp_path / "b.safetensors", form_b()))


def save(projection, prefix):
    node("SavePooledProjection", projection=projection, filename_prefix=prefix)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


@pytest.mark.parametrize(
    "name, tensors",
    [("a.pt", form_a()), ("b.safetensors", form_b(film=True)), ("b16.safetensors", {n: t.bfloat16() for n, t in form_b().items()})],
)
def test_saved_bit_for_bit_and_self_describing(tmp_path, output, name, tensors):
    projection = loaded(write(tmp_path / name, tensors))
    save(projection, "sub/mine")
    assert files(output) == ["sub/mine_00001_.safetensors"]
    with safe_open(output / "sub" / "mine_00001_.safetensors", "pt") as file:
        metadata = file.metadata()
        saved = {name: file.get_tensor(name) for name in file.keys()}
    assert_equal_tensors(saved, canonical(tensors))
    assert metadata["format"] == "modulation guidance pooled projection" and metadata["format_version"] == "1"
    assert (metadata["pooling"], metadata["injection"]) == (projection.pooling, projection.injection)
    widths = {"input": CLIP, "output": 3 * WIDTH, "time embedding": None, "layers": DEPTH} if name == "a.pt" else None
    if widths:
        assert json.loads(metadata["widths"]) == widths


def assert_equal_tensors(some, others):
    assert some.keys() == others.keys()
    for name, tensor in some.items():
        assert tensor.dtype == others[name].dtype and torch.equal(tensor.view(torch.uint8), others[name].view(torch.uint8)), name


@pytest.mark.parametrize("pooling, injection", [("clip", "time embedding"), ("mean", "time embedding"), ("max", "adaln lora")])
def test_own_files_come_back_as_they_were(tmp_path, output, pooling, injection):
    tensors, metadata = own(form_b(film=True), pooling, injection, "Anima", record='{"steps": 4000, "losses": [0.5, 0.25]}')
    first = loaded(write(tmp_path / "first.safetensors", tensors, metadata))
    save(first, "again")
    second = loaded(output / "again_00001_.safetensors")
    for projection in (first, second):
        assert_equal_tensors(projection.weights, tensors)
        assert (projection.pooling, projection.injection, projection.family) == (pooling, injection, "Anima")
        assert projection.record == {"steps": 4000, "losses": [0.5, 0.25]}


def test_saved_twice_the_bytes_are_the_same(projection, output):
    for _ in range(6):
        save(projection, "mine")
    assert len({path.read_bytes() for path in output.iterdir()}) == 1


def test_tensors_that_are_not_contiguous(tmp_path, output):
    tensors = form_b()
    turned = {name: tensor.T.contiguous().T if tensor.ndim == 2 else tensor for name, tensor in tensors.items()}
    save(loaded(write(tmp_path / "turned.pt", turned)), "mine")
    assert_equal_tensors(loaded(output / "mine_00001_.safetensors").weights, canonical(tensors))


def test_nothing_is_saved_that_load_refuses(projection, output):
    projection.weights["linear_2.weight"][0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"^The projection holds NaN or infinite numbers in linear_2\.weight"):
        save(projection, "mine")
    assert files(output) == []


# Where.


@pytest.mark.parametrize("prefix", ["mine", "mine/", "mine/.", "./mine", "sub//mine/", "sub/../mine"])
def test_files_are_numbered_whatever_the_way_to_write_the_name(projection, output, prefix):
    for _ in range(3):
        save(projection, prefix)
    folder = "sub/" if prefix.startswith("sub//") else ""
    assert files(output) == [f"{folder}mine_{number:05}_.safetensors" for number in (1, 2, 3)]


def test_several_at_once_replace_nothing(tmp_path, output):
    """Each is given the same number by the host, as where letters that differ in case are the same name."""
    many = [loaded(write(tmp_path / f"{seed}.safetensors", form_b(width=60_000, seed=seed))) for seed in range(8)]
    with ThreadPoolExecutor(len(many)) as threads:
        list(threads.map(lambda projection: save(projection, "mine"), many))
    assert files(output) == [f"mine_{number:05}_.safetensors" for number in range(1, 9)]
    assert len({path.read_bytes() for path in output.iterdir()}) == 8


@pytest.mark.parametrize("prefix", ["../mine", "sub/../../mine", "/tmp/mine", "", "mine/.."])
def test_nothing_leads_out_of_the_output_folder(tmp_path, projection, output, prefix):
    assert_refused(projection, prefix, "leads out of the output folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.safetensors", "output"] and not list(output.iterdir())


def assert_refused(projection, prefix, words):
    """When it is queued, and when it runs."""
    queued = NODE.validate_inputs(filename_prefix=prefix)
    assert words in queued and queued.startswith("Save Pooled Projection: filename_prefix '") and len(queued) < 500 and queued.isprintable()
    with pytest.raises(ValueError, match=words):
        save(projection, prefix)


@pytest.mark.parametrize(
    "prefix, words",
    [
        ("mi\0ne", "holds a character that no file's name can have"),
        ("mi\udcffne", "holds a character that no file's name can have"),
        ("sub/mi\ud800ne", "holds a character that no file's name can have"),
    ],
)
def test_names_that_no_file_can_have(projection, output, prefix, words):
    assert_refused(projection, prefix, words)
    assert files(output) == []


@pytest.mark.parametrize(
    "prefix, words",
    [
        ("n" * 250, "cannot be the name of a file (File name too long)"),
        ("new/" + "\u4e00" * 80, "cannot be the name of a file (File name too long)"),
        ("n" * 10**6, "cannot be the name of a file (File name too long)"),
        ("new/" * 2000 + "mine", "cannot be the name of a file (File name too long)"),
        ("taken/mine", "taken, which is a file"),
    ],
)
def test_what_cannot_be_written_is_found_when_it_is_queued(tmp_path, projection, output, prefix, words):
    (output / "taken").write_text("a file")
    queued = NODE.validate_inputs(filename_prefix=prefix)
    assert words in queued and len(queued) < 500 and queued.isprintable()
    # Where the prefix comes from another node, it is not known then: what was learned goes to another place.
    spare = tmp_path / "spare"
    spare.mkdir()
    words = rf"could not be written to {output} .* It was saved as {spare}/.* instead"
    with registered(spare), pytest.raises(ValueError, match=words) as error:
        save(projection, prefix)
    assert len(str(error.value)) < 700
    assert files(output) == ["taken"] and len(files(spare)) == 1
    assert_equal_tensors(loaded(spare / files(spare)[0]).weights, projection.weights)


@pytest.mark.parametrize("prefix", ["n" * 230, "new/deep/mine", "\u4e00\u6587", "with spaces %year%", "mine.v2"])
def test_what_can_be_written_is_not_refused(projection, output, prefix):
    assert NODE.validate_inputs(filename_prefix=prefix) is True
    save(projection, prefix)
    assert len(files(output)) == 1


def test_a_folder_that_may_not_be_written_is_found_when_it_is_queued(projection):
    folder = tempfile.mkdtemp()  # where nobody may look, as in pytest's own
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(folder)
    os.chmod(folder, 0o555)
    try:
        with nobody():
            queued = NODE.validate_inputs(filename_prefix="sub/mine")
    finally:
        folder_paths.set_output_directory(before)
        shutil.rmtree(folder)
    assert f"leads into {os.path.realpath(folder)}, where ComfyUI may not write" in queued


@contextmanager
def nobody():
    """Root may write anywhere."""
    if os.geteuid():
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


# Cuts and full disks.


@contextmanager
def no_room(size=1000):
    """No file of the process grows over that many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_without_room_nothing_is_left_and_queueing_again_saves(tmp_path, projection, output):
    spare = tmp_path / "spare"
    spare.mkdir()
    with registered(spare), no_room(), pytest.raises(ValueError, match=r"'mine' could not be written .*make room.*queue again"):
        save(projection, "mine")
    assert files(output) == files(spare) == []
    save(projection, "mine")
    assert files(output) == ["mine_00001_.safetensors"]


def test_what_a_killed_process_left_goes_once_nobody_writes_it(projection, output):
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        with no_room():
            save(projection, "mine")
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGXFSZ
    [left] = files(output)
    assert not left.startswith("mine")
    save(projection, "mine")
    assert files(output) == sorted([left, "mine_00001_.safetensors"]), "it may belong to a process that still writes"
    two_hours_ago = time.time() - 7200
    os.utime(output / left, (two_hours_ago, two_hours_ago))
    save(projection, "mine")
    assert files(output) == ["mine_00001_.safetensors", "mine_00002_.safetensors"]


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_of_the_umask(projection, output, umask, mode):
    before = os.umask(umask)
    try:
        save(projection, "mine")
    finally:
        os.umask(before)
    assert stat.S_IMODE((output / "mine_00001_.safetensors").stat().st_mode) == mode

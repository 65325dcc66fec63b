"""Projection files: what is read, and what is refused and in which words."""

import os
import pickle
import struct

import folder_paths
import pytest
import torch
from support.text_blind import CONTEXT, DEPTH, HIDDEN, WIDTH, form_a, form_b, loaded, own, registered, write

from benchmarks.in_process import node

CANONICAL = {
    "text_embedder_clip.linear_1": "linear_1",
    "text_embedder_clip.linear_2": "linear_2",
    "0": "linear_1",
    "2": "linear_2",
    "sigma_film": "film",
}


def canonical(tensors):
    return {
        ".".join((CANONICAL[name.rpartition(".")[0]], name.rpartition(".")[2])) if "." in name else name: tensor
        for name, tensor in tensors.items()
    }


def assert_holds(projection, tensors):
    expected = canonical(tensors)
    assert projection.weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert projection.weights[name].dtype == tensor.dtype and torch.equal(projection.weights[name], tensor), name


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="Linux tells which files a process holds")
@pytest.mark.parametrize("name", ["max_pool.safetensors", "max_pool.pt"])
def test_a_loaded_file_is_not_held(tmp_path, name):
    """Windows replaces no file that is open or mapped, as when a run goes on from a projection in its own folder."""
    path = write(tmp_path / name, form_b())
    projection = loaded(path)
    held = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    with open("/proc/self/maps", encoding="utf-8") as maps:
        assert str(path) not in held and str(path) not in maps.read()
    assert projection.weights


def test_a_network_needs_no_casting_on_the_device(tmp_path):
    """DirectML cannot cast bf16: the weights are moved there in fp32."""
    tensors = {name: tensor.bfloat16() for name, tensor in form_b().items()}
    moved = loaded(write(tmp_path / "half.safetensors", tensors)).patcher.model
    assert {tensor.dtype for tensor in moved.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    "name, tensors, pooling, injection",
    [
        ("cosmos.pt", form_a(), "clip", "adaln lora"),
        ("cosmos.bin", {name: tensor.half() for name, tensor in form_a().items()}, "clip", "adaln lora"),
        ("anima.safetensors", form_a(), "clip", "adaln lora"),
        ("max_pool.safetensors", form_b(), "max", "time embedding"),
        ("film.safetensors", {name: tensor.bfloat16() for name, tensor in form_b(film=True).items()}, "max", "time embedding"),
        ("film.pth", form_b(film=True), "max", "time embedding"),
    ],
)
def test_published_forms(tmp_path, name, tensors, pooling, injection):
    projection = loaded(write(tmp_path / name, tensors))
    assert_holds(projection, tensors)
    assert (projection.pooling, projection.injection, projection.family) == (pooling, injection, None)


@pytest.mark.parametrize("prefix", ["module.", "model.", "ema.", "model.module.", "_orig_mod.", "module._orig_mod.", "ema_model.module."])
@pytest.mark.parametrize("tensors", [form_a(), form_b(film=True)], ids=["A", "B"])
def test_prefixes_that_training_scripts_leave(tmp_path, prefix, tensors):
    assert_holds(loaded(write(tmp_path / "file.safetensors", {prefix + name: tensor for name, tensor in tensors.items()})), tensors)


@pytest.mark.parametrize("tensors", [form_a(), form_b()], ids=["A", "B"])
def test_whole_checkpoints_of_training_scripts(tmp_path, tensors):
    checkpoint = {
        "model": tensors,
        "epoch": 3,
        "global_step": torch.tensor(4000),
        "args": {"lr": 2e-5, "name": "run"},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(4, 4)}}, "param_groups": [{"lr": 2e-5, "params": [0]}]},
    }
    assert_holds(loaded(write(tmp_path / "checkpoint.pt", checkpoint)), tensors)


def test_extra_keys_are_left_out(tmp_path):
    tensors = form_a()
    extra = {"logit_scale": torch.ones(()), "ema.decay": torch.ones(()), "ema.num_updates": torch.ones((), dtype=torch.int64)}
    assert_holds(loaded(write(tmp_path / "extra.safetensors", tensors | extra)), tensors)


def test_averaged_weights_are_taken_where_both_are_there(tmp_path):
    trained, averaged = form_b(seed=1), form_b(seed=2)
    both = {f"model.{name}": tensor for name, tensor in trained.items()} | {f"ema.{name}": tensor for name, tensor in averaged.items()}
    assert_holds(loaded(write(tmp_path / "both.safetensors", both)), averaged)


def refused(tmp_path, content, words, name="bad.safetensors", metadata=None):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write(path, content, metadata)
    with pytest.raises(ValueError, match=words) as error:
        loaded(path)
    assert str(error.value).startswith(f"The projection file {name} ")
    assert str(error.value).rstrip().endswith(".")


@pytest.mark.parametrize(
    "tensors",
    [
        {"lora.up.weight": torch.ones(2, 2), "lora.down.weight": torch.ones(2, 2)},
        {name: tensor for name, tensor in form_a().items() if name != "scales"},
        form_b() | {"4.weight": torch.ones(WIDTH, WIDTH), "4.bias": torch.ones(WIDTH)},
        form_b() | {"sigma_film.weight": torch.ones(2 * HIDDEN, WIDTH)},
        form_a() | {"text_embedder_clip.norm.weight": torch.ones(HIDDEN)},
        {f"img_in.{name}": tensor for name, tensor in form_b().items()},
    ],
    ids=["LoRA", "no scales", "three layers", "half a FiLM", "a norm", "a layer of another model"],
)
def test_other_files_are_refused_with_the_keys_found_and_expected(tmp_path, tensors):
    found = sorted(tensors)[0].replace(".", r"\.")
    refused(tmp_path, tensors, rf"it holds .*{found}.*Expected: .*text_embedder_clip\.linear_1\.weight.*scales.*0\.weight.*sigma_film")


def test_an_empty_file_of_tensors(tmp_path):
    refused(tmp_path, {}, "it holds no tensors", name="empty.pt")


def test_two_projections_in_one_file(tmp_path):
    two = {f"{prefix}.{name}": tensor for prefix in ("model", "student") for name, tensor in form_b().items()}
    refused(tmp_path, two, "more than one projection, under 'model.' and 'student.'")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["scales", "text_embedder_clip.linear_2.weight"])
def test_nan_and_infinite(tmp_path, key, value):
    tensors = form_a()
    tensors[key][0, 0] = value
    refused(tmp_path, tensors, f"NaN or infinite numbers in {key.removeprefix('text_embedder_clip.')}")


def test_numbers_that_are_not_floating_point(tmp_path):
    refused(tmp_path, form_b() | {"0.weight": torch.ones(HIDDEN, CONTEXT, dtype=torch.int32)}, "linear_1.weight as torch.int32")


@pytest.mark.parametrize(
    "changed",
    [
        {"0.bias": torch.ones(HIDDEN + 1)},
        {"2.weight": torch.ones(WIDTH, HIDDEN - 1)},
        {"sigma_film.weight": torch.ones(HIDDEN, WIDTH)},
        {"2.bias": torch.ones(1, WIDTH)},
        {"sigma_film.bias": torch.ones(())},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_tensors_that_do_not_fit_together(tmp_path, changed):
    refused(tmp_path, form_b(film=True) | changed, r"does not fit together: .* must be \(")


def test_tensors_without_numbers(tmp_path):
    empty = {"0.weight": torch.ones(HIDDEN, 0)}
    refused(tmp_path, form_b() | empty, rf"holds no numbers in linear_1.weight: \({HIDDEN}, 0\)")


def test_scales_of_another_width(tmp_path):
    refused(tmp_path, form_a() | {"scales": torch.ones(DEPTH, WIDTH)}, rf"scales is \({DEPTH}, {WIDTH}\).*must be \({DEPTH}, {3 * WIDTH}\)")


def test_weights_that_are_not_matrices(tmp_path):
    refused(tmp_path, form_b() | {"0.weight": torch.ones(HIDDEN, CONTEXT, 3, 3)}, "not matrices")


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pt"])
@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.99])
def test_truncated(tmp_path, name, part):
    whole = write(tmp_path / f"whole{name[3:]}", form_b()).read_bytes()
    refused(tmp_path, whole[: int(part * len(whole))], "cannot be read: it is cut off, damaged or no model file", name=name)


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><html>", b"version https://git-lfs.github.com/spec/v1", struct.pack("<Q", 1 << 60) + b"{"]
)
def test_no_model_file_at_all(tmp_path, content):
    refused(tmp_path, content, "cannot be read")


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", ["bad.pt", "bad.safetensors"])
def test_a_harmful_pickle_does_not_run(tmp_path, name, legacy):
    made = tmp_path / "made"
    torch.save(form_a() | {"extra": Harmful(made)}, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    content = (tmp_path / name).read_bytes()
    torch.load(tmp_path / name, weights_only=False)
    assert made.exists(), "the pickle itself must be harmful"
    made.rmdir()
    refused(tmp_path, content, "holds code that would run", name=name)
    assert not made.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_harmful_plain_pickle_does_not_run(tmp_path):
    made = tmp_path / "made"
    content = pickle.dumps(Harmful(made))
    refused(tmp_path, content, "holds code that would run|cannot be read", name="plain.pt")
    assert not made.exists()


def test_names_lead_nowhere_outside_the_folder(tmp_path):
    write(tmp_path / "secret.safetensors", form_b())
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("../secret.safetensors", str(tmp_path / "secret.safetensors"), "gone.safetensors", ""):
        with registered(folder), pytest.raises(ValueError, match="there is no .* in models/pooled_projections .*folder"):
            node("LoadPooledProjection", projection_name=name)


def test_the_folder_is_one_of_the_hosts():
    import nodes

    folders = folder_paths.get_folder_paths("pooled_projections")
    assert os.path.join(folder_paths.models_dir, "pooled_projections") in folders
    assert {".pt", ".safetensors"} <= folder_paths.folder_names_and_paths["pooled_projections"][1]
    schema = nodes.NODE_CLASS_MAPPINGS["LoadPooledProjection"].define_schema()
    assert schema.inputs[0].options == folder_paths.get_filename_list("pooled_projections")


def test_a_file_that_changes_is_loaded_again(tmp_path):
    import nodes

    loader = nodes.NODE_CLASS_MAPPINGS["LoadPooledProjection"]
    write(tmp_path / "file.safetensors", form_b())
    with registered(tmp_path):
        before = loader.fingerprint_inputs(projection_name="file.safetensors")
        assert loader.fingerprint_inputs(projection_name="file.safetensors") == before
        linked = loader.fingerprint_inputs(projection_name=None)  # as the host gives one that comes over a link
        assert loader.fingerprint_inputs(projection_name=None) == linked
        write(tmp_path / "file.safetensors", form_b(film=True))
        assert loader.fingerprint_inputs(projection_name="file.safetensors") != before
        assert loader.fingerprint_inputs(projection_name=None) != linked


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"format_version": "2"}, "format version 2, and this pack reads version 1"),
        ({"pooling": "median"}, "pooling is 'median'; it must be clip or max or mean"),
        ({"injection": "gate"}, "injection is 'gate'"),
        ({"record": "{"}, "metadata that is not JSON"),
    ],
)
def test_own_files_that_this_pack_cannot_read(tmp_path, changed, words):
    tensors, metadata = own(form_b(), "max", "time embedding")
    refused(tmp_path, tensors, words, metadata=metadata | changed)


@pytest.mark.parametrize("tensors", [form_b() | {"3.weight": torch.ones(2, 2)}, {"0.weight": torch.ones(2, 2)}], ids=["more", "fewer"])
def test_own_files_with_other_keys(tmp_path, tensors):
    tensors, metadata = own(tensors, "max", "time embedding")
    refused(tmp_path, tensors, r"it holds .*Expected: linear_1\.weight", metadata=metadata)

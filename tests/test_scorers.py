"""Scorers give what transformers itself gives, read nothing they should not, and are in memory once."""

import importlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.scorers import WIDTH, change_json, head, pictures, write_clip
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

import nodes as host_nodes
from benchmarks.in_process import node

PACK = host_nodes.NODE_CLASS_MAPPINGS["ScorePictures"].__module__.rpartition(".nodes")[0]
loading = importlib.import_module(PACK + ".scoring.loading")
scorers_node = importlib.import_module(PACK + ".nodes.scorers")
PROMPT = "three red circles on a plain background"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("scorers") / "clip")


def copied(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / folder.name))


def saved(images):
    """The images as a file of the host's holds them."""
    return [Image.fromarray(np.clip(255.0 * one.numpy(), 0, 255).astype(np.uint8)) for one in images]


def reference(folder, images, prompt):
    """transformers' own CLIPModel on its own processor's inputs."""
    model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
    text = CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)([prompt], return_tensors="pt", truncation=True, max_length=77)
    pixels = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)(saved(images), return_tensors="pt")
    return model(**text, **pixels)


@pytest.mark.parametrize("scale", [4.6, 3.1], ids=["CLIP", "another logit scale, as PickScore"])
@pytest.mark.parametrize("prompt", [PROMPT, "", "a very long prompt " * 60], ids=["prompt", "empty", "too long"])
def test_a_clip_model_scores_as_transformers_does(tmp_path, scale, prompt):
    folder = write_clip(tmp_path / "clip", scale=scale)
    images = pictures()
    ours = loading.load(str(folder)).score(images, prompt)
    expected = reference(folder, images, prompt).logits_per_image[:, 0]
    assert len({round(score, 3) for score in ours}) == len(ours)
    torch.testing.assert_close(torch.tensor(ours), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("height, width", [(32, 32), (16, 64), (200, 90), (1024, 1024)])
def test_images_of_any_size_score_as_transformers_does(folder, height, width):
    images = pictures(2, height, width)
    ours = loading.load(str(folder)).score(images, PROMPT)
    torch.testing.assert_close(torch.tensor(ours), reference(folder, images, PROMPT).logits_per_image[:, 0], rtol=0, atol=1e-5)


def test_half_precision_files_and_pickles_and_parts_score_as_transformers_does(folder, tmp_path):
    images, weights = pictures(), load_file(folder / "model.safetensors")
    half = copied(folder, tmp_path / "half")
    save_file({name: tensor.half() for name, tensor in weights.items()}, half / "model.safetensors")
    pickled = copied(folder, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save({**weights, "text_model.embeddings.position_ids": torch.arange(77)}, pickled / "pytorch_model.bin")
    parts = copied(folder, tmp_path / "parts")
    (parts / "model.safetensors").unlink()
    for number, names in enumerate((sorted(weights)[::2], sorted(weights)[1::2]), 1):
        save_file({name: weights[name] for name in names}, parts / f"model-0000{number}-of-00002.safetensors")
    expected = torch.tensor(loading.load(str(folder)).score(images, PROMPT))
    for each in (pickled, parts):
        assert torch.equal(torch.tensor(loading.load(str(each)).score(images, PROMPT)), expected)
    rounded = copied(folder, tmp_path / "rounded")
    save_file({name: tensor.half().float() for name, tensor in weights.items()}, rounded / "model.safetensors")
    torch.testing.assert_close(
        torch.tensor(loading.load(str(half)).score(images, PROMPT)),
        reference(rounded, images, PROMPT).logits_per_image[:, 0],
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("linear", [False, True], ids=["five layers", "one layer"])
@pytest.mark.parametrize("inside", [False, True], ids=["beside the folder", "in the folder"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy pickle"])
def test_an_aesthetic_head_scores_as_its_layers_on_transformers_embeddings(folder, tmp_path, linear, inside, legacy):
    clip = copied(folder, tmp_path)
    path = (clip if inside else tmp_path) / "head.pth"
    tensors = head(linear=linear)
    torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)
    images = pictures()
    values = reference(clip, images, "whatever").image_embeds
    for name in [""] if linear else [f"layers.{i}." for i in (0, 2, 4, 6, 7)]:
        values = values @ tensors[f"{name}weight"].T + tensors[f"{name}bias"]
    scorer = loading.load(str(path))
    torch.testing.assert_close(torch.tensor(scorer.score(images, PROMPT)), values[:, 0], rtol=1e-5, atol=1e-5)
    assert scorer.score(images, PROMPT) == scorer.score(images, "another prompt")


def test_two_scorers_of_one_clip_hold_it_once_and_the_host_loads_it_once(folder, tmp_path):
    torch.save(head(), folder.parent / "head.pth")
    fits, beauty = loading.load(str(folder)), loading.load(str(folder.parent / "head.pth"))
    assert fits.clip is beauty.clip is loading.load(str(folder)).clip
    patcher, loads = fits.clip.patcher, []
    load = type(patcher).load

    def counted(self, *args, **kwargs):
        loads.append(self)
        return load(self, *args, **kwargs)

    comfy.model_management.unload_all_models()
    type(patcher).load = counted
    try:
        for scorer in (fits, beauty):
            score(scorer, list(pictures(100, 32, 32).split(1)), [f"w {i}, start 0" for i in range(100)])
    finally:
        type(patcher).load = load
    assert loads == [patcher]
    assert sum(loaded.model is patcher for loaded in comfy.model_management.current_loaded_models) == 1


def test_a_changed_folder_is_read_again(folder, tmp_path):
    changed = copied(folder, tmp_path)
    first = loading.load(str(changed))
    state = loading.state(str(changed))
    write_clip(changed, seed=1)
    assert loading.state(str(changed)) != state
    assert loading.load(str(changed)).score(pictures(), PROMPT) != first.score(pictures(), PROMPT)


OFFLINE = """
import socket, sys
def refuse(*args, **kwargs):
    raise SystemExit("it asked the network")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from benchmarks.in_process import load_host
load_host()
import importlib, nodes, torch
pack = nodes.NODE_CLASS_MAPPINGS["ScorePictures"].__module__.rpartition(".nodes")[0]
loading = importlib.import_module(pack + ".scoring.loading")
print(len(loading.load(sys.argv[1]).score(torch.rand(2, 40, 40, 3), "a prompt")))
"""


def test_nothing_is_asked_of_the_network(folder):
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, folder], cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.strip().endswith("2"), done.stderr[-2000:]


def wrong_weights(change):
    def done(folder):
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return done


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            lambda folder: (folder / "preprocessor_config.json").unlink(),
            r"holds config.json, .*; needed are config.json, preprocessor_config.json, tokenizer.json",
        ),
        (lambda folder: (folder / "merges.txt").unlink(), "needed are config.json"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "clip.safetensors"),
            "holds clip.safetensors, config.json.*and model.safetensors",
        ),
        (lambda folder: change_json(folder / "config.json", model_type="siglip"), "model_type is siglip; needed is clip"),
        (lambda folder: (folder / "config.json").write_text("{"), "has a config.json that cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[1]"), r"has a config.json that is \[1\]"),
        (
            lambda folder: change_json(folder / "config.json", text_config={"hidden_size": 33}),
            "config.json that transformers does not take",
        ),
        (
            lambda folder: change_json(folder / "config.json", text_config={"num_hidden_layers": 10**9}),
            "1000000000 as text_config.num_hidden_layers",
        ),
        (
            lambda folder: change_json(folder / "config.json", projection_dim=17),
            r"holds .*projection.weight of shape \(16, 32\), and config.json asks for \(17, 32\)",
        ),
        (wrong_weights(lambda weights: weights.pop("visual_projection.weight")), "lacks weights: visual_projection.weight of"),
        (wrong_weights(lambda weights: weights["logit_scale"].fill_(float("nan"))), "NaN or infinite numbers in logit_scale"),
        (
            lambda folder: change_json(folder / "preprocessor_config.json", crop_size=64),
            r"makes images of .*64.* pixels .*its model reads 32",
        ),
        (lambda folder: change_json(folder / "preprocessor_config.json", size={"shortest_edge": 10**7}), "8192 is the most"),
        (
            lambda folder: change_json(folder / "preprocessor_config.json", image_mean="x"),
            "preprocessor_config.json that transformers does not take",
        ),
        (lambda folder: (folder / "vocab.json").write_text("[]"), "has a tokenizer that cannot be read"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no tensors"), "model.safetensors cannot be read"),
    ],
    ids=lambda value: value[:50] if isinstance(value, str) else "",
)
def test_what_is_not_understood_in_a_folder_is_named(folder, tmp_path, change, sentence):
    broken = copied(folder, tmp_path)
    change(broken)
    with pytest.raises(ValueError, match=f"The picture scorer clip (?s:.*){sentence}"):
        loading.load(str(broken))


@pytest.mark.parametrize("attention", ["kernels-community/flash-attn2", "flash_attention_2", "nonsense"])
def test_a_config_chooses_no_code_that_transformers_runs(folder, tmp_path, attention, monkeypatch):
    plain = loading.load(str(folder))
    chosen = copied(folder, tmp_path)
    for towers in ({}, {name: json.loads((folder / "config.json").read_text())[name] for name in ("text_config", "vision_config")}):
        settings = {"attn_implementation": attention, "_attn_implementation": attention, "auto_map": {"AutoModel": "x.y"}}
        change_json(chosen / "config.json", **settings, **{name: tower | settings for name, tower in towers.items()})
        scorer = loading.load(str(chosen))
        assert scorer.score(pictures(1), "red") == plain.score(pictures(1), "red")


@pytest.mark.parametrize("value", [-1, 0, "x", [], {}, True])
@pytest.mark.parametrize("name", ["hidden_size", "num_attention_heads", "layer_norm_eps", "patch_size", "hidden_act", "vocab_size"])
def test_a_config_of_any_values_is_read_or_named(folder, tmp_path, name, value):
    broken = copied(folder, tmp_path)
    tower = "text_config" if name == "vocab_size" else "vision_config"
    change_json(broken / "config.json", **{tower: json.loads((folder / "config.json").read_text())[tower] | {name: value}})
    with pytest.raises(
        ValueError, match="^The picture scorer clip (has a config.json that transformers does not take|holds|cannot be used)"
    ):
        loading.load(str(broken))


def test_a_heads_clip_model_is_part_of_its_state(folder, tmp_path):
    beside = copied(folder, tmp_path)
    torch.save(head(), beside.parent / "head.pth")
    before = loading.state(str(beside.parent / "head.pth"))
    assert loading.state(str(beside.parent / "head.pth")) == before
    os.utime(beside / "model.safetensors", ns=(1, 1))
    assert loading.state(str(beside.parent / "head.pth")) != before


def test_no_pickle_is_run(folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    broken = copied(folder, tmp_path)
    (broken / "model.safetensors").unlink()
    torch.save({"logit_scale": Evil()}, broken / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin holds code that would run when it is loaded"):
        loading.load(str(broken))


@pytest.mark.parametrize(
    "tensors, sentence",
    [
        ({"fc.weight": torch.zeros(1, WIDTH)}, "holds fc.weight; needed are weight and bias"),
        ({**head(), "layers.7.bias": torch.zeros(2)}, "layers of shapes"),
        ({**head(), "layers.2.weight": torch.zeros(16, 23)}, "layers of shapes"),
        ({**head(), "layers.0.bias": torch.full((24,), float("inf"))}, "NaN or infinite numbers in layers.0.bias"),
        (head(width=24), "reads embeddings of a CLIP model, 24 wide, and there is none beside it"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_is_no_head_is_named(folder, tmp_path, tensors, sentence):
    copied(folder, tmp_path)
    torch.save(tensors, tmp_path / "head.pth")
    with pytest.raises(ValueError, match=f"The picture scorer head.pth .*{sentence}"):
        loading.load(str(tmp_path / "head.pth"))


def test_a_head_that_could_read_two_models_asks_to_be_moved(folder, tmp_path):
    copied(folder, tmp_path).rename(tmp_path / "another")
    copied(folder, tmp_path)
    torch.save(head(), tmp_path / "head.pth")
    with pytest.raises(ValueError, match="could read another, clip, all with embeddings 16 wide. Move it into"):
        loading.load(str(tmp_path / "head.pth"))


@pytest.fixture
def listed(folder, tmp_path, monkeypatch):
    """models/picture_scorers with the folder in it."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "picture_scorers", ([str(tmp_path)], set()))
    return tmp_path


def test_folders_and_heads_are_listed_and_nothing_else(folder, listed):
    assert scorers_node.scorer_names() == []
    clip = copied(folder, listed / "openai")
    torch.save(head(), clip / "inside.pth")
    torch.save(head(), listed / "beside.safetensors")
    (listed / "notes.txt").write_text("")
    (listed / ".cache").mkdir()
    (listed / ".cache" / "config.json").write_text("{}")
    assert scorers_node.scorer_names() == ["beside.safetensors", "openai/clip", "openai/clip/inside.pth"]
    (scorer,) = node("LoadPictureScorer", scorer_name="openai/clip")
    assert scorer.score(pictures(), PROMPT) == loading.load(str(clip)).score(pictures(), PROMPT)


@pytest.mark.parametrize("name", ["none", "../clip", "", "/etc/passwd"])
def test_what_is_not_there_is_answered_with_what_to_put_where(listed, name):
    answer = host_nodes.NODE_CLASS_MAPPINGS["LoadPictureScorer"].validate_inputs(scorer_name=name)
    assert f"there is no scorer {name!r} in models/picture_scorers ({listed})" in answer
    assert "Put a folder there as transformers saves a CLIP model" in answer and "PickScore_v1" in answer


def test_where_there_is_nothing_to_choose_the_answer_says_what_to_put_where(folder, listed):
    validate = host_nodes.NODE_CLASS_MAPPINGS["LoadPictureScorer"].validate_inputs
    assert f"there is no scorer in models/picture_scorers ({listed})" in validate(scorer_name=None)
    copied(folder, listed)
    assert validate(scorer_name=None) is True, "it may come over a link"
    assert validate(scorer_name="clip") is True


class Brightness:
    """Another pack's own: nothing but the protocol."""

    def __init__(self):
        self.asked = []

    def score(self, images, prompt):
        assert images.ndim == 4 and images.shape[-1] == 3 and images.dtype == torch.float32 and 0 <= images.min() and images.max() <= 1
        self.asked.append((len(images), prompt))
        return images.mean(dim=(1, 2, 3)).tolist()


def score(scorer, images, labels, prompt=PROMPT):
    prompts = prompt if isinstance(prompt, list) else [prompt]
    return node("ScorePictures", images=images, labels=labels, prompt=prompts, scorer=[scorer])


def grey(value, height=8, width=8, batch=1, channels=3):
    return torch.full((batch, height, width, channels), value)


def test_another_packs_scorer_is_asked_for_each_image_in_order():
    scorer = Brightness()
    images = [grey(0.25), grey(0.5), grey(0.125, 16), grey(0.75, batch=2), grey(0.5, channels=1), grey(0.25, channels=4)]
    scores, report = score(scorer, images, ["plain", "a", "b", "c", "d", "e"])
    assert scores == [0.25, 0.5, 0.125, 0.75, 0.75, 0.5, 0.25]
    assert scorer.asked[0] == (2, PROMPT) and sum(count for count, _ in scorer.asked) == 7
    assert "| plain | 0.2500 | 0.2500 | 0.2500 | 1 |" in report and "| c | 0.7500 | 0.7500 | 0.7500 | 2 |" in report


def test_a_prompt_for_each_image():
    scorer = Brightness()
    score(scorer, [grey(0.5), grey(0.5), grey(0.5)], ["plain", "plain", "a"], ["one", "two", "two"])
    assert scorer.asked == [(1, "one"), (2, "two")]
    with pytest.raises(ValueError, match="Score Pictures: 2 prompts for 3 images. Give one for all, or one for each"):
        score(scorer, [grey(0.5)] * 3, ["a", "b", "c"], ["one", "two"])


def test_an_image_that_is_not_of_numbers_scores_none_and_is_not_shown_to_the_scorer():
    broken = grey(0.5)
    broken[0, 3, 3, 1] = math.nan
    scores, report = score(Brightness(), [grey(0.25), broken, grey(2.0)], ["plain", "a", "b"])
    assert scores[0] == 0.25 and math.isnan(scores[1]) and scores[2] == 1
    assert "| a | nan | nan | nan | 1 |" in report


@pytest.mark.parametrize("answer", [[1.0], None, 3.0, ["x", "y"]], ids=repr)
def test_a_scorer_that_answers_something_else_is_named(answer):
    class Wrong:
        def score(self, images, prompt):
            return answer

    with pytest.raises(ValueError, match="The scorer Wrong answered .* for 2 images. A scorer gives one number for each"):
        score(Wrong(), [grey(0.5), grey(0.5)], ["plain", "a"])


def test_progress_is_shown_and_an_interrupt_stops_it(monkeypatch):
    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *args, **kwargs: seen.append((value, total)))
    images, labels = [grey(0.5)] * 20, [f"w {i}, start 0" for i in range(20)]
    score(Brightness(), images, labels)
    assert seen[0] == (8, 20) and seen[-1] == (20, 20)  # the host leaves out what follows too soon

    class Stopped(Brightness):
        def score(self, images, prompt):
            comfy.model_management.interrupt_current_processing()
            return super().score(images, prompt)

    scorer = Stopped()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        score(scorer, images, labels)
    assert len(scorer.asked) == 1

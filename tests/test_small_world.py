"""The small world: scenes, captions, checkers, training, shipped weights."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.learned import loaded_direction

from benchmarks.in_process import node
from tools.files import write_whole
from tools.small_world.attributes import ATTRIBUTES, file_name
from tools.small_world.captions import caption
from tools.small_world.checkers import Expectation, read_picture, score
from tools.small_world.dataset import HELD_OUT, draw
from tools.small_world.loop import Muon, Settings, fit, write_record
from tools.small_world.measure import check_checkers
from tools.small_world.models import build_flux
from tools.small_world.sampling import load, load_autoencoder, pictures, reconstructed
from tools.small_world.scenes import GROUND_DEPTH, RARE, SIZE, TONES, Thing, render, sample_scene
from tools.small_world.text_encoder import clip_l_shapes, uniform_weights
from tools.small_world.train import EASY_TOKENS, Scenes, captions_file, flux_loss

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "tools" / "small_world" / "weights"


# ---- scenes and captions ------------------------------------------------------------------------------------------


def test_a_seed_is_a_scene():
    assert sample_scene(7) == sample_scene(7) != sample_scene(8)
    assert np.array_equal(render(sample_scene(7)), render(sample_scene(7)))
    pictures_drawn, texts = draw(4, first=5, workers=1)
    assert np.array_equal(pictures_drawn[2], render(sample_scene(7)))
    assert texts[2] == caption(sample_scene(7), 7)


def test_scenes_hold_one_to_five_objects_apart():
    for seed in range(500):
        things = sample_scene(seed).things
        assert 1 <= len(things) <= 5
        for i, a in enumerate(things):
            assert a.radius < min(a.x, a.y) and max(a.x, a.y) < SIZE - a.radius
            assert all(max(abs(a.x - b.x), abs(a.y - b.y)) > a.radius + b.radius for b in things[:i])


def test_rare_kinds_are_never_trained_on_and_always_asked_for():
    kinds = {(thing.color, thing.shape) for seed in range(3000) for thing in sample_scene(seed).things}
    assert len(kinds) == 6 * 4 - len(RARE) and not kinds & RARE
    assert all(
        (sample_scene(seed, rare=True).things[0].color, sample_scene(seed, rare=True).things[0].shape) in RARE for seed in range(100)
    )


def test_captions_say_what_is_there_in_varied_words():
    texts = [caption(sample_scene(seed), seed) for seed in range(2000)]
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) <= 4 and max(lengths) >= 25 and len(set(texts)) > 1700
    spoken = sum("detail" in text or "simple" in text or "flat" in text for text in texts) / len(texts)
    assert 0.3 < spoken < 0.7
    named = [all(color in text and shape in text for _, color, shape in sample_scene(seed).groups) for seed, text in enumerate(texts)]
    assert 0.94 < np.mean(named) < 0.98  # the others are quality words alone


# ---- checkers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rare", (False, True))
def test_checkers_read_held_out_scenes_right(rare):
    right = check_checkers(400, rare, first=HELD_OUT + 1_000_000)
    assert min(right.values()) >= 97, right


def test_checkers_see_what_is_wrong():
    scene = next(s for s in map(sample_scene, range(HELD_OUT, HELD_OUT + 100)) if s.relation == "left of")
    reading = read_picture(render(scene))
    swapped = {"left of": "right of"}[scene.relation]
    assert score(reading, Expectation(scene.groups, scene.relation))["position"]
    assert not score(reading, Expectation(scene.groups, swapped))["position"]
    n, color, shape = scene.groups[0]
    assert not score(reading, Expectation(((n + 1, color, shape),) + scene.groups[1:]))["count"]
    assert not score(read_picture(np.full((SIZE, SIZE, 3), 128, np.uint8)), Expectation(scene.groups))["color"]


@pytest.mark.parametrize("seed", range(HELD_OUT, HELD_OUT + 5))
def test_the_ground_is_that_of_the_picture_behind_its_objects(seed):
    """Of a busy one its mean. The dark outline of detailed objects counts a little."""
    scene = replace(sample_scene(seed), ground=None, blurred=False)
    found = {tone: read_picture(render(replace(scene, tone=tone))).ground for tone in TONES}
    assert found == pytest.approx(TONES, abs=0.025)
    busy = read_picture(render(replace(scene, tone="light", ground="tiles"))).ground
    assert busy == pytest.approx(TONES["light"] * (1 - GROUND_DEPTH / 2), abs=0.025), "half of it is dark"


def test_detail_and_sharpness_follow_the_rendering():
    scene = replace(sample_scene(HELD_OUT), things=(Thing("square", "blue", "large", 17.0, 40, 40),), texture=None, blurred=False)
    flat, detailed, blurred = (read_picture(render(s)) for s in (scene, replace(scene, texture="checks"), replace(scene, blurred=True)))
    assert detailed.detail > flat.detail and detailed.gradient > flat.gradient
    assert blurred.sharpness < flat.sharpness


# ---- text encoder -------------------------------------------------------------------------------------------------


def test_text_encoder_weights_are_fixed_by_the_seed():
    name, (shape, std) = "encoder.layers.0.mlp.fc1.weight", clip_l_shapes()["encoder.layers.0.mlp.fc1.weight"]
    assert shape == (3072, 768), name
    weights = uniform_weights(np.random.PCG64(0), (2, 3), 1.0)
    assert weights.tolist() == uniform_weights(np.random.PCG64(0), (2, 3), 1.0).tolist()
    assert abs(uniform_weights(np.random.PCG64(1), (1000, 100), std).astype(np.float64).std() / std - 1) < 0.01


# ---- training -----------------------------------------------------------------------------------------------------

TINY = Settings(steps=6, batch=4, learning_rate=1e-3, scenes=8, warmup=2, easy_steps=2, muon=True)


def train_tiny(work: Path, **how) -> dict[str, torch.Tensor]:
    random_numbers = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=random_numbers)
    world = Scenes(normal(8, 16, 4, 4), normal(9, EASY_TOKENS + 2, 768), normal(9, 768), easy=torch.tensor([2, 5]))
    model = build_flux(0, depth=1, depth_single_blocks=1)
    return fit("flux", model, flux_loss(world, TINY), TINY, work, checkpoint_every=3, **how).state_dict()


def test_a_resumed_training_is_bit_equal(tmp_path, monkeypatch):
    monkeypatch.setattr(comfy.model_management, "in_training", True)
    with torch.inference_mode(False):
        whole = train_tiny(tmp_path / "whole")
        train_tiny(tmp_path / "cut", stop_at=4)  # the last checkpoint is of step 3
        resumed = train_tiny(tmp_path / "cut")
    start = build_flux(0, depth=1, depth_single_blocks=1).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert any(not torch.equal(whole[name], start[name]) for name in whole)

    write_record("flux", TINY, tmp_path / "cut", tmp_path)
    record = json.loads((tmp_path / "flux.json").read_text())
    assert record["settings"]["steps"] == 6 and len(record["loss"]) == 6 and record["hardware"]
    assert (tmp_path / "flux_loss.png").stat().st_size > 0
    with pytest.raises(ValueError, match="other settings"), torch.inference_mode(False):
        fit("flux", build_flux(0, depth=1, depth_single_blocks=1), None, replace(TINY, seed=1), tmp_path / "cut")


# ---- shipped weights ----------------------------------------------------------------------------------------------


def test_the_first_steps_see_easy_scenes_and_the_start_of_their_text():
    world = Scenes(
        torch.zeros(8, 16, 4, 4), torch.arange(9.0)[:, None, None].expand(9, 77, 768), torch.zeros(9, 768), easy=torch.tensor([2, 5])
    )
    seen = []

    def model(noisy, sigmas, context, y):
        seen.append(context)
        return noisy

    loss = flux_loss(world, replace(TINY, batch=64))
    for step in range(3):
        loss(model, torch.Generator().manual_seed(step), step)
    empty = 8.0
    assert [tokens.shape for tokens in seen] == [(64, EASY_TOKENS, 768)] * 2 + [(64, 77, 768)]
    assert set(seen[0].unique().tolist()) == {2.0, 5.0, empty}
    assert set(seen[2].unique().tolist()) == set(map(float, range(9)))


def test_muon_steps_on_convolutions_by_rows_of_output_channels():
    """Its first step is an orthogonal matrix of AdamW's size, whatever the gradient's: by Newton-Schulz, singular values 0.7 to 1.2."""
    torch.manual_seed(0)
    with torch.inference_mode(False):
        kernel = torch.nn.Parameter(torch.zeros(8, 4, 3, 3).to(memory_format=torch.channels_last))
        kernel.grad = 100 * torch.randn(8, 4, 3, 3)
        Muon([kernel], lr=0.5, weight_decay=0.0).step()
    size = 0.5 * 0.2 * 36**0.5
    values = torch.linalg.svdvals(kernel.detach().flatten(1)) / size
    assert 0.65 < values.min() and values.max() < 1.25
    assert (kernel * kernel.grad).sum() < 0


def test_shipped_weights_are_small_and_recorded():
    assert sum(file.stat().st_size for file in WEIGHTS.glob("*.safetensors")) <= 20e6
    for name in ("autoencoder", "flux", "wan"):
        record = json.loads((WEIGHTS / f"{name}.json").read_text())
        assert {"settings", "seed", "final_loss", "date", "hardware"} <= set(record)


def test_what_is_cut_leaves_no_file_for_good(tmp_path):
    def full(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "checkpoint.pt", full)
    assert not list(tmp_path.iterdir())
    for name, hours in (("checkpoint.pt.1.tmp", 2), ("checkpoint.pt.2.tmp", 0)):
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (time.time() - 3600 * hours,) * 2)
    write_whole(tmp_path / "checkpoint.pt", lambda path: path.write_text("whole"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "checkpoint.pt.2.tmp"]


def test_one_command_trains_all_models_two_at_a_time(tmp_path, text_encoder):
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    (work / "small_world_clip_l.safetensors").hardlink_to(text_encoder)
    command = [
        sys.executable,
        "-m",
        "tools.small_world.train",
        "--side-by-side",
        "--preset",
        "cpu",
        "--scenes",
        "24",
        "--steps",
        "2",
        "--out",
        str(out),
        "--work",
        str(work),
        "--workers",
        "1",
    ]
    comfyui = Path(comfy.model_management.__file__).parent.parent
    trained = subprocess.run([*command, "--comfyui", str(comfyui)], cwd=ROOT, capture_output=True, text=True)
    assert trained.returncode == 0, trained.stderr[-2000:]
    names = {"autoencoder": "small_world_vae", "flux": "small_world_flux", "wan": "small_world_wan"}
    assert sorted(file.name for file in out.iterdir()) == sorted(
        part for name, weights in names.items() for part in (f"{name}.json", f"{name}_loss.png", f"{weights}.safetensors")
    )
    assert all(json.loads((out / f"{name}.json").read_text())["settings"]["steps"] == 2 for name in names)
    assert load("wan", out, text_encoder).model.model.diffusion_model.dim == 128

    failed = subprocess.run([*command, "--comfyui", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 1 and "is not a ComfyUI folder" in failed.stderr


def test_features_kept_are_made_anew_for_other_captions(tmp_path, text_encoder):
    (tmp_path / "small_world_clip_l.safetensors").hardlink_to(text_encoder)
    options = SimpleNamespace(work=tmp_path, device=torch.device("cpu"), bf16=False)
    first = captions_file(["a red circle"], options)
    before, written = load_file(first), first.stat().st_mtime_ns
    assert before["last"].shape == (2, 77, 768) and before["pooled"].shape == (2, 768)
    assert captions_file(["a red circle"], options).stat().st_mtime_ns == written
    after = load_file(captions_file(["a blue square"], options))
    assert not torch.equal(before["last"][0], after["last"][0]) and torch.equal(before["last"][1], after["last"][1])


def test_drawn_scenes_are_read_right_through_the_autoencoder():
    vae = load_autoencoder(WEIGHTS)
    right = check_checkers(40, first=HELD_OUT + 2_000_000, through=lambda picture: reconstructed(vae, picture))
    assert right["color"] >= 97 and right["exact"] >= 90, right


@pytest.mark.parametrize("kind", ("flux", "wan"))
def test_weights_load_by_the_hosts_loaders_and_draw_what_is_asked(kind, text_encoder):
    loaded = load(kind, WEIGHTS, text_encoder)
    assert type(loaded.model.model).__name__ == {"flux": "Flux", "wan": "WAN21"}[kind]
    right = []
    for color, shape in (("red", "square"), ("green", "triangle"), ("blue", "cross")):
        for picture in pictures(loaded, f"a {color} {shape}", 4, seed=3):
            right.append(score(read_picture(picture), Expectation(((1, color, shape),)))["color"])
    assert np.mean(right) >= 0.6, right


@pytest.mark.parametrize(
    "attribute, measured, ways, margin",
    (("detail", "detail", (1, 0), 1.1), ("sharpness", "sharpness", (0, -1), 1.1), ("lightness", "ground", (0.5, 0, -0.5), 1.05)),
)
@pytest.mark.parametrize("kind, w, sampling", (("flux", 2.0, {"cfg": 3.0}), ("wan", 3.0, {"cfg": 6.0, "sampler": "dpmpp_2m"})))
def test_shipped_directions_turn_what_they_are_named_after(kind, w, sampling, attribute, measured, ways, margin, text_encoder, tmp_path):
    """ways: parts of w, from the most of the attribute to the least. Plain pictures have no detail to lose, are as sharp as they get, and of
    these backgrounds half are as dark or as light as there are."""
    # In a folder of its own: the host may remember the other as part of one that other tests have read.
    direction = loaded_direction(Path(shutil.copy(WEIGHTS / file_name(kind, attribute), tmp_path)))
    (learned,) = direction.learned
    assert (learned.positive, learned.negative) == ATTRIBUTES[attribute]
    loaded = load(kind, WEIGHTS, text_encoder, shift=1.0 if kind == "wan" else None)

    def measure(w):
        (model,) = node("ApplyModulationGuidance", model=loaded.model, direction=direction, w=w)
        drawn = (
            pictures(replace(loaded, model=model), prompt, 4, seed=3, **sampling) for prompt in ("a large red square", "two blue circles")
        )
        return np.mean([getattr(read_picture(picture), measured) for of_prompt in drawn for picture in of_prompt])

    found = [measure(way * w) for way in ways]
    assert all(more > less * margin for more, less in zip(found, found[1:])), found

"""benchmarks/effect.py on models of one's own, and what it refuses."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.scorers import write_clip

from benchmarks.effect import arguments, command
from benchmarks.effect.run import read_strip
from benchmarks.effect.studio import Studio
from benchmarks.in_process import of_pack

WEIGHTS = Path(command.SMALL_WORLD)
MODELS = ["--diffusion-model", str(WEIGHTS / "small_world_flux.safetensors"), "--vae", str(WEIGHTS / "small_world_vae.safetensors")]


def test_own_models_give_pictures_grids_and_scores(tmp_path, monkeypatch, text_encoder):
    (tmp_path / "prompts.txt").write_text("a red circle\n\ntwo blue squares\n")
    (tmp_path / "redness_scorer.py").write_text("def redness(picture, prompt):\n    return float(picture[..., 0].mean()) + len(prompt)\n")
    monkeypatch.chdir(tmp_path)
    given = [
        *MODELS,
        "--text-encoder",
        str(text_encoder),
        "--prompts-file",
        "prompts.txt",
        "--out",
        "made",
        "--size",
        "80",
        "--steps",
        "1",
        "--positive",
        "detailed",
        "--negative",
        "flat",
        "--w",
        "0",
        "3",
        "--start-layers",
        "0",
        "2",
        "--seeds",
        "2",
        "--layers",
        "0-3: 1, 4-11: 0.5",
        "--direction",
        str(WEIGHTS / "small_world_flux_detail.safetensors"),
        "--direction-w",
        "1",
        "1.5",
        "--scorer",
        "redness_scorer:redness",
        str(write_clip(tmp_path / "a_clip")),
    ]
    command.own_models(command.arguments(given))
    made = tmp_path / "made"
    assert len(list(made.glob("prompt*.png"))) == 2 * 2 * 8, "two prompts, two seeds; plain, two start layers, layers, two of two learned"
    assert len(list(made.glob("grid_prompt*.png"))) == 2 * 2
    both = json.loads((made / "scores.json").read_text())["scorers"]
    scores = both["redness_scorer:redness"]
    learned_name = "learned small_world_flux_detail"
    ways = {
        "plain": "plain",
        "detailed, w 3, start 0": "constant",
        "detailed, w 3, start 2": "layer-wise",
        "detailed, w 3, 0-3: 1, 4-11: 0.5": "layer-wise",
        **{f"{learned_name}, w {w}, start {start}": "learned" for start in (0, 2) for w in ("1", "1.5")},
    }
    assert {name: each["guidance"] for name, each in scores.items()} == ways
    assert 12 < scores["plain"]["scores"][0][0] < 13 and 16 < scores["plain"]["scores"][1][1] < 17
    table = (made / "table.md").read_text()
    assert "| guidance | condition | redness_scorer:redness | difference to plain | a_clip | difference to plain |" in table
    for name, way in ways.items():
        of_clip = np.array(both[str(tmp_path / "a_clip")][name]["scores"]) - both[str(tmp_path / "a_clip")]["plain"]["scores"]
        (row,) = (line for line in table.splitlines() if line.startswith(f"| {way} | {name} |"))
        assert f"| {of_clip.mean():.4g} (" in row and row.count(" to ") == 4, "a mean and a difference by each scorer, with intervals"
    picture = torch.from_numpy(read_strip(made / "prompt02_seed1_plain.png", 1)[0].astype(np.float32) / 255).unsqueeze(0)
    (expected,) = of_pack("scoring.loading").load(str(tmp_path / "a_clip")).score(picture, "two blue squares")
    assert both[str(tmp_path / "a_clip")]["plain"]["scores"][1][1] == pytest.approx(expected, abs=1e-5)
    assert Image.open(made / "choice.png").width == 1280 and Image.open(made / "curve.png").width > 800

    monkeypatch.setattr(Studio, "pictures", lambda *_: pytest.fail("drawn again"))
    (made / "scores.json").unlink()
    scored = (made / "scores.jsonl").read_text()
    command.own_models(command.arguments(given))
    assert json.loads((made / "scores.json").read_text())["scorers"] == both
    assert (made / "scores.jsonl").read_text() == scored and scored.count("\n") == 2 * 2 * 8 * 2, "nothing is scored again"

    (tmp_path / "redness_scorer.py").write_text("def redness(picture, prompt):\n    return -1.0\n")
    monkeypatch.delitem(sys.modules, "redness_scorer")
    command.own_models(command.arguments(given))
    again = json.loads((made / "scores.json").read_text())["scorers"]
    assert again["redness_scorer:redness"]["plain"]["scores"][0][0] == -1, "another scorer scores anew"


def test_a_start_layer_beyond_the_model_is_refused_before_anything_is_drawn(tmp_path, text_encoder):
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    options = command.arguments(
        [*MODELS, "--text-encoder", str(text_encoder), "--prompts-file", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "made")]
    )
    options.start_layers = [0, 12]
    with pytest.raises(ValueError, match="12 layers"):
        command.own_models(options)
    assert not (tmp_path / "made").exists()


def test_learned_directions_need_names_of_their_own(tmp_path):
    with pytest.raises(ValueError, match="two files are called Detail"):
        command.named([tmp_path / "a" / "detail.safetensors", r"b\Detail.safetensors"])


def test_a_learned_direction_alone_without_text_guidance(tmp_path, text_encoder):
    """As on a text-blind model, which text cannot guide."""
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    blind = [
        "--diffusion-model",
        str(WEIGHTS / "small_world_wan.safetensors"),
        "--clip-type",
        "sd3",
        *OWN[2:4],
        "--steps",
        "1",
        "--size",
        "80",
    ]
    files = ["--text-encoder", str(text_encoder), "--prompts-file", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "made")]
    direction = [
        "--w",
        "0",
        "--start-layers",
        "0",
        "--direction",
        str(WEIGHTS / "small_world_wan_detail.safetensors"),
        "--direction-w",
        "1",
    ]
    command.own_models(command.arguments([*blind, *files, *direction]))
    names = {path.name for path in (tmp_path / "made").glob("*.png")}
    learned_name = "small_world_wan_detail"
    assert names == {"grid_prompt01_learned.png", "prompt01_seed0_plain.png", f"prompt01_seed0_{learned_name}_w1_start0.png"}
    first, second = (read_strip(tmp_path / "made" / f"prompt01_seed0_{name}.png", 1)[0] for name in ("plain", f"{learned_name}_w1_start0"))
    assert not np.array_equal(first, second)


OWN = [
    *("--diffusion-model", str(WEIGHTS / "small_world_flux.safetensors"), "--vae", str(WEIGHTS / "small_world_vae.safetensors")),
    *("--text-encoder", __file__, "--prompts-file", __file__),
]


@pytest.mark.parametrize(
    "given, message",
    (
        (["--vae", __file__], "go with --diffusion-model"),
        (["--servers", "http://127.0.0.1:8188"], "go with --diffusion-model"),
        (OWN + ["--servers", "127.0.0.1:8188"], "write the whole address, e.g. http://127.0.0.1:8188"),
        (OWN + ["--direction", "nowhere.safetensors"], "there is no file nowhere.safetensors"),
        (OWN + ["--preset", "nothing"], "argument --preset: invalid choice: 'nothing'"),
        (["--diffusion-model", __file__], "needs --text-encoder, --vae, --prompts-file too"),
        (["--text-encoder", "nowhere.safetensors"], "there is no file nowhere.safetensors"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--positive", "sharp"], "--positive and --negative together"),
    ),
)
def test_arguments_that_cannot_work_are_refused_with_a_sentence(given, message, capsys):
    with pytest.raises(SystemExit):
        command.arguments(given)
    assert message in capsys.readouterr().err


def test_more_workers_than_windows_waits_for_are_refused_there(capsys, monkeypatch):
    monkeypatch.setattr(arguments, "MOST_WORKERS", 61)  # which it is on Windows
    with pytest.raises(SystemExit):
        command.arguments(["--workers", "62"])
    assert "--workers must be at most 61 on Windows" in capsys.readouterr().err
    assert command.arguments(["--workers", "61"]).workers == 61

"""tools/distill.py on the small world's text-blind model: cut and gone on with, and on two processes."""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

CHECKOUT = Path(__file__).parent.parent
sys.path.insert(1, str(CHECKOUT))  # after the host's own folder, whose modules go first

from support.distilling import PACK, PROMPTS, TextOf, distillation, needs_distilling, settings
from support.text_blind_families import WAN

from tools.distill import Files, Projections, check, parsed
from tools.pinned import cache_folder
from tools.small_models import WEIGHTS, write_small_models

pytestmark = needs_distilling
STEPS = 4

direction_files = importlib.import_module(f"{PACK}.model_patches.direction_files")


@pytest.fixture(scope="module")
def encoder():
    return write_small_models(cache_folder() / "small-world")[-1]


@pytest.fixture(scope="module")
def command(tmp_path_factory, encoder):
    """Runs the command with two prompts; returns what it wrote and the process."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("a red circle\ntwo blue squares, highly detailed\n")

    def run(out, *options, processes=1):
        # What `accelerate launch` starts several processes with on GPUs; on CPUs it would need mpirun.
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        one = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"] if processes else []  # 0: by Python alone
        launch = [sys.executable, *(several if processes > 1 else one)]
        return subprocess.run(
            [
                *launch,
                str(CHECKOUT / "tools" / "distill.py"),
                "--model",
                str(WEIGHTS / "small_world_wan.safetensors"),
                "--clip",
                str(encoder),
                "--clip-type",
                "sd3",
                "--prompts",
                str(prompts),
                "--out",
                str(out),
                "--steps",
                str(STEPS),
                "--batch-size",
                "2",
                "--width",
                "80",
                "--height",
                "80",
                "--learning-rate",
                "0.01",
                "--sample-steps",
                "1",
                "--samples-per-prompt",
                "1",
                "--pairs",
                "2",
                "--checkpoint-every",
                "2",
                *options,
            ],
            capture_output=True,
            text=True,
            timeout=300,
            stdin=subprocess.DEVNULL,
        )

    return run


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_was_cut_gives_the_same_files(tmp_path, command, encoder):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert command(whole).returncode == 0
    # Cut one step after its last checkpoint: that step is taken again.
    assert command(cut, "--stop-at", "3").returncode == 0
    assert [line["step"] for line in metrics(cut)] == [1, 2, 3]
    result = command(cut)
    assert result.returncode == 0, result.stderr
    assert [line["step"] for line in metrics(cut)] == [1, 2, 3, 4]
    assert [line["loss"] for line in metrics(cut)] == [line["loss"] for line in metrics(whole)]
    one, other = (load_file(out / "projection.safetensors") for out in (whole, cut))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert sorted(path.name for path in cut.iterdir()) == ["checkpoint.safetensors", "metrics.jsonl", "projection.safetensors"]
    kept = {path.name: path.read_bytes() for path in cut.iterdir()}
    refused = command(cut, "--seed", "5", "--shift", "7", "--clip-type", "flux", processes=0)
    assert refused.returncode != 0 and "Traceback" not in refused.stderr
    assert (
        "The checkpoint is of another run: seed was 0 and is 5, clip_type was sd3 and is flux, shift is another, pooled_clip_type was sd3 and is flux."
        in refused.stderr
    )
    assert {path.name: path.read_bytes() for path in cut.iterdir()} == kept


@pytest.mark.parametrize("processes", [0, 2])
def test_a_direction_is_learned_by_the_same_command(tmp_path, command, processes):
    words = ["--positive", "highly detailed", "--negative", "very simple"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    result = command(whole, *words, processes=processes)
    assert result.returncode == 0 and "times as strong as the words, on 2 prompts" in result.stdout, result.stderr
    for options in (("--stop-at", "3"), ()):
        assert command(cut, *words, *options, processes=processes).returncode == 0
    assert sorted(path.name for path in cut.iterdir()) == ["checkpoint.safetensors", "direction.safetensors", "metrics.jsonl"]
    assert (whole / "direction.safetensors").read_bytes() == (cut / "direction.safetensors").read_bytes()
    [learned] = direction_files.load(whole / "direction.safetensors").learned
    assert (learned.family, learned.positive, learned.negative) == ("Wan", "highly detailed", "very simple")
    [of_run] = learned.record["runs"]
    assert of_run["steps"] == STEPS and of_run["strength"] > 0 and of_run["processes"] == max(processes, 1)
    assert metrics(whole)[-1]["held_out_loss"] > 0
    if not processes:
        direction = ["--direction", str(whole / "direction.safetensors")]
        more = command(tmp_path / "more", *words, *direction, "--steps", "1", processes=0)
        assert more.returncode == 0, more.stderr
        [learned] = direction_files.load(tmp_path / "more" / "direction.safetensors").learned
        assert [of_run["steps"] for of_run in learned.record["runs"]] == [STEPS, 1]


def test_a_cut_between_the_two_files_is_made_good(tmp_path):
    def training(checkpoint=None):
        return distillation.Distillation(WAN.load(), TextOf(WAN), PROMPTS, settings(WAN, data="noise"), checkpoint=checkpoint)

    files, run = Files(tmp_path, Projections(None), main=True), training()
    run.prepare()
    with torch.inference_mode(False), torch.enable_grad(), run.running():
        run.take_step()
        files.save(run)
    whole = files.result.read_bytes()
    files.result.write_bytes(b"of a checkpoint before")
    files.begin(training(files.checkpoint()))
    assert files.result.read_bytes() == whole


def test_what_stands_in_the_folder_is_neither_believed_nor_replaced(tmp_path, monkeypatch):
    def refused(words, made=lambda: Files(tmp_path, Projections(None), main=True).checkpoint()):
        with pytest.raises(ValueError, match=words):
            made()

    checkpoint, projection, metrics = (tmp_path / name for name in ("checkpoint.safetensors", "projection.safetensors", "metrics.jsonl"))
    projection.write_bytes(b"another's")
    refused("projection.safetensors is there, without a checkpoint .* and would be replaced. Choose another --out")
    checkpoint.write_bytes(b"cut off")
    refused("The checkpoint checkpoint.safetensors cannot be read")
    for line in ("nonsense", "[" * 5000, "3", "{}", '{"step": "x"}', "\0\0"):
        metrics.write_text('{"step": 1}\n' + line + "\n")
        refused(
            "metrics.jsonl, line 2 is not what this command has written. Remove the line",
            lambda: Files(tmp_path, Projections(None), main=True).begin(Begun()),
        )
    refused("metrics.jsonl: File exists. See that --out is a folder", lambda: Files(metrics, Projections(None), main=True))
    assert projection.read_bytes() == b"another's" and checkpoint.read_bytes() == b"cut off"


class Begun:
    """A run before its first step."""

    step = 0


@pytest.mark.parametrize(
    "options, words",
    [
        (("--shift", "nan"), "--shift is nan; it must be a finite number above 0"),
        (("--checkpoint-every", "0"), "--checkpoint-every is 0; it must be 1 at least"),
        (("--held-out-every", "0"), "--held-out-every is 0; it must be 1 at least"),
        (("--stop-at", "-1"), "--stop-at is -1; it must be 0 at least"),
        (("--clip-type", "x" * 5000), r"There is no type of text encoder 'x*\.\.\.x*'; choose one of stable_diffusion"),
        (("--clip-type", "__class__"), "There is no type of text encoder '__class__'"),
        (("--model", "missing.safetensors"), "There is no file missing.safetensors"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, tuple) else "",
)
def test_what_cannot_work_is_said_before_anything_is_loaded(monkeypatch, encoder, options, words):
    given = ["--model", str(encoder), "--clip", str(encoder), "--prompts", "prompts.txt", "--out", "out", *options]
    monkeypatch.setattr(sys, "argv", ["distill.py", *given])
    with pytest.raises(ValueError, match=words):
        check(parsed(argparse.ArgumentParser(add_help=False)))


def test_two_processes_train_one_projection(tmp_path, command, encoder):
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("a green cross\n")
    result = command(tmp_path / "two", "--held-out", str(held_out), processes=2)
    assert result.returncode == 0, result.stderr
    lines = metrics(tmp_path / "two")
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and lines[-1]["held_out_loss"] > 0
    assert lines[-1]["loss"] != lines[0]["loss"]
    with safe_open(tmp_path / "two" / "checkpoint.safetensors", framework="pt") as checkpoint:
        assert json.loads(checkpoint.metadata()["run"])["processes"] == 2

"""tools/distill.py on the small world's text-blind model: cut and gone on with, and on two processes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

CHECKOUT = Path(__file__).parent.parent
sys.path.insert(1, str(CHECKOUT))  # after the host's own folder, whose modules go first

from distilling import needs_distilling  # noqa: E402
from tools.host import cache_folder  # noqa: E402
from tools.small_models import WEIGHTS, write_small_models  # noqa: E402

pytestmark = needs_distilling
STEPS = 4


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
        launch = [sys.executable, *(several if processes > 1 else ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"])]
        return subprocess.run([
            *launch, str(CHECKOUT / "tools" / "distill.py"),
            "--model", str(WEIGHTS / "small_world_wan.safetensors"), "--clip", str(encoder),
            "--clip-type", "sd3", "--prompts", str(prompts), "--out", str(out), "--steps", str(STEPS), "--batch-size", "2", "--width", "80",
            "--height", "80", "--learning-rate", "0.01", "--sample-steps", "1", "--samples-per-prompt", "1", "--pairs", "2",
            "--checkpoint-every", "2", *options,
        ], capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})

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
    assert sorted(path.name for path in cut.iterdir()) == ["checkpoint.pt", "metrics.jsonl", "projection.safetensors"]
    refused = command(cut, "--seed", "5")
    assert refused.returncode != 0 and "The checkpoint is of a run with settings" in refused.stderr


def test_two_processes_train_one_projection(tmp_path, command, encoder):
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("a green cross\n")
    result = command(tmp_path / "two", "--held-out", str(held_out), processes=2)
    assert result.returncode == 0, result.stderr
    lines = metrics(tmp_path / "two")
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and lines[-1]["held_out_loss"] > 0
    assert lines[-1]["loss"] != lines[0]["loss"]
    again = torch.load(tmp_path / "two" / "checkpoint.pt", weights_only=True)
    assert again["processes"] == 2


@pytest.mark.parametrize("options, words", [
    (("--shift", "nan"), "--shift is nan; it must be a finite number above 0"),
    (("--checkpoint-every", "0"), "--checkpoint-every is 0; it must be 1 at least"),
    (("--clip-type", "x" * 5000), r"There is no type of text encoder 'x*\.\.\.x*'; choose one of stable_diffusion"),
    (("--clip-type", "__class__"), "There is no type of text encoder '__class__'"),
    (("--cfg", "inf"), "Distilling: cfg is inf; it must be a finite number"),
    (("--learning-rate", "1e30"), "Distilling: learning_rate is 1e.30; it must be above 0 and at most 1"),
], ids=lambda value: " ".join(value)[:30] if isinstance(value, tuple) else "")
def test_what_cannot_work_is_said_without_a_traceback(tmp_path, command, options, words):
    result = command(tmp_path / "out", *options)
    assert result.returncode != 0 and re.search(words, result.stderr), result.stderr[-2000:]
    assert "distill.py\", line" not in result.stderr

"""Numbers on the command line that are none are refused before anything is set up, loaded or drawn."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.effect import command as effect
from tools.small_world import measure, train

PACK = Path(__file__).parent.parent
DEMO = PACK / "tools" / "demo.py"
COMMANDS = {
    "effect": (effect.main, []),
    "measure": (measure.main, ["quality", "--comfyui", "nowhere"]),
    "train": (train.main, ["--comfyui", "nowhere"]),
}


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e999", "much"])
@pytest.mark.parametrize(
    "command, option", [("effect", "--cfg"), ("effect", "--w"), ("measure", "--cfg"), ("measure", "--shift"), ("train", "--learning-rate")]
)
def test_a_number_must_be_finite(monkeypatch, capsys, command, option, number):
    main, given = COMMANDS[command]
    monkeypatch.setattr(sys, "argv", [command, *given, f"{option}={number}"])
    with pytest.raises(SystemExit):
        main()
    assert f"argument {option}: '{number}' is no finite number" in capsys.readouterr().err


@pytest.mark.parametrize("command, option", [("measure", "--shift"), ("train", "--learning-rate")])
def test_some_must_be_above_zero(monkeypatch, capsys, command, option):
    main, given = COMMANDS[command]
    monkeypatch.setattr(sys, "argv", [command, *given, f"{option}=0"])
    with pytest.raises(SystemExit):
        main()
    assert f"argument {option}: '0' is not above 0" in capsys.readouterr().err


def test_the_demo_refuses_a_scale_before_it_sets_a_host_up():
    result = subprocess.run([sys.executable, DEMO, "--w", "nan"], capture_output=True, text=True, timeout=60, check=False)
    assert "argument --w: 'nan' is no finite number" in result.stderr and result.returncode == 2


@pytest.mark.parametrize("command", [["directions", "wan", "detail"], ["distill"], ["train"], ["measure", "quality"]])
@pytest.mark.parametrize("folder, told", [(None, "Give its folder with --comfyui"), ("nowhere", "nowhere is not a ComfyUI folder")])
def test_without_a_comfyui_they_say_what_to_do(tmp_path, command, folder, told):
    environment = {name: value for name, value in os.environ.items() if name not in ("COMFYUI_PATH", "PYTHONPATH")}
    given = [f"tools.small_world.{command[0]}", *command[1:], *(["--comfyui", folder] if folder else [])]
    work = [] if command[0] in ("train", "measure") else ["--work", tmp_path]
    ran = subprocess.run([sys.executable, "-m", *given, *work], cwd=PACK, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 1 and told in ran.stderr and "Traceback" not in ran.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tool", ["directions", "distill", "train", "measure"])
def test_a_python_without_torch_hands_on_to_comfyuis(tool):
    environment = os.environ | {"COMFYUI_PYTHON": sys.executable}
    without = [sys.executable, "-S", "-m", f"tools.small_world.{tool}", "--help"]  # -S: without what is installed
    ran = subprocess.run(without, cwd=PACK, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and "usage:" in ran.stdout, ran.stderr


def test_the_distiller_says_which_python_it_needs():
    ran = subprocess.run([sys.executable, "-S", PACK / "tools" / "distill.py"], capture_output=True, text=True, check=False)
    assert ran.returncode == 1 and "has no torch. Run this with your ComfyUI's Python" in ran.stderr and "Traceback" not in ran.stderr


def test_the_brand_is_drawn_from_any_python(tmp_path):
    """In a copy, as it writes into the checkout; and what it draws is what is there."""
    shutil.copytree(PACK / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("weights", "*.png", "__pycache__"))
    (tmp_path / "docs").mkdir()
    environment = os.environ | {"COMFYUI_PYTHON": sys.executable}
    ran = subprocess.run(
        [sys.executable, "-S", tmp_path / "tools" / "brand.py"], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    for name in ("icon.png", "banner.png"):
        drawn, shipped = (
            np.asarray(Image.open(folder / "docs" / "assets" / name).convert("RGB"), dtype=float) for folder in (tmp_path, PACK)
        )
        assert drawn.shape == shipped.shape and abs(drawn - shipped).mean() < 1, "another Pillow may round and pack otherwise"

"""The settings that pyproject.toml gives to ruff and mypy hold."""

import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent


def run(command, **options):
    return subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False, timeout=300, **options)


def test_ruff_finds_nothing():
    checked = run(["ruff", "check", "--no-cache", "."], cwd=CHECKOUT)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_ruff_would_format_nothing():
    checked = run(["ruff", "format", "--check", "--no-cache", "."], cwd=CHECKOUT)
    assert checked.returncode == 0, f"run `ruff format`: {checked.stdout}{checked.stderr}"


def test_the_types_of_the_core_fit(tmp_path):
    """As a package, whatever the checkout's folder is called, and without torch, whose modules have attributes of any type."""
    (tmp_path / "pack").symlink_to(CHECKOUT, target_is_directory=True)
    command = ["mypy", "--config-file", CHECKOUT / "pyproject.toml", "--cache-dir", os.devnull, "--no-site-packages"]
    checked = run([*command, "-p", "pack.model_patches", "-p", "pack.pooled_proj"], cwd=tmp_path)
    core = [line for line in checked.stdout.splitlines() if line.startswith(("pack/model_patches/", "pack/pooled_proj/"))]
    assert checked.returncode in (0, 1) and checked.stdout, checked.stderr
    assert not core, "\n".join(core)

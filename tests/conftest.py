"""The real host in process, with the pack loaded by the host's own loader.

COMFYUI_PATH names the host's folder; tools/test.py sets it.
"""

import os
import sys
from pathlib import Path

import pytest

# Models this small gain nothing from threads, and lose much where cores are shared; with one thread sums do not depend on the load.
os.environ["OMP_NUM_THREADS"] = "1"  # before torch, and for the servers and commands that tests start

import torch

# The host's own folder goes first: both hold a `nodes`.
sys.path[:0] = [os.environ["COMFYUI_PATH"], str(Path(__file__).parent.parent)]

from benchmarks.in_process import load_host
from tools.files import write_whole
from tools.small_world.text_encoder import write_clip_l

load_host(gpu=torch.cuda.is_available())  # Apple's GPUs have no float64, in which tests compute what is to come out
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--matrix", type=Path, help="write what test_matrix.py found into that file, as a table under its last heading")
    parser.addoption("--errors", action="store_true", help="print the largest error that each family's parity tests have seen")


def pytest_terminal_summary(terminalreporter, config):
    """The largest errors of this process: pass -n0."""
    from support.families.small import errors

    if config.option.errors:
        terminalreporter.section("largest error against the equation")
        for name, error in sorted(errors.items()):
            terminalreporter.write_line(f"{name}: {error:.0e}")


def pytest_configure(config):
    from support.matrix import TABLE

    config.stash[TABLE] = {}


def pytest_sessionfinish(session):
    from support.matrix import MATRIX, TABLE, table

    path, found = session.config.option.matrix, session.config.stash[TABLE]
    if path and found:  # with -n1 one process runs the tests, and another has nothing to write
        above = path.read_text(encoding="utf-8").partition(MATRIX)[0]
        write_whole(path, f"{above}{MATRIX}\n\n{table(found)}")


@pytest.fixture(autouse=True)
def inference_mode():
    """Nodes run under inference mode in the host."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def model(small):
    """Of the `small` one of the file, loaded once for all its tests."""
    return small.load()


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory):
    """The small world's CLIP-L, as a file."""
    return write_clip_l(tmp_path_factory.mktemp("encoder") / "clip_l.safetensors")

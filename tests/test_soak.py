"""benchmarks/soak.py, short: prompts of all its kinds, and that it notices what it is there for."""

import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
sys.path.insert(1, str(CHECKOUT))  # after the host's own folder, whose modules go first

from benchmarks import soak, soak_prompts
from tools.host import ensure_host
from tools.pinned import cache_folder
from tools.server import Client, running_server
from tools.small_models import write_small_models


@pytest.fixture(scope="module")
def client():
    models = cache_folder() / "small-world"
    write_small_models(models)
    with running_server(ensure_host(), [models], ["--cache-classic"]) as url:
        yield Client(url)


def test_a_short_run_has_every_kind_and_ends_well(client, capsys):
    assert soak.soak(client, prompts=10, seed=1) == []
    said = capsys.readouterr().out
    assert "7 drawn, 1 interrupted, 2 references, 2 refused; 0 not as it should be" in said and "open files" in said


def test_a_picture_that_changes_and_a_prompt_that_is_not_refused_are_noticed(client):
    first = {"FLUX": b"another"}
    problems = [problem for _, problem in soak.send(client, 1, soak.random.Random(3), first) if problem]
    assert problems == ["the reference FLUX changed"]
    right = soak_prompts.a_prompt(soak.random.Random(4))
    assert soak.refused(client, right, "anything").startswith("not refused with anything")

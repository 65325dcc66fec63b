"""Which folders Load Pooled Projection lists and reads: ours and those of other packs, seen over HTTP."""

import json
import sys
from pathlib import Path

import pytest
from support.text_blind import form_a, form_b, write

sys.path.insert(1, str(Path(__file__).parent.parent))  # after the host's own folder, whose modules go first

from tools.host import ensure_host
from tools.server import Client, PromptError, add_pack, running_server

OURS, *PEERS = FOLDERS = ("pooled_projections", "modulation_guidance", "anima_mod_guidance", "anima_modulation_guidance")
FORM_A, FORM_B = "checkpoint_4000.pt", "pooled_text_proj-0611.safetensors"  # as they are published


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    (folder / "models").mkdir()
    add_pack(folder / "custom_nodes")
    return folder


@pytest.fixture(scope="module")
def client(base):
    paths = {"mine": {"base_path": str(base / "elsewhere"), OURS: "projections", PEERS[0]: "guidance"}}
    (base / "paths.yaml").write_text(json.dumps(paths), encoding="utf-8")
    with running_server(ensure_host(), arguments=["--base-directory", base, "--extra-model-paths-config", base / "paths.yaml"]) as url:
        assert not {*FOLDERS} & {path.name for path in (base / "models").iterdir()}, "folders were made"
        assert not (base / "elsewhere").exists()
        yield Client(url)


def places(base):
    """Every folder that is read, in the order in which a name is looked for."""
    models, elsewhere = base / "models", base / "elsewhere"
    return [elsewhere / "projections", models / OURS, elsewhere / "guidance", *(models / peer for peer in PEERS)]


def listed(client):
    return client.choices("LoadPooledProjection", "projection_name")


def run(client, name):
    client.run(
        {
            "load": {"class_type": "LoadPooledProjection", "inputs": {"projection_name": name}},
            "save": {"class_type": "SavePooledProjection", "inputs": {"projection": ["load", 0], "filename_prefix": "saved"}},
        }
    )


def put(path, tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, tensors)


def test_files_that_other_packs_downloaded_are_listed_and_read(client, base):
    before = listed(client)  # what other tests here have put there
    put(base / "models" / "modulation_guidance" / FORM_A, form_a())
    put(base / "models" / "anima_mod_guidance" / FORM_B, form_b(film=True))
    assert sorted(listed(client)) == sorted([*before, FORM_A, FORM_B])
    for name in (FORM_A, FORM_B):
        run(client, name)
    put(base / "models" / "anima_modulation_guidance" / FORM_A, form_a())
    assert sorted(listed(client)) == sorted([*before, FORM_A, FORM_B]), "a name is listed once"


@pytest.mark.parametrize("first", range(6))
def test_of_two_folders_with_one_name_the_first_is_read(client, base, first):
    name = f"from_{first}.safetensors"
    right, *later = (place / name for place in places(base)[first:])
    put(right, form_b())
    for path in later:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not a projection")
    assert listed(client).count(name) == 1
    run(client, name)
    right.unlink()
    if later:
        with pytest.raises(PromptError, match=f"The projection file {name} cannot be read"):
            run(client, name)

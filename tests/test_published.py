"""What a user gets: the pack as ComfyUI's registry ships it, and pages whose links lead somewhere."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest
from PIL import Image

CHECKOUT = Path(__file__).parent.parent
sys.path.insert(1, str(CHECKOUT))  # after the host's own folder, whose modules go first

from tools.host import ensure_host
from tools.pinned import cache_folder
from tools.server import Client, running_server
from tools.small_models import TEXT_ENCODER, write_small_models

PAGES = [
    path.relative_to(CHECKOUT).as_posix()
    for path in (
        *CHECKOUT.glob("*.md"),
        *(CHECKOUT / "docs").glob("*.md"),
        *(CHECKOUT / "benchmarks").rglob("*.md"),
        *(CHECKOUT / "tools").rglob("*.md"),
    )
]
PLACES = (
    "benchmarks",
    "docs",
    "locales",
    "model_patches",
    "nodes",
    "pooled_proj",
    "subgraphs",
    "tests",
    "tools",
    "training",
    "web",
    "workflows",
)
NAMED_FILE = re.compile(rf"`((?:{'|'.join(PLACES)})/[^`<> ]*)`")
LINK = re.compile(r"\]\((?:<([^>]+)>|([^)\s]+))\)")


def tracked(*options):
    listed = subprocess.run(["git", "ls-files", "-z", *options], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.split("\0") if name}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The folder that the registry's archive unpacks to: what git tracks, without what .comfyignore names."""
    if not (CHECKOUT / ".git").exists():
        pytest.skip("the archive is made from a clone, and this is none")
    folder = tmp_path_factory.mktemp("registry") / "modulation-guidance"
    for name in tracked() - tracked("--cached", "--ignored", "--exclude-from=.comfyignore"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CHECKOUT / name, folder / name)
    return folder


def test_the_archive_holds_what_a_user_needs_and_no_more(shipped):
    there = {path.name for path in shipped.iterdir()}
    assert {"__init__.py", "nodes", "web", "workflows", "subgraphs", "locales", "tools", "pyproject.toml", "README.md", "LICENSE"} <= there
    assert not there & {"tests", "benchmarks", ".github", ".ci"}
    assert (shipped / "web/docs/ModulationGuidance.md").exists()
    assert sum(path.stat().st_size for path in shipped.rglob("*") if path.is_file()) < 25e6


def test_the_archive_installs_its_models_and_runs_first_steps(shipped, tmp_path):
    write_small_models(cache_folder() / "small-world")
    models = tmp_path / "models"
    (models / "text_encoders").mkdir(parents=True)
    shutil.copyfile(cache_folder() / "small-world/text_encoders" / TEXT_ENCODER, models / "text_encoders" / TEXT_ENCODER)  # 20 s to compute
    host = ensure_host()
    subprocess.run(
        [host.python, shipped / "tools/small_world/install.py", "--comfyui", host.folder, "--models", models],
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    prompt = json.loads((shipped / "workflows/api/first_steps_small_world.json").read_text(encoding="utf-8"))
    with running_server(host, [models], pack=shipped) as url:
        made = Client(url).run(prompt, lambda progress: None)
    assert made and all(files for files in made.values())


def test_the_registry_gets_what_it_asks_for():
    project = pytest.importorskip("tomllib").loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "comfyui" not in project["project"]["name"]
    changes = (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", changes, re.M).group(1) == project["project"]["version"]
    for key, check in (("Icon", lambda w, h: w == h <= 400), ("Banner", lambda w, h: w * 9 == h * 21)):
        path = project["tool"]["comfy"][key].split("/main/")[1]
        assert check(*Image.open(CHECKOUT / path).size), key


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_every_named_file_is_there(page):
    """Relative links, their headings, and paths in code letters."""
    text = (CHECKOUT / page).read_text(encoding="utf-8")
    missing = []
    for link in map("".join, LINK.findall(text)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, heading = urllib.parse.unquote(link).partition("#")
        target = (CHECKOUT / page).parent / path if path else CHECKOUT / page
        if not target.exists() or heading and heading not in headings(target):
            missing.append(link)
    for named in NAMED_FILE.findall(text):
        if "NAME" not in named and not any(CHECKOUT.glob(named.rstrip("/"))):
            missing.append(named)
    assert not missing


def headings(page):
    """The anchors of a page's headings, as GitHub makes them."""
    lines = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_the_readme_is_read_in_minutes():
    assert len((CHECKOUT / "README.md").read_text(encoding="utf-8").split()) <= 1300

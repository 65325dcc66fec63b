"""The tools on machines of other kinds than this one: proxies, portable and Desktop builds, old consoles, folders that cannot be written."""

import contextlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

CHECKOUT = Path(__file__).parent.parent
sys.path.insert(1, str(CHECKOUT))  # after the host's own folder, whose modules go first

from tools import client, console, demo, files, host, leash, packages, pinned, server, small_models
from tools.gpu import has_gpu
from tools.small_world.install import __file__ as INSTALL

SITE_PACKAGES = Path(torch.__file__).parent.parent


@pytest.fixture(autouse=True)
def no_comfyui_named(monkeypatch):
    for name in ("COMFYUI_PATH", "COMFYUI_PYTHON", "COMFYUI_MODELS"):
        monkeypatch.delenv(name, raising=False)


def source(folder):
    """A folder that looks like ComfyUI's own."""
    (folder / "comfy").mkdir(parents=True)
    for name in ("main.py", "nodes.py"):
        (folder / name).touch()
    (folder / "comfyui_version.py").write_text('__version__ = "0.99.1"\n')
    return folder


def environment(folder):
    python = packages.environment_python(folder)
    python.parent.mkdir(parents=True)
    python.touch()
    return python


# ---- proxies ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def answering(answer):
    """A server on this machine that answers everything with `answer`; yields its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # which nobody serves
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with answering(b'{"it": "answers"}') as url:
        assert server.Client(url).get("/object_info") == {"it": "answers"}
        assert json.loads(client.request(f"{url}/queue")) == {"it": "answers"}


def test_a_proxy_is_asked_for_other_machines(monkeypatch):
    with answering(b'{"it": "is the proxy"}') as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.delenv("no_proxy", raising=False)
        assert server.Client("http://comfyui.invalid:8188").get("/queue") == {"it": "is the proxy"}
        assert json.loads(client.request("http://comfyui.invalid:8188/queue")) == {"it": "is the proxy"}


# ---- the portable build for Windows -------------------------------------------------------------------------------


@pytest.fixture
def portable(tmp_path):
    """(its Python, its ComfyUI). As there: no venv and ensurepip, and ../ComfyUI first on the path."""
    folder = tmp_path / "ComfyUI_windows_portable"
    comfyui, embedded = source(folder / "ComfyUI"), folder / "python_embeded"
    packages = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    packages.mkdir(parents=True)
    embedded.mkdir()
    base = Path(sys.base_prefix) / "bin" / "python3"
    (embedded / "pyvenv.cfg").write_text(f"home = {base.parent}\n")
    (embedded / "python.exe").symlink_to(base.resolve())
    (packages / "embedded.pth").write_text(
        f"import sys; sys.modules.update(venv=None, ensurepip=None); sys.path.insert(0, {str(comfyui)!r})\n{SITE_PACKAGES}\n"
    )
    return embedded / "python.exe", comfyui


@pytest.fixture
def embedded_path(monkeypatch):
    """Embedded Pythons put no script's folder on the path. (Later ones than 3.10 can be told the same.)"""
    if sys.version_info < (3, 11):
        pytest.skip("this Python always puts a script's folder on the path")
    monkeypatch.setenv("PYTHONSAFEPATH", "1")


def test_the_portable_builds_python_installs_into_its_own_comfyui(portable, embedded_path):
    python, comfyui = portable
    encoder = comfyui / "models" / "text_encoders" / small_models.TEXT_ENCODER
    encoder.parent.mkdir(parents=True)
    encoder.touch()  # which takes long to compute
    result = subprocess.run([python, INSTALL], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (comfyui / "models" / "diffusion_models" / small_models.DIFFUSION_MODEL).is_file()


@pytest.mark.parametrize("name", ["host.py", "demo.py", "test.py", "editor_pictures.py", "small_world/install.py"])
def test_tools_start_under_the_portable_builds_python(portable, embedded_path, name):
    result = subprocess.run([portable[0], CHECKOUT / "tools" / name, "--help"], capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "usage" in result.stdout, result.stderr


def test_what_is_started_finds_what_is_beside_it_there(tmp_path, embedded_path):
    (tmp_path / "beside.py").write_text("said = 'it is beside'")
    (tmp_path / "script.py").write_text("import sys, beside; print(beside.said, sys.path[0])")
    with leash.leashed(sys.executable, [tmp_path / "script.py"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.read().strip() == f"it is beside {tmp_path}"
    with leash.leashed(sys.executable, ["-m", "json.tool", "--help"], stdout=subprocess.PIPE, text=True) as process:
        assert "usage" in process.stdout.read()


def test_an_embedded_python_without_a_comfyui_says_what_to_do(portable, tmp_path):
    python, comfyui = portable
    shutil.rmtree(comfyui)
    environment = os.environ | {"MODULATION_GUIDANCE_CACHE": str(tmp_path / "cache")}
    result = subprocess.run([python, CHECKOUT / "tools" / "host.py"], capture_output=True, text=True, check=False, env=environment)
    assert result.returncode and "COMFYUI_PATH" in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr


def test_the_folder_around_the_portable_comfyui_does_too(portable):
    _, comfyui = portable
    found = host.existing_host(comfyui.parent)
    assert (found.folder, found.models) == (comfyui, comfyui / "models")


# ---- ComfyUI Desktop ----------------------------------------------------------------------------------------------


@pytest.fixture
def desktop(tmp_path, monkeypatch):
    """(the app's ComfyUI, the user's folder, its Python), as the app lays them out on Windows and notes them."""
    for name in ("LOCALAPPDATA", "APPDATA"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("HOME", str(tmp_path))
    app = source(tmp_path / "LOCALAPPDATA" / "Programs" / "ComfyUI" / "resources" / "ComfyUI")
    user = tmp_path / "Documents" / "ComfyUI"
    (user / "models").mkdir(parents=True)
    noted = tmp_path / "APPDATA" / "ComfyUI" / "config.json"
    noted.parent.mkdir(parents=True)
    noted.write_text(json.dumps({"installState": "installed", "basePath": str(user)}))
    monkeypatch.setattr(host, "has_module", lambda name: name != "torch")
    return app, user, environment(user / ".venv")


@pytest.mark.parametrize("named", ["app", "user"])
def test_either_folder_of_desktop_leads_to_the_other(desktop, monkeypatch, named):
    app, user, python = desktop
    monkeypatch.setenv("COMFYUI_PATH", str(app if named == "app" else user))
    assert host.ensure_host() == host.Host(app, python, "0.99.1", user / "models")


def test_the_program_that_goes_on_finds_the_same_host(desktop, monkeypatch):
    app, user, python = desktop
    found, passed = host.existing_host(user), {}
    monkeypatch.setattr(os, "execve", lambda path, command, environment: (passed.update(environment), sys.exit()))
    with pytest.raises(SystemExit):
        host.run_under(found, ["nothing"])
    (Path(os.environ["APPDATA"]) / "ComfyUI" / "config.json").unlink()
    for name in ("COMFYUI_PATH", "COMFYUI_PYTHON", "COMFYUI_MODELS"):
        monkeypatch.setenv(name, passed[name])
    assert host.ensure_host() == found


def test_a_folder_of_desktop_whose_other_is_not_found_says_which_variables_to_set(desktop):
    app, user, _ = desktop
    (Path(os.environ["APPDATA"]) / "ComfyUI" / "config.json").unlink()
    with pytest.raises(packages.SetupError, match="Documents/ComfyUI"):
        host.existing_host(app)
    shutil.rmtree(app)
    with pytest.raises(packages.SetupError, match="COMFYUI_PYTHON to .* and COMFYUI_MODELS to"):
        host.existing_host(user)


def test_desktops_server_gets_the_editor_that_the_app_brings(desktop):
    app, _, _ = desktop
    assert server.own_editor(SimpleNamespace(folder=app)) == []
    editor = app / "web_custom_versions" / "desktop_app"
    editor.mkdir(parents=True)
    assert server.own_editor(SimpleNamespace(folder=app)) == ["--front-end-root", editor]


# ---- Macs, and GPUs of other makers -------------------------------------------------------------------------------


def test_an_intel_mac_is_told_that_there_is_no_torch(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(pinned.platform, "machine", lambda: "x86_64")
    with pytest.raises(packages.SetupError, match="Intel Mac"):
        pinned.check_python()


@pytest.mark.parametrize("module", [torch.backends.mps, torch.xpu, torch.cuda])
def test_gpus_of_every_maker_count(monkeypatch, module):
    for each in (torch.backends.mps, torch.xpu, torch.cuda):
        monkeypatch.setattr(each, "is_available", lambda each=each: each is module)
    assert has_gpu()


def test_a_torch_without_xpu_is_asked_for_the_others(monkeypatch):
    for each in (torch.backends.mps, torch.cuda):
        monkeypatch.setattr(each, "is_available", lambda: False)
    monkeypatch.delattr(torch, "xpu")
    assert not has_gpu()


@pytest.mark.skipif(os.name == "nt", reason="of macOS, shown where there are groups of processes")
def test_a_group_whose_processes_have_all_ended_is_no_error_on_macos(monkeypatch):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    with leash.leashed(sys.executable, ["-m", "this"], stdout=subprocess.DEVNULL) as process:
        process.wait()
        monkeypatch.setattr(os, "killpg", refused)


# ---- consoles, encodings, names -----------------------------------------------------------------------------------


def test_an_old_console_is_shown_no_escape_codes(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with console.step("Making something") as progress:
        progress("a long line of pip's")
        progress("a short one")
    demo.show_progress(SimpleNamespace(title="KSampler", value=1, total=4))
    shown = capsys.readouterr().out
    assert "\033" not in shown and "KSampler 1/4" in shown
    lines = shown.split("\r")
    assert len(lines[2]) == len(lines[1]), "the rest of a longer line stays"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_workflow_may_be_saved_in_any_unicode(tmp_path, encoding):
    path = tmp_path / "workflow.json"
    path.write_text('{"title": "größer"}', encoding=encoding)
    assert demo.read_workflow(SimpleNamespace(workflow=path)) == {"title": "größer"}


def test_a_title_becomes_a_name_that_windows_has():
    assert client.file_name('Plain: "a/b"?', "guided_00001_.png") == "plain_ _a_b___guided_00001_.png"


# ---- folders that cannot be written, files that are held ----------------------------------------------------------


def test_a_folder_that_cannot_be_written_to_is_told_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    command = [sys.executable, CHECKOUT / "tools" / "demo.py", "--out", tmp_path / "file" / "out"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode and "--out" in result.stderr and not result.stdout and len(result.stderr.splitlines()) == 1


def replace_refused(monkeypatch, target):
    """As Windows refuses while a program has the file open."""
    replace = os.replace

    def refusing(source, destination, **more):
        if Path(destination) == target:
            raise PermissionError(13, "Access is denied", str(source), None, str(destination))
        return replace(source, destination, **more)

    monkeypatch.setattr(os, "replace", refusing)


def test_a_picture_that_a_viewer_holds_goes_under_another_name(tmp_path, monkeypatch, capsys):
    (tmp_path / "plain.png").write_bytes(b"old")
    replace_refused(monkeypatch, tmp_path / "plain.png")
    demo.write_files(tmp_path, {"plain.png": b"new", "guided.png": b"guided"})
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {"plain.png": b"old", "plain_2.png": b"new", "guided.png": b"guided"}
    assert "plain_2.png" in capsys.readouterr().out


def test_a_model_that_comfyui_holds_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "source").write_bytes(b"new")
    (tmp_path / "model").write_bytes(b"old")
    replace_refused(monkeypatch, tmp_path / "model")
    with pytest.raises(PermissionError):
        small_models.copy_whole(tmp_path / "source", tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {"source", "model"}


def test_what_a_virus_scanner_holds_is_waited_for(tmp_path):
    tries = iter([PermissionError, PermissionError, None])

    def refuse():
        raise PermissionError

    def action():
        if error := next(tries):
            raise error
        return "done"

    assert files.patiently(action) == "done"
    with pytest.raises(PermissionError):
        files.patiently(refuse, seconds=0.1)


def test_two_demos_may_write_into_one_folder(tmp_path):
    errors = []

    def write():
        try:
            for _ in range(200):
                files.write_whole(tmp_path / "plain.png", b"x" * 10_000)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and [path.name for path in tmp_path.iterdir()] == ["plain.png"]


def test_where_no_links_are_permitted_the_checkout_is_copied_without_what_is_not_of_it(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError("A required privilege is not held by the client")

    checkout = tmp_path / "checkout"
    for name in (".git/config", ".venv/pyvenv.cfg", ".cache/x", "out/plain.png", "nodes/__init__.py"):
        (checkout / name).parent.mkdir(parents=True)
        (checkout / name).touch()
    monkeypatch.setattr(os, "symlink", refused)
    server.add_pack(tmp_path / "custom_nodes", checkout)
    copied = tmp_path / "custom_nodes" / server.PACK
    assert [str(path.relative_to(copied)) for path in copied.rglob("*") if path.is_file()] == ["nodes/__init__.py"]

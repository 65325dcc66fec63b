"""effect.py --servers: the pictures and the table of one server, by several, one of which is killed; and what servers refuse."""

import _thread
import http.server
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

CHECKOUT = Path(__file__).parent.parent
sys.path.insert(1, str(CHECKOUT))  # after the host's own folder, whose modules go first

from benchmarks.effect import command, servers
from benchmarks.effect.conditions import PLAIN
from benchmarks.effect.own import Here, lines_of, run
from benchmarks.effect.run import read_strip
from benchmarks.effect.settings import Files, Settings
from tools import server
from tools.host import ensure_host
from tools.pinned import cache_folder
from tools.server import Client, PromptError, running_server
from tools.small_models import write_small_models

DIRECTION = "small_world_flux_detail.safetensors"
PICTURES = 2 * 2 * 6  # prompts, seeds; plain, two start layers, layers, the learned direction from two start layers


@pytest.fixture(scope="module")
def models():
    folder = cache_folder() / "small-world"
    write_small_models(folder)
    return folder


@pytest.fixture(scope="module")
def first(models):
    with running_server(ensure_host(), [models]) as url:
        yield url


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("a red circle\ntwo blue squares\n")
    (tmp_path / "color_scorers.py").write_text(
        "def red(picture, prompt):\n    return float(picture[..., 0].mean())\n\n\ndef blue(picture, prompt):\n    return float(picture[..., 2].mean())\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options(out, *urls, model="small_world_flux.safetensors", **changed):
    given = {
        "diffusion-model": [model],
        "text-encoder": ["small_world_clip_l.safetensors"],
        "vae": ["small_world_vae.safetensors"],
        "clip-type": ["stable_diffusion"],
        "prompts-file": ["prompts.txt"],
        "out": [out],
        "size": [80],
        "steps": [2],
        "cfg": [3],
        "seeds": [2],
        "w": [6],
        "start-layers": [0, 2],
        "layers": ["4-7: 1"],
        "direction": [DIRECTION],
        "direction-w": [1.5],
        "scorer": ["color_scorers:red", "color_scorers:blue"],
        "servers": urls,
    }
    given |= {name.replace("_", "-"): value for name, value in changed.items()}
    return command.arguments([str(part) for name, values in given.items() if values for part in (f"--{name}", *values)])


def kill_server_of(url):
    port = int(url.rpartition(":")[2])
    (listening,) = {each.pid for each in psutil.net_connections() if each.laddr and each.laddr.port == port and each.status == "LISTEN"}
    psutil.Process(listening).kill()


def pictures(folder):
    return {path.name: read_strip(path, 1)[0] for path in folder.glob("prompt*.png")}


def test_two_servers_of_which_one_is_killed_give_the_table_of_one(place, models, first, capsys):
    command.own_models(options("one", first))
    one = pictures(place / "one")
    assert len(one) == PICTURES

    with running_server(ensure_host(), [models]) as second:

        def kill_when_it_has_drawn():
            while not Client(second).get("/history"):
                time.sleep(0.05)
            kill_server_of(second)

        killer = threading.Thread(target=kill_when_it_has_drawn)
        killer.start()
        command.own_models(options("two", first, second))
        killer.join()
        said = capsys.readouterr().err
    assert f"{second} does not answer" in said and "It is left out" in said
    two = pictures(place / "two")
    assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)
    for name in ("table.md", "scores.json"):
        assert (place / "one" / name).read_text() == (place / "two" / name).read_text()

    before = {path: path.stat().st_mtime_ns for path in (place / "two").glob("prompt*.png")}
    lost = next(iter(before))
    lost.unlink()
    command.own_models(options("two", second, first))
    after = {path: path.stat().st_mtime_ns for path in before}
    assert [path for path in before if before[path] != after[path]] == [lost], "the server that is gone does no harm"
    assert np.array_equal(read_strip(lost, 1)[0], two[lost.name])


def test_a_servers_picture_is_the_one_drawn_here(place, models, first):
    command.own_models(options("there", first, seeds=[1]))
    files = Files(
        models / "diffusion_models" / "small_world_flux.safetensors",
        (models / "text_encoders" / "small_world_clip_l.safetensors",),
        models / "vae" / "small_world_vae.safetensors",
        "stable_diffusion",
        directions={Path(DIRECTION).stem: models / "guidance_directions" / DIRECTION},
    )
    settings, given = Settings(2, 3.0, 80), options("here", first, seeds=[1])
    run(Here(files, settings), files, settings, given)
    there, here = pictures(place / "there"), pictures(place / "here")
    assert there.keys() == here.keys() and len(there) == 2 * len({each for line in lines_of(given, files) for _, each in line.conditions})
    for name, picture in there.items():
        assert np.abs(picture.astype(int) - here[name]).max() <= 1, "the host's nodes round down, effect.py to the nearest"
    assert len({picture.tobytes() for picture in there.values()}) == len(there), "each setting has a picture of its own"


@pytest.mark.parametrize(
    "changed, message",
    [
        (
            {"model": "nowhere.safetensors"},
            r"(?s)http://127.0.0.1:\d+ did not draw plain for 'a red circle': .*UNETLoader.*nowhere.safetensors",
        ),
        ({"layers": ["5-18"]}, "Layer schedule: cannot read '5-18'"),
        ({"start_layers": [12]}, r"(?s)did not draw complexity, w 6, start 12 for .*ApplyModulationGuidance: .*12 layers"),
    ],
)
def test_what_cannot_work_is_told_in_the_words_of_who_sees_it(place, first, changed, message):
    with pytest.raises(ValueError, match=message):
        command.own_models(options("made", first, **changed))
    assert not any(Client(first).get("/queue").values())


def test_a_server_that_says_nothing_is_left_out(place, first, monkeypatch, capsys):
    monkeypatch.setattr(server, "TIMEOUT", 5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command.own_models(options("made", url, first, seeds=[1], w=[0], direction_w=[1], layers=[], start_layers=[0]))
    assert f"{url} does not answer: timed out. It is left out" in capsys.readouterr().err
    assert len(pictures(place / "made")) == 4


def test_a_prompt_that_its_server_has_lost_or_that_was_interrupted_there(first):
    client = Client(first)
    files = Files("small_world_flux.safetensors", ("small_world_clip_l.safetensors",), "small_world_vae.safetensors", "stable_diffusion")
    long, another = (client.queue(servers.graph(files, Settings(steps, 3.0, 80), "a red circle", PLAIN, steps)) for steps in (5000, 5001))
    assert servers.finished(client, long) is None and servers.finished(client, another) is None
    client.post("/queue", {"delete": [another]})
    with pytest.raises(ConnectionError, match="was started anew, or its queue was emptied"):
        servers.finished(client, another)
    deadline = time.monotonic() + 60
    with pytest.raises(PromptError, match="It was interrupted there"):
        while time.monotonic() < deadline:
            client.interrupt(long)
            servers.finished(client, long)
            time.sleep(0.5)


def test_ctrl_c_leaves_no_prompt_on_the_server(place, first):
    client = Client(first)

    def interrupt_when_it_runs():
        while not client.get("/queue")["queue_running"]:
            time.sleep(0.05)
        _thread.interrupt_main()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    try:
        threading.Thread(target=interrupt_when_it_runs).start()
        with pytest.raises(KeyboardInterrupt):
            command.own_models(options("made", first, steps=[5000]))
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 60  # an interrupted step is finished first
    while any(client.get("/queue").values()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(client.get("/queue").values())


def test_servers_that_are_none(place):
    with pytest.raises(ValueError, match="none of them answers"):
        command.own_models(options("made", "http://127.0.0.1:9"))
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(ValueError, match=r"it is no ComfyUI server \(HTTP Error 501"):
            command.own_models(options("made", f"http://127.0.0.1:{other.server_port}"))
        other.shutdown()
    assert not (place / "made").exists()

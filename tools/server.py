"""Starts ComfyUI's server with this pack in it, and talks to a running one over HTTP and its websocket."""

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path

from tools.host import CHECKOUT
from tools.leash import leashed

PACK = "ComfyUI-Modulation-Guidance"
TIMEOUT = 60  # seconds that an answer may take


class ServerError(Exception):
    """The server did not start, stopped, or does not answer."""


class PromptError(Exception):
    """The server refused a prompt or failed while running it; the message is what it said, node by node."""


class PromptInterrupted(Exception):
    """A prompt was interrupted before it was done."""


@contextlib.contextmanager
def running_server(host, models=(), arguments=(), timeout=300, pack=CHECKOUT):
    """A server of `host` with this pack as its only custom node, stopped on every way out; yields its URL.

    `models`: folders laid out like ComfyUI's own models folder, besides those the host's extra_model_paths.yaml names.
    `arguments`: further ones for main.py. `pack`: its folder, this checkout or a copy. Everything else the server reads or writes is in a temporary folder.
    Raises ServerError with the end of its log when it does not answer within `timeout` seconds, without our nodes, or
    when it stops while in use.
    """
    with tempfile.TemporaryDirectory(prefix="modulation-guidance-", ignore_cleanup_errors=True) as base:
        base = Path(base)
        add_pack(base / "custom_nodes", pack)
        (base / "models.yaml").write_text(extra_model_paths(models), encoding="utf-8")
        port = free_port()
        log = base / "server.log"
        command = [
            host.folder / "main.py",
            "--port",
            port,
            "--disable-api-nodes",
            "--base-directory",
            base,
            "--extra-model-paths-config",
            base / "models.yaml",
            "--database-url",
            "sqlite:///:memory:",
            *([] if has_gpu(host) else ["--cpu"]),
            *own_editor(host),
            *arguments,
        ]
        with open(log, "wb") as output, leashed(host.python, command, cwd=host.folder, stdout=output) as process:
            try:
                url = f"http://127.0.0.1:{port}"
                wait_until_ready(url, process, log, timeout)
                yield url
            except ConnectionError as error:
                if process.poll() is None:
                    raise
                raise ServerError(f"ComfyUI stopped. The end of its log:\n{tail(log)}") from error


def add_pack(custom_nodes, pack=CHECKOUT):
    """Puts this pack into a custom_nodes folder: a link, or a copy where the system permits no links."""
    custom_nodes.mkdir()
    try:
        os.symlink(pack, custom_nodes / PACK, target_is_directory=True)
    except OSError:
        shutil.copytree(pack, custom_nodes / PACK, ignore=shutil.ignore_patterns(".git", "__pycache__", "out", ".venv", "venv", ".cache"))


def extra_model_paths(folders):
    """The text of a ComfyUI extra_model_paths.yaml for folders laid out like its models folder (JSON is YAML)."""
    kinds = {
        "diffusion_models": "diffusion_models\nunet",
        "text_encoders": "text_encoders\nclip",
        "vae": "vae",
        "loras": "loras",
        "checkpoints": "checkpoints",
        "pooled_projections": "pooled_projections",
        "guidance_directions": "guidance_directions",
        "picture_scorers": "picture_scorers",
    }
    return json.dumps({f"models_{index}": {"base_path": str(folder), **kinds} for index, folder in enumerate(folders)})


def own_editor(host):
    """The arguments of main.py for ComfyUI Desktop, which brings the editor with it and has it in no package."""
    editor = host.folder / "web_custom_versions" / "desktop_app"
    return ["--front-end-root", editor] if editor.is_dir() else []


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def has_gpu(host):
    """Whether the host's torch finds a GPU."""
    return subprocess.run([host.python, CHECKOUT / "tools" / "gpu.py"], capture_output=True, check=False).returncode == 0


def wait_until_ready(url, process, log, timeout):
    """Returns when the server answers and has our nodes; raises ServerError otherwise."""
    deadline = time.monotonic() + timeout
    while True:
        if process.poll() is not None:
            raise ServerError(f"ComfyUI ended while starting. The end of its log:\n{tail(log)}")
        try:
            nodes = Client(url).get("/object_info/ApplyModulationGuidance")
            break
        except ConnectionError:
            if time.monotonic() > deadline:
                raise ServerError(f"ComfyUI did not answer within {timeout} s. The end of its log:\n{tail(log)}") from None
            time.sleep(0.2)
    if not nodes:
        raise ServerError(f"ComfyUI started without this pack's nodes. The end of its log:\n{tail(log)}")


def tail(log, lines=40):
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


@dataclass(frozen=True)
class Progress:
    """Where a running prompt is: `value` of `total` steps (0 of 0: just begun) in the node with this id and title."""

    node: str
    title: str
    value: int
    total: int


class Client:
    """A ComfyUI server at `url`. Its methods raise ConnectionError when it does not answer."""

    def __init__(self, url):
        self.url = url.rstrip("/")

    def get(self, path):
        return json.loads(self.request(path))

    def post(self, path, body):
        return self.request(path, json.dumps(body).encode())

    def request(self, path, body=None):
        """The bytes of an answer; an HTTP error is raised as urllib's HTTPError."""
        request = urllib.request.Request(self.url + path, data=body, headers={"Content-Type": "application/json"} if body else {})
        try:
            with opener(self.url).open(request, timeout=TIMEOUT) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            if error.code in (502, 503, 504):  # of what stands before the server
                raise ConnectionError(f"{self.url} does not answer: {error}") from error
            raise
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ConnectionError(f"{self.url} does not answer: {getattr(error, 'reason', error)}") from error

    def choices(self, class_type, name):
        """What the server offers for a COMBO input, e.g. the model files of a loader; empty where it has no such node."""
        node = self.get(f"/object_info/{class_type}").get(class_type)
        if node is None:
            return []
        kind, *options = node["input"]["required"][name]
        # the older form of a COMBO is the list itself
        return kind if isinstance(kind, list) else options[0]["options"]

    def run(self, prompt, on_progress=lambda progress: None):
        """Runs an API-format prompt; returns {node id: [image file's bytes]} of its output nodes.

        `on_progress` gets a Progress as the server reports it. Raises PromptError when the server refuses the prompt or a
        node fails, PromptInterrupted when it is interrupted there. On any other way out, Ctrl-C among them, the prompt is
        taken from the server's queue or interrupted.
        """
        return asyncio.run(self._run(prompt, on_progress))

    async def _run(self, prompt, on_progress):
        import aiohttp  # in the host's environment, not in every Python that imports this file

        client_id = uuid.uuid4().hex
        try:
            async with aiohttp.ClientSession() as session:
                # listening before queueing, so that no message is missed
                async with session.ws_connect(f"{self.url}/ws?clientId={client_id}", max_msg_size=0) as connection:
                    prompt_id = self.queue(prompt, client_id)
                    try:
                        await follow(connection, prompt, prompt_id, on_progress)
                    except (PromptError, PromptInterrupted):
                        raise
                    except BaseException:
                        self.cancel(prompt_id)
                        raise
        except aiohttp.ClientConnectionError as error:
            raise ConnectionError(f"{self.url} does not answer: {error}") from error
        return self.images(prompt_id)

    def queue(self, prompt, client_id=None):
        """Queues a prompt and returns its id. Raises PromptError when the server refuses it, or some of its outputs."""
        try:
            answer = json.loads(self.post("/prompt", {"prompt": prompt, "client_id": client_id}))
        except urllib.error.HTTPError as error:
            raise PromptError(refusal(error.read())) from error
        if answer["node_errors"]:
            # it would run the outputs that do not depend on these nodes
            self.cancel(answer["prompt_id"])
            raise PromptError("\n".join(node_errors(answer["node_errors"])))
        return answer["prompt_id"]

    def images(self, prompt_id):
        """{node id: [file's bytes]} of a finished prompt's saved images."""
        return self.files(self.get(f"/history/{prompt_id}")[prompt_id]["outputs"])

    def files(self, outputs):
        """The same from the outputs that the history has."""
        return {
            node: [self.request("/view?" + urllib.parse.urlencode(image)) for image in output["images"]]
            for node, output in outputs.items()
            if "images" in output
        }

    def cancel(self, prompt_id):
        """Takes a prompt from the queue, or interrupts it when it is the running one."""
        with contextlib.suppress(ConnectionError):
            self.post("/queue", {"delete": [prompt_id]})
            self.interrupt(prompt_id)

    def interrupt(self, prompt_id=None):
        """Interrupts the running prompt, or only that one."""
        self.post("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})

    def forget(self):
        """Makes the server drop its cached results, so that the next prompt runs every node again."""
        self.post("/free", {"free_memory": True})
        # Only asked for by that. The server does it before it takes the prompt after the one that it runs next.
        self.run({"none": {"class_type": "PreviewAny", "inputs": {"source": ""}}})


def opener(url):
    """urllib's opener, without the proxy that the system names where `url` is of this machine, which a proxy does not reach."""
    here = urllib.parse.urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    return urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if here else []))


async def follow(connection, prompt, prompt_id, on_progress):
    """Reads a websocket until the prompt is done; see Client.run."""
    async for message in connection:
        if not isinstance(message.data, str):
            continue  # a preview picture
        event = json.loads(message.data)
        data = event["data"]
        if data.get("prompt_id") != prompt_id:
            continue
        kind = event["type"]
        if kind == "executing" and data["node"] is None:
            return  # its outputs are in the history now; when execution_success is sent they need not be
        if kind == "execution_interrupted":
            raise PromptInterrupted("The prompt was interrupted.")
        if kind == "execution_error":
            raise PromptError(f"{data['node_type']} (node {data['node_id']}): {data['exception_message'].strip()}")
        if kind in ("executing", "progress"):
            node = data["node"]
            on_progress(Progress(node, title(prompt, node), data.get("value", 0), data.get("max", 0)))
    raise ConnectionError("The server closed the connection while the prompt ran.")


def title(prompt, node):
    """A node's title, or its class; the id alone for a node that another one made while running."""
    if node not in prompt:
        return node
    return prompt[node].get("_meta", {}).get("title", prompt[node]["class_type"])


def refusal(body):
    """The text of a refused prompt: the general error, then each node's."""
    try:
        answer = json.loads(body)
    except ValueError:
        return body.decode(errors="replace")
    error = answer["error"]
    return "\n".join([" ".join(filter(None, (error["message"], error["details"]))), *node_errors(answer["node_errors"])])


def node_errors(errors):
    """One line for each error of each node, from the server's node_errors."""
    return [
        f"{found['class_type']} (node {node}): {each['message']}: {each['details']}"
        for node, found in errors.items()
        for each in found["errors"]
    ]

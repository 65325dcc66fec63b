"""effect.py --servers: pictures drawn by running ComfyUI servers, through the HTTP API that programs use."""

import io
import sys
import threading
import urllib.error
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import numpy as np
from PIL import Image

import nodes
from benchmarks.in_process import defaults
from tools.server import Client, PromptError

from .conditions import Condition
from .own import Task
from .run import write_strip
from .settings import Files, Settings
from .studio import Studio

NEEDED = "ApplyModulationGuidance"
POLL = 0.25  # seconds between two questions whether a picture is done


class Graph:
    """A prompt in API format that grows by a node at each call of `node`, in place of calling it."""

    def __init__(self) -> None:
        self.prompt: dict[str, dict] = {}

    def node(self, name: str, /, **inputs) -> tuple[tuple[str, int], ...]:
        """A link to each output. Inputs not given have their defaults, as in the editor."""
        cls = nodes.NODE_CLASS_MAPPINGS[name]
        filled = (defaults(cls) if hasattr(cls, "define_schema") else {}) | inputs
        key = str(len(self.prompt) + 1)
        self.prompt[key] = {"class_type": name, "inputs": {each: value for each, value in filled.items() if value is not None}}
        return tuple((key, slot) for slot in range(len(cls.RETURN_TYPES)))


def graph(files: Files, settings: Settings, prompt: str, condition: Condition, seed: int) -> dict:
    """What a server is asked: the nodes that Studio calls, and a preview, which leaves no file in its output folder."""
    made = Graph()
    picture = Studio(files, settings, made.node).drawn(prompt, condition, seed)
    made.node("PreviewImage", images=picture)
    return made.prompt


class Servers:
    """Draws with one picture at a time on each server."""

    def __init__(self, urls: Iterable[str], files: Files, settings: Settings):
        self.files, self.settings = files, settings
        self.clients = [Client(url) for url in dict.fromkeys(url.rstrip("/") for url in urls)]
        self.stop = threading.Event()

    def check(self, conditions: Iterable[Condition], prompt: str) -> None:
        """Leaves out servers that do not answer. Raises ValueError where none does, or one is no ComfyUI with this pack."""
        for client in list(self.clients):
            try:
                found = client.get(f"/object_info/{NEEDED}")
            except ConnectionError as error:
                self.drop(client, error)
            except (urllib.error.HTTPError, ValueError) as error:
                raise ValueError(f"--servers {client.url}: it is no ComfyUI server ({error}).") from None
            else:
                if NEEDED not in found:
                    raise ValueError(f"--servers {client.url}: it has no node {NEEDED}. Install this pack there, and start it again.")
        if not self.clients:
            raise ValueError("--servers: none of them answers. Start one, and look at its address.")

    def draw(self, tasks: list[Task]) -> Iterator[Task]:
        """In the order in which they come back. Raises ValueError where a server refuses a prompt or fails at it, or none answers any more."""
        waiting, free, running = deque(tasks), list(self.clients), {}
        with ThreadPoolExecutor(len(self.clients)) as pool:
            try:
                while waiting or running:
                    while waiting and free:
                        client, task = free.pop(0), waiting.popleft()
                        running[pool.submit(self.draw_one, client, task)] = client, task
                    if not running:
                        raise ValueError(
                            f"--servers: none of them answers any more; {len(waiting)} pictures are missing. Run it again to go on."
                        )
                    done, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)  # by seconds, so that Ctrl-C is heard on Windows
                    for future in done:
                        client, task = running.pop(future)
                        try:
                            future.result()
                        except ConnectionError as error:
                            self.drop(client, error)
                            waiting.appendleft(task)
                        else:
                            free.append(client)
                            yield task
            finally:
                self.stop.set()

    def drop(self, client: Client, error: ConnectionError) -> None:
        print(f"{error}. It is left out.", file=sys.stderr, flush=True)
        self.clients.remove(client)

    def draw_one(self, client: Client, task: Task) -> None:
        """Raises ConnectionError where the server does not answer or has lost the prompt."""
        prompt = graph(self.files, self.settings, task.prompt, task.condition, task.seed)
        try:
            (file,) = self.made(client, prompt)
            with Image.open(io.BytesIO(file)) as image:
                picture = np.asarray(image.convert("RGB"))
        except ConnectionError:
            raise
        except (PromptError, OSError, ValueError) as error:
            raise ValueError(f"{client.url} did not draw {task.condition.name} for {task.prompt!r}: {error}") from None
        write_strip(task.path, picture[None] / 255, task.key)

    def made(self, client: Client, prompt: dict) -> list[bytes]:
        """The files of the prompt's pictures; the prompt is taken back on every other way out."""
        prompt_id = client.queue(prompt)
        try:
            while not (entry := finished(client, prompt_id)):
                if self.stop.wait(POLL):
                    raise PromptError("It was stopped here.")
            return next(iter(client.files(entry["outputs"]).values()))
        except BaseException:
            client.cancel(prompt_id)
            raise


def finished(client: Client, prompt_id: str) -> dict | None:
    """Its entry in the server's history; None while it waits or runs. Raises PromptError where it failed, ConnectionError where it is gone."""
    for _ in range(2):  # it may have been done between the two questions
        if entry := client.get(f"/history/{prompt_id}").get(prompt_id):
            break
        queues = client.get("/queue")
        if any(each[1] == prompt_id for queue in ("queue_running", "queue_pending") for each in queues[queue]):
            return None
    else:
        raise ConnectionError(f"{client.url} was started anew, or its queue was emptied")
    if entry["status"]["status_str"] != "success":
        errors = [
            f"{details['node_type']}: {details['exception_message'].strip()}"
            for kind, details in entry["status"]["messages"]
            if kind == "execution_error"
        ]
        raise PromptError("\n".join(errors) or "It was interrupted there.")
    return entry

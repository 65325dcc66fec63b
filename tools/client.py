"""An example client of ComfyUI's HTTP API in the standard library alone: queue a workflow, follow it, fetch its pictures.

    python tools/client.py --w 4 --seed 7 --prompt "a large red circle" --out pictures

Copy it into your own scripts. It takes a workflow in API format (here one of workflows/api; the editor exports them: Workflow,
Export (API)), sets the prompt, w and the seed, and asks the server every half second how far it is.
"""

import argparse
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows" / "api"


def main():
    parser = argparse.ArgumentParser(description="Run a workflow on a ComfyUI server and fetch its pictures.")
    parser.add_argument("--server", default="http://127.0.0.1:8188")
    parser.add_argument("--workflow", type=Path, default=WORKFLOWS / "first_steps_small_world.json", help="a file in API format")
    parser.add_argument("--prompt", help="what to draw")
    parser.add_argument("--w", type=float, help="guidance scale")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--out", type=Path, default=Path("out"))
    options = parser.parse_args()

    workflow = json.loads(options.workflow.read_bytes())  # whatever its encoding
    if options.prompt is not None:
        set_input(workflow, "CLIPTextEncode", "text", options.prompt, title="Prompt")
    if options.w is not None:
        set_input(workflow, "ApplyModulationGuidance", "w", options.w)
    if options.seed is not None:
        set_input(workflow, "KSampler", "seed", options.seed)

    prompt_id = queue(options.server, workflow)
    outputs = wait(options.server, prompt_id)
    options.out.mkdir(parents=True, exist_ok=True)
    for node, output in outputs.items():
        for image in output.get("images", []):
            path = options.out / file_name(workflow[node]["_meta"]["title"], image["filename"])
            path.write_bytes(request(f"{options.server}/view?{urllib.parse.urlencode(image)}"))
            print(path)


def file_name(title, filename):
    """For a picture of the node with this title; without characters that Windows has in no name."""
    return re.sub(r'[\x00-\x1f<>:"/\\|?*]', "_", f"{title.lower()}_{filename}")


def set_input(workflow, class_type, name, value, title=None):
    """Sets an input of every node of a class (and title); where a node feeds it, that node's value."""
    for node in workflow.values():
        if node["class_type"] == class_type and title in (None, node["_meta"]["title"]):
            link = node["inputs"].get(name)
            if isinstance(link, list) and "value" in workflow[link[0]]["inputs"]:
                workflow[link[0]]["inputs"]["value"] = value
            else:
                node["inputs"][name] = value


def queue(server, workflow):
    """Queues a workflow and returns its id."""
    try:
        answer = json.loads(request(f"{server}/prompt", {"prompt": workflow, "client_id": uuid.uuid4().hex}))
    except urllib.error.HTTPError as error:
        answer = json.loads(error.read())
    if answer.get("prompt_id") and not answer["node_errors"]:
        return answer["prompt_id"]
    if answer.get("prompt_id"):  # queued for the outputs that do not depend on the nodes with errors
        request(f"{server}/queue", {"delete": [answer["prompt_id"]]})
        request(f"{server}/interrupt", {"prompt_id": answer["prompt_id"]})
    lines = [answer["error"]["message"]] if "error" in answer else []
    for node, found in answer["node_errors"].items():
        lines += [f"{found['class_type']} (node {node}): {each['message']}: {each['details']}" for each in found["errors"]]
    raise SystemExit("\n".join(lines))


def wait(server, prompt_id):
    """Prints where the prompt is until it is done; returns its outputs, {node id: {"images": [...]}}."""
    shown = None
    while True:
        history = json.loads(request(f"{server}/history/{prompt_id}"))
        if prompt_id in history:
            status = history[prompt_id]["status"]
            if status["status_str"] != "success":
                errors = [details["exception_message"] for kind, details in status["messages"] if kind == "execution_error"]
                raise SystemExit("\n".join(errors) or "The run was interrupted.")
            return history[prompt_id]["outputs"]
        state = place(json.loads(request(f"{server}/queue")), prompt_id)
        if state != shown:
            print(state, flush=True)
            shown = state
        time.sleep(0.5)


def place(queues, prompt_id):
    """Where a prompt is, in words."""
    if any(entry[1] == prompt_id for entry in queues["queue_running"]):
        return "running"
    waiting = sorted(queues["queue_pending"])
    before = next((index for index, entry in enumerate(waiting) if entry[1] == prompt_id), None)
    return "done" if before is None else f"waiting, {before + len(queues['queue_running'])} before"


def request(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    here = urllib.parse.urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if here else []))  # a proxy does not reach this machine
    with opener.open(urllib.request.Request(url, data, {"Content-Type": "application/json"}), timeout=60) as answer:
        return answer.read()


if __name__ == "__main__":
    main()

"""The example client and the curl lines of docs/api.md, against the real server."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

CHECKOUT = Path(__file__).parent.parent.parent
CLIENT = CHECKOUT / "tools" / "client.py"


@pytest.fixture(scope="module")
def short_workflow(tmp_path_factory):
    """The first steps with two sampling steps."""
    workflow = json.loads((CHECKOUT / "workflows" / "api" / "first_steps_small_world.json").read_text(encoding="utf-8"))
    for node in workflow.values():
        if node["class_type"] == "KSampler":
            node["inputs"]["steps"] = 2
    path = tmp_path_factory.mktemp("workflow") / "short.json"
    path.write_text(json.dumps(workflow), encoding="utf-8")
    return path


def run(client, workflow, *arguments):
    command = [sys.executable, "-I", str(CLIENT), "--server", client.url, "--workflow", str(workflow), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_it_needs_nothing_but_the_standard_library():
    imported = set(re.findall(r"^(?:import|from) (\w+)", CLIENT.read_text(encoding="utf-8"), re.M))
    assert imported <= sys.stdlib_module_names


def test_it_sets_prompt_w_and_seed_and_fetches_the_pictures(client, short_workflow, tmp_path):
    result = run(client, short_workflow, "--prompt", "a red circle", "--w", 4.5, "--seed", 11, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    pictures = {path.name.split("_")[0]: path for path in tmp_path.iterdir()}
    assert pictures.keys() == {"plain", "guided"} and "running" in result.stdout
    used = json.loads(Image.open(pictures["guided"]).info["prompt"])
    values = {(node["class_type"], node["_meta"]["title"]): node["inputs"] for node in used.values()}
    assert values["CLIPTextEncode", "Prompt"]["text"] == "a red circle"
    assert values["CLIPTextEncode", "Negative prompt (empty)"]["text"] == ""
    assert values["ApplyModulationGuidance", "Apply Modulation Guidance"]["w"] == 4.5
    assert values["PrimitiveInt", "Seed"]["value"] == 11


def test_it_says_what_the_server_refuses(client, short_workflow, tmp_path):
    result = run(client, short_workflow, "--w", 99, "--out", tmp_path)
    assert result.returncode != 0
    assert "ApplyModulationGuidance" in result.stderr and "99" in result.stderr and "Traceback" not in result.stderr


def test_the_curl_lines_of_the_docs_queue_and_follow_a_run(client, tmp_path):
    page = (CHECKOUT / "docs" / "api.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    (curl (?:.*\\\n)*.*)$", page, re.M)
    assert len(lines) >= 2
    answers = []
    for line in lines[:2]:
        command = line.replace("http://127.0.0.1:8188", client.url)
        answers.append(subprocess.run(["bash", "-c", command], cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=True).stdout)
    queued = json.loads(answers[0])
    assert queued["prompt_id"] and not queued["node_errors"]
    assert "queue_running" in json.loads(answers[1])
    client.cancel(queued["prompt_id"])

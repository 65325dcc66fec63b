"""The workflows that distill a projection and learn a direction, on the real server over HTTP, with the small world's text-blind model."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

CHECKOUT = Path(__file__).parent.parent
sys.path.insert(1, str(CHECKOUT))  # after the host's own folder, whose modules go first

from support.distilling import needs_distilling

from tools.host import ensure_host
from tools.pinned import cache_folder
from tools.server import Client, running_server
from tools.small_models import write_small_models
from tools.templates import graph_of

pytestmark = needs_distilling
NAME, LEARN = "distill_a_projection", "learn_a_direction"
PROMPTS = "a red circle\ntwo blue squares, highly detailed\nflat and simple"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A client, and the server's output folder."""
    models, output = cache_folder() / "small-world", tmp_path_factory.mktemp("output")
    write_small_models(models)
    with running_server(ensure_host(), [models], ["--output-directory", output]) as url:
        yield Client(url), output


def workflow(name=NAME, **settings):
    prompt = json.loads((CHECKOUT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    (distill,) = (node for node in prompt.values() if node["class_type"].startswith("Distill"))
    distill["inputs"].update(prompts=PROMPTS, batch_size=2, sample_steps=1, **settings)
    for node in prompt.values():
        if node["class_type"] == "KSampler":
            node["inputs"]["steps"] = 2
    return prompt


def pictures(client, prompt, on_progress=lambda progress: None):
    made = client.run(prompt, on_progress)
    return {prompt[node]["_meta"]["title"]: np.asarray(Image.open(io.BytesIO(files[0])).convert("RGB")) for node, files in made.items()}


def saved(output):
    """The metadata of the projection saved last."""
    latest = max((output / "pooled_projections").iterdir(), key=lambda path: path.name)
    with safe_open(latest, framework="pt") as file:
        return file.metadata()


def test_a_projection_is_made_plotted_saved_and_guides(server):
    client, output = server
    made = pictures(client, workflow(steps=4, learning_rate=0.05))
    assert {"Plain", "Guided"} <= set(made) and "Loss" in made
    assert (made["Plain"] != made["Guided"]).any()
    assert json.loads(saved(output)["family"]) == "Wan"
    assert json.loads(saved(output)["record"])["runs"][0]["steps"] == 4


def test_a_direction_is_learned_plotted_saved_listed_loaded_and_guides(server):
    client, output = server
    prompt = workflow(LEARN, steps=4, learning_rate=0.05)
    made = pictures(client, prompt)
    assert {"Plain", "Guided", "Loss"} <= set(made) and (made["Plain"] != made["Guided"]).any()
    name = "small_world_wan_detail_00001_.safetensors"
    with safe_open(output / "guidance_directions" / name, framework="pt") as file:
        [one] = json.loads(file.metadata()["learned"])
    assert (one["family"], one["layers"], one["positive"]) == ("Wan", 7, "highly detailed") and one["record"]["runs"][0]["strength"] > 0
    assert name in client.choices("LoadGuidanceDirection", "direction_name")
    (distill,) = (number for number, node in prompt.items() if node["class_type"] == "DistillGuidanceDirection")
    loading = {number: node for number, node in prompt.items() if node["class_type"] not in ("LossGraphNode", "SaveGuidanceDirection")}
    loading[distill] = {"class_type": "LoadGuidanceDirection", "inputs": {"direction_name": name}, "_meta": {"title": "Load"}}
    again = pictures(client, loading)
    assert (again["Plain"] == made["Plain"]).all() and (again["Guided"] == made["Guided"]).all()


def test_an_untrained_projection_gives_the_plain_picture(server):
    client, _ = server
    prompt = workflow(steps=0)
    del prompt[next(key for key, node in prompt.items() if node["class_type"] == "LossGraphNode")]  # has no loss to draw
    made = pictures(client, prompt)
    assert (made["Plain"] == made["Guided"]).all()


def test_an_interrupt_keeps_what_was_learned_and_the_graph_runs_on(server):
    client, output = server

    def interrupt(progress):
        if progress.title == "Distill Pooled Projection" and progress.value >= 3:
            client.interrupt()

    made = pictures(client, workflow(steps=5000), interrupt)
    assert set(made) >= {"Plain", "Guided"}
    steps = json.loads(saved(output)["record"])["runs"][0]["steps"]
    assert 3 <= steps < 5000


@pytest.mark.parametrize("name", [NAME, LEARN])
def test_the_api_form_is_the_graph(name):
    graph = json.loads(graph_of(name).read_text(encoding="utf-8"))
    prompt = json.loads((CHECKOUT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    inputs = {node["id"]: node["inputs"] for node in graph["nodes"]}
    links = {
        (str(target), inputs[target][slot]["name"]): [str(source), source_slot]
        for _, source, source_slot, target, slot, _ in graph["links"]
    }
    assert links == {
        (key, name): value for key, node in prompt.items() for name, value in node["inputs"].items() if isinstance(value, list)
    }
    for node in graph["nodes"]:
        if node["type"] != "MarkdownNote":
            values = [value for value in prompt[str(node["id"])]["inputs"].values() if not isinstance(value, list)]
            assert all(value in node["widgets_values"] for value in values)

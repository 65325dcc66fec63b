"""What nodes tell after a run reaches the editor that queued it, for the right node, over the host's own websocket."""

import asyncio
import json
import struct
import sys
import uuid
from pathlib import Path

import aiohttp
import pytest
from support.checkpoints import write_server_nodes
from support.distilling import needs_distilling

CHECKOUT = Path(__file__).parent.parent
sys.path.insert(1, str(CHECKOUT))  # after the host's own folder, whose modules go first

from tools.host import ensure_host
from tools.pinned import cache_folder
from tools.server import Client, PromptInterrupted, follow, running_server
from tools.small_models import write_small_models

TEXT = 3  # the host's number of messages that hold a node's text
APPLY, SAMPLER = "10", "15"  # in the first-steps workflow


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    models, folder = cache_folder() / "small-world", tmp_path_factory.mktemp("server")
    write_small_models(models)
    write_server_nodes(folder / "nodes.yaml")
    with running_server(ensure_host(), [models], ["--extra-model-paths-config", folder / "nodes.yaml"]) as url:
        yield Client(url)


def workflow(steps=4, **apply):
    prompt = json.loads((CHECKOUT / "workflows" / "api" / "first_steps_small_world.json").read_text(encoding="utf-8"))
    for number in ("11", SAMPLER):
        prompt[number]["inputs"]["steps"] = steps
    prompt[APPLY]["inputs"].update({"w": 1.0} | apply)
    return prompt


class Heard:
    """A websocket whose texts of nodes are kept."""

    def __init__(self, connection):
        self.connection, self.texts = connection, []

    async def __aiter__(self):
        async for message in self.connection:
            if isinstance(message.data, bytes) and struct.unpack(">I", message.data[:4])[0] == TEXT:
                length = struct.unpack(">I", message.data[4:8])[0]
                self.texts.append((message.data[8 : 8 + length].decode(), message.data[8 + length :].decode()))
            yield message


async def _told(client, prompt, on_progress, queued_by_us):
    client_id = uuid.uuid4().hex
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{client.url}/ws?clientId={client_id}", max_msg_size=0) as connection,
    ):
        heard = Heard(connection)
        if queued_by_us:
            try:
                await follow(heard, prompt, client.queue(prompt, client_id), on_progress)
            except PromptInterrupted:
                heard.texts.append("interrupted")
        else:
            number = client.queue(prompt)
            await _until_done(client)
            assert client.get(f"/history/{number}")[number]["status"]["status_str"] == "success"
            await _drain(heard)
        return heard.texts


async def _until_done(client):
    while any(client.get("/queue").values()):
        await asyncio.sleep(0.1)


async def _drain(heard):
    async def read():
        async for _ in heard:
            pass

    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(read(), 1)


def told(client, prompt, on_progress=lambda progress: None, queued_by_us=True):
    """[(node, text)] as they came."""
    return asyncio.run(_told(client, prompt, on_progress, queued_by_us))


def test_the_node_is_told_what_was_done(client):
    [(node, text)] = told(client, workflow())
    assert node == APPLY and text.startswith("FLUX.1, layers 2-11 of 12, w 1, cfg_rows both, 4 of 4 steps, longest shift 0.")
    [(node, text)] = told(client, workflow(w=0.0))
    assert node == APPLY and text.startswith("⚠ Nothing was guided: w is 0. (FLUX.1, ")


def test_a_model_that_the_host_kept_is_told_of_each_prompt(client):
    prompt = workflow(w=1.1)
    assert len(told(client, prompt)) == 1
    prompt["7"]["inputs"]["value"] += 1  # the seed
    executed = []
    [(node, text)] = told(client, prompt, lambda progress: executed.append(progress.node))
    assert node == APPLY and APPLY not in executed and text.startswith("FLUX.1, ")
    assert told(client, prompt) == [], "nothing was sampled"


def test_the_same_graph_under_other_numbers_is_told_of_its_own_nodes(client):
    """As in a second workflow, or with a node copied: what the host kept of the first is told of no node of the second."""
    prompt = workflow(w=1.15)
    [(node, text)] = told(client, prompt)
    renumbered = json.loads(json.dumps(prompt).replace(f'"{APPLY}"', '"310"').replace(f'"{SAMPLER}"', f'"{APPLY}"'))
    assert renumbered["310"]["class_type"] == "ApplyModulationGuidance" and node == APPLY
    renumbered["7"]["inputs"]["value"] += 1  # the seed
    [(node, again)] = told(client, renumbered)
    assert node == "310" and again.startswith(text[:40])


def test_samplers_of_one_prompt_have_a_line_each(client):
    prompt = workflow(w=1.2)
    prompt["second"] = json.loads(json.dumps(prompt[SAMPLER]))
    prompt["second"]["inputs"].update(denoise=0.5, steps=6, latent_image=[SAMPLER, 0])
    prompt["second"]["_meta"]["title"] = "Refine"
    prompt["16"]["inputs"]["samples"] = ["second", 0]
    first, both = told(client, prompt)
    assert first[0] == both[0] == APPLY and "\n" not in first[1]
    above, below = both[1].split("\n")
    assert above == f"Sample guided ({SAMPLER}): {first[1]}" and below.startswith("Refine (second): FLUX.1, ") and "6 of 6 steps" in below


def test_high_and_low_noise_each_have_their_node(client):
    prompt = workflow(w=1.3)
    prompt["low"] = json.loads(json.dumps(prompt[APPLY]))
    prompt["low"]["inputs"]["w"] = 0.5
    common = {name: value for name, value in prompt[SAMPLER]["inputs"].items() if name not in ("seed", "denoise")}
    advanced = common | {
        "noise_seed": 1,
        "steps": 4,
        "add_noise": "enable",
        "start_at_step": 0,
        "end_at_step": 2,
        "return_with_leftover_noise": "enable",
    }
    prompt[SAMPLER].update(class_type="KSamplerAdvanced", inputs=advanced)
    prompt["rest"] = {
        "class_type": "KSamplerAdvanced",
        "_meta": {"title": "Rest"},
        "inputs": advanced
        | {
            "model": ["low", 0],
            "add_noise": "disable",
            "start_at_step": 2,
            "end_at_step": 4,
            "return_with_leftover_noise": "disable",
            "latent_image": [SAMPLER, 0],
        },
    }
    prompt["16"]["inputs"]["samples"] = ["rest", 0]
    texts = dict(told(client, prompt))
    assert "w 1.3, cfg_rows both, 2 of 2 steps" in texts[APPLY] and "w 0.5, cfg_rows both, 2 of 2 steps" in texts["low"]
    assert texts.keys() == {APPLY, "low"}


def test_equal_nodes_tell_each_of_its_own_sampler(client):
    prompt = workflow(w=1.4)
    prompt["twin"] = json.loads(json.dumps(prompt[APPLY]))
    prompt["other"] = json.loads(json.dumps(prompt[SAMPLER]))
    prompt["other"]["inputs"].update(model=["twin", 0], seed=77)
    prompt["other"]["_meta"]["title"] = "Sample again"
    prompt["shown"] = {"class_type": "PreviewAny", "inputs": {"source": ["other", 0]}}
    assert sorted(node for node, _ in told(client, prompt)) == sorted((APPLY, "twin"))


def test_a_node_inside_a_node_tells_on_the_one_that_is_seen(client):
    prompt = workflow(w=1.5)
    prompt[APPLY].update(class_type="GuidedInside")
    prompt[APPLY]["inputs"] = {name: prompt[APPLY]["inputs"][name] for name in ("model", "direction", "w")}
    [(node, text)] = told(client, prompt)
    assert node == APPLY and "w 1.5" in text


def test_an_interrupted_run_is_told(client):
    def interrupt(progress):
        if progress.node == SAMPLER and progress.value > 2:
            client.interrupt()

    prompt = workflow(w=1.6)
    prompt[SAMPLER]["inputs"]["steps"] = 500
    (node, text), end = told(client, prompt, interrupt)
    assert end == "interrupted" and node == APPLY and " steps, interrupted after " in text and " of 500" in text


def test_text_variance_tells_on_its_node(client):
    prompt = workflow(w=1.7)
    prompt["scaled"] = {
        "class_type": "ScaleTextVariance",
        "inputs": {"model": [APPLY, 0], "scale": 1.25, "start_percent": 0.0, "end_percent": 1.0},
    }
    prompt[SAMPLER]["inputs"]["model"] = ["scaled", 0]
    texts = dict(told(client, prompt))
    assert (
        texts["scaled"] == "FLUX.1, layers 0-3 of 12, scale 1.25, both sides of CFG, prompt tokens, 4 of 4 steps"
        and "w 1.7" in texts[APPLY]
    )


def test_a_sweep_tells_on_its_node_a_line_for_each_model(client):
    prompt = workflow()
    inputs = {name: value for name, value in prompt[APPLY]["inputs"].items() if name != "w"}
    prompt[APPLY].update(class_type="SweepModulationGuidance", inputs=inputs | {"w_values": "0.5, 1", "start_layers": "2, 4"})
    *_, (node, text) = told(client, prompt)
    lines = text.split("\n")
    assert node == APPLY and [line.split(": ")[0] for line in lines] == [f"w {w}, start {start}" for w in ("0.5", "1") for start in (2, 4)]
    assert all("4 of 4 steps" in line for line in lines)


def test_nobody_else_is_told(client):
    """A prompt of no editor's, as a script queues it, shows nothing in the editors that are open."""
    assert told(client, workflow(w=1.8), queued_by_us=False) == []


@needs_distilling
@pytest.mark.parametrize("queued_by_us", [True, False])
def test_how_far_learning_is_goes_to_the_editor_that_queued_it(client, queued_by_us):
    loaders = {node["class_type"]: number for number, node in workflow().items()}
    prompt = {number: workflow()[number] for number in (loaders["UNETLoader"], loaders["CLIPLoader"])}
    words = {"prompts": "a red circle", "positive": "blue", "negative": ""}
    sizes = {"steps": 2, "batch_size": 1, "learning_rate": 0.005, "width": 80, "height": 80, "seed": 1, "sample_steps": 1}
    links = {"model": [loaders["UNETLoader"], 0], "clip": [loaders["CLIPLoader"], 0]}
    prompt["learn"] = {"class_type": "DistillGuidanceDirection", "inputs": links | words | sizes | {"cache": float(queued_by_us)}}
    prompt["shown"] = {"class_type": "PreviewAny", "inputs": {"source": ["learn", 2]}}
    texts = told(client, prompt, queued_by_us=queued_by_us)
    assert {node for node, _ in texts} - {"shown"} == ({"learn"} if queued_by_us else set())

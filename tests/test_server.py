"""The workflows on the real server, over HTTP, with small models; and the demo, which does the same for a user."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

import av
import numpy as np
import psutil
import pytest
from PIL import Image, ImageChops
from support.blueprints import BLUEPRINTS, prompt_of
from support.checkpoints import FRAMES, with_small_checkpoints, write_server_nodes, write_small_checkpoints

CHECKOUT = Path(__file__).parent.parent
sys.path.insert(1, str(CHECKOUT))  # after the host's own folder, whose modules go first

from tools.host import ensure_host
from tools.pinned import cache_folder
from tools.server import Client, PromptError, PromptInterrupted, ServerError, running_server
from tools.small_models import with_small_models, write_small_models
from tools.small_world.checkers import read_picture
from tools.templates import graph_of

SMALL_WORLD = ["flux_schnell_aesthetics", "flux_dev_complexity_schedule"]
FAMILIES = [
    "sd35_large_complexity",
    "sd35_large_dmd2_complexity",
    "hidream_i1_fast_complexity",
    "hunyuan_video_text_to_video",
    "flux_kontext_edit_realism",
]
PROJECTED = ["anima_clip_scales_complexity", "anima_max_pool_complexity", "cosmos_predict2_realism", "wan_causvid_video"]
LEARNED = ["guide_with_a_learned_direction_flux", "guide_with_a_learned_direction_wan"]
WORKFLOWS = [*SMALL_WORLD, *FAMILIES, *PROJECTED, *LEARNED]
DEPTH = 12  # blocks of the small model
SIZE, STEPS = 80, 4


@pytest.fixture(scope="module")
def models():
    folder = cache_folder() / "small-world"
    write_small_models(folder)
    return folder


@pytest.fixture(scope="module")
def client(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    write_small_checkpoints(folder / "models")
    write_server_nodes(folder / "nodes.yaml")
    (folder / "input").mkdir()
    Image.linear_gradient("L").convert("RGB").save(folder / "input" / "example.png")  # the name of the picture that ComfyUI comes with
    Image.radial_gradient("L").convert("RGB").save(folder / "input" / "another.png")
    arguments = ["--extra-model-paths-config", folder / "nodes.yaml", "--input-directory", folder / "input"]
    with running_server(ensure_host(), [models, folder / "models"], arguments) as url:
        yield Client(url)


def workflow(name, as_video=False, **settings):
    """A shared workflow with the small models; settings: {class type: {input: value}}.

    It saves a video's frames as they are: x264, by which the host writes videos, now and then makes another file of the same frames
    (docs/robustness.md). as_video: it saves the video, as it is shipped.
    """
    small = with_small_models if name in SMALL_WORLD else with_small_checkpoints
    prompt = small(json.loads((CHECKOUT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8")))
    for save in () if as_video else nodes(prompt, "SaveVideo"):
        frames = prompt[save["inputs"]["video"][0]]["inputs"]["images"]
        save.update(class_type="SaveImage", inputs={"images": frames, "filename_prefix": save["inputs"]["filename_prefix"]})
    for class_type, inputs in {"KSampler": {"steps": STEPS}, **settings}.items():
        for node in nodes(prompt, class_type):
            node["inputs"].update(inputs)
    return prompt


def nodes(prompt, class_type):
    return [node for node in prompt.values() if node["class_type"] == class_type]


def pictures(client, prompt, on_progress=lambda progress: None):
    """{"Plain": picture, "Guided": picture}"""
    images = client.run(prompt, on_progress)
    return {prompt[node]["_meta"]["title"]: stacked([picture(file) for file in files]) for node, files in images.items()}


def picture(data):
    """The picture of an image file; of a video, all frames on top of each other."""
    if data[4:8] != b"ftyp":
        return Image.open(io.BytesIO(data)).convert("RGB")
    with av.open(io.BytesIO(data)) as video:
        return stacked([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


def stacked(frames):
    return Image.fromarray(np.concatenate(frames))


def same(one, other):
    return ImageChops.difference(one, other).getbbox() is None


def difference(one, other):
    """(largest, mean) difference of two pictures' values."""
    values = np.asarray(ImageChops.difference(one, other))
    return int(values.max()), float(values.mean())


@pytest.fixture(scope="module", params=WORKFLOWS)  # so that tests of one workflow follow each other, its models loaded
def name(request):
    return request.param


def test_a_workflow_gives_a_plain_and_another_guided_picture(client, name):
    made = pictures(client, workflow(name, as_video=True))
    assert made["Plain"].size == made["Guided"].size == ((32, 32 * FRAMES) if "video" in name or "wan" in name else (SIZE, SIZE))
    assert not same(made["Plain"], made["Guided"])


@pytest.mark.parametrize(
    "name, kinds",
    [
        ("first_steps_small_world", ["images", "images"]),
        ("modulation_guidance_one_node", ["images", "images"]),
        ("plain_against_guided", ["a_images", "b_images"]),
        ("sweep_and_grid", ["images"]),
        ("inspect_guidance", ["images"]),
    ],
)
def test_a_workflow_of_the_small_world_runs_as_it_is(client, name, kinds):
    prompt = json.loads((CHECKOUT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    for node in nodes(prompt, "KSampler"):
        node["inputs"]["steps"] = 2
    client.post("/history", {"clear": True})
    client.run(prompt)
    *_, entry = client.get("/history").values()
    made = [(kind, files[0]) for output in entry["outputs"].values() for kind, files in output.items() if isinstance(files[0], dict)]
    assert sorted(kind for kind, _ in made) == kinds
    shown = [picture(client.request(f"/view?{urlencode(file)}")) for _, file in made]
    assert all(one.getextrema() != ((0, 0),) * 3 for one in shown) and not (len(shown) == 2 and same(*shown))


def test_what_the_server_was_told_to_forget_runs_again(client):
    prompt = {"one": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}}
    prompt["shown"] = {"class_type": "PreviewImage", "inputs": {"images": ["one", 0]}}
    for _ in range(20):  # without waiting, in a part of these
        client.forget()
        ran = []
        client.run(prompt, lambda progress, ran=ran: ran.append(progress.node))
        assert "one" in ran


@pytest.mark.parametrize("name", SMALL_WORLD)
def test_the_same_seed_gives_the_same_pictures_again(client, name):
    first = pictures(client, workflow(name))
    client.forget()
    sampled = []
    again = pictures(client, workflow(name), lambda progress: sampled.append(progress.title))
    assert "Sample guided" in sampled, "nothing was computed anew"
    assert same(first["Plain"], again["Plain"]) and same(first["Guided"], again["Guided"])


@pytest.mark.parametrize("name", [*SMALL_WORLD, *FAMILIES, *LEARNED], indirect=True)
def test_w_0_is_the_plain_picture_bit_for_bit(client, name):
    made = pictures(client, workflow(name, ApplyModulationGuidance={"w": 0.0}))
    assert difference(made["Plain"], made["Guided"]) == (0, 0.0)


@pytest.mark.parametrize("name", PROJECTED, indirect=True)
def test_w_0_leaves_the_projected_prompt_and_nothing_else(client, name):
    prompt = workflow(name, ApplyModulationGuidance={"w": 0.0})
    made = pictures(client, prompt)
    assert not same(made["Plain"], made["Guided"])
    for node in nodes(prompt, "EncodeGuidanceDirection"):
        node["inputs"]["positive"] = "something else"
    assert same(pictures(client, prompt)["Guided"], made["Guided"])
    for node in nodes(prompt, "ApplyModulationGuidance"):
        node["inputs"] = {key: value for key, value in node["inputs"].items() if not key.startswith("base_")}
    assert same(pictures(client, prompt)["Guided"], made["Plain"]) == (name != "anima_max_pool_complexity")


@pytest.mark.parametrize("name", [*SMALL_WORLD, *FAMILIES], indirect=True)
def test_without_a_schedule_a_workflow_is_guided_as_the_reference_does(client, name):
    prompt = workflow(name)
    (apply,) = nodes(prompt, "ApplyModulationGuidance")
    apply["inputs"].pop("schedule", None)
    by_itself = pictures(client, prompt)["Guided"]

    def scheduled(start_layer, final_layer):
        apply["inputs"]["schedule"] = ["schedule", 0]
        inputs = {"start_layer": start_layer, "end_layer": -1, "taper_layers": 0, "taper_scale": 0.25, "final_layer": final_layer}
        prompt["schedule"] = {"class_type": "GuidanceLayerSchedule", "inputs": inputs, "_meta": {"title": "Schedule"}}
        return pictures(client, prompt)["Guided"]

    start_layer, final_layer = (2 if "sd35" in name else 5), float("hidream" in name)
    assert same(by_itself, scheduled(start_layer, final_layer))
    assert not same(by_itself, scheduled(start_layer - 1, final_layer))
    assert not same(by_itself, scheduled(start_layer, 1 - final_layer))


@pytest.mark.parametrize(
    "name, blueprint, settings",
    [
        ("flux_schnell_aesthetics", "FLUX.1", (3.0, "Extremely complex, the highest quality", "Very simple, no details at all")),
        ("sd35_large_complexity", "SD3.5", (2.0, "Extremely complex, the highest quality", "Very simple, no details at all")),
        ("anima_max_pool_complexity", "Anima", (3.0, "absurdres, masterpiece, score_9", "worst quality, low quality, score_1")),
    ],
    indirect=["name"],
)
def test_a_blueprint_in_place_of_our_nodes_guides_as_they_do(client, name, blueprint, settings):
    apart, (w, positive, negative) = workflow(name), settings
    (apply,), (encode,) = (nodes(apart, class_type) for class_type in ("ApplyModulationGuidance", "EncodeGuidanceDirection"))
    apply["inputs"]["w"] = w
    apply["inputs"].pop("schedule", None)
    if blueprint == "Anima":  # the small one has other layers than 28, and booru quality carries its own there
        apply["inputs"]["schedule"] = ["preset", 4]
        apart["preset"] = {"class_type": "GuidancePreset", "inputs": {"preset": "booru quality", "subject": ""}, "_meta": {"title": ""}}
    encode["inputs"].update(positive=positive, negative=negative)
    (path,) = (path for path in BLUEPRINTS if blueprint in path.stem)
    inside, guided = prompt_of(path, apply["inputs"]["model"])
    together = json.loads(json.dumps(apart)) | with_small_checkpoints(inside)
    ours = next(number for number, node in apart.items() if node is apply)
    for node in together.values():
        node["inputs"] = {key: guided if value == [ours, 0] else value for key, value in node["inputs"].items()}
    made, expected = pictures(client, together), pictures(client, apart)
    assert same(made["Guided"], expected["Guided"]) and not same(made["Guided"], made["Plain"])


def test_the_host_offers_the_blueprints(client):
    offered = [entry for entry in client.get("/global_subgraphs").items() if entry[1]["source"] == "custom_node"]
    assert {entry["name"] for _, entry in offered} == {path.stem for path in BLUEPRINTS}
    for number, entry in offered:
        assert entry["info"]["node_pack"] == "custom_nodes.ComfyUI-Modulation-Guidance"
        data = json.loads(client.get(f"/global_subgraphs/{number}")["data"])
        (node,) = data["nodes"]
        sockets = [given["type"] for given in node["inputs"] if "widget" not in given]
        assert sockets == [given["type"] for given in node["outputs"]] == ["MODEL"]


@pytest.mark.parametrize(
    "name, settings",
    [
        ("sd35_large_dmd2_complexity", {"LoraLoaderModelOnly": {"strength_model": 0}}),
        ("flux_kontext_edit_realism", {"LoadImage": {"image": "another.png"}}),
        ("wan_causvid_video", {"LoraLoaderModelOnly": {"strength_model": 0}}),
    ],
)
def test_a_lora_and_a_picture_to_edit_reach_the_model(client, name, settings):
    shipped, other = (pictures(client, workflow(name, **given)) for given in ({}, settings))
    assert not same(shipped["Plain"], other["Plain"]) and not same(shipped["Guided"], other["Guided"])


def test_the_api_form_is_the_graph(name):
    graph = json.loads(graph_of(name).read_text(encoding="utf-8"))
    prompt = json.loads((CHECKOUT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    assert {str(node["id"]): node["type"] for node in graph["nodes"] if node["type"] != "MarkdownNote"} == {
        key: node["class_type"] for key, node in prompt.items()
    }
    in_graph = {}
    inputs = {node["id"]: node["inputs"] for node in graph["nodes"]}
    for _, source, source_slot, target, target_slot, _ in graph["links"]:
        in_graph[str(target), inputs[target][target_slot]["name"]] = [str(source), source_slot]
    in_prompt = {(key, name): value for key, node in prompt.items() for name, value in node["inputs"].items() if isinstance(value, list)}
    assert in_graph == in_prompt
    widgets = {str(node["id"]): node.get("widgets_values", []) for node in graph["nodes"]}
    for key, node in prompt.items():
        for value in node["inputs"].values():
            assert isinstance(value, list) or value in widgets[key]


def with_schedule(class_type, **inputs):
    """The dev workflow with another schedule node."""
    prompt = workflow("flux_dev_complexity_schedule")
    (schedule,) = nodes(prompt, "GuidanceLayerSchedule")
    schedule.update(class_type=class_type, inputs={"final_layer": 0.0} | inputs)
    return prompt


def with_written_schedule(text):
    return with_schedule("GuidanceLayerScheduleText", layers=text)


def test_a_drawn_and_a_written_schedule_of_the_same_weights_give_the_same_picture(client):
    curve = {"points": [[0, 0.5], [1, 0.5]], "interpolation": "linear"}
    drawn = pictures(client, with_schedule("GuidanceLayerScheduleCurve", curve=curve))
    written = pictures(client, with_written_schedule(f"0-{DEPTH - 1}: 0.5"))
    assert same(drawn["Guided"], written["Guided"]) and not same(drawn["Guided"], drawn["Plain"])


def with_combined_directions(weights):
    """The schnell workflow with its direction taken twice, and combined."""
    prompt = workflow("flux_schnell_aesthetics")
    (apply,) = nodes(prompt, "ApplyModulationGuidance")
    link = apply["inputs"]["direction"]
    apply["inputs"]["direction"] = ["combined", 0]
    inputs = {"directions.direction0": link, "directions.direction1": link, "weights": weights}
    prompt["combined"] = {"class_type": "CombineGuidanceDirections", "inputs": inputs, "_meta": {"title": "Combined"}}
    return prompt


def test_half_of_a_direction_twice_is_the_direction(client):
    made = pictures(client, workflow("flux_schnell_aesthetics"))
    assert same(made["Guided"], pictures(client, with_combined_directions("0.5, 0.5"))["Guided"])
    assert not same(made["Guided"], pictures(client, with_combined_directions(""))["Guided"])


def with_sweep(**inputs):
    """The schnell workflow with a sweep in place of guidance, its pictures saved one by one and as a grid."""
    prompt = workflow("flux_schnell_aesthetics")
    (sweep,) = nodes(prompt, "ApplyModulationGuidance")
    sweep["class_type"] = "SweepModulationGuidance"
    del sweep["inputs"]["w"]
    sweep["inputs"].update({"w_values": "0, 3", "start_layers": "0, 5"} | inputs)
    (key,) = (key for key, node in prompt.items() if node is sweep)
    (sampler,) = (node for node in nodes(prompt, "KSampler") if node["inputs"]["model"][0] == key)
    sampled = next(key for key, node in prompt.items() if node is sampler)
    decoded = next(key for key, node in prompt.items() if node["class_type"] == "VAEDecode" and node["inputs"]["samples"][0] == sampled)
    prompt["grid"] = {"class_type": "GuidanceGrid", "inputs": {"images": [decoded, 0], "labels": [key, 1], "title": "A title"}}
    prompt["saved"] = {"class_type": "SaveImage", "inputs": {"images": ["grid", 0], "filename_prefix": "grid"}}
    return prompt


def test_a_sweep_samples_each_model_once_and_its_grid_is_one_picture(client):
    prompt = with_sweep()
    made = {
        prompt[node].get("_meta", {}).get("title", node): [picture(file) for file in files] for node, files in client.run(prompt).items()
    }
    plain, swept, (grid,) = made["Plain"], made["Guided"], made["saved"]
    assert len(swept) == 3 and same(swept[0], plain[0])
    assert not any(same(one, other) for i, one in enumerate(swept) for other in swept[:i])
    assert grid.width > 2 * 224 and grid.height > 2 * 224


def test_lists_that_cannot_be_swept_are_refused_when_queued(client):
    with pytest.raises(PromptError, match="SweepModulationGuidance .*'x' in w_values is not a number"):
        client.queue(with_sweep(w_values="0, x"))


def with_scaled_text(**texts):
    """The schnell workflow with counted text tokens scaled in place of guidance; texts: by input."""
    prompt = workflow("flux_schnell_aesthetics", CLIPTextEncode={"text": "a cat"})
    (scale,) = nodes(prompt, "ApplyModulationGuidance")
    links = {"model": scale["inputs"]["model"], "clip": nodes(prompt, "CLIPTextEncode")[0]["inputs"]["clip"]}
    scale.update(class_type="ScaleTextVariance", inputs={"scale": 3.0, "start_percent": 0.0, "end_percent": 1.0} | links | texts)
    return prompt


def test_any_text_may_be_the_one_that_is_sampled_with(client):
    first = pictures(client, with_scaled_text(prompt="a cat"))
    assert same(first["Guided"], pictures(client, with_scaled_text(**{"prompt": "", "prompts.prompt1": "a cat"}))["Guided"])
    assert not same(first["Guided"], first["Plain"])


def test_directions_are_inspected_without_sampling(client):
    prompt = with_combined_directions("")
    inputs = {"model": nodes(prompt, "ApplyModulationGuidance")[0]["inputs"]["model"], "labels": "one, the same", "w": 3.0}
    directions = {name: link for name, link in prompt["combined"]["inputs"].items() if name != "weights"}
    prompt = {key: node for key, node in prompt.items() if node["class_type"] not in ("KSampler", "VAEDecode", "SaveImage")}
    prompt["inspected"] = {"class_type": "InspectGuidance", "inputs": inputs | directions}
    prompt["saved"] = {"class_type": "SaveImage", "inputs": {"images": ["inspected", 0], "filename_prefix": "inspected"}}
    ((drawn,),) = client.run(prompt).values()
    assert picture(drawn).width == 1280


@pytest.mark.parametrize("weights, words", [("1, x", "'x' is not a number"), ("1, 2, 3", "3 weights .* for 2 directions")])
def test_weights_that_cannot_be_are_refused_when_queued(client, weights, words):
    with pytest.raises(PromptError, match=f"CombineGuidanceDirections .*{words}"):
        client.queue(with_combined_directions(weights))


def test_a_schedule_that_does_not_parse_is_refused_when_queued(client):
    with pytest.raises(PromptError, match="GuidanceLayerScheduleText .*5-x"):
        client.queue(with_written_schedule("0-4: 1, 5-x: 1"))


def test_a_layer_beyond_the_depth_is_an_error_that_names_both(client):
    beyond, depth = 57, DEPTH
    with pytest.raises(PromptError, match=rf"(?s)ApplyModulationGuidance .*\b{beyond}\b.*\b({depth}|{depth - 1})\b"):
        client.run(with_written_schedule(f"5-{beyond}: 1"))


def test_a_missing_input_is_refused_by_name(client):
    prompt = workflow("flux_schnell_aesthetics")
    del nodes(prompt, "ApplyModulationGuidance")[0]["inputs"]["direction"]
    with pytest.raises(PromptError, match="ApplyModulationGuidance .*direction"):
        client.queue(prompt)


def test_after_an_interrupted_run_the_server_makes_the_same_pictures(client):
    before = pictures(client, workflow("flux_schnell_aesthetics"))

    def interrupt(progress):
        if progress.title in ("Sample plain", "Sample guided") and progress.value:
            client.interrupt()

    with pytest.raises(PromptInterrupted):
        client.run(workflow("flux_schnell_aesthetics", KSampler={"steps": 300}), interrupt)
    client.forget()
    after = pictures(client, workflow("flux_schnell_aesthetics"))
    assert same(before["Plain"], after["Plain"]) and same(before["Guided"], after["Guided"])


def test_a_server_that_does_not_start_says_why():
    with pytest.raises(ServerError, match="unrecognized arguments: --no-such-argument"):
        with running_server(ensure_host(), arguments=["--no-such-argument"]):
            pass


def demo(*arguments):
    return [sys.executable, str(CHECKOUT / "tools" / "demo.py"), *map(str, arguments)]


def demo_result(*arguments):
    return subprocess.run(demo(*arguments), capture_output=True, text=True, timeout=600)


def test_the_demo_draws_scenes_and_a_visible_effect(tmp_path, models):
    result = demo_result("--small", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.png", "guided.png", "learned.png", "plain.png", "side_by_side.png"]
    assert "Sample guided 20/20" in result.stdout
    plain, guided, learned, both, grid = (
        Image.open(tmp_path / f"{name}.png") for name in ("plain", "guided", "learned", "side_by_side", "grid")
    )
    assert plain.size == guided.size == learned.size == (SIZE, SIZE)
    for picture in (plain, guided, learned):
        things = read_picture(np.asarray(picture.convert("RGB"))).things
        assert [thing.color for thing in things] == ["red"] * 3, things
    detail = [read_picture(np.asarray(picture.convert("RGB"))).detail for picture in (plain, guided, learned)]
    assert min(detail[1:]) > 2 * detail[0], detail
    assert both.width > 3 * 320 and both.height > 320 and grid.width > 4 * 160 and grid.height > 4 * 160


def test_the_demo_does_as_its_options_say(client, tmp_path):
    given = ["--w", 4, "--prompt", "a red cross", "--size", 128, "--steps", 2, "--seed", 9, "--start-layer", 3, "--negative", "flat"]
    result = demo_result("--comfyui", client.url, "--small", *given, "--workflow", "flux_dev_complexity_schedule", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    guided = Image.open(tmp_path / "guided.png")
    assert guided.size == (128, 128) and not same(guided.convert("RGB"), Image.open(tmp_path / "plain.png").convert("RGB"))
    written = json.loads(guided.info["prompt"])
    set_to = {(node["class_type"], name): value for node in written.values() for name, value in node["inputs"].items()}
    assert set_to["ApplyModulationGuidance", "w"] == 4 and set_to["KSampler", "steps"] == 2 and set_to["PrimitiveInt", "value"] == 9
    assert set_to["GuidanceLayerSchedule", "start_layer"] == 3 and set_to["EncodeGuidanceDirection", "negative"] == "flat"
    assert sorted(node["inputs"]["text"] for node in nodes(written, "CLIPTextEncode")) == ["", "a red cross"], "CFG's negative stays"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_an_ended_demo_leaves_no_process_and_no_picture(tmp_path, models, how):
    temporary, out = tmp_path / "temporary", tmp_path / "out"
    temporary.mkdir()
    process = subprocess.Popen(
        demo("--small", "--steps", 10000, "--out", out),
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where the tests run in the background
    )
    try:
        assert any(re.match(r"Sample (plain|guided) \d+/10000", line) for line in process.stdout)
        started = psutil.Process(process.pid).children(recursive=True)
        assert started
        process.send_signal(signal.Signals[how])
        assert process.wait(60) != 0
        _, left = psutil.wait_procs(started, timeout=30)
        assert not left
        assert not list(out.glob("*"))
        if how != "SIGKILL":  # which leaves nobody to tidy up
            assert not list(temporary.iterdir())
    finally:
        process.kill()


def test_the_demo_names_the_models_that_a_running_server_lacks(client, tmp_path):
    result = demo_result("--comfyui", client.url, "--out", tmp_path)
    assert result.returncode != 0
    assert "flux1-schnell.safetensors" in result.stderr and "Traceback" not in result.stderr


def test_the_demo_says_that_no_server_answers(tmp_path):
    result = demo_result("--comfyui", "http://127.0.0.1:9", "--out", tmp_path)
    assert result.returncode != 0
    assert "http://127.0.0.1:9 does not answer" in result.stderr and "Traceback" not in result.stderr

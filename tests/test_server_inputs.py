"""Whatever is sent to the real server over HTTP is answered soon, and in words that are short."""

import json
import re
import sys
import time
import urllib.error
from pathlib import Path

import pytest
from support.distilling import CAN_DISTILL
from support.scorers import write_clip

sys.path.insert(1, str(Path(__file__).parent.parent))  # after the host's own folder, whose modules go first

from tools.host import ensure_host
from tools.pinned import cache_folder
from tools.server import Client, PromptError, running_server
from tools.small_models import DIFFUSION_MODEL, PROJECTION, TEXT_BLIND, TEXT_ENCODER, write_small_models

LINKED = {
    "model": {"class_type": "UNETLoader", "inputs": {"unet_name": DIFFUSION_MODEL, "weight_dtype": "default"}},
    "clip": {"class_type": "CLIPLoader", "inputs": {"clip_name": TEXT_ENCODER, "type": "stable_diffusion"}},
    "prompt": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": "a red circle"}},
    "direction": {"class_type": "EncodeGuidanceDirection", "inputs": {"clip": ["clip", 0], "positive": "a", "negative": "b"}},
    "schedule": {"class_type": "GuidanceLayerScheduleText", "inputs": {"layers": "0-3: 1", "final_layer": 0.0}},
    "text_blind": {"class_type": "UNETLoader", "inputs": {"unet_name": TEXT_BLIND, "weight_dtype": "default"}},
    "projection": {"class_type": "LoadPooledProjection", "inputs": {"projection_name": PROJECTION}},
    "scorer": {"class_type": "LoadPictureScorer", "inputs": {"scorer_name": "clip"}},
    "image": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
}
SETTINGS = {"start_percent": 0.0, "end_percent": 1.0, "cfg_rows": "auto", "keep_norm": False}
GUIDED = {"model": ["model", 0], "direction": ["direction", 0], **SETTINGS}
RIGHT = {  # inputs that a node takes
    "ApplyModulationGuidance": {**GUIDED, "w": 3.0},
    "SweepModulationGuidance": {**GUIDED, "w_values": "0, 3", "start_layers": "0"},
    "InspectGuidance": {"model": ["model", 0], "directions.direction0": ["direction", 0], "labels": "", "w": 3.0},
    "CombineGuidanceDirections": {"directions.direction0": ["direction", 0], "weights": ""},
    "EncodeGuidanceDirection": {"clip": ["clip", 0], "positive": "a", "negative": "b"},
    "GuidanceDirectionFromConditioning": {"positive": ["prompt", 0], "negative": ["prompt", 0]},
    "GuidanceLayerSchedule": {"start_layer": 5, "end_layer": -1, "taper_layers": 0, "taper_scale": 0.25, "final_layer": 0.0},
    "GuidanceLayerScheduleText": {"layers": "0-3: 1", "final_layer": 0.0},
    "GuidanceLayerScheduleCurve": {"curve": {"points": [[0, 1]], "interpolation": "linear"}, "final_layer": 0.0},
    "GuidancePreset": {"preset": "hands", "subject": ""},
    "LoadPooledProjection": {"projection_name": PROJECTION},
    "ModulationGuidance": {
        "model": ["model", 0],
        "clip": ["clip", 0],
        "preset": "custom",
        "strength": 1.0,
        "subject": "",
        "positive": "a",
        "negative": "b",
    },
    "ScaleTextVariance": {"model": ["model", 0], "scale": 1.5, "start_percent": 0.0, "end_percent": 1.0},
    "GuidanceGrid": {"images": ["image", 0], "labels": "a"},
    "LoadPictureScorer": {"scorer_name": "clip"},
    "ScorePictures": {"images": ["image", 0], "labels": "plain", "prompt": "a red circle", "scorer": ["scorer", 0]},
    "ChooseGuidance": {"images": ["image", 0], "labels": "plain", "wanted": 1.0, "kept": 1.0, "tolerance": 0.02},
    "SavePooledProjection": {"projection": ["projection", 0], "filename_prefix": "projection"},
    "SaveGuidanceDirection": {"direction": ["direction", 0], "filename_prefix": "direction"},
    "DistillPooledProjection": {
        "model": ["text_blind", 0],
        "clip": ["clip", 0],
        "prompts": "a",
        "steps": 0,
        "batch_size": 1,
        "learning_rate": 2e-5,
        "width": 80,
        "height": 80,
        "seed": 0,
        "pooling": "clip",
        "injection": "time embedding",
    },
    "DistillGuidanceDirection": {
        "model": ["text_blind", 0],
        "clip": ["clip", 0],
        "prompts": "a",
        "positive": "b",
        "negative": "",
        "steps": 0,
        "batch_size": 1,
        "learning_rate": 5e-3,
        "width": 80,
        "height": 80,
        "seed": 0,
    },
}


def prompt(class_type, **inputs):
    """One of our nodes with these inputs, and its first output shown."""
    tried = {"class_type": class_type, "inputs": RIGHT.get(class_type, {}) | inputs}
    shown = {"class_type": "PreviewAny", "inputs": {"source": ["tried", 0]}}
    return LINKED | {"tried": tried} | ({} if class_type.startswith("Save") else {"shown": shown})


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A server whose user has a file of presets that cannot be read."""
    models, user = cache_folder() / "small-world", tmp_path_factory.mktemp("user")
    write_small_models(models)
    presets = {"mine": {"positive": "a", "negative": "b", "w": 10**400, "start_layer": 0}}
    (user / "modulation_guidance_presets.json").write_text(json.dumps(presets), encoding="utf-8")
    scorers = tmp_path_factory.mktemp("models")
    write_clip(scorers / "picture_scorers" / "clip")
    with running_server(ensure_host(), [models, scorers], ["--user-directory", user]) as url:
        yield Client(url)


def test_the_pack_loads_with_its_own_presets_and_the_log_says_so(client):
    assert client.choices("GuidancePreset", "preset")[0] == "complexity"
    log = "".join(entry["m"] for entry in client.get("/internal/logs/raw")["entries"])
    assert "modulation_guidance_presets.json has w 1000" in log and "there are the pack's own presets, without yours" in log


def skip_where_none_distils(class_type):
    if class_type.startswith("Distill") and not CAN_DISTILL:
        pytest.skip("distilling needs ComfyUI 0.24.0")


@pytest.mark.parametrize("class_type", [class_type for class_type in RIGHT if class_type != "GuidancePreset"])  # which says what is wrong
def test_right_inputs_run(client, class_type):
    skip_where_none_distils(class_type)
    client.run(prompt(class_type))


@pytest.mark.parametrize(
    "class_type, inputs, words",
    [
        ("ApplyModulationGuidance", {"start_percent": "x"}, "Failed to convert an input value to a FLOAT value: start_percent, x"),
        ("SweepModulationGuidance", {"end_percent": {}}, "Failed to convert an input value to a FLOAT value: end_percent"),
        ("ScaleTextVariance", {"start_percent": "x"}, "Failed to convert an input value to a FLOAT value: start_percent, x"),
        ("GuidanceLayerSchedule", {"start_layer": "x"}, "Failed to convert an input value to a INT value: start_layer, x"),
        ("GuidanceLayerScheduleText", {"layers": [1, 2, 3]}, "Bad linked input.*layers"),
        ("SweepModulationGuidance", {"w_values": [1, 2, 3]}, "Bad linked input.*w_values"),
        ("CombineGuidanceDirections", {"weights": [1, 2, 3]}, "Bad linked input.*weights"),
        ("InspectGuidance", {"labels": [1, 2, 3]}, "Bad linked input.*labels"),
        ("GuidancePreset", {"subject": [1, 2, 3]}, "Bad linked input.*subject"),
        ("GuidancePreset", {"preset": [1, 2, 3]}, "Bad linked input.*preset"),
    ],
)
def test_what_the_host_says_of_wrong_types_is_left_to_it(client, class_type, inputs, words):
    with pytest.raises(PromptError, match=words) as refused:
        client.queue(prompt(class_type, **inputs))
    assert "Exception when validating" not in str(refused.value)


@pytest.mark.parametrize(
    "class_type, inputs, words",
    [
        ("ApplyModulationGuidance", {"start_percent": -0.5}, "smaller than min"),
        ("ApplyModulationGuidance", {"cfg_rows": "uncond"}, "not in list"),
        ("SweepModulationGuidance", {"w_values": "0, x"}, "'x' in w_values is not a number"),
        ("SweepModulationGuidance", {"w_values": "99"}, "w_values holds 99; w goes from -50 to 50"),
        ("SweepModulationGuidance", {"end_percent": 2.0}, "bigger than max"),
        ("ModulationGuidance", {"strength": 11.0}, "bigger than max"),
        ("ModulationGuidance", {"preset": "hands"}, "presets.json has w 1000"),
        ("GuidancePreset", {"preset": "hands"}, "presets.json has w 1000"),
        ("ScaleTextVariance", {"end_percent": 1.5}, "bigger than max"),
        ("CombineGuidanceDirections", {"weights": "x"}, "the weight 'x' is not a number"),
        ("InspectGuidance", {"labels": "a, b"}, "2 labels .* for 1 directions"),
        ("GuidanceLayerSchedule", {"start_layer": 2000}, "start_layer is 2000"),
        ("GuidanceLayerSchedule", {"end_layer": 2000}, "bigger than max"),
        ("GuidanceLayerScheduleText", {"layers": "5-x: 1"}, "'5-x: 1'"),
        ("DistillPooledProjection", {"prompts_file": "none.txt"}, "prompts_file 'none.txt' is not in ComfyUI's input folder"),
        ("DistillGuidanceDirection", {"prompts_file": "none.txt"}, "prompts_file 'none.txt' is not in ComfyUI's input folder"),
        ("LoadPooledProjection", {"projection_name": "none.pt"}, "there is no file 'none.pt'"),
        ("LoadGuidanceDirection", {"direction_name": "none.safetensors"}, "there is no file 'none.safetensors'"),
        ("SavePooledProjection", {"filename_prefix": "../mine"}, "leads out"),
        ("SaveGuidanceDirection", {"filename_prefix": "../mine"}, "leads out"),
        ("LoadPictureScorer", {"scorer_name": "none"}, "none"),
        ("ChooseGuidance", {"tolerance": 2.0}, "bigger than max"),
    ],
)
def test_one_wrong_input_is_one_error_at_that_input(client, class_type, inputs, words):
    with pytest.raises(urllib.error.HTTPError) as refused:
        client.post("/prompt", {"prompt": prompt(class_type, **inputs)})
    (error,) = json.loads(refused.value.read())["node_errors"]["tried"]["errors"]
    assert error["extra_info"]["input_name"] == next(iter(inputs))
    assert re.search(words, f"{error['message']} {error['details']}")


@pytest.mark.parametrize(
    "class_type, inputs, words",
    [
        ("ApplyModulationGuidance", {"start_percent": 0.8, "end_percent": 0.2}, "start_percent 0.8 is past end_percent 0.2"),
        ("SweepModulationGuidance", {"start_percent": 0.8, "end_percent": 0.2}, "start_percent 0.8 is past end_percent 0.2"),
        ("SweepModulationGuidance", {"start_layers": "0, x"}, "'x' in start_layers is not a whole number"),
        ("ScaleTextVariance", {"start_percent": 0.8, "end_percent": 0.2}, "start_percent 0.8 is past end_percent 0.2"),
        ("ModulationGuidance", {"positive": ""}, "custom needs both positive and negative, and positive is empty"),
        ("GuidanceLayerSchedule", {"start_layer": 9, "end_layer": 4}, "start_layer 9 is past end_layer 4"),
        ("DistillPooledProjection", {"prompts": " "}, "prompts is empty"),
        ("DistillGuidanceDirection", {"prompts": " "}, "prompts is empty"),
        ("DistillGuidanceDirection", {"positive": ""}, "nothing to learn"),
    ],
)
def test_inputs_that_do_not_go_together_are_told_before_anything_is_loaded(client, class_type, inputs, words):
    client.forget()
    ran = set()
    with pytest.raises(PromptError, match=words):
        client.run(prompt(class_type, **inputs), lambda progress: ran.add(progress.node))
    assert ran == {"tried"}


@pytest.mark.parametrize("value", ["a text", 5, None, True, {"a": 1}, {"__value__": [[1, {}]]}], ids=repr)
@pytest.mark.parametrize(
    "class_type, name",
    [
        ("ApplyModulationGuidance", "model"),
        ("ApplyModulationGuidance", "direction"),
        ("ApplyModulationGuidance", "schedule"),
        ("ApplyModulationGuidance", "projection"),
        ("ApplyModulationGuidance", "base_positive"),
        ("ApplyModulationGuidance", "base_negative"),
        ("SweepModulationGuidance", "model"),
        ("SweepModulationGuidance", "direction"),
        ("SweepModulationGuidance", "schedule"),
        ("InspectGuidance", "model"),
        ("InspectGuidance", "directions.direction0"),
        ("InspectGuidance", "projection"),
        ("CombineGuidanceDirections", "directions.direction0"),
        ("EncodeGuidanceDirection", "clip"),
        ("GuidanceDirectionFromConditioning", "positive"),
        ("GuidanceDirectionFromConditioning", "negative"),
        ("ScaleTextVariance", "model"),
        ("ScaleTextVariance", "schedule"),
        ("ScaleTextVariance", "clip"),
        ("GuidanceLayerScheduleCurve", "curve"),
        ("GuidanceGrid", "images"),
        ("SavePooledProjection", "projection"),
        ("ScorePictures", "images"),
        ("ScorePictures", "scorer"),
        ("ChooseGuidance", "images"),
        ("SaveGuidanceDirection", "direction"),
        ("DistillPooledProjection", "model"),
        ("DistillPooledProjection", "clip"),
        ("DistillPooledProjection", "pooled_clip"),
        ("DistillPooledProjection", "projection"),
        ("DistillGuidanceDirection", "model"),
        ("DistillGuidanceDirection", "clip"),
        ("DistillGuidanceDirection", "direction"),
    ],
)
def test_a_constant_in_the_place_of_a_link_is_named(client, class_type, name, value):
    skip_where_none_distils(class_type)
    optional = name in ("schedule", "projection", "base_positive", "base_negative", "pooled_clip") and class_type != "SavePooledProjection"
    optional |= (class_type, name) in (("ScaleTextVariance", "clip"), ("DistillGuidanceDirection", "direction"))
    if value is None and optional:
        client.run(prompt(class_type, **{name: value}))
        return
    with pytest.raises(PromptError, match=rf"(?s)^{class_type} .*: .*\b({name.split('.')[-1]}|image 1)\b.* (Connect|Draw|load it)"):
        client.run(prompt(class_type, **{name: value}))


LONG = "x" * 10_000_000


@pytest.mark.parametrize(
    "class_type, inputs",
    [
        ("GuidanceLayerScheduleText", {"layers": LONG}),
        ("GuidanceLayerScheduleText", {"layers": "9" * 90_000 + ": 1"}),
        ("GuidanceLayerScheduleText", {"layers": "1" + " " * 90_000}),
        ("GuidanceLayerScheduleText", {"layers": ", ".join(f"{layer}: 1" for layer in range(24_000))}),
        ("GuidanceLayerScheduleText", {"layers": ", ".join(f"{layer}: 1" for layer in range(9_000))}),
        ("GuidanceLayerSchedule", {"start_layer": 10**4000}),
        ("CombineGuidanceDirections", {"weights": LONG}),
        ("CombineGuidanceDirections", {"weights": "1, " * 3_000_000}),
        ("InspectGuidance", {"labels": "x, " * 3_000_000}),
        ("SweepModulationGuidance", {"w_values": LONG}),
        ("SweepModulationGuidance", {"w_values": ", ".join(map(str, range(1_000_000)))}),
        ("SweepModulationGuidance", {"w_values": "1" + " " * 1_000_000 + "x"}),
        ("GuidancePreset", {"preset": LONG}),
        ("LoadPictureScorer", {"scorer_name": LONG}),
        ("GuidancePreset", {"preset": {"a": LONG}}),
        ("DistillPooledProjection", {"prompts_file": LONG}),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(value),
)
def test_what_is_far_too_long_is_refused_soon_and_shortly(client, class_type, inputs):
    started = time.perf_counter()
    with pytest.raises(urllib.error.HTTPError) as refused:
        client.post("/prompt", {"prompt": prompt(class_type, **inputs)})
    answer = refused.value.read()
    assert time.perf_counter() - started < 10
    assert len(answer) < 20_000, "no input is sent back"
    errors = json.loads(answer)["node_errors"]["tried"]["errors"]
    assert all(error["type"] == "custom_validation_failed" and len(error["details"]) < 1000 for error in errors)


@pytest.mark.parametrize(
    "inputs",
    [
        {"start_layers": LONG},
        {"start_layers": "1" + "0" * 400},
        {"start_layers": "1" + "0" * 4000},
        {"w_values": ", ".join(str(w / 20) for w in range(900)), "start_layers": ", ".join(map(str, range(900)))},
    ],
    ids=lambda inputs: ", ".join(inputs),
)
def test_a_sweep_far_too_long_is_refused_shortly(client, inputs):
    with pytest.raises(PromptError) as refused:
        client.run(prompt("SweepModulationGuidance", **inputs))
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    "class_type, name",
    [
        ("ApplyModulationGuidance", "model"),
        ("GuidanceDirectionFromConditioning", "positive"),
        ("GuidanceLayerScheduleCurve", "curve"),
        ("GuidanceGrid", "images"),
    ],
)
def test_a_long_constant_in_the_place_of_a_link_is_cut(client, class_type, name):
    with pytest.raises(PromptError) as refused:
        client.run(prompt(class_type, **{name: LONG}))
    assert "xxx" in str(refused.value) and len(str(refused.value)) < 1000


@pytest.mark.parametrize("class_type", ["ApplyModulationGuidance", "SweepModulationGuidance", "InspectGuidance"])
@pytest.mark.parametrize("weight", ["1e30", "-1e300"])
def test_directions_so_large_that_the_picture_would_be_nan_are_refused(client, class_type, weight):
    graph = prompt(class_type)
    graph["combined"] = {
        "class_type": "CombineGuidanceDirections",
        "inputs": {"directions.direction0": ["direction", 0], "weights": weight},
    }
    graph["tried"]["inputs"]["directions.direction0" if class_type == "InspectGuidance" else "direction"] = ["combined", 0]
    with pytest.raises(PromptError, match=f"{class_type} .*w 3 times.*numbers overflow and the image becomes NaN. Lower w or the weights"):
        client.run(graph)


@pytest.mark.parametrize("class_type", ["ApplyModulationGuidance", "InspectGuidance", "ScaleTextVariance"])
@pytest.mark.parametrize(
    "weight, words",
    [
        (1e30, "Layer schedule: the curve at layer .* must be a finite number from -100 to 100"),
        (float("nan"), "is no curve"),
        (float("inf"), "is no curve"),
    ],
    ids=str,
)
def test_curves_so_large_that_the_picture_would_be_nan_are_refused(client, class_type, weight, words):
    graph = prompt(class_type, schedule=["curve", 0])
    points = {"points": [[0, 1], [1, weight]], "interpolation": "linear"}
    graph["curve"] = {"class_type": "GuidanceLayerScheduleCurve", "inputs": {"curve": points, "final_layer": 0.0}}
    with pytest.raises(PromptError, match=words):
        client.run(graph)

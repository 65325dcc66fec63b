"""Sweep, score, choose and the large image with what was chosen, in one run on the real server."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.checkpoints import write_server_nodes
from support.scorers import head, write_clip

CHECKOUT = Path(__file__).parent.parent
sys.path.insert(1, str(CHECKOUT))  # after the host's own folder, whose modules go first

from benchmarks.soak_prompts import encoded, graph, guidance, node
from tools.host import ensure_host
from tools.pinned import cache_folder
from tools.server import Client, PromptError, running_server
from tools.small_models import write_small_models

PROMPT, WORDS = "two red circles", "Extremely complex, the highest quality"
SEED = 3


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    models, folder = cache_folder() / "small-world", tmp_path_factory.mktemp("server")
    write_small_models(models)
    scorers = folder / "models" / "picture_scorers"
    write_clip(scorers / "clip")
    torch.save(head(), scorers / "head.pth")
    write_server_nodes(folder / "nodes.yaml")
    with running_server(ensure_host(), [models, folder / "models"], ["--extra-model-paths-config", folder / "nodes.yaml"]) as url:
        yield Client(url)


def swept(w_values="0, 3, 6", start_layers="0, 4", wanted=None, tolerance=1.0, batch_size=1):
    """Small images by a sweep, both scores, the choice, and a larger image with it."""
    prompt = graph(guidance("SweepModulationGuidance", w_values=w_values, start_layers=start_layers), SEED, PROMPT)
    prompt["latent"]["inputs"]["batch_size"] = batch_size
    images, labels = ["decode", 0], ["patched", 1]
    return prompt | {
        "direction": encoded(),
        "scorer": node("LoadPictureScorer", scorer_name="clip"),
        "beauty": wanted or node("LoadPictureScorer", scorer_name="head.pth"),
        "wanted": node("ScorePictures", images=images, labels=labels, prompt=WORDS, scorer=["beauty", 0]),
        "kept": node("ScorePictures", images=images, labels=labels, prompt=PROMPT, scorer=["scorer", 0]),
        "choose": node("ChooseGuidance", images=images, labels=labels, wanted=["wanted", 0], kept=["kept", 0], tolerance=tolerance),
        "chosen": node("SaveImage", images=["choose", 0], filename_prefix="chosen"),
        "diagram": node("SaveImage", images=["choose", 4], filename_prefix="diagram"),
        **{name: node("PreviewAny", source=["choose", slot]) for name, slot in (("label", 1), ("w", 2), ("start", 3))},
        "report": node("PreviewAny", source=["wanted", 1]),
        **large(["choose", 2], ["choose", 3]),
    }


def large(w, start_layer):
    schedule = {"start_layer": start_layer, "end_layer": -1, "taper_layers": 0, "taper_scale": 0.25, "final_layer": 0.0}
    return {
        "schedule": node("GuidanceLayerSchedule", **schedule),
        "applied": guidance(w=w, schedule=["schedule", 0]),
        "large latent": node("EmptySD3LatentImage", width=128, height=128, batch_size=1),
        "large sample": node(
            "KSampler",
            seed=SEED,
            steps=2,
            cfg=3.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
            model=["applied", 0],
            positive=["prompt", 0],
            negative=["empty", 0],
            latent_image=["large latent", 0],
        ),
        "large decode": node("VAEDecode", samples=["large sample", 0], vae=["vae", 0]),
        "large": node("SaveImage", images=["large decode", 0], filename_prefix="large"),
    }


def run(client, prompt):
    """({node: [pictures (H, W, 3)]}, {node: text}, [(title, value)] of what was reported)"""
    seen = []
    client.post("/history", {"clear": True})
    files = client.run(prompt, lambda progress: seen.append((progress.title, progress.value)))
    *_, entry = client.get("/history").values()  # before it may stand that of a test that went on when its error was told
    texts = {name: output["text"][0] for name, output in entry["outputs"].items() if "text" in output}
    pictures = {name: [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in its] for name, its in files.items()}
    return pictures, texts, seen


def test_the_choice_goes_into_the_large_image_in_the_same_run(client):
    pictures, texts, seen = run(client, swept())
    scores = {line.split(" | ")[0].strip("| "): float(line.split(" | ")[1]) for line in texts["report"].splitlines()[2:]}
    assert list(scores) == ["plain", "w 3, start 0", "w 3, start 4", "w 6, start 0", "w 6, start 4"]
    assert texts["label"] == max(scores, key=scores.get), "all may lose as much as there is"
    swept_pictures = dict(zip(scores, pictures["save"], strict=True))
    assert np.array_equal(pictures["chosen"][0], swept_pictures[texts["label"]])
    w, start = float(texts["w"]), int(texts["start"])
    assert texts["label"] == ("plain" if w == 0 else f"w {w:g}, start {start}")
    (drawn,) = pictures["diagram"]
    assert drawn.shape[1] == 1280
    assert ("ScorePictures", 5) in seen, "progress is reported"
    again = {name: each for name, each in swept().items() if name in ("model", "clip", "vae", "prompt", "empty", "direction")} | large(
        w, start
    )
    assert np.array_equal(run(client, again)[0]["large"][0], pictures["large"][0])


def test_the_plain_image_is_chosen_where_nothing_may_be_lost_and_all_lose(client):
    pictures, texts, _ = run(
        client, swept(wanted=node("LoadPictureScorer", scorer_name="clip"), tolerance=0.0, w_values="0", start_layers="0")
    )
    assert (texts["label"], float(texts["w"]), int(texts["start"])) == ("plain", 0.0, 0)
    plain = graph(guidance(w=0.0), SEED, PROMPT) | {"direction": encoded()}
    assert np.array_equal(run(client, plain)[0]["save"][0], pictures["chosen"][0])


def test_seeds_as_a_batch_and_another_packs_scorer(client):
    pictures, texts, _ = run(client, swept(wanted=node("BrightnessScorer"), batch_size=3, w_values="0, 6", start_layers="0, 4"))
    lines = texts["report"].splitlines()[2:]
    assert len(lines) == 3 and all(line.endswith("| 3 |") for line in lines)
    bright = {line.split(" | ")[0].strip("| "): float(line.split(" | ")[1]) for line in lines}
    assert texts["label"] == max(bright, key=bright.get) and len(pictures["chosen"]) == 3
    means = [np.mean([picture / 255 for picture in pictures["save"][i * 3 : i * 3 + 3]]) for i in range(3)]
    assert np.allclose(means, list(bright.values()), atol=0.005)


def test_the_template_runs_with_the_users_scorer(client):
    prompt = json.loads((CHECKOUT / "workflows" / "api" / "sweep_score_choose.json").read_text(encoding="utf-8"))
    for each in prompt.values():
        if each["class_type"] == "LoadPictureScorer":
            each["inputs"]["scorer_name"] = "clip"
        if each["class_type"] == "KSampler":
            each["inputs"]["steps"] = 2
        if each["class_type"] == "SweepModulationGuidance":
            each["inputs"]["w_values"] = "0, 4"
    pictures, _, _ = run(client, prompt)
    by_title = {prompt[name]["_meta"]["title"]: its for name, its in pictures.items()}
    assert by_title["All settings, and why"][0].shape[1] == 1280
    assert [picture.shape for picture in by_title["With the chosen setting"]] == [(80, 80, 3)]


def test_two_rounds_in_one_graph(client):
    """As docs/scorers.md wires them: the start layer of the first round's choice, as text, goes into the second sweep."""
    prompt = swept(w_values="0, 4", start_layers="0, 2, 4")
    prompt["start_text"] = node("PreviewAny", source=["choose", 3])
    prompt["sweep 2"] = guidance("SweepModulationGuidance", w_values="2, 6", start_layers=["start_text", 0])
    prompt["sample 2"] = node("KSampler", **prompt["sample"]["inputs"] | {"model": ["sweep 2", 0]})
    prompt["decode 2"] = node("VAEDecode", samples=["sample 2", 0], vae=["vae", 0])
    for name, first, second in (("images", "decode", "decode 2"), ("labels", "patched", "sweep 2")):
        slot = int(name == "labels")
        prompt[name] = {"class_type": "CreateList", "inputs": {"inputs.input0": [first, slot], "inputs.input1": [second, slot]}}
    both = {"images": ["images", 0], "labels": ["labels", 0]}
    prompt["all wanted"] = node("ScorePictures", **both, prompt=WORDS, scorer=["beauty", 0])
    prompt["all kept"] = node("ScorePictures", **both, prompt=PROMPT, scorer=["scorer", 0])
    prompt["choose 2"] = node("ChooseGuidance", **both, wanted=["all wanted", 0], kept=["all kept", 0], tolerance=1.0)
    prompt |= {"final": node("PreviewAny", source=["choose 2", 1]), "all report": node("PreviewAny", source=["all wanted", 1])}
    _, texts, _ = run(client, prompt)
    scores = {line.split(" | ")[0].strip("| "): float(line.split(" | ")[1]) for line in texts["all report"].splitlines()[2:]}
    start = texts["start_text"]
    first = ["plain", *(f"w 4, start {layer}" for layer in (0, 2, 4))]
    assert list(scores) == [*first, f"w 2, start {start}", f"w 6, start {start}"], "both rounds, nothing drawn twice"
    assert texts["label"] == max(first, key=scores.get) and texts["final"] == max(scores, key=scores.get)


def test_a_scorer_that_is_not_there_is_refused_with_what_to_put_where(client):
    prompt = swept()
    prompt["scorer"]["inputs"]["scorer_name"] = "clip-vit-large-patch14"
    with pytest.raises(
        PromptError, match="LoadPictureScorer .*there is no scorer 'clip-vit-large-patch14' in models/picture_scorers .*Put a folder there"
    ):
        client.queue(prompt)


def test_a_sweep_without_a_plain_image_says_so(client):
    with pytest.raises(PromptError, match="ChooseGuidance .*none of the images is plain.*Put 0 among the w_values"):
        client.run(swept(w_values="3, 6"))

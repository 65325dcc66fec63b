"""effect.py on a user's own models: pictures, a grid per prompt, and the scores of scorers the user has."""

import hashlib
import importlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from benchmarks.in_process import of_pack
from model_patches.text_files import read_text
from tools.files import write_whole
from tools.sheet import sheet

from .conditions import Condition
from .report import markdown
from .run import pause, read_strip, save_png, strip_key, write_strip
from .settings import Files
from .statistics import difference, mean
from .studio import Studio

GRID_WIDTH = 2400  # pixels; larger pictures are made smaller in a grid


def run(studio: Studio, files: Files, options) -> list[Path]:
    """Draws what is not there yet, and returns what was written for people to look at."""
    text = read_text(options.prompts_file, f"--prompts-file {options.prompts_file}")
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"{options.prompts_file} holds no prompt; write one on each line.")
    scorers = {name: scorer_of(name) for name in dict.fromkeys(options.scorer or ())}
    conditions = conditions_of(options)
    distinct = list(dict.fromkeys(conditions.values()))
    for condition in distinct:
        studio.guided(condition, prompts[0])  # a direction or layer that does not fit this model shows before anything is drawn
    options.out.mkdir(parents=True, exist_ok=True)
    drawn = {}
    jobs = [(i, seed, condition) for i in range(len(prompts)) for seed in range(options.seeds) for condition in distinct]
    for i, seed, condition in tqdm(jobs, unit="picture", desc="effect", mininterval=pause()):
        path = options.out / f"prompt{i + 1:02d}_seed{seed}_{file_name(condition)}.png"
        key = key_of(files, studio.settings, prompts[i], condition, seed)
        if strip_key(path) != key:
            write_strip(path, studio.pictures(prompts[i], condition, seed), key)
        drawn[i, seed, condition] = path
    written = [options.out]
    for i, prompt in enumerate(prompts):
        written.append(options.out / f"grid_prompt{i + 1:02d}.png")
        write_grid(written[-1], prompt, conditions, lambda condition: drawn[i, 0, condition], options)
    if scorers:
        written += write_scores(scorers, prompts, conditions, drawn, options)
    return written


def conditions_of(options) -> dict[tuple[float, int], Condition]:
    """(w, start layer) -> condition; w 0 is the same plain one for every start layer."""
    how = {"sides": (options.positive, options.negative)} if options.positive is not None else {"preset": options.preset or "complexity"}
    return {
        (w, start): Condition(w=w, start_layer=start, **how) if w else Condition()
        for w in dict.fromkeys([0.0, *options.w])
        for start in dict.fromkeys(options.start_layers)
    }


def file_name(condition: Condition) -> str:
    return f"w{condition.w:g}_start{condition.start_layer}" if condition.guided else "plain"


def key_of(files: Files, settings, prompt: str, condition: Condition, seed: int) -> str:
    """Hash of all that decides a picture; a model's file by its path, size and time, as it may be large."""
    paths = (files.diffusion_model, *files.text_encoders, files.vae)
    named = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime) for path in paths]
    content = json.dumps([named, files.clip_type, asdict(settings), prompt, asdict(condition), seed])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def write_grid(path: Path, prompt: str, conditions: dict, picture_of, options) -> None:
    """A row for each start layer, a column for each w."""
    weights = list(dict.fromkeys(w for w, _ in conditions))
    starts = list(dict.fromkeys(start for _, start in conditions))
    cells = [[Image.fromarray(read_strip(picture_of(conditions[w, start]), 1)[0]) for w in weights] for start in starts]
    columns = [f"w {w:g}" if w else "plain" for w in weights]
    rows = [f"start {start}" for start in starts]
    save_png(path, sheet(cells, columns, rows, [prompt], min(options.size, GRID_WIDTH // len(weights))))


def scorer_of(name: str):
    """A function of a picture (H, W, 3) in [0, 1] and its prompt: a picture scorer's at that path, or module:function, from what is
    installed or lies in the current folder."""
    if os.path.exists(name):
        scorer = of_pack("scoring.loading").load(name)
        return lambda picture, prompt: scorer.score(torch.from_numpy(picture).unsqueeze(0), prompt)[0]
    module, _, function = name.partition(":")
    sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"--scorer {name}: {error}. Give the path of a picture scorer (a folder of a CLIP model, a file of an aesthetic head), or "
            "module:function, of an installed module or one in this folder."
        ) from error


def write_scores(scorers: dict, prompts: list[str], conditions: dict, drawn: dict, options) -> list[Path]:
    """scores.json and table.md: the mean of each condition and its paired difference to plain, by each scorer; of two and more scorers
    choice.png: which setting has the most of the first at little lost of the second, as Choose Guidance decides."""
    distinct = list(dict.fromkeys(conditions.values()))
    scores = {
        name: {
            condition: np.array(
                [
                    [
                        float(scorer(read_strip(drawn[i, seed, condition], 1)[0].astype(np.float32) / 255, prompt))
                        for seed in range(options.seeds)
                    ]
                    for i, prompt in enumerate(prompts)
                ]
            )
            for condition in distinct
        }
        for name, scorer in scorers.items()
    }
    summary = {
        name: {
            condition.name: {
                "mean": asdict(mean(values)),
                "minus_plain": asdict(difference(values, its[Condition()])),
                "scores": values.tolist(),
            }
            for condition, values in its.items()
        }
        for name, its in scores.items()
    }
    rows = [
        [
            condition.name,
            *(
                "{mean:.4g} ({low:.4g} to {high:.4g})".format(**its[condition.name][each])
                for its in summary.values()
                for each in ("mean", "minus_plain")
            ),
        ]
        for condition in distinct
    ]
    title = f"{len(prompts)} prompts, {options.seeds} seeds; means with 95 % intervals, bootstrap over prompts.\n\n"
    head = ["condition", *(text for name in scores for text in (os.path.basename(name), "difference to plain"))]
    written = [options.out / "scores.json", options.out / "table.md"]
    write_whole(written[0], json.dumps({"prompts": prompts, "scorers": summary}, indent=1))
    write_whole(written[1], title + markdown(head, rows) + "\n")
    if len(scores) > 1:
        written.append(options.out / "choice.png")
        wanted, kept, *_ = scores.values()
        save_png(written[-1], choice_picture(conditions, wanted, kept))
    return written


def choice_picture(conditions: dict, wanted: dict, kept: dict) -> Image.Image:
    choice = of_pack("scoring.choice")
    settings = {}
    for (w, start), condition in conditions.items():
        settings.setdefault(condition, choice.Setting(f"w {w:g}, start {start}" if w else "plain", w, start, plain=not w))
    rows = [
        (setting, *scores)
        for condition, setting in settings.items()
        for scores in zip(wanted[condition].flat, kept[condition].flat, strict=True)
    ]
    return of_pack("nodes.choice_diagram").choice_picture(choice.choose(*zip(*rows, strict=True), choice.TOLERANCE), choice.TOLERANCE)

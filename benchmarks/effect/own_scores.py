"""effect.py on a user's own models: what scorers say of the pictures, in a table, a curve and a choice."""

import hashlib
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from benchmarks.in_process import of_pack
from tools.files import write_whole

from .conditions import PLAIN, Condition
from .report import markdown
from .run import Scores, digest, pause, read_strip, save_png, strip_key
from .statistics import difference, mean


@dataclass(frozen=True)
class Scorer:
    """score: of a picture (H, W, 3) in [0, 1] and its prompt. identity: changes with the files that it is read from."""

    score: Callable[[np.ndarray, str], float]
    identity: str


def scorer_of(name: str) -> Scorer:
    """A picture scorer at that path, or module:function, from what is installed or lies in the current folder."""
    if os.path.exists(name):
        loading = of_pack("scoring.loading")
        scorer = loading.load(name)
        return Scorer(lambda picture, prompt: scorer.score(torch.from_numpy(picture).unsqueeze(0), prompt)[0], repr(loading.state(name)))
    module, _, function = name.partition(":")
    sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"--scorer {name}: {error}. Give the path of a picture scorer (a folder of a CLIP model, a file of an aesthetic head), or "
            "module:function, of an installed module or one in this folder."
        ) from error
    return Scorer(found, f"{name} {digest(*filter(None, [_source(found)]))}")


def _source(function: Callable) -> Path | None:
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:  # built in, or an object
        return None
    return file and Path(file)


def write_scores(scorers: dict, prompts: list[str], lines: list, drawn: dict, options) -> list[Path]:
    """scores.json and table.md: the mean of each condition and its paired difference to plain, by each scorer. Of two and more scorers
    curve.png, what the first gains at what is lost of the second, and choice.png, the setting that Choose Guidance would take."""
    ways = {PLAIN: "plain"} | {each: line.way for line in lines for _, each in line.conditions if each.guided}
    scored = Scored(options.out, len(scorers) * len(drawn))
    scores = {
        name: {
            condition: np.array(
                [
                    [scored.of(scorer, drawn[i, seed, condition], prompt) for seed in range(options.seeds)]
                    for i, prompt in enumerate(prompts)
                ]
            )
            for condition in ways
        }
        for name, scorer in scorers.items()
    }
    scored.bar.close()
    summary = {
        name: {
            condition.name: {
                "guidance": ways[condition],
                "mean": asdict(mean(values)),
                "minus_plain": asdict(difference(values, its[PLAIN])),
                "scores": values.tolist(),
            }
            for condition, values in its.items()
        }
        for name, its in scores.items()
    }
    written = [options.out / "scores.json", options.out / "table.md"]
    write_whole(written[0], json.dumps({"prompts": prompts, "scorers": summary}, indent=1))
    write_whole(written[1], table(ways, summary, len(prompts), options.seeds))
    if len(scores) > 1:
        wanted, kept, *_ = scores.values()
        names = [os.path.basename(name) for name in list(scores)[:2]]
        written += [*write_curve(lines, wanted, kept, names, options.out / "curve.png"), options.out / "choice.png"]
        save_png(written[-1], choice_picture(list(ways), wanted, kept))
    return written


class Scored:
    """Scores pictures, and keeps what it has scored in scores.jsonl, by picture and scorer."""

    def __init__(self, folder: Path, total: int):
        self.known = Scores(folder / "scores.jsonl")
        self.bar = tqdm(total=total, unit="score", desc="scores", mininterval=pause())

    def of(self, scorer: Scorer, path: Path, prompt: str) -> float:
        key = hashlib.sha256(json.dumps([strip_key(path), prompt, scorer.identity]).encode()).hexdigest()[:32]
        if key not in self.known.records:
            self.known.add({"key": key, "score": float(scorer.score(read_strip(path, 1)[0].astype(np.float32) / 255, prompt))})
        self.bar.update()
        return self.known.records[key]["score"]


def table(ways: dict[Condition, str], summary: dict, prompts: int, seeds: int) -> str:
    rows = [
        [
            way,
            condition.name,
            *(
                "{mean:.4g} ({low:.4g} to {high:.4g})".format(**its[condition.name][each])
                for its in summary.values()
                for each in ("mean", "minus_plain")
            ),
        ]
        for condition, way in ways.items()
    ]
    title = (
        f"{prompts} prompts, {seeds} seeds; means with 95 % intervals, bootstrap over prompts; differences paired with the plain pictures."
    )
    head = ["guidance", "condition", *(text for name in summary for text in (os.path.basename(name), "difference to plain"))]
    return f"{title}\n\n{markdown(head, rows)}\n"


def write_curve(lines: list, wanted: dict, kept: dict, names: list[str], path: Path) -> list[Path]:
    """For each line, by growing w from plain: the change of what is wanted (upwards) against that of what is kept, bars for the 95 %
    intervals. What was written: nothing where matplotlib is not installed, which is said."""
    try:
        from .plots import pyplot
    except ImportError:
        print(f"{path.name} is not drawn, as matplotlib is not installed: pip install matplotlib, and run it again.", file=sys.stderr)
        return []
    figure, axes = pyplot.subplots(figsize=(9, 6))
    for line in lines:
        along = sorted(line.conditions, key=lambda each: each[0])
        x, y = ([difference(scores[each], scores[PLAIN]) for _, each in along] for scores in (kept, wanted))
        bars = [np.array([(e.mean - e.low, e.high - e.mean) for e in estimates]).T for estimates in (x, y)]
        style = {"constant": "-", "layer-wise": "--", "learned": "-."}[line.way]
        axes.errorbar(
            [e.mean for e in x],
            [e.mean for e in y],
            xerr=bars[0],
            yerr=bars[1],
            marker="o",
            linestyle=style,
            elinewidth=0.5,
            label=f"{line.way}: {line.name}",
        )
        axes.annotate(f"w {along[-1][0]:g}", (x[-1].mean, y[-1].mean), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.axvline(0, color="grey", linewidth=0.5)
    axes.set(xlabel=f"kept: {names[1]}, change from plain", ylabel=f"wanted: {names[0]}, change from plain")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return [path]


def choice_picture(conditions: list[Condition], wanted: dict, kept: dict) -> Image.Image:
    choice = of_pack("scoring.choice")
    settings = {each: choice.Setting(_label(each), each.w, _start(each), plain=not each.guided) for each in conditions}
    rows = [
        (setting, *scores)
        for condition, setting in settings.items()
        for scores in zip(wanted[condition].flat, kept[condition].flat, strict=True)
    ]
    return of_pack("nodes.choice_diagram").choice_picture(choice.choose(*zip(*rows, strict=True), choice.TOLERANCE), choice.TOLERANCE)


def _label(condition: Condition) -> str:
    """As a sweep has it, and what else there is."""
    if not condition.guided:
        return "plain"
    layers = condition.schedule or f"start {condition.start_layer}"
    return f"w {condition.w:g}, {layers}" + (f", {condition.learned}" if condition.learned else "")


def _start(condition: Condition) -> int:
    """The first guided layer."""
    if not condition.schedule:
        return condition.start_layer
    ranges = of_pack("model_patches.schedules").parse_ranges(condition.schedule)
    return min((first for first, _, weight in ranges if weight), default=0)

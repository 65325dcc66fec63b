"""effect.py's pictures: adherence against detail, detail by w, one prompt in all settings of w and start layer, and several in a few."""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from tools.sheet import sheet

from .conditions import IN_WORDS, NORM_KEPT_WEIGHTS, PLAIN, SHARPNESS, START_LAYERS, WEIGHTS, Condition, complexity
from .results import Results
from .run import Job, read_strip, save_png

matplotlib.use("Agg")
from matplotlib import pyplot

GRID_WIDTH = 160  # pixels at which grid.png shows a picture
GALLERY_WIDTH = 120
GALLERY_PROMPTS = 8
GALLERY = {
    "plain": PLAIN,
    "complexity\nw 3\nstart 2": complexity(3.0, 2),
    "complexity\nw 6\nstart 2": complexity(6.0, 2),
    "complexity\nw 6\nstart 0": complexity(6.0),
    "aesthetics\nw 3\nstart 0": Condition(preset="aesthetics", w=3.0),
    "sharpness\nw 3\nstart 0": Condition(sides=SHARPNESS, w=3.0),
    '"highly\ndetailed"\nin the prompt': IN_WORDS,
}


def pareto(results: Results, path: Path) -> None:
    """Adherence against detail as differences to plain, a line for each start layer, points labelled with w; bars are 95 % intervals."""
    figure, axes = pyplot.subplots(figsize=(9, 6))
    for start in START_LAYERS:
        with_line(axes, results, [complexity(w, start) for w in WEIGHTS], _start(start), labelled=3)
    along = ", ".join(f"{w:g}" for w in WEIGHTS)
    write_figure(figure, axes, results, f"Complexity direction: what detail costs in adherence (w {along} along each line)", path)


def with_line(axes, results: Results, conditions: list[Condition], label: str, labelled: int = 0, origin: bool = True, **style) -> None:
    """A line through the conditions, by growing w; the last `labelled` of them with their w. origin: whether it begins at plain."""
    detail, exact = ([results.gain("general", each, score) for each in conditions] for score in ("detail", "exact"))
    begin = [0] * origin
    (line,) = axes.plot([*begin, *(e.mean for e in detail)], [*begin, *(e.mean for e in exact)], marker="o", label=label, **style)
    axes.errorbar(
        [e.mean for e in detail],
        [e.mean for e in exact],
        xerr=_bars(detail),
        yerr=_bars(exact),
        fmt="none",
        ecolor=line.get_color(),
        elinewidth=0.7,
        alpha=0.5,
    )
    for condition, x, y in list(zip(conditions, detail, exact))[len(conditions) - labelled :]:
        axes.annotate(f"w {condition.w:g}", (x.mean, y.mean), xytext=(4, 4), textcoords="offset points", color=line.get_color(), fontsize=8)


def write_figure(figure, axes, results: Results, title: str, path: Path) -> None:
    """Adherence against detail, its lines drawn, as differences to plain."""
    plain = [results.mean("general", PLAIN, score).mean for score in ("detail", "exact")]
    axes.plot(0, 0, "ks", markersize=9, zorder=5, label="plain")
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.axvline(0, color="grey", linewidth=0.5)
    axes.set(
        xlabel=f"detail (texture contrast in the objects), points above plain's {plain[0]:.1f} %",
        ylabel=f"adherence (pictures exactly as asked), points above plain's {plain[1]:.0f} %",
        title=title,
    )
    axes.legend()
    _save(figure, path)


def detail_by_w(results: Results, path: Path) -> None:
    """Difference in detail to plain by w, a line for each start layer and one for the kept norm; bands are 95 % intervals."""
    figure, axes = pyplot.subplots(figsize=(9, 5))
    lines = {_start(start): [(w, complexity(w, start)) for w in (0.0, *WEIGHTS)] for start in START_LAYERS}
    lines[_start(0)] = [(-2.0, complexity(-2.0)), *lines[_start(0)]]
    lines["start 0, norm kept"] = [(w, complexity(w, keep_norm=True)) for w in (0.0, *NORM_KEPT_WEIGHTS)]
    for name, points in lines.items():
        weights = [w for w, _ in points]
        gains = [results.gain("general", condition if w else PLAIN, "detail") for w, condition in points]
        (line,) = axes.plot(weights, [e.mean for e in gains], "--" if "norm" in name else "-", marker="o", label=name)
        axes.fill_between(weights, [e.low for e in gains], [e.high for e in gains], color=line.get_color(), alpha=0.12)
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.set(
        xlabel="w",
        ylabel=f"detail, points above plain's {results.mean('general', PLAIN, 'detail').mean:.1f} %",
        title="Complexity direction: detail by w",
    )
    axes.legend()
    _save(figure, path)


def grid(jobs: list[Job], results: Results, seeds: int, folder: Path, path: Path) -> None:
    """A picture of typical effect (Results.typical) in all settings: a row for each start layer, a column for each w."""
    prompt, seed = results.typical()
    shown = {job.condition: job for job in jobs if job.set_name == "general" and job.index == prompt}
    cells = [
        [Image.fromarray(read_strip(folder / shown[complexity(w, start) if w else PLAIN].strip, seeds)[seed]) for w in (0.0, *WEIGHTS)]
        for start in START_LAYERS
    ]
    columns = ["plain", *(f"w {w:g}" for w in WEIGHTS)]
    title = f'"{shown[PLAIN].prompt.text}", complexity direction; a picture of average effect'
    save_png(path, sheet(cells, columns, [f"start {start}" for start in START_LAYERS], [title], GRID_WIDTH), optimize=True)


def gallery(jobs: list[Job], rows: dict[str, Condition], seeds: int, folder: Path, path: Path, prompts: int = GALLERY_PROMPTS) -> None:
    """The first prompts as they come, each with its first seed: a column for each, a row for each way to guide it, by its name there."""
    shown = {(job.index, job.condition): job for job in jobs if job.set_name == "general" and job.index < prompts}
    numbers = sorted({index for index, _ in shown})
    cells = [
        [Image.fromarray(read_strip(folder / shown[index, condition].strip, seeds)[0]) for index in numbers] for condition in rows.values()
    ]
    title = "The first prompts and seeds of the measurement, none left out"
    save_png(path, sheet(cells, [shown[index, PLAIN].prompt.text for index in numbers], list(rows), [title], GALLERY_WIDTH), optimize=True)


def _start(layer: int) -> str:
    return f"start {layer}" if layer else "start 0 (constant)"


def _bars(estimates) -> np.ndarray:
    """(2, N): how far the intervals reach below and above the means."""
    return np.array([[e.mean - e.low for e in estimates], [e.high - e.mean for e in estimates]]).clip(0)


def _save(figure, path: Path) -> None:
    figure.tight_layout()
    figure.canvas.draw()
    save_png(path, Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB"), optimize=True)
    pyplot.close(figure)

"""effect.py's pictures: adherence against detail, detail by w, and one prompt in all settings of w and start layer."""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .effect_conditions import NORM_KEPT_WEIGHTS, PLAIN, START_LAYERS, WEIGHTS, complexity
from .effect_results import Results
from .effect_run import Job, read_strip, save_png

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

ENLARGE = 2  # pixels of grid.png for one of a picture


def pareto(results: Results, path: Path) -> None:
    """Adherence against detail, a line for each start layer, points labelled with w; bars are 95 % intervals."""
    figure, axes = pyplot.subplots(figsize=(8, 5.5))
    for start in START_LAYERS:
        points = [PLAIN, *(complexity(w, start) for w in WEIGHTS)]
        detail, exact = ([results.mean("general", point, score) for point in points] for score in ("detail", "exact"))
        line = axes.errorbar(
            [e.mean for e in detail], [e.mean for e in exact], xerr=_bars(detail), yerr=_bars(exact), marker="o", elinewidth=0.5,
            label=f"start {start}" + (" (constant)" if start == 0 else ""), alpha=0.85,
        )
        for w, x, y in zip(WEIGHTS, detail[1:], exact[1:]):
            axes.annotate(f"{w:g}", (x.mean, y.mean), xytext=(4, 4), textcoords="offset points", color=line[0].get_color())
    plain = [results.mean("general", PLAIN, score).mean for score in ("detail", "exact")]
    axes.plot(*plain, "ks", markersize=9, zorder=5, label="plain")
    axes.set(xlabel="detail: texture contrast in the objects, %", ylabel="adherence: pictures exactly as asked, %",
             title="Complexity direction: adherence against detail, by w and start layer")
    axes.legend()
    _save(figure, path)


def detail_by_w(results: Results, path: Path) -> None:
    """Detail by w, a line for each start layer and one for the kept norm; bands are 95 % intervals."""
    figure, axes = pyplot.subplots(figsize=(8, 5))
    lines = {f"start {start}": [(w, complexity(w, start)) for w in WEIGHTS] for start in START_LAYERS}
    lines["start 0"] = [(-2.0, complexity(-2.0)), (0.0, PLAIN), *lines["start 0"]]
    lines["start 0, norm kept"] = [(w, complexity(w, keep_norm=True)) for w in NORM_KEPT_WEIGHTS]
    for name, points in lines.items():
        points = points if points[0][0] < 0 else [(0.0, PLAIN), *points]
        detail = [results.mean("general", condition, "detail") for _, condition in points]
        line, = axes.plot([w for w, _ in points], [e.mean for e in detail], "--" if "norm" in name else "-", marker="o", label=name)
        axes.fill_between([w for w, _ in points], [e.low for e in detail], [e.high for e in detail], color=line.get_color(), alpha=0.1)
    axes.set(xlabel="w", ylabel="detail: texture contrast in the objects, %", title="Complexity direction: detail by w")
    axes.legend()
    _save(figure, path)


def grid(jobs: list[Job], results: Results, seeds: int, folder: Path, path: Path) -> None:
    """One prompt and seed: a row for each start layer, a column for each w.

    The prompt is the first of two or more objects whose plain picture of the first seed is exactly as asked (else the first of all): chosen
    by the plain pictures alone.
    """
    plain = [job for job in jobs if job.set_name == "general" and job.condition == PLAIN]
    exact = results.of("general", PLAIN, "exact")
    chosen = next((job for job in plain if exact[job.index, 0] and sum(n for n, _, _ in job.prompt.wanted.groups) > 1), plain[0])
    strips = {job.condition: job.strip for job in jobs if job.set_name == "general" and job.index == chosen.index}
    cells = [
        [read_strip(folder / strips[complexity(w, start) if w else PLAIN], seeds)[0] for w in (0.0, *WEIGHTS)] for start in START_LAYERS
    ]
    columns = ["plain", *(f"w {w:g}" for w in WEIGHTS)]
    sheet(cells, columns, [f"start {start}" for start in START_LAYERS], f"\"{chosen.prompt.text}\", complexity direction", path, ENLARGE)


def sheet(cells: list[list[np.ndarray]], columns: list[str], rows: list[str], title: str, path: Path, enlarge: int = 1) -> None:
    """Writes a named grid of pictures, each (H, W, 3) uint8."""
    height, width = (side * enlarge for side in cells[0][0].shape[:2])
    size = max(14, width // 12)
    font, gap = ImageFont.load_default(size), max(4, width // 40)
    left, top = size * 5, size * 4
    image = Image.new("RGB", (left + len(columns) * (width + gap), top + len(rows) * (height + gap)), "white")
    draw = ImageDraw.Draw(image)
    draw.text((gap, gap), title, fill="black", font=font)
    for j, name in enumerate(columns):
        draw.text((left + j * (width + gap) + width / 2, top - gap), name, fill="black", font=font, anchor="mb")
    for i, (name, row) in enumerate(zip(rows, cells)):
        draw.text((left - gap, top + i * (height + gap) + height / 2), name, fill="black", font=font, anchor="rm")
        for j, cell in enumerate(row):
            picture = Image.fromarray(cell).resize((width, height), Image.NEAREST)
            image.paste(picture, (left + j * (width + gap), top + i * (height + gap)))
    save_png(path, image, optimize=True)


def _bars(estimates) -> np.ndarray:
    """(2, N): how far the intervals reach below and above the means."""
    return np.array([[e.mean - e.low for e in estimates], [e.high - e.mean for e in estimates]]).clip(0)


def _save(figure, path: Path) -> None:
    figure.tight_layout()
    figure.canvas.draw()
    save_png(path, Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB"), optimize=True)
    pyplot.close(figure)

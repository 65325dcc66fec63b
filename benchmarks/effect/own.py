"""effect.py on a user's own models: pictures, grids for each prompt, and the scores of scorers the user has."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image
from tqdm import tqdm

from benchmarks.in_process import of_pack
from model_patches.text_files import read_text
from tools.sheet import sheet

from .conditions import PLAIN, Condition
from .own_scores import scorer_of, write_scores
from .run import pause, read_strip, save_png, strip_key, write_strip
from .settings import Files, Settings
from .studio import Studio

GRID_WIDTH = 2400  # pixels; larger pictures are made smaller in a grid


@dataclass(frozen=True)
class Line:
    """One kind of guidance by its w. way: constant, layer-wise or learned, as the table says it. conditions: by w, plain where it is 0."""

    name: str
    way: str
    conditions: tuple[tuple[float, Condition], ...]


@dataclass(frozen=True)
class Task:
    """A picture to draw. key: of all that decides it."""

    prompt: str
    condition: Condition
    seed: int
    path: Path
    key: str


class Painter(Protocol):
    def check(self, conditions: Iterable[Condition], prompt: str) -> None:
        """Raises ValueError for what can be seen not to work before anything is drawn."""

    def draw(self, tasks: list[Task]) -> Iterator[Task]:
        """Writes each task's picture, and gives the task when it is there."""


class Here:
    """Draws in this process."""

    def __init__(self, files: Files, settings: Settings):
        self.studio = Studio(files, settings)

    def check(self, conditions: Iterable[Condition], prompt: str) -> None:
        """That every direction and layer fits the model."""
        for condition in conditions:
            self.studio.guided(condition, prompt)

    def draw(self, tasks: list[Task]) -> Iterator[Task]:
        for task in tasks:
            write_strip(task.path, self.studio.pictures(task.prompt, task.condition, task.seed), task.key)
            yield task


def run(painter: Painter, files: Files, settings: Settings, options) -> list[Path]:
    """Draws what is not there yet, and returns what was written for people to look at."""
    text = read_text(options.prompts_file, f"--prompts-file {options.prompts_file}")
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"{options.prompts_file} holds no prompt; write one on each line.")
    scorers = {name: scorer_of(name) for name in dict.fromkeys(options.scorer or ())}
    lines = lines_of(options, files)
    distinct = list(dict.fromkeys([PLAIN, *(condition for line in lines for _, condition in line.conditions)]))
    painter.check(distinct, prompts[0])
    options.out.mkdir(parents=True, exist_ok=True)
    tasks = {
        (i, seed, condition): Task(
            prompt,
            condition,
            seed,
            options.out / f"prompt{i + 1:02d}_seed{seed}_{file_name(condition)}.png",
            key_of(files, settings, prompt, condition, seed),
        )
        for i, prompt in enumerate(prompts)
        for seed in range(options.seeds)
        for condition in distinct
    }
    missing = [task for task in tasks.values() if strip_key(task.path) != task.key]
    done = len(tasks) - len(missing)
    with tqdm(total=len(tasks), initial=done, unit="picture", desc="effect", mininterval=pause()) as bar:
        for _ in painter.draw(missing):
            bar.update()
    drawn = {each: task.path for each, task in tasks.items()}
    written = [options.out, *write_grids(prompts, lines, drawn, options)]
    if scorers:
        written += write_scores(scorers, prompts, lines, drawn, options)
    return written


def lines_of(options, files: Files) -> list[Line]:
    """What is compared; the plain picture begins each. A line of w 0 alone is left out. Raises ValueError for layers that do not parse."""
    how = {"sides": (options.positive, options.negative)} if options.positive is not None else {"preset": options.preset or "complexity"}
    starts = list(dict.fromkeys(options.start_layers))
    for layers in options.layers:
        of_pack("model_patches.schedules").parse_ranges(layers)
    made = [
        *((f"start {start}", "layer-wise" if start else "constant", options.w, {"start_layer": start} | how) for start in starts),
        *((layers, "layer-wise", options.w, {"schedule": layers} | how) for layers in dict.fromkeys(options.layers)),
        *(
            (f"{name}, start {start}", "learned", options.direction_w, {"learned": name, "start_layer": start})
            for name in files.directions
            for start in starts
        ),
    ]
    lines = [
        Line(name, way, tuple((w, Condition(w=w, **given) if w else PLAIN) for w in dict.fromkeys([0.0, *scales])))
        for name, way, scales, given in made
    ]
    return [line for line in lines if len(line.conditions) > 1] or [Line("", "constant", ((0.0, PLAIN),))]


def file_name(condition: Condition) -> str:
    if not condition.guided:
        return "plain"
    layers = f"layers_{_slug(condition.schedule)}" if condition.schedule else f"start{condition.start_layer}"
    return "_".join([*([_slug(condition.learned)] if condition.learned else ()), f"w{condition.w:g}", layers])


def _slug(text: str) -> str:
    """For a file name, and another one for another text."""
    found = re.sub(r"[^A-Za-z0-9_.-]+", "_", text)[:40]
    return found if found == text else f"{found}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def key_of(files: Files, settings: Settings, prompt: str, condition: Condition, seed: int) -> str:
    """Hash of all that decides a picture; a model's file by its path, size and time, as it may be large, one of a server by its name."""
    used = [files.diffusion_model, *files.text_encoders, files.vae, *([files.directions[condition.learned]] if condition.learned else ())]
    named = [file if isinstance(file, str) else (str(file.absolute()), file.stat().st_size, file.stat().st_mtime) for file in used]
    content = json.dumps([named, files.clip_type, asdict(settings), prompt, asdict(condition), seed])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def write_grids(prompts: list[str], lines: list[Line], drawn: dict, options) -> list[Path]:
    """A grid for each prompt, and one for its learned directions, which have scales of their own: a row for each line, a column for each w."""
    written = []
    for i, prompt in enumerate(prompts):
        for ending, learned in (("", False), ("_learned", True)):
            rows = [line for line in lines if (line.way == "learned") == learned]
            if not rows:
                continue
            scales = [w for w, _ in rows[0].conditions]
            cells = [[Image.fromarray(read_strip(drawn[i, 0, each], 1)[0]) for _, each in line.conditions] for line in rows]
            columns = [f"w {w:g}" if w else "plain" for w in scales]
            picture = sheet(cells, columns, [line.name for line in rows], [prompt], min(options.size, GRID_WIDTH // len(scales)))
            written.append(options.out / f"grid_prompt{i + 1:02d}{ending}.png")
            save_png(written[-1], picture)
    return written

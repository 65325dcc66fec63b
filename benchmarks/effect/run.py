"""Draws and scores effect.py's pictures on the small world; what is scored already is not drawn again."""

import hashlib
import io
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin
from tqdm import tqdm

from benchmarks.in_process import PACK
from tools.files import write_whole
from tools.small_world.checkers import read_picture, score

from .conditions import PLAIN, Condition, of_set
from .prompts import PROMPTS, Prompt, prompt_set
from .settings import Settings

PERCENT = (
    "count",
    "color",
    "shape",
    "exact",
    "position",
    "detail",
    "sharpness",
    "ground",
)  # scores told in percent; the others in 8-bit steps
CODE = ("model_patches/*.py", "model_patches/families/*.py", "pooled_proj/*.py", "nodes/presets.json", "tools/small_world/checkers.py")


@dataclass(frozen=True)
class Job:
    """One condition on one prompt of a set: `seeds` pictures. direction: hash of the learned direction's file, where there is one."""

    set_name: str
    index: int
    prompt: Prompt
    condition: Condition
    direction: str = ""

    @property
    def strip(self) -> str:
        """The file name of its pictures side by side."""
        return f"{self.set_name}_{self.index:02d}_{re.sub('[^a-z0-9.-]+', '_', self.condition.name.lower())}.png"


class Scores:
    """The lines of scores.jsonl, by key; a torn last line and lines of other settings do no harm."""

    def __init__(self, path: Path):
        self.path = path
        self.records = {}
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # written when the run was cut
                continue
            self.records[record["key"]] = record
        self.torn = bool(text) and not text.endswith("\n")

    def add(self, record: dict) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(("\n" if self.torn else "") + json.dumps(record) + "\n")
        self.torn = False
        self.records[record["key"]] = record


def jobs_of(prompts: int | None) -> list[Job]:
    """All there is to do, prompt by prompt, plain first. prompts: how many in each set, None for the defaults."""
    return [
        Job(name, index, prompt, condition)
        for name, count in PROMPTS.items()
        for index, prompt in enumerate(prompt_set(name, prompts or count))
        for condition in of_set(name)
    ]


def fingerprint(files: list[Path]) -> str:
    """Hash of what else decides a score: the model's files, and the code that guides and checks."""
    code = sorted(file for pattern in CODE for file in PACK.glob(pattern) if file.is_file())
    return digest(*files, *code)


def digest(*files: Path) -> str:
    """Hash of what is in them."""
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()[:16]


def key_of(job: Job, settings: Settings, seeds: int, made_by: str) -> str:
    wanted = [*(asdict(each) for each in (job.prompt, job.condition, settings)), job.direction]
    return hashlib.sha256(json.dumps([made_by, seeds, wanted], sort_keys=True).encode()).hexdigest()[:16]


def run(draw: Callable, jobs: list[Job], settings: Settings, seeds: int, made_by: str, out: Path) -> list[dict]:
    """One record per job, in order: {"key", "set", "prompt", "condition", "seconds", "scores": {name: [one per seed]}}.

    draw: gives the records of draw_job's arguments (but the studio), one by one, in any order.
    """
    scores, folder = Scores(out / "scores.jsonl"), out / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    keys = [key_of(job, settings, seeds, made_by) for job in jobs]
    missing = [
        (job, seeds, key, folder) for job, key in zip(jobs, keys) if key not in scores.records or strip_key(folder / job.strip) != key
    ]
    done = len(jobs) - len(missing)
    with tqdm(total=len(jobs) * seeds, initial=done * seeds, unit="picture", desc="effect", mininterval=pause(), smoothing=0.05) as bar:
        for record in draw(missing):
            scores.add(record)
            bar.update(seeds)
    return [with_changes(scores.records[key], job, seeds, folder) for job, key in zip(jobs, keys)]


def pause() -> float:
    """Seconds between two signs of progress; a log needs few."""
    return 0.1 if sys.stderr.isatty() else 30


def draw_job(studio, job: Job, seeds: int, key: str, folder: Path) -> dict:
    """Draws a job's pictures into `folder` and returns its record."""
    started = time.monotonic()
    pictures = studio.pictures(job.prompt.text, job.condition, job.prompt.seed, seeds)
    write_strip(folder / job.strip, pictures, key)
    rows = [score(read_picture(picture), job.prompt.wanted) for picture in pictures]
    scores = {name: [None if row[name] is None else float(row[name]) * (100 if name in PERCENT else 1) for row in rows] for name in rows[0]}
    return {
        "key": key,
        "set": job.set_name,
        "prompt": job.prompt.text,
        "condition": job.condition.name,
        "scores": scores,
        "seconds": round(time.monotonic() - started, 3),
    }


def with_changes(record: dict, job: Job, seeds: int, folder: Path) -> dict:
    """The record, in the job's set, with two more scores, in 8-bit steps: `change`, mean absolute difference to the plain picture of the
    same seed, and `between_seeds`, that of the plain pictures of this seed and the one before (None for a single seed)."""
    pictures = read_strip(folder / job.strip, seeds)
    plain = read_strip(folder / replace(job, condition=PLAIN).strip, seeds)
    change = [apart(a, b) for a, b in zip(pictures, plain)]
    between = [apart(a, b) if seeds > 1 else None for a, b in zip(plain, np.roll(plain, 1, 0))]
    return {**record, "set": job.set_name, "scores": {**record["scores"], "change": change, "between_seeds": between}}


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference in 8-bit steps."""
    return float(np.abs(a.astype(float) - b).mean())


def to_bytes(pictures: np.ndarray) -> np.ndarray:
    return (pictures * 255 + 0.5).astype(np.uint8)


# ---- pictures side by side, with the key of what they show ---------------------------------------------------------


def write_strip(path: Path, pictures: np.ndarray, key: str) -> None:
    """Writes pictures (N, H, W, 3) in [0, 1] beside each other, whole or not at all."""
    notes = PngImagePlugin.PngInfo()
    notes.add_text("key", key)
    save_png(path, Image.fromarray(np.concatenate(to_bytes(pictures), 1)), pnginfo=notes)


def save_png(path: Path, image: Image.Image, **options) -> None:
    content = io.BytesIO()
    image.save(content, "PNG", **options)
    write_whole(path, content.getvalue())


def strip_key(path: Path) -> str | None:
    if not path.is_file():
        return None
    with Image.open(path) as image:
        return image.text.get("key")


def read_strip(path: Path, count: int) -> np.ndarray:
    """(count, H, W, 3) uint8."""
    with Image.open(path) as image:
        return np.stack(np.split(np.asarray(image), count, 1))

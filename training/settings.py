"""The settings of a training run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch

from ..model_patches.quoting import quoted

DATA = ("samples", "noise")
PRECISIONS = {"auto": None, "bf16": torch.bfloat16, "fp32": torch.float32}

WARM_UP = 0.02  # of the steps
LAST_RATE = 0.1  # of the learning rate
LARGEST_RATE = 1.0  # AdamW moves each weight by about as much a step; weights in use are below 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One training run.

    steps: of the optimizer; each takes accumulation x batch_size rows. learning_rate: the highest; it warms up over the first 2 % of
    the steps and falls to a tenth by a cosine. width, height, frames: of the pictures, in pixels.
    data: "samples" of the model itself, or "noise" over empty latents. samples_per_prompt, sample_steps, cfg: of the samples.
    pairs: noise levels with a noise each, for every sample. cache: bytes of the teacher's predictions that are kept.
    checkpointing: compute every block twice and keep less. precision: what the model computes in, one of PRECISIONS.
    """

    steps: int
    batch_size: int
    learning_rate: float
    width: int
    height: int
    seed: int
    frames: int = 1
    accumulation: int = 1
    checkpointing: bool = True
    data: str = "samples"
    samples_per_prompt: int = 2
    sample_steps: int = 8
    cfg: float = 1.0
    pairs: int = 4
    cache: float = 4 << 30
    precision: str = "auto"

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warm_up = math.ceil(WARM_UP * self.steps)
        if step < warm_up:
            return self.learning_rate * (step + 1) / warm_up
        progress = (step - warm_up) / max(1, self.steps - 1 - warm_up)
        return self.learning_rate * (LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress)))

    def check(self) -> None:
        """Raises ValueError with the setting, its value and what it may be."""
        for name, value in asdict(self).items():
            if isinstance(value, float) and not math.isfinite(value):  # which no comparison below would notice of NaN
                raise ValueError(f"Distilling: {name} is {value}; it must be a finite number.")
        least = {
            "steps": 0,
            "batch_size": 1,
            "width": 1,
            "height": 1,
            "frames": 1,
            "accumulation": 1,
            "samples_per_prompt": 1,
            "sample_steps": 1,
            "pairs": 1,
            "cfg": 0,
            "cache": 0,
        }
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise ValueError(f"Distilling: {name} is {quoted(getattr(self, name))}; it must be {minimum} at least.")
        if not 0 < self.learning_rate <= LARGEST_RATE:
            raise ValueError(
                f"Distilling: learning_rate is {quoted(self.learning_rate)}; it must be above 0 and at most {LARGEST_RATE:g}, e.g. 0.00002."
            )
        for name, choice in self.choices().items():
            if getattr(self, name) not in list(choice):
                raise ValueError(f"Distilling: {name} is {quoted(getattr(self, name))}; it must be {' or '.join(choice)}.")

    def choices(self) -> dict[str, Iterable[str]]:
        """What the settings that are words may be."""
        return {"data": DATA, "precision": PRECISIONS}

"""What effect.py draws with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

LEARNED_SETS = {"general": 1, "turned": 2, "both_ways": 1}  # of effect.py --learned; one in so many of the prompts


@dataclass(frozen=True)
class Files:
    """A model's files and CLIPLoader's type for it; projection: of a text-blind model; directions: learned ones, by name.

    A file that is no Path but a str is one in the models folders of a server, by the name it has there.
    """

    diffusion_model: Path | str
    text_encoders: tuple[Path | str, ...]
    vae: Path | str
    clip_type: str
    projection: Path | None = None
    directions: Mapping[str, Path | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """size: width and height of the pictures in pixels. shift: as ModelSamplingSD3, None for the model's own. CFG's negative prompt is empty."""

    steps: int
    cfg: float
    size: int
    sampler: str = "euler"
    scheduler: str = "simple"
    shift: float | None = None

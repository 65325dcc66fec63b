"""What effect.py draws with."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Files:
    """A model's files and CLIPLoader's type for it."""

    diffusion_model: Path
    text_encoders: tuple[Path, ...]
    vae: Path
    clip_type: str


@dataclass(frozen=True)
class Settings:
    """size: width and height of the pictures in pixels. CFG's negative prompt is empty."""

    steps: int
    cfg: float
    size: int
    sampler: str = "euler"
    scheduler: str = "simple"

"""A scorer from a path: a folder of a CLIP model, or a file of an aesthetic head beside its CLIP model."""

from __future__ import annotations

import os

from .aesthetic_head import clip_beside, read_head
from .clip import AestheticScorer, ClipScorer
from .clip_folder import clip_at, fingerprint
from .scorers import PictureScorer


def load(path: str) -> PictureScorer:
    """Raises ValueError, in a sentence that says what was found and what is needed."""
    if os.path.isdir(path):
        return ClipScorer(clip_at(path))
    layers = read_head(path)
    width = layers[0][0].shape[1]
    clip = clip_at(clip_beside(path, width))
    made = clip.clip.config.projection_dim
    if made != width:
        raise ValueError(
            f"The picture scorer {os.path.basename(path)} reads embeddings {width} wide, and the CLIP model in its folder makes them {made} wide. "
            "Put it beside the model it was made for; LAION's heads for 768 read openai/clip-vit-large-patch14."
        )
    return AestheticScorer(clip, layers)


def state(path: str) -> tuple:
    """What changes with the files that `load` reads."""
    if os.path.isdir(path):
        return fingerprint(path)
    file = os.stat(path)
    beside = sorted(entry.path for entry in os.scandir(os.path.dirname(path)) if entry.is_dir())
    return path, file.st_mtime_ns, file.st_size, *map(fingerprint, (os.path.dirname(path), *beside))

"""Pictures and captions by the thousand, drawn on all cores.

Seeds below HELD_OUT are for training; evaluation draws from HELD_OUT on.
"""

from concurrent.futures import ProcessPoolExecutor

import numpy as np
from tqdm import tqdm

from .captions import caption
from .scenes import render, sample_scene

HELD_OUT = 10_000_000  # first seed that training never sees
CHUNK = 250


def draw_chunk(seeds: range) -> tuple[np.ndarray, list[str]]:
    scenes = [sample_scene(seed) for seed in seeds]
    return np.stack([render(scene) for scene in scenes]), [caption(scene, seed) for scene, seed in zip(scenes, seeds)]


def draw(count: int, first: int = 0, workers: int = 1) -> tuple[np.ndarray, list[str]]:
    """(count, SIZE, SIZE, 3) uint8 pictures and their captions, of the seeds from `first` on; none shows a rare kind."""
    chunks = [range(at, min(at + CHUNK, first + count)) for at in range(first, first + count, CHUNK)]
    with ProcessPoolExecutor(min(workers, 61)) as pool:  # Windows waits for no more at once
        drawn = list(tqdm(pool.map(draw_chunk, chunks), total=len(chunks), desc="drawing", leave=False))
    return np.concatenate([pictures for pictures, _ in drawn]), [text for _, texts in drawn for text in texts]

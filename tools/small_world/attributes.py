"""What the small world's guidance directions are learned from: words, and subjects of scenes as prompts, which say nothing of the style."""

import random
from itertools import count, islice

from .captions import subject
from .scenes import sample_scene

ATTRIBUTES = {  # positive and negative words
    "detail": ("highly detailed", "very simple, no details at all"),
    "sharpness": ("sharp, in sharp focus", "blurred, out of focus"),
    "lightness": ("on a light background", "on a dark background"),
}
PROMPTS = 96


def file_name(model: str, attribute: str) -> str:
    return f"small_world_{model}_{attribute}.safetensors"


DIRECTIONS = tuple(file_name(model, attribute) for model in ("flux", "wan") for attribute in ATTRIBUTES)


def prompts(number: int = PROMPTS) -> list[str]:
    """What the directions are learned on; no prompt twice."""
    texts = (subject(sample_scene(seed), random.Random(seed)) for seed in count())
    return list(islice(dict.fromkeys(islice(texts, 4 * number)), number))

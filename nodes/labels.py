"""The labels of a sweep, and lists of pictures that belong to labels."""

import re

from torch import Tensor

from ..model_patches.guidance import LARGEST_W
from ..model_patches.quoting import quoted
from ..scoring.choice import Setting

PLAIN = "plain"  # of the picture without guidance
_LABEL = re.compile(rf"({PLAIN}|w \S+?)(?:, start (\d+))?")


def written(w: float) -> str:
    """Short, but never the same for two numbers."""
    return f"{w:g}" if float(f"{w:g}") == w else repr(w)


def label_of(w: float, start_layer: int) -> str:
    return f"w {written(w)}, start {start_layer}"


def parts(label: str) -> tuple[str, str | None] | None:
    """(plain or "w ...", start layer or None), or None where it is no label of a sweep."""
    match = _LABEL.fullmatch(label)
    return match and (match[1], match[2])


def settings_of(node: str, labels: list[str]) -> list[Setting]:
    """What they say. The plain setting is the first of w 0. node: its name, for the error of a label that says nothing."""
    known: dict[str, Setting] = {}
    plain = None
    for label in labels:
        if label in known:
            continue
        w, start = _numbers(node, label)
        plain = plain or (label if w == 0 else None)
        known[label] = Setting(label, w, start, label == plain)
    return [known[label] for label in labels]


def _numbers(node: str, label: str) -> tuple[float, int]:
    scale, start = parts(label) or ("", None)
    try:
        w = 0.0 if scale == PLAIN else float(scale.removeprefix("w "))
        if abs(w) <= LARGEST_W:
            return w, int(start or 0)
    except ValueError:
        pass
    raise ValueError(
        f"{node}: the label {quoted(label)} names no setting. Connect the labels of Sweep Modulation Guidance: plain, or w 3, start 5."
    )


def paired(node: str, images: list, labels: list[str]) -> list[tuple[Tensor, str]]:
    """(its pictures (B, H, W, C), label) of each label; raises ValueError for what are no pictures, and for another number of them.

    A batch shares one label; if there is one batch of as many pictures as labels, it is a list that something has made a batch of.
    """
    for number, image in enumerate(images, 1):
        shape = tuple(image.shape) if isinstance(image, Tensor) else ()
        if len(shape) != 4 or 0 in shape or shape[3] == 2:
            raise ValueError(
                f"{node}: image {number} is {f'of shape {shape}' if shape else quoted(image)}; images are of shape (count, height, width, "
                "channels), none of them 0, with 1, 3 or 4 channels. Connect an IMAGE, as from VAE Decode."
            )
    if len(images) == 1 and len(images[0]) == len(labels):
        images = list(images[0].split(1))
    if not images or len(images) != len(labels):
        raise ValueError(
            f"{node}: {len(images)} images for {len(labels)} labels. Connect the images that the sweep's models made, and its labels."
        )
    return list(zip(images, labels, strict=True))

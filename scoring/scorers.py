"""What a scorer of pictures is, and how it is asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ..model_patches.quoting import quoted


class PictureScorer(Protocol):
    def score(self, images: Tensor, prompt: str) -> Sequence[float]:
        """A number for each of `images` (B, H, W, 3), floats in [0, 1] on any device; higher is better. prompt: what they were made of."""


def scores_of(scorer: PictureScorer, images: Tensor, prompt: str) -> list[float]:
    """Of `images` (B, H, W, C), C 1, or 3 and more; NaN for those that are not of numbers, as a broken sampling leaves them.

    Raises ValueError for an answer that is not a number for each.
    """
    images = images[..., :3].float().expand(*images.shape[:3], 3)
    whole = images.isfinite().flatten(1).all(dim=1)
    answered = iter(_numbers(scorer, images[whole].clamp(0, 1), prompt))
    return [next(answered) if right else math.nan for right in whole.tolist()]


def _numbers(scorer: PictureScorer, images: Tensor, prompt: str) -> list[float]:
    if not len(images):
        return []
    answer = scorer.score(images, prompt)
    try:
        numbers = [float(number) for number in answer]
    except (TypeError, ValueError):
        numbers = None
    if numbers is None or len(numbers) != len(images):
        raise ValueError(
            f"The scorer {type(scorer).__name__} answered {quoted(answer)} for {len(images)} images. A scorer gives one number for each."
        )
    return numbers

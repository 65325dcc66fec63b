"""Guidance directions: what is wanted (p+) and what is not (p-), as the text encoder saw them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)  # what is made of a prompt is remembered for this very object
class EncodedPrompt:
    """One prompt after the text encoder.

    pooled: (N, P), N is 1 but for batched conditionings; None where the encoder gives none.
    tokens: (N, L, C) token embeddings.
    extras: whatever else the encoder returned beside them (attention masks, token ids ...).
    """

    pooled: Tensor | None
    tokens: Tensor
    extras: dict[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """N, the number of prompts."""
        return len(self.tokens if self.pooled is None else self.pooled)


@dataclass(frozen=True)
class PromptPair:
    """weight * (y(positive) - y(negative)), one term of a direction."""

    positive: EncodedPrompt
    negative: EncodedPrompt
    weight: float = 1.0


@dataclass(frozen=True)
class GuidanceDirection:
    """A weighted sum of prompt pairs; its shift of y is the sum of weight * (y(p+) - y(p-))."""

    pairs: tuple[PromptPair, ...]

    @property
    def prompts(self) -> tuple[EncodedPrompt, ...]:
        """Both sides of every pair."""
        return tuple(prompt for pair in self.pairs for prompt in (pair.positive, pair.negative))


def combine(directions: list[GuidanceDirection], weights: list[float]) -> GuidanceDirection:
    """The weighted sum of directions, as one direction."""
    return GuidanceDirection(tuple(
        PromptPair(pair.positive, pair.negative, weight * pair.weight)
        for direction, weight in zip(directions, weights, strict=True)
        for pair in direction.pairs
    ))

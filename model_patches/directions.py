"""Guidance directions: what is wanted (p+) and what is not (p-), as the text encoder saw them, or as a model has learned them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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


@dataclass(frozen=True, eq=False)
class LearnedDirection:
    """weight * shifts[i] of y at layer i, one term of a direction; the output head takes none of it.

    shifts: (L, D), one for each main layer of the model that it was learned on. family: that model's, by name.
    positive, negative: the words that were learned. record: of the learning, as JSON has it.
    """

    shifts: Tensor
    family: str
    positive: str = ""
    negative: str = ""
    record: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0


@dataclass(frozen=True)
class GuidanceDirection:
    """A weighted sum; its shift of y is the sum of weight * (y(p+) - y(p-)) over pairs of prompts, and of what was learned."""

    pairs: tuple[PromptPair, ...] = ()
    learned: tuple[LearnedDirection, ...] = ()

    @property
    def prompts(self) -> tuple[EncodedPrompt, ...]:
        """Both sides of every pair."""
        return tuple(prompt for pair in self.pairs for prompt in (pair.positive, pair.negative))


def combine(directions: list[GuidanceDirection], weights: list[float]) -> GuidanceDirection:
    """The weighted sum of directions, as one direction."""
    weighted = [*zip(directions, weights, strict=True)]
    return GuidanceDirection(
        *(
            tuple(replace(term, weight=weight * term.weight) for direction, weight in weighted for term in getattr(direction, terms))
            for terms in ("pairs", "learned")
        )
    )

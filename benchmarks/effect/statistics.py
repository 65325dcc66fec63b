"""Means, paired differences and equal-strength comparisons with 95 % bootstrap intervals.

Scores are arrays (prompts, seeds). The pictures of one prompt are alike, so prompts are resampled, not pictures (a cluster
bootstrap, percentile intervals). The same resamples serve every condition, so that whatever is computed from several is paired.
"""

from dataclasses import dataclass

import numpy as np

RESAMPLES = 5000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value and its interval, in the unit of the scores."""

    mean: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def resamples(prompts: int) -> np.ndarray:
    """(RESAMPLES, prompts) indices of prompts drawn with replacement, always the same."""
    return np.random.default_rng(0).integers(prompts, size=(RESAMPLES, prompts))


def resampled_means(scores: np.ndarray) -> np.ndarray:
    """(RESAMPLES,) means of scores (prompts, seeds)."""
    return scores.mean(1)[resamples(len(scores))].mean(1)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle LEVEL of resampled values; values that are nan are left out."""
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def estimate(value: float, resampled: np.ndarray) -> Estimate:
    """resampled: the value in each resample."""
    return Estimate(float(value), *interval(resampled))


def mean(scores: np.ndarray) -> Estimate:
    return estimate(scores.mean(), resampled_means(scores))


def difference(scores: np.ndarray, others: np.ndarray) -> Estimate:
    """Mean of scores - others, paired by prompt and seed."""
    return mean(scores - others)


def at_strength(strengths: np.ndarray, adherences: np.ndarray, wanted: float | np.ndarray) -> np.ndarray:
    """(R,) adherence where the line through the points (strengths, adherences), both (R, K) in the order of w, reaches `wanted`, one
    for all or (R, 1).

    Where it does so more than once, the highest; where never, nan.
    """
    before, step = strengths[:, :-1], np.diff(strengths)
    with np.errstate(divide="ignore", invalid="ignore"):  # where a segment is flat
        part = (wanted - before) / step
        on_line = adherences[:, :-1] + part * np.diff(adherences)
    reached = np.where((part >= 0) & (part <= 1), on_line, -np.inf).max(1)
    return np.where(np.isneginf(reached), np.nan, reached)


@dataclass(frozen=True)
class EqualStrength:
    """Two ways of guiding at the same strength: their adherences, the difference (first - second), and the share of resamples
    in which both reach that strength (the interval is of those alone)."""

    strength: float
    first: float
    second: float
    difference: Estimate
    reached: float


def equal_strength(first: tuple, second: tuple, wanted: float) -> EqualStrength:
    """Compares curves at strength `wanted`; each is (strengths, adherences), lists by w of scores (prompts, seeds).

    `wanted` must be reached by both curves of means.
    """
    means, drawn = [], []
    for strengths, adherences in (first, second):
        means.append(float(at_strength(*(np.array([[s.mean() for s in scores]]) for scores in (strengths, adherences)), wanted)[0]))
        drawn.append(at_strength(*(np.stack([resampled_means(s) for s in scores], 1) for scores in (strengths, adherences)), wanted))
    differences = drawn[0] - drawn[1]
    return EqualStrength(wanted, *means, Estimate(means[0] - means[1], *interval(differences)), float(np.isfinite(differences).mean()))

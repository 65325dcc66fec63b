"""The choice among settings of guidance: the most of what is wanted, at no more than a tolerance lost of what is to be kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SHOWN = 4  # significant digits
TOLERANCE = 0.02  # of what is kept, that may be lost
ROUNDING = 1e-9  # of that, so that just the tolerance is not a digit too much


@dataclass(frozen=True)
class Setting:
    """A setting as a sweep labels it. plain: whether the others are compared with it."""

    label: str
    w: float
    start_layer: int
    plain: bool = False


@dataclass(frozen=True)
class Scored:
    """A setting's scores, means over its pictures; NaN where one of them has none.

    better: in how many of its `pictures` more is wanted than in the plain picture of the same prompt and seed.
    """

    setting: Setting
    wanted: float
    kept: float
    better: int
    pictures: int

    @property
    def counts(self) -> bool:
        return math.isfinite(self.wanted) and math.isfinite(self.kept)


@dataclass(frozen=True)
class Choice:
    """settings: all, in the order in which they came. floor: the least that is to be kept. why: in a sentence. notes: what else to know."""

    settings: tuple[Scored, ...]
    plain: Scored
    chosen: Scored
    floor: float
    why: str
    notes: tuple[str, ...]


def choose(settings: Sequence[Setting], wanted: Sequence[float], kept: Sequence[float], tolerance: float) -> Choice:
    """The setting of the highest `wanted` among those that keep enough; the plain one where none is better than it.

    settings, wanted, kept: of each picture. The n-th picture of a setting belongs to the n-th plain one: the same prompt and seed.
    tolerance: the share of the plain pictures' `kept` that may be lost. Of settings that give the same, the gentler one: the smaller w,
    then the later start layer. Raises ValueError where there is no plain picture, the pictures do not pair, or none has scores.
    """
    of_setting: dict[Setting, list[tuple[float, float]]] = {}
    for setting, *scores in zip(settings, wanted, kept, strict=True):
        of_setting.setdefault(setting, []).append(tuple(scores))
    plain = next((setting for setting in of_setting if setting.plain), None)
    if plain is None:
        raise ValueError("none of the images is plain, so there is nothing to compare with. Put 0 among the w_values of the sweep.")
    count = len(of_setting[plain])
    for setting, scores in of_setting.items():
        if len(scores) != count:
            raise ValueError(
                f"{setting.label} has {_images(len(scores))}, and {plain.label} {count}. Every setting is made with the same prompts and seeds."
            )
    usable = [i for i, scores in enumerate(of_setting[plain]) if all(map(math.isfinite, scores))]
    if not usable:
        raise ValueError(
            f"{plain.label} has no scores that are numbers, so there is nothing to compare with. Look at its image and its scorers."
        )
    base = [of_setting[plain][i] for i in usable]
    scored = {setting: _scored(setting, [scores[i] for i in usable], base) for setting, scores in of_setting.items()}
    unguided = scored[plain]
    floor = unguided.kept - (tolerance + ROUNDING) * abs(unguided.kept)
    chosen, why, tied = _best(list(scored.values()), unguided, floor)
    notes = []
    if len(usable) < count:
        notes.append(f"{_images(count - len(usable))} of {count} left out, in all settings: the plain one's scores are not numbers.")
    if broken := [one.setting.label for one in scored.values() if not one.counts]:
        notes.append(f"Left out, as their scores are not numbers: {_named(broken)}.")
    if tied:
        notes.append(f"As good: {_named(tied)}. The gentler one was taken.")
    return Choice(tuple(scored.values()), unguided, chosen, floor, why, tuple(notes))


def shown(number: float) -> str:
    return f"{number:#.{SHOWN}g}".rstrip(".")


def change(number: float, base: float) -> str:
    """How far a score is from the plain one, e.g. +0.21, in the digits that the plain one is shown in."""
    digits = SHOWN - 1 - math.floor(math.log10(abs(base))) if base else SHOWN - 1
    return f"{number - base:+.{min(max(digits, 0), 12)}f}"


def _scored(setting: Setting, scores: list[tuple[float, float]], base: list[tuple[float, float]]) -> Scored:
    wanted, kept = (sum(column) / len(column) for column in zip(*scores, strict=True))
    better = sum(ours > plain for (ours, _), (plain, _) in zip(scores, base, strict=True))
    return Scored(setting, wanted, kept, better, len(scores))


def _best(scored: list[Scored], plain: Scored, floor: float) -> tuple[Scored, str, list[str]]:
    """(the one to take, why, the labels of those that are as good)."""
    raised = [one for one in scored if one.counts and one.wanted > plain.wanted]
    allowed = [one for one in raised if one.kept >= floor]
    if allowed:
        most = max(one.wanted for one in allowed)
        best, *others = sorted(
            (one for one in allowed if one.wanted == most), key=lambda one: (abs(one.setting.w), -one.setting.start_layer)
        )
        return best, _why(best, plain, floor), [one.setting.label for one in others]
    if raised:
        nearest = max(raised, key=lambda one: one.kept)
        return (
            plain,
            (
                f"{plain.setting.label}: {_settings(len(raised))} more of what is wanted, but none keeps {shown(floor)}, the least allowed; "
                f"{nearest.setting.label} comes nearest, with {shown(nearest.kept)}."
            ),
            [],
        )
    if len(scored) == 1:
        return plain, f"{plain.setting.label}: there is no other setting to choose.", []
    return plain, f"{plain.setting.label}: no setting has more of what is wanted than its {shown(plain.wanted)}.", []


def _why(best: Scored, plain: Scored, floor: float) -> str:
    often = f", more in {best.better} of {best.pictures} images" if best.pictures > 1 else ""
    return (
        f"{best.setting.label}: the most of what is wanted, {shown(best.wanted)} ({change(best.wanted, plain.wanted)} from plain{often}), of the "
        f"settings that keep {shown(floor)} or more; it keeps {shown(best.kept)} ({change(best.kept, plain.kept)})."
    )


def _settings(count: int) -> str:
    return "1 setting has" if count == 1 else f"{count} settings have"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _named(labels: list[str], most: int = 8) -> str:
    return "; ".join(labels[:most]) + (f" and {len(labels) - most} more" if len(labels) > most else "")

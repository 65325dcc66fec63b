"""Lists that are typed into a text input."""

import math
import re
from collections.abc import Callable

from ..model_patches.quoting import quoted

MOST = 1000
RANGE = re.compile(r"(.+?)\.\.([^:]+)(?::(.+))?")
SEPARATORS = str.maketrans(",;", "  ")
DIGITS, ROUNDING = 10, 1e-9  # what binary fractions add up to is no digit of a range, and no reason to miss its end


def numbers(text: str, node: str, name: str, example: str, kind: Callable[[str], float] = float) -> list:
    """The finite numbers of a text, each once, with commas, semicolons or spaces between; `first..last:step` is a range, both ends in.

    Raises ValueError naming the part that is none, or that there are too many.
    """

    def number(written: str) -> float:
        try:
            found = kind(written)
        except ValueError:
            found = math.nan
        if not -math.inf < found < math.inf:
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"{node}: {quoted(written)} in {name} is not {what}. Write e.g. {example}")
        return found

    def ranged(first: str, last: str, step: str | None) -> list:
        start, end, width = number(first), number(last), 1 if step is None else number(step)
        if width <= 0:
            raise ValueError(f"{node}: the step of {quoted(f'{first}..{last}:{step}')} in {name} is not above 0. Write e.g. 0..6:2")
        steps = min(abs(end - start) // width if kind is int else abs(end - start) / width + ROUNDING, MOST)
        towards = width if end > start else -width
        return [round(start + i * towards, DIGITS) for i in range(int(steps) + 1)]

    parts = re.sub(r" ?(\.\.|:) ?", r"\1", " ".join(text.translate(SEPARATORS).split())).split(" ")
    found: dict[float, None] = {}
    for part in parts:
        limits = RANGE.fullmatch(part)
        found |= dict.fromkeys(ranged(*limits.groups()) if limits else [number(part)])
        if max(len(parts), len(found)) > MOST:
            raise ValueError(f"{node}: {name} holds more than {MOST} numbers: {quoted(text)}. Sweep in parts.")
    return list(found)


def names(text: str, defaults: list[str], node: str, kind: str) -> list[str]:
    """As many names of a comma-separated text as there are defaults, which an empty one gives. Raises ValueError for another count."""
    if not text.strip():
        return defaults
    found = text.count(",") + 1
    if found != len(defaults):
        raise ValueError(f"{node}: {found} labels ({quoted(text)}) for {len(defaults)} {kind}. Give one for each, or leave labels empty.")
    return [part.strip() for part in text.split(",")]

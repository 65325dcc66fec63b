"""Lists that are typed into a text input, separated by commas."""

import math
from collections.abc import Callable

from ..model_patches.quoting import quoted

MOST = 1000


def numbers(text: str, node: str, name: str, example: str, kind: Callable[[str], float] = float) -> list:
    """The finite numbers of a comma-separated text, each once. Raises ValueError naming the part that is none."""
    if text.count(",") >= MOST:
        raise ValueError(f"{node}: {name} holds {text.count(',') + 1} numbers, {quoted(text)}, and {MOST} is the most.")
    found = []
    for part in text.split(","):
        try:
            number = kind(part)
        except ValueError:
            number = math.nan
        if not -math.inf < number < math.inf:
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"{node}: {quoted(part.strip())} in {name} is not {what}. Write e.g. {example}")
        found.append(number)
    return list(dict.fromkeys(found))


def names(text: str, defaults: list[str], node: str, kind: str) -> list[str]:
    """As many names of a comma-separated text as there are defaults, which an empty one gives. Raises ValueError for another count."""
    if not text.strip():
        return defaults
    found = text.count(",") + 1
    if found != len(defaults):
        raise ValueError(f"{node}: {found} labels ({quoted(text)}) for {len(defaults)} {kind}. Give one for each, or leave labels empty.")
    return [part.strip() for part in text.split(",")]

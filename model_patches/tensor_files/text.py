"""Text of files: into messages, and JSON out of it, both within limits."""

import json
import re
from typing import Any

VALUES = 200_000  # that a file may describe itself with. It takes 30 for a tensor of a pickle, 8 for one of a header.
_STRING = re.compile(r'"[^"]*("|\Z)')
_DIGITS = 30  # of a whole number: more than any count or seed has


def shown(value: Any, most: int = 100) -> str:
    """The value for a message: of `most` characters at most, all of them printable."""
    text = str(value)
    cut = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text[:most])
    return cut if len(text) <= most else f"{cut}... ({len(text):,} characters)"


def bounded_json(text: str, depth: int) -> Any:
    """What a JSON text holds. Raises ValueError if it is none, nests deeper than `depth`, or has too many values or digits.

    The depth is counted first: json recurses, and where a pack has raised Python's limit, deep nesting ends the process.
    """
    bare = _STRING.sub("", text.replace("\\\\", "").replace('\\"', ""))
    if sum(bare.count(mark) for mark in ",[{") > VALUES:
        raise ValueError(f"more than {VALUES:,} values")
    brackets = re.sub(r"[^\[\]{}]+", "", bare)
    for _ in range(depth):
        brackets = brackets.replace("[]", "").replace("{}", "")
    if brackets:
        raise ValueError(f"brackets that do not match, or nest deeper than {depth}")
    return json.loads(text, parse_int=_whole_number, parse_float=_number)


def _whole_number(digits: str) -> int:
    return int(_short(digits, _DIGITS))


def _number(digits: str) -> float:
    return float(_short(digits, 10 * _DIGITS))


def _short(digits: str, most: int) -> str:
    if len(digits) > most:
        raise ValueError(f"a number of {len(digits):,} digits")
    return digits

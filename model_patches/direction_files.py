"""Files of guidance directions: safetensors whose metadata says all that the tensors do not.

Of each learned term its shifts, learned.0 and so on. Of each pair of encoded prompts, on both sides, encoded.0.positive.pooled and
.tokens, and .extras.NAME for every tensor that the text encoder gave beside them; what else it gave is not kept.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from . import tensor_files
from .directions import EncodedPrompt, GuidanceDirection, LearnedDirection, PromptPair
from .tensor_files import Stored, TensorFile, shown

FORMAT = "modulation guidance direction"
VERSION = "1"

_LEARNED, _ENCODED = "learned", "encoded"
_SIDES = ("positive", "negative")
_DEPTH = 34  # of brackets: a record's and two


def load(path: str | os.PathLike) -> GuidanceDirection:
    """The direction in a file. Raises ValueError with the file's name, what is wrong with it and what was expected."""
    try:
        with tensor_files.opened(path) as file:
            return _read(file)
    except ValueError as error:
        raise ValueError(f"The direction file {shown(Path(path).name)} {error}") from None


def save(direction: GuidanceDirection, path: str | os.PathLike, replace: bool = True) -> None:
    """Writes a direction, tensors bit for bit; the same direction gives the same bytes. The file is complete or not there.

    Raises FileExistsError where something of that name is, unless it is to be replaced; ValueError for what `load` refuses; OSError.
    """
    tensors = {f"{_LEARNED}.{number}": one.shifts for number, one in enumerate(direction.learned)}
    for number, pair in enumerate(direction.pairs):
        for side in _SIDES:
            tensors |= {f"{_ENCODED}.{number}.{side}.{part}": tensor for part, tensor in _parts(getattr(pair, side)).items()}
    try:
        for name, tensor in tensors.items():
            _check_numbers(name, tensor)
            _check_finite(name, tensor)
        for weight in (*(one.weight for one in direction.learned), *(pair.weight for pair in direction.pairs)):
            if not math.isfinite(weight):
                raise ValueError(f"has a weight of {weight}. Combine directions with smaller weights.")
    except ValueError as error:
        raise ValueError(f"The guidance direction {error}") from None
    kinds = {_LEARNED: direction.learned, _ENCODED: direction.pairs}
    metadata = {
        "format": FORMAT,
        "format_version": VERSION,
        "kind": " and ".join(kind for kind, terms in kinds.items() if terms),
        _LEARNED: json.dumps(
            [
                {
                    "family": one.family,
                    "layers": len(one.shifts),
                    "width": one.shifts.shape[1],
                    "positive": one.positive,
                    "negative": one.negative,
                    "weight": one.weight,
                    "record": one.record,
                }
                for one in direction.learned
            ]
        ),
        _ENCODED: json.dumps([{"weight": pair.weight} for pair in direction.pairs]),
    }
    tensor_files.write(path, tensors, metadata, replace)


def _parts(prompt: EncodedPrompt) -> dict[str, Tensor]:
    pooled = {} if prompt.pooled is None else {"pooled": prompt.pooled}
    extras = {f"extras.{name}": value for name, value in prompt.extras.items() if tensor_files.can_be_written(value)}
    return pooled | {"tokens": prompt.tokens} | extras


def _read(file: TensorFile) -> GuidanceDirection:
    metadata = file.metadata
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"is not a guidance direction: it holds {tensor_files.listed(file.tensors)}. Load a file that Save Guidance Direction has "
            "saved."
        )
    if metadata.get("format_version") != VERSION:
        raise tensor_files.of_another_version(metadata, VERSION)
    learned, encoded = (_entries(metadata, kind) for kind in (_LEARNED, _ENCODED))
    if not (learned or encoded):
        raise ValueError("holds no direction. It is damaged. Use another file.")
    parts = _by_prompt(file.tensors)
    expected: set[tuple] = {(_LEARNED, number) for number in range(len(learned))}
    expected |= {(_ENCODED, number, side) for number in range(len(encoded)) for side in _SIDES}
    if parts.keys() != expected or not all("tokens" in prompt for key, prompt in parts.items() if key[0] == _ENCODED):
        raise ValueError(
            f"holds {tensor_files.listed(file.tensors)}, which are not the tensors of {len(learned)} learned and {len(encoded)} encoded "
            "directions. It is damaged. Use another file."
        )
    file.check(file.tensors)
    for name, stored in file.tensors.items():
        _check_numbers(name, stored)
    tensors = file.read(file.tensors)
    for name, tensor in tensors.items():
        _check_finite(name, tensor)

    def prompt(number: int, side: str) -> EncodedPrompt:
        of_prompt = {part: tensors[name] for part, name in parts[_ENCODED, number, side].items()}
        pooled, tokens = of_prompt.pop("pooled", None), of_prompt.pop("tokens")
        if pooled is not None and len(pooled) != len(tokens) and 1 not in (len(pooled), len(tokens)):
            raise ValueError(f"holds {len(pooled)} pooled outputs and tokens of {len(tokens)} prompts. It is damaged. Use another file.")
        return EncodedPrompt(pooled, tokens, {part.removeprefix("extras."): tensor for part, tensor in of_prompt.items()})

    return GuidanceDirection(
        tuple(PromptPair(prompt(number, "positive"), prompt(number, "negative"), _weight(one)) for number, one in enumerate(encoded)),
        tuple(_learned(tensors[f"{_LEARNED}.{number}"], one) for number, one in enumerate(learned)),
    )


def _entries(metadata: Mapping[str, str], kind: str) -> list[dict]:
    try:
        entries = tensor_files.bounded_json(metadata.get(kind, "[]"), _DEPTH)
    except ValueError as error:
        raise ValueError(f"has metadata that is not JSON: {kind} holds {shown(error)}. It is damaged. Use another file.") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"does not say what is {kind} in it: {shown(entries)}. It is damaged. Use another file.")
    return entries


def _by_prompt(tensors: Mapping[str, Any]) -> dict[tuple, dict[str, str]]:
    """{(learned, number) or (encoded, number, side): {part: name}}; by its name alone what belongs to none."""
    parts: dict[tuple, dict[str, str]] = {}
    for name in tensors:
        kind, _, rest = name.partition(".")
        number, _, rest = rest.partition(".")
        side, _, part = rest.partition(".")
        # As it is written: int() also reads spaces, underscores and numerals of other scripts.
        known = number.isascii() and number.isdecimal() and len(number) < 10 and str(int(number)) == number
        if known and name == f"{_LEARNED}.{number}":
            parts[kind, int(number)] = {"shifts": name}
        elif known and kind == _ENCODED and (part in ("pooled", "tokens") or part.startswith("extras.")):
            parts.setdefault((kind, int(number), side), {})[part] = name
        else:
            parts[name,] = {}
    return parts


def _check_numbers(name: str, tensor: Tensor | Stored) -> None:
    """Raises ValueError unless shifts, pooled outputs and tokens are floating-point numbers of their dimensions."""
    dimensions = _dimensions(name)
    if dimensions is None:
        return
    if not tensor.dtype.is_floating_point or len(tensor.shape) != dimensions or 0 in tensor.shape:
        raise ValueError(
            f"holds {shown(name)} as {tensor.dtype} of {shown(tuple(tensor.shape))}; it must be floating-point numbers in {dimensions} "
            "dimensions. Use another."
        )


def _check_finite(name: str, tensor: Tensor) -> None:
    if _dimensions(name) is not None:  # masks may be infinite
        tensor_files.check_finite(shown(name), tensor)


def _dimensions(name: str) -> int | None:
    """Of the tensor of that name: (L, D), (N, P) or (N, L, C); None for extras, of any kind."""
    if name.startswith(f"{_LEARNED}."):
        return 2
    return {"pooled": 2, "tokens": 3}.get(name.split(".", 3)[-1])


def _learned(shifts: Tensor, entry: dict) -> LearnedDirection:
    family, record = entry.get("family"), entry.get("record", {})
    tensor_files.check_family(family)
    tensor_files.check_record(record)
    words = [entry.get(side, "") for side in _SIDES]
    if not all(isinstance(text, str) for text in words):
        raise ValueError(f"says it was learned from {shown(words)}; these must be words. It is damaged. Use another file.")
    positive, negative = words
    return LearnedDirection(shifts, family, positive, negative, record, _weight(entry))


def _weight(entry: dict) -> float:
    weight = entry.get("weight", 1.0)
    if type(weight) not in (int, float) or not math.isfinite(weight):
        raise ValueError(f"has a weight of {shown(weight)}; it must be a number. It is damaged. Use another file.")
    return float(weight)

"""Projection files: our own, and the two published forms as they are on disk.

A, "CLIP + scales" (COSMOS, a torch pickle; Anima, safetensors): text_embedder_clip.linear_1 and linear_2, scales.
B, "max-pool" (Anima, safetensors): 0 and 2, the numbers of a Sequential's layers, and sigma_film in some.
Our own: safetensors with canonical names, whose metadata says all that the tensors do not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..model_patches import tensor_files
from ..model_patches.tensor_files import Stored, TensorFile, shown
from .projection import INJECTIONS, POOLINGS, PooledProjection

FORMAT = "modulation guidance pooled projection"
VERSION = "1"

_LINEARS = ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias")
_FILM = ("film.weight", "film.bias")


@dataclass(frozen=True)
class _Form:
    """A published layout. names: canonical name of each key; optional: of the keys that only some files have, all or none."""

    names: dict[str, str]
    optional: dict[str, str]
    pooling: str
    injection: str

    def is_layer(self, key: str) -> bool:
        """Whether a key is that of a layer of such a network, so that one not known means another network."""
        part = key.split(".")[0]
        return part.isdecimal() or any(part == known.split(".")[0] for known in (*self.names, *self.optional))


_FORMS = (
    _Form({f"text_embedder_clip.{name}": name for name in _LINEARS} | {"scales": "scales"}, {}, "clip", "adaln lora"),
    _Form(
        {name.replace("linear_1", "0").replace("linear_2", "2"): name for name in _LINEARS},
        {f"sigma_{name}": name for name in _FILM},
        "max",
        "time embedding",
    ),
)

# What training scripts put a network's keys under.
_WRAPPERS = {
    "module",
    "model",
    "ema",
    "ema_model",
    "shadow_params",
    "state_dict",
    "model_state_dict",
    "weights",
    "net",
    "network",
    "student",
    "generator",
    "_orig_mod",
    "_forward_module",
    "proj",
    "projection",
    "projector",
    "pooled_proj",
    "pooled_projection",
    "pooled_text_proj",
}


def load(path: str | os.PathLike) -> PooledProjection:
    """The projection in a file. Raises ValueError with the file's name, what is wrong with it and what was expected."""
    try:
        with tensor_files.opened(path) as file:
            projection = _own(file) if file.metadata.get("format") == FORMAT else _published(file)
        check_weights(projection.weights)
    except ValueError as error:
        raise ValueError(f"The projection file {shown(Path(path).name)} {error}") from None
    return projection


def save(projection: PooledProjection, path: str | os.PathLike, replace: bool = True) -> None:
    """Writes our own format, tensors bit for bit; the same projection gives the same bytes. The file is complete or not there.

    Raises FileExistsError where something of that name is, unless it is to be replaced; ValueError for what `load` refuses; OSError.
    """
    try:
        check_weights(projection.weights)
    except ValueError as error:
        raise ValueError(f"The projection {error}") from None
    widths = {"input": projection.input_width, "output": projection.output_width, "time embedding": projection.time_width}
    metadata = {
        "format": FORMAT,
        "format_version": VERSION,
        "pooling": projection.pooling,
        "injection": projection.injection,
        "family": json.dumps(projection.family),
        "widths": json.dumps(widths | {"layers": projection.depth}),
        "record": json.dumps(projection.record),
    }
    tensor_files.write(path, projection.weights, metadata, replace)


def check_weights(weights: Mapping[str, Tensor]) -> None:
    """Raises ValueError, to follow the file's name, unless the tensors fit together and are finite."""
    check_shapes(weights)
    for name, tensor in weights.items():
        tensor_files.check_finite(name, tensor)


def check_shapes(weights: Mapping[str, Tensor | Stored]) -> None:
    """Raises ValueError, to follow the file's name, unless the tensors are floating-point numbers and fit together."""
    for name, tensor in weights.items():
        if not tensor.dtype.is_floating_point:
            raise ValueError(f"holds {name} as {tensor.dtype}; a projection's weights are floating-point numbers. Use another file.")
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    first, last = shapes["linear_1.weight"], shapes["linear_2.weight"]
    if len(first) != 2 or len(last) != 2:
        raise ValueError("holds weights that are not matrices; it is not a pooled projection. Use another file.")
    hidden, output = first[0], last[0]
    expected = {"linear_1.bias": (hidden,), "linear_2.weight": (output, hidden), "linear_2.bias": (output,)}
    if "film.weight" in shapes:
        expected |= {"film.weight": (2 * hidden, *shapes["film.weight"][-1:]), "film.bias": (2 * hidden,)}
    if "scales" in shapes:
        expected["scales"] = ((shapes["scales"] or (0,))[0], output)
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise ValueError(
                f"does not fit together: {name} is {shown(shapes[name])}, but beside linear_1.weight of {shown(first)} and {output} "
                f"outputs it must be {shown(shape)}. Use another file."
            )
    empty = [name for name, shape in shapes.items() if 0 in shape]
    if empty:
        raise ValueError(f"holds no numbers in {empty[0]}: {shown(shapes[empty[0]])}. Use another file.")


def _own(file: TensorFile) -> PooledProjection:
    metadata = file.metadata
    if metadata.get("format_version") != VERSION:
        raise tensor_files.of_another_version(metadata, VERSION)
    allowed = {*_LINEARS, *_FILM, "scales"}
    if not set(_LINEARS) <= set(file.tensors) <= allowed or len(set(_FILM) & set(file.tensors)) == 1:
        raise ValueError(_keys_found(file.tensors, f"{', '.join(_LINEARS)}, and maybe scales, {' and '.join(_FILM)}"))
    for name, choices in (("pooling", POOLINGS), ("injection", INJECTIONS)):
        if metadata.get(name) not in choices:
            raise ValueError(f"says its {name} is {shown(repr(metadata.get(name)))}; it must be {' or '.join(choices)}. Update the pack.")
    family, record = _described(metadata)
    weights = _weights(file, {name: name for name in file.tensors})
    return PooledProjection(weights, metadata["pooling"], metadata["injection"], family, record)


def _described(metadata: Mapping[str, str]) -> tuple[str | None, dict]:
    """Family and record. Distilling goes on with the record's runs, and would fail at its end over what is no record."""
    values = []
    for name in ("family", "record"):
        try:
            values.append(tensor_files.bounded_json(metadata.get(name, "null"), depth=32))
        except ValueError as error:
            raise ValueError(f"has metadata that is not JSON: {name} holds {shown(error)}. It is damaged. Use another file.") from None
    family, record = values[0], {} if values[1] is None else values[1]
    if family is not None:
        tensor_files.check_family(family)
    tensor_files.check_record(record)
    return family, record


def _published(file: TensorFile) -> PooledProjection:
    for form in _FORMS:
        prefix = _prefix(file.tensors, form)
        if prefix is None:
            continue
        network = {key.removeprefix(prefix) for key in file.tensors if key.startswith(prefix)}
        known = form.names | form.optional
        strange = [key for key in network if key not in known and form.is_layer(key)]
        missing = [key for key in form.optional if key not in network]
        if strange or 0 < len(missing) < len(form.optional):
            break
        weights = _weights(file, {name: prefix + key for key, name in known.items() if key in network})
        return PooledProjection(weights, form.pooling, form.injection)
    raise ValueError(_keys_found(file.tensors, "; or ".join(_expected(form) for form in _FORMS)))


def _weights(file: TensorFile, keys: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of those keys by canonical names, read once they are known to fit together."""
    file.check(keys.values())
    check_shapes({name: file.tensors[key] for name, key in keys.items()})
    tensors = file.read(keys.values())
    return {name: tensors[key] for name, key in keys.items()}


def _prefix(keys: Collection[str], form: _Form) -> str | None:
    """What stands before the keys of the form; that of the averaged weights where a training script left both."""
    first = next(iter(form.names))
    prefixes = [key.removesuffix(first) for key in keys if key == first or key.endswith("." + first)]
    complete = [
        prefix for prefix in prefixes if set(prefix.split(".")[:-1]) <= _WRAPPERS and all(prefix + name in keys for name in form.names)
    ]
    averaged = [prefix for prefix in complete if "ema" in prefix]
    if len(complete) > 1 and len(averaged) != 1:
        names = " and ".join(repr(shown(prefix)) for prefix in complete[:4])
        raise ValueError(f"holds more than one projection, under {names}{tensor_files.more(complete, 4)}. Keep one of them.")
    return (averaged or complete or [None])[0]


def _expected(form: _Form) -> str:
    return ", ".join(form.names) + (f" (and maybe {' and '.join(form.optional)})" if form.optional else "")


def _keys_found(keys: Collection[str], expected: str) -> str:
    return f"is not a pooled projection: it holds {tensor_files.listed(keys)}. Expected: {expected}."

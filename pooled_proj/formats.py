"""Projection files: our own, and the two published forms as they are on disk.

A, "CLIP + scales" (COSMOS, a torch pickle; Anima, safetensors): text_embedder_clip.linear_1 and linear_2, scales.
B, "max-pool" (Anima, safetensors): 0 and 2, the numbers of a Sequential's layers, and sigma_film in some.
Our own: safetensors with canonical names, whose metadata says all that the tensors do not.
"""

from __future__ import annotations

import json
import os
import pickle
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

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
    "module", "model", "ema", "ema_model", "shadow_params", "state_dict", "model_state_dict", "weights", "net", "network", "student",
    "generator", "_orig_mod", "_forward_module", "proj", "projection", "projector", "pooled_proj", "pooled_projection",
    "pooled_text_proj",
}


def load(path: str | os.PathLike) -> PooledProjection:
    """The projection in a file. Raises ValueError with the file's name, what is wrong with it and what was expected."""
    path = Path(path)
    tensors, metadata = _read(path)
    try:
        projection = _own(tensors, metadata) if metadata.get("format") == FORMAT else _published(tensors)
        check_weights(projection.weights)
    except ValueError as error:
        raise ValueError(f"The projection file {path.name} {error}") from None
    return projection


def save(projection: PooledProjection, path: str | os.PathLike) -> None:
    """Writes our own format, tensors bit for bit; the file is complete or not there."""
    path = Path(path)
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
    # Clones: tensors of one file may share memory, which safetensors refuses.
    data = safetensors.torch.save({name: tensor.detach().cpu().clone() for name, tensor in projection.weights.items()}, metadata)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def check_weights(weights: Mapping[str, Tensor]) -> None:
    """Raises ValueError, to follow the file's name, unless the tensors fit together and are finite."""
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise ValueError(f"holds {name} as {tensor.dtype}; a projection's weights are floating-point numbers. Use another file.")
        if not torch.isfinite(tensor.float()).all():
            raise ValueError(
                f"holds NaN or infinite numbers in {name}: its training went wrong, or the file is damaged. Use another file."
            )
    if weights["linear_1.weight"].ndim != 2 or weights["linear_2.weight"].ndim != 2:
        raise ValueError("holds weights that are not matrices; it is not a pooled projection. Use another file.")
    hidden = weights["linear_1.weight"].shape[0]
    output = weights["linear_2.weight"].shape[0]
    expected = {"linear_1.bias": (hidden,), "linear_2.weight": (output, hidden), "linear_2.bias": (output,)}
    if "film.weight" in weights:
        expected |= {"film.weight": (2 * hidden, weights["film.weight"].shape[-1]), "film.bias": (2 * hidden,)}
    if "scales" in weights:
        expected["scales"] = (len(weights["scales"]) if weights["scales"].ndim else 0, output)
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            raise ValueError(
                f"does not fit together: {name} is {tuple(weights[name].shape)}, but beside linear_1.weight of "
                f"{tuple(weights['linear_1.weight'].shape)} and {output} outputs it must be {shape}. Use another file."
            )


def _own(tensors, metadata) -> PooledProjection:
    if metadata.get("format_version") != VERSION:
        raise ValueError(
            f"is of format version {metadata.get('format_version')}, and this pack reads version {VERSION}. Update the pack."
        )
    allowed = {*_LINEARS, *_FILM, "scales"}
    if not set(_LINEARS) <= set(tensors) <= allowed or len(set(_FILM) & set(tensors)) == 1:
        raise ValueError(_keys_found(tensors, f"{', '.join(_LINEARS)}, and maybe scales, {' and '.join(_FILM)}"))
    for name, choices in (("pooling", POOLINGS), ("injection", INJECTIONS)):
        if metadata.get(name) not in choices:
            raise ValueError(f"says its {name} is {metadata.get(name)!r}; it must be {' or '.join(choices)}. Update the pack.")
    try:
        family, record = (json.loads(metadata.get(name, "null")) for name in ("family", "record"))
    except ValueError:
        raise ValueError("has metadata that is not JSON: it is damaged. Use another file.") from None
    return PooledProjection(tensors, metadata["pooling"], metadata["injection"], family, record or {})


def _published(tensors) -> PooledProjection:
    for form in _FORMS:
        prefix = _prefix(tensors, form)
        if prefix is None:
            continue
        network = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        known = form.names | form.optional
        strange = [key for key in network if key not in known and form.is_layer(key)]
        missing = [key for key in form.optional if key not in network]
        if strange or 0 < len(missing) < len(form.optional):
            break
        return PooledProjection({name: network[key] for key, name in known.items() if key in network}, form.pooling, form.injection)
    raise ValueError(_keys_found(tensors, "; or ".join(_expected(form) for form in _FORMS)))


def _prefix(tensors, form: _Form) -> str | None:
    """What stands before the keys of the form; that of the averaged weights where a training script left both."""
    first = next(iter(form.names))
    prefixes = [key.removesuffix(first) for key in tensors if key == first or key.endswith("." + first)]
    complete = [
        prefix for prefix in prefixes
        if set(prefix.split(".")[:-1]) <= _WRAPPERS and all(prefix + name in tensors for name in form.names)
    ]
    averaged = [prefix for prefix in complete if "ema" in prefix]
    if len(complete) > 1 and len(averaged) != 1:
        names = " and ".join(repr(prefix) for prefix in complete)
        raise ValueError(f"holds more than one projection, under {names}. Keep one of them.")
    return (averaged or complete or [None])[0]


def _expected(form: _Form) -> str:
    return ", ".join(form.names) + (f" (and maybe {' and '.join(form.optional)})" if form.optional else "")


def _keys_found(tensors, expected: str) -> str:
    shown = sorted(tensors)
    found = ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "")
    return f"is not a pooled projection: it holds {found or 'no tensors'}. Expected: {expected}."


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file or a torch pickle by name, and the metadata."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{":  # the header of safetensors, after its length
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
        except safetensors.SafetensorError as error:
            raise ValueError(_damaged(path, error)) from None
    try:
        return dict(_flat(torch.load(path, map_location="cpu", weights_only=True))), {}
    except pickle.UnpicklingError as error:
        # Its text is not passed on: it says how to load the file all the same.
        if "Unsupported operand" in str(error):
            raise ValueError(_damaged(path, "neither safetensors nor a pickle of tensors")) from None
        raise ValueError(
            f"The projection file {path.name} holds code that would run when it is loaded, or is damaged. It was not loaded. "
            "Use a safetensors file, or a pickle of tensors alone."
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(_damaged(path, error)) from None


def _damaged(path, reason) -> str:
    reason = str(reason).partition("\n")[0] or type(reason).__name__
    return f"The projection file {path.name} cannot be read: it is cut off, damaged or no model file ({reason}). Get it again."


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dicts, keys joined by dots; whatever is no tensor is left out."""
    if isinstance(value, Tensor):
        yield key, value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _flat(part, f"{key}.{name}" if key else str(name))

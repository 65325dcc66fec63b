"""Where a run that was cut goes on: one safetensors file of the weights, the optimizer's moments and the losses."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..model_patches import tensor_files
from ..model_patches.tensor_files import shown

FORMAT = "modulation guidance training checkpoint"
VERSION = "1"

_PARTS = ("weight", "mean", "square")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """run: what makes the run this one and no other, by name, as JSON has it. losses: one for each step taken.

    weights: by name, in fp32. means, squares: AdamW's running means of their gradients and of the squares, by the same names.
    """

    run: dict[str, Any]
    losses: list[float]
    weights: dict[str, Tensor]
    means: dict[str, Tensor]
    squares: dict[str, Tensor]

    def check(self, run: Mapping[str, Any], shapes: Mapping[str, torch.Size], learned: str) -> None:
        """Raises ValueError, with what differs, unless it is of that run and its weights have those shapes, by name.

        learned: what they are of.
        """
        others = [name for name in (*run, *(set(self.run) - set(run))) if self.run.get(name) != run.get(name)]
        if others:
            differences = ", ".join(_difference(name, self.run.get(name), run.get(name)) for name in others)
            raise ValueError(
                f"The checkpoint is of another run: {differences}. Start it as before, or in another folder; there, --{learned} goes on "
                "from what this one has learned."
            )
        if {name: tensor.shape for name, tensor in self.weights.items()} != dict(shapes):
            raise ValueError(f"The checkpoint's weights are not those of this model's {learned}. Remove it, or choose another folder.")


def _difference(name: str, then: Any, now: Any) -> str:
    def known(value: Any) -> bool:
        return value is not None and not _is_digest(value)

    return f"{name} was {shown(then)} and is {shown(now)}" if known(then) and known(now) else f"{shown(name)} is another"


def digest(*parts: str | bytes) -> str:
    """Of texts and bytes, one by one, so that no two sequences share it."""
    whole = sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "big") + data)
    return whole.hexdigest()


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64


def save(checkpoint: Checkpoint, path: str | os.PathLike) -> None:
    """In place of the one before, which stays if this fails. Raises OSError."""
    tensors = {"losses": torch.tensor(checkpoint.losses, dtype=torch.float64)}
    for part, named in zip(_PARTS, (checkpoint.weights, checkpoint.means, checkpoint.squares), strict=True):
        tensors |= {f"{part} {name}": tensor for name, tensor in named.items()}
    tensor_files.write(path, tensors, {"format": FORMAT, "format_version": VERSION, "run": json.dumps(checkpoint.run)}, replace=True)


def load(path: str | os.PathLike) -> Checkpoint:
    """Raises ValueError with the file's name and what is wrong with it."""
    try:
        with tensor_files.opened(path) as file:
            return _checkpoint(file)
    except ValueError as error:
        raise ValueError(f"The checkpoint {shown(Path(path).name)} {error}") from None


def _checkpoint(file: tensor_files.TensorFile) -> Checkpoint:
    metadata = file.metadata
    if metadata.get("format") != FORMAT or metadata.get("format_version") != VERSION:
        raise ValueError("is none of this version of the pack. Remove it, or choose another folder.")
    try:
        run = tensor_files.bounded_json(metadata.get("run", ""), depth=8)
    except ValueError as error:
        raise ValueError(f"does not say what run it is of: {shown(error)}. It is damaged; remove it.") from None
    names = [name.partition(" ")[2] for name in file.tensors if name.startswith(_PARTS[0] + " ")]
    expected = {"losses", *(f"{part} {name}" for part in _PARTS for name in names)}
    if not isinstance(run, dict) or set(file.tensors) != expected or not names:
        raise ValueError("does not hold what a run goes on from. It is damaged; remove it.")
    (losses,) = file.read(["losses"]).values()
    # In parts, as what is read at once is limited to what the largest projection takes.
    weights, means, squares = ({name: file.read([f"{part} {name}"])[f"{part} {name}"] for name in names} for part in _PARTS)
    right = losses.ndim == 1 and all(
        part[name].shape == tensor.shape and part[name].dtype == torch.float32 and bool(part[name].isfinite().all())
        for name, tensor in weights.items()
        for part in (weights, means, squares)
    )
    if not right or not all(map(math.isfinite, losses.tolist())):
        raise ValueError("holds numbers that no training leaves. It is damaged; remove it.")
    return Checkpoint(run, losses.tolist(), weights, means, squares)

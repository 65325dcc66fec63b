"""Learned directions as files and through the node, and what the equation says of them."""

import json
import secrets
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import folder_paths
import torch
from safetensors.torch import save_file

from benchmarks.in_process import node


@dataclass
class Learned:
    """One guidance of the equation, method.md section 4: sign per row times w * weights[i] * shifts[i] of y at layer i, nothing at the head.

    The others as in the terms of encoded directions.
    """

    shifts: torch.Tensor  # (L, D)
    weights: list  # one per layer, then the head's
    w: float = 3.0
    rows: str = "both"
    window: tuple = (float("inf"), 0.0)  # sigmas, first and last
    keep_norm: bool = False

    argument = "emb_B_T_D"  # of blocks that are shifted elsewhere too

    def shift(self, layer):
        return self.shifts[layer] if layer < len(self.shifts) else torch.zeros_like(self.shifts[0])


def shifts(depth, width, seed=80, size=0.15):
    """Another one for each layer."""
    return size * torch.randn(depth, width, generator=torch.Generator().manual_seed(seed))


def file_of(tensor, family, positive="highly detailed", negative="very simple", **entry):
    """The tensors and metadata of a learned direction, as in its file."""
    entry = {"family": family, "positive": positive, "negative": negative, "weight": 1.0, "record": {}} | entry
    return {"learned.0": tensor}, {
        "format": "modulation guidance direction",
        "format_version": "1",
        "kind": "learned",
        "learned": json.dumps([entry]),
        "encoded": "[]",
    }


_FOLDER = tempfile.TemporaryDirectory()  # the host remembers folders, and asks for them again


def learned(tensor, family, **entry):
    """A direction, loaded through the node."""
    tensors, metadata = file_of(tensor, family, **entry)
    path = Path(_FOLDER.name) / f"{secrets.token_hex(8)}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return loaded_direction(path)


def loaded_direction(path):
    """Through the node."""
    with registered(path.parent, "guidance_directions"):
        return node("LoadGuidanceDirection", direction_name=path.name)[0]


@contextmanager
def registered(folder, name="pooled_projections"):
    """The folder as the only one of the host's under that name."""
    _, suffixes = folder_paths.folder_names_and_paths[name]
    with patch.dict(folder_paths.folder_names_and_paths, {name: ([str(folder)], suffixes)}):
        yield


@contextmanager
def saving_to(output):
    """The folder as the host's for output."""
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(output))
    try:
        yield
    finally:
        folder_paths.set_output_directory(before)


def saved_direction(direction, output):
    """The file that the node makes in that folder."""
    with saving_to(output):
        known = {*output.iterdir()}
        node("SaveGuidanceDirection", direction=direction, filename_prefix="saved")
        [path] = {*output.iterdir()} - known
        return path

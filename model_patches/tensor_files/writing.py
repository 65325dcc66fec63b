"""Writing safetensors: the same tensors and metadata give the same bytes, and a file is complete or not there."""

from __future__ import annotations

import json
import os
import secrets
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .stored import DTYPES

_UNFINISHED = ".unfinished-tensors"
_ABANDONED = 3600  # seconds since the last byte was written


def write(path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], replace: bool = False) -> None:
    """Raises FileExistsError where something of that name is, unless it is to be replaced, and OSError; then nothing is left behind."""
    path = Path(path)
    if not replace and os.path.lexists(path):
        raise FileExistsError(f"{path} exists")
    _clear(path.parent)
    # Not beside the name of the file, which may be as long as names get; opened as any file, so that it has the umask's mode.
    unfinished = path.with_name(secrets.token_hex(8) + _UNFINISHED)
    try:
        with unfinished.open("xb") as file:
            _write(file, tensors, metadata)
            file.flush()
            os.fsync(file.fileno())  # a full disk may say so only now
        if not replace:
            # Taken first, by whoever comes first: a rename would replace what another process has saved meanwhile.
            path.open("xb").close()
        try:
            os.replace(unfinished, path)
        except BaseException:
            if not replace:
                path.unlink()
            raise
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def can_be_written(value: Any) -> bool:
    """Whether it is a tensor that a file can hold."""
    plain = isinstance(value, Tensor) and value.layout == torch.strided
    return plain and value.dtype in DTYPES.values() and value.numel() > 0


def _write(file, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    codes = {dtype: code for code, dtype in DTYPES.items()}
    header: dict[str, dict] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    # The widest numbers first: each tensor begins at a multiple of its numbers' size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    end = 0
    for name in names:
        tensor = tensors[name]
        first, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [first, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in names:
        # One at a time, so that no second copy of all of them is needed.
        file.write(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def _clear(folder: Path) -> None:
    """Removes what a process that was killed has left unfinished; one that still writes has just written."""
    for unfinished in folder.glob("*" + _UNFINISHED):
        try:
            if time.time() - unfinished.stat().st_mtime > _ABANDONED:
                unfinished.unlink()
        except OSError:  # another process did, or it belongs to another user
            continue

"""Files of LAION's aesthetic heads, as they are published: one linear layer, or five with nothing but dropout between them."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from ..model_patches.tensor_files import check_finite, listed, opened, shown
from .clip_folder import CONFIG, projection_width

_FORMS = (("",), ("layers.0.", "layers.2.", "layers.4.", "layers.6.", "layers.7."))
_LARGEST = 2**24  # numbers


def read_head(path: str) -> list[tuple[Tensor, Tensor]]:
    """[(weight (out, in), bias (out))] in fp32, whose last layer gives one number. Raises ValueError."""
    try:
        with opened(path) as file:
            names = _layers(file.tensors.keys())
            for name in names:
                file.check([f"{name}weight", f"{name}bias"])
            sizes = [file.tensors[f"{name}weight"].shape for name in names]
            biases = [file.tensors[f"{name}bias"].shape for name in names]
            follow = all(len(size) == 2 for size in sizes) and [size[1] for size in sizes[1:]] == [size[0] for size in sizes[:-1]]
            if not follow or biases != [size[:1] for size in sizes] or sizes[-1][0] != 1 or max(a * b for a, b in sizes) > _LARGEST:
                raise ValueError(f"holds layers of shapes {shown(sizes)}; needed are some that follow each other and end in one number.")
            tensors = file.read([name + part for name in names for part in ("weight", "bias")])
            for name, tensor in tensors.items():
                check_finite(name, tensor)
    except ValueError as error:
        raise ValueError(f"The picture scorer {os.path.basename(path)} {error}") from None
    return [(tensors[f"{name}weight"].float(), tensors[f"{name}bias"].float()) for name in names]


def clip_beside(path: str, width: int) -> str:
    """The folder of the CLIP model whose embeddings of that width the head at `path` reads. Raises ValueError unless there is one."""
    folder = Path(path).parent
    if (folder / CONFIG).is_file():
        found = [folder]
    else:
        found = sorted(each for each in folder.iterdir() if (each / CONFIG).is_file() and projection_width(str(each)) == width)
    if len(found) == 1:
        return str(found[0])
    name = os.path.basename(path)
    if found:
        raise ValueError(
            f"The picture scorer {name} could read {', '.join(each.name for each in found)}, all with embeddings {width} wide. Move it into "
            "the folder of the CLIP model it was made for."
        )
    raise ValueError(
        f"The picture scorer {name} reads embeddings of a CLIP model, {width} wide, and there is none beside it in {folder}. Put that model's "
        "folder there; LAION's heads for 768 read openai/clip-vit-large-patch14."
    )


def _layers(names) -> tuple[str, ...]:
    for form in _FORMS:
        if {layer + part for layer in form for part in ("weight", "bias")} == {*names}:
            return form
    raise ValueError(
        f"holds {listed(names)}; needed are weight and bias, or layers.0, 2, 4, 6 and 7 with a weight and a bias each, as LAION's aesthetic "
        "heads without activations have them (sac+logos+ava1-l14-linearMSE.pth)."
    )

"""Makes the host (a ComfyUI folder) importable in this process. Call `use_host` before anything imports comfy."""

import os
import sys
from pathlib import Path

from tools.gpu import has_gpu


def use_host(folder: str | None = None) -> None:
    """Put ComfyUI on the path and let it run on the CPU where there is no GPU.

    folder: the ComfyUI folder; default the environment's COMFYUI_PATH; not needed where comfy is importable already.
    """
    folder = folder or os.environ.get("COMFYUI_PATH")
    if folder and not (Path(folder) / "comfy").is_dir():
        raise FileNotFoundError(f"{folder} is not a ComfyUI folder")
    if folder and folder not in sys.path:
        sys.path.insert(0, folder)
    from comfy.cli_args import args

    args.cpu = args.cpu or not has_gpu()
    args.use_pytorch_cross_attention = True

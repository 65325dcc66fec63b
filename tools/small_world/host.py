"""Makes the host (a ComfyUI folder) importable in this process. Call `use_host` before anything imports comfy.

A command calls `under_host` first of all: this module needs no more than Python.
"""

import os
import sys
from pathlib import Path

from tools.gpu import has_gpu
from tools.host import with_module
from tools.packages import has_module


def under_host(module: str) -> None:
    """Goes on as `python -m module` of a ComfyUI where this Python has no torch."""
    with_module("torch", ["-m", module, *sys.argv[1:]])


def use_host(folder: str | None = None) -> None:
    """Put ComfyUI on the path and let it run on the CPU where there is no GPU.

    folder: the ComfyUI folder; default the environment's COMFYUI_PATH; not needed where comfy is importable already. Ends the process, with
    what to do, where there is none.
    """
    folder = folder or os.environ.get("COMFYUI_PATH")
    if folder and not (Path(folder) / "comfy").is_dir():
        sys.exit(f"error: {folder} is not a ComfyUI folder. Give --comfyui the folder that holds ComfyUI's main.py.")
    if not folder and not has_module("comfy"):
        sys.exit("error: there is no ComfyUI. Give its folder with --comfyui, or set COMFYUI_PATH to it, and run this with its Python.")
    if folder and folder not in sys.path:
        sys.path.insert(0, folder)
    from comfy.cli_args import args

    args.cpu = args.cpu or not has_gpu()
    args.use_pytorch_cross_attention = True

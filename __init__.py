"""ComfyUI-Modulation-Guidance: the entry point ComfyUI imports."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]

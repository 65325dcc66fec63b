"""ComfyUI-Modulation-Guidance: the entry point ComfyUI imports."""

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]

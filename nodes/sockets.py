"""The socket types and the category shared by all nodes."""

from comfy_api.latest import io

CATEGORY = "modulation guidance"

Direction = io.Custom("GUIDANCE_DIRECTION")
Schedule = io.Custom("LAYER_SCHEDULE")
Projection = io.Custom("POOLED_PROJECTION")

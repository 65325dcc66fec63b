"""The node that shows what guidance will do before anything is sampled."""

import json
import math

from comfy_api.latest import io
from typing_extensions import override

from ..model_patches.guidance import LARGEST_W
from ..model_patches.inspection import Inspection, inspect
from .diagrams import inspection_picture
from .lists import names
from .pictures import shortened, to_image
from .queue_errors import checked
from .sockets import CATEGORY, Direction, Projection, Schedule, check_sockets


class InspectGuidance(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        directions = io.Autogrow.TemplatePrefix(
            Direction.Input("direction", tooltip="One of the directions to look at."), prefix="direction", min=1, max=16
        )
        return io.Schema(
            node_id="InspectGuidance",
            display_name="Inspect Guidance",
            category=CATEGORY,
            description="Shows, without sampling, how alike directions are and how strong guidance is at each layer beside the modulation itself, "
            "so that a w that will burn the picture is seen before it is used.",
            search_aliases=["modulation guidance", "compare directions", "cosine similarity", "guidance strength", "debug guidance"],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion transformer to be guided."),
                io.Autogrow.Input("directions", template=directions, tooltip="The directions to look at; a new input appears as you connect one."),
                io.String.Input(
                    "labels", default="",
                    tooltip="A name for each direction, in order, separated by commas. Empty: as the inputs are called, direction0, "
                    "direction1 ...",
                ),
                io.Float.Input(
                    "w", default=3.0, min=-LARGEST_W, max=LARGEST_W, step=0.1,
                    tooltip="The guidance scale to look at. The strength grows in proportion to it.",
                ),
                Schedule.Input("schedule", optional=True, tooltip="How strongly each layer is guided; as in Apply Modulation Guidance."),
                Projection.Input("projection", optional=True, tooltip="Only for models without text in their modulation, which need one."),
            ],
            outputs=[
                io.Image.Output(
                    "image", display_name="image",
                    tooltip="Cosines between the directions (1 alike, -1 opposite) in what the text encoder gives and in what reaches the "
                    "modulation y; and the length of w times the shift beside that of y, layer by layer.",
                ),
                io.String.Output(
                    "report", display_name="report",
                    tooltip="The numbers as JSON, and warnings: directions that repeat or cancel each other or do nothing, a strength that will "
                    "burn the picture.",
                ),
            ],
        )

    @classmethod
    @override
    def validate_inputs(cls, labels=None, directions=None):
        return checked(_labels, labels, directions)

    @classmethod
    @override
    def execute(cls, model, directions, labels, w, schedule=None, projection=None) -> io.NodeOutput:
        check_sockets(cls, model=model, schedule=schedule, projection=projection, **directions)
        connected = [directions[name] for name in _in_order(directions)]
        labels = _labels(labels, directions)
        inspection = inspect(model, connected, [shortened(label) for label in labels], w, schedule, projection)
        return io.NodeOutput(to_image(inspection_picture(inspection, labels, w)), _report(inspection, labels, w))


def _labels(text: str, directions: dict) -> list[str]:
    return names(text, _in_order(directions), "Inspect Guidance", "directions")


def _in_order(directions: dict) -> list[str]:
    """The names of the inputs, by which the labels call them too."""
    return sorted(directions, key=lambda name: int(name.removeprefix("direction")))


def _report(inspection: Inspection, labels: list[str], w: float) -> str:
    def rounded(value):
        if isinstance(value, (list, tuple)):
            return [rounded(part) for part in value]
        return None if math.isnan(value) else round(value, 6)

    return json.dumps({
        "family": inspection.family,
        "layers": inspection.depth,
        "w": w,
        "labels": labels,
        "sigmas": rounded(inspection.sigmas),
        "cosines": {
            "pooled": inspection.pooled and rounded(inspection.pooled),
            "modulation": rounded(inspection.modulation),
        },
        "strength": [{"layers": rounded(layers[:-1]), "head": rounded(layers[-1])} for layers in inspection.strengths],
        "warnings": list(inspection.warnings),
    }, indent=2)

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
            Direction.Input("direction", tooltip="One of the directions to compare."), prefix="direction", min=1, max=16
        )
        return io.Schema(
            node_id="InspectGuidance",
            display_name="Inspect Guidance",
            category=CATEGORY,
            description="Shows, before you sample, how similar your directions are and how strong the guidance is at each layer compared "
            "with the modulation itself: a w that would burn the image shows up here.",
            search_aliases=["modulation guidance", "compare directions", "cosine similarity", "guidance strength", "debug guidance"],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion transformer to guide."),
                io.Autogrow.Input(
                    "directions",
                    template=directions,
                    tooltip="The directions to compare, encoded or learned; a new input appears as you connect one.",
                ),
                io.String.Input(
                    "labels",
                    default="",
                    tooltip="A name for each direction, in order, separated by commas. Empty: the names of the inputs, direction0, "
                    "direction1 ...",
                ),
                io.Float.Input(
                    "w",
                    default=3.0,
                    min=-LARGEST_W,
                    max=LARGEST_W,
                    step=0.1,
                    tooltip="The guidance scale to test. The strength grows in proportion to it.",
                ),
                Schedule.Input("schedule", optional=True, tooltip="How strongly each layer is guided, as in Apply Modulation Guidance."),
                Projection.Input(
                    "projection",
                    optional=True,
                    tooltip="For models that get no text in their modulation, which need one for encoded directions; a learned one needs none.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "image",
                    display_name="image",
                    tooltip="How similar the directions are (cosine: 1 same, -1 opposite), by the pooled output of the text encoder and by "
                    "the shift of the modulation y; and how long w times the shift is, relative to y, at each layer.",
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="The same numbers as JSON, with warnings: directions that are the same, cancel each other or do nothing, and a "
                    "strength that is likely to burn the image.",
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

    return json.dumps(
        {
            "family": inspection.family,
            "layers": inspection.depth,
            "w": w,
            "labels": labels,
            "sigmas": rounded(inspection.sigmas),
            "cosines": {"pooled": inspection.pooled and rounded(inspection.pooled), "modulation": rounded(inspection.modulation)},
            "strength": [{"layers": rounded(layers[:-1]), "head": rounded(layers[-1])} for layers in inspection.strengths],
            "warnings": list(inspection.warnings),
        },
        indent=2,
    )

"""Nodes that say how strongly each layer is guided."""

import itertools
import math

from comfy_api.input import CurveInput
from comfy_api.latest import io
from typing_extensions import override

from ..model_patches.quoting import quoted
from ..model_patches.schedules import LAST_LAYER, CurveSchedule, RangeSchedule, TextSchedule, parse_ranges
from .queue_errors import checked
from .sockets import CATEGORY, Schedule, inputs_of_run

ALIASES = ["modulation guidance", "layer schedule", "block weights", "dynamic guidance"]


def _final_layer():
    return io.Float.Input(
        "final_layer",
        default=0.0,
        min=-10.0,
        max=10.0,
        step=0.05,
        advanced=True,
        tooltip="Weight for the final output layer, after the last block. 0: not guided, as in the paper's code for every model but "
        "HiDream (set 1 there). Guiding it changes colors and contrast directly. Keep 0 with learned directions, with adaln lora "
        "projections and in Scale Text Variance.",
    )


def _output():
    return Schedule.Output("schedule", tooltip="One weight per layer, multiplied by w; checked against the model where it is applied.")


def _drawn(schedule, **inputs) -> io.NodeOutput:
    """The schedule, and for its drawing in the editor the inputs."""
    return io.NodeOutput(schedule, ui=inputs_of_run(**inputs))


class GuidanceLayerSchedule(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="GuidanceLayerSchedule",
            display_name="Layer Schedule",
            category=CATEGORY,
            description="Guides the layers from start_layer to end_layer. Layers are counted over the whole model, from 0: double (joint) "
            "blocks first, then single blocks. FLUX.1 has 19 + 38 = 57 layers, 0 to 56.",
            search_aliases=ALIASES,
            has_intermediate_output=True,
            inputs=[
                io.Int.Input(
                    "start_layer",
                    default=5,
                    min=0,
                    max=LAST_LAYER,
                    tooltip="The first guided layer. 0 guides all layers: stronger, but the image follows your prompt less.",
                ),
                io.Int.Input(
                    "end_layer",
                    default=-1,
                    min=-1,
                    max=LAST_LAYER,
                    tooltip="The last guided layer (included). -1: the last layer of the model.",
                ),
                io.Int.Input(
                    "taper_layers",
                    default=0,
                    min=0,
                    max=LAST_LAYER,
                    advanced=True,
                    tooltip="How many of the last guided layers get taper_scale instead of 1. Helps against burnt contrast.",
                ),
                io.Float.Input(
                    "taper_scale",
                    default=0.25,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    advanced=True,
                    tooltip="The weight of these last layers. 1: no taper.",
                ),
                _final_layer(),
            ],
            outputs=[_output()],
        )

    @classmethod
    @override
    def validate_inputs(cls, start_layer=None):
        return checked(RangeSchedule, start_layer, kind=int)

    @classmethod
    @override
    def execute(cls, start_layer, end_layer, taper_layers, taper_scale, final_layer) -> io.NodeOutput:
        return _drawn(
            RangeSchedule(start_layer, end_layer, taper_layers, taper_scale, final_layer),
            start_layer=start_layer,
            end_layer=end_layer,
            taper_layers=taper_layers,
            taper_scale=taper_scale,
            final_layer=final_layer,
        )


class GuidanceLayerScheduleCurve(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="GuidanceLayerScheduleCurve",
            display_name="Layer Schedule (Curve)",
            category=CATEGORY,
            description="Sets the weight of each layer with a curve: left is the first layer of the model, right the last.",
            search_aliases=ALIASES,
            has_intermediate_output=True,
            inputs=[
                io.Curve.Input(
                    "curve",
                    default=[(0.0, 0.0), (0.1, 1.0), (1.0, 1.0)],
                    tooltip="x: depth, 0 the first layer and 1 the last. y: the weight of the layer, multiplied by w.",
                ),
                _final_layer(),
            ],
            outputs=[_output()],
        )

    @classmethod
    @override
    def execute(cls, curve, final_layer) -> io.NodeOutput:
        curve = _curve(curve)
        return _drawn(CurveSchedule(curve.interp, final_layer), final_layer=final_layer)


class GuidanceLayerScheduleText(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="GuidanceLayerScheduleText",
            display_name="Layer Schedule (Text)",
            category=CATEGORY,
            description="Sets the weight of each layer as text, range by range. Layers left out are not guided.",
            search_aliases=ALIASES,
            has_intermediate_output=True,
            inputs=[
                io.String.Input(
                    "layers",
                    multiline=True,
                    default="5-56: 1",
                    tooltip="Ranges (both ends included) or single layers, each with a weight: 5-18: 1, 19-55: 0.5, 56: 0",
                ),
                _final_layer(),
            ],
            outputs=[_output()],
        )

    @classmethod
    @override
    def validate_inputs(cls, layers=None):
        return checked(parse_ranges, layers)

    @classmethod
    @override
    def execute(cls, layers, final_layer) -> io.NodeOutput:
        return _drawn(TextSchedule(parse_ranges(layers), final_layer), layers=layers, final_layer=final_layer)


def _curve(raw) -> CurveInput:
    """The curve of the editor, or of another node. Raises ValueError where it is none, as what comes over HTTP may be."""
    try:
        curve = CurveInput.from_raw(raw)
    except (LookupError, OverflowError, TypeError, ValueError):
        curve = None
    if curve is None or not all(map(math.isfinite, itertools.chain(*curve.points))):
        raise ValueError(
            f"Layer Schedule (Curve): {quoted(raw)} is no curve. Draw one, or write points: "
            '{"points": [[0, 0], [1, 1]], "interpolation": "linear"}'
        )
    if not curve.points:
        raise ValueError("Layer Schedule (Curve): the curve has no points. Draw at least one.")
    return curve

"""Nodes that compare guidance scales and start layers: many guided models, and one picture of what they make."""

import itertools

from comfy_api.latest import io
from typing_extensions import override

from ..model_patches.guidance import LARGEST_W, check_percents, guide
from ..model_patches.quoting import quoted
from ..model_patches.schedules import LAST_LAYER
from .guidance import DIRECTION, settings_inputs
from .labels import PLAIN, label_of, paired
from .lists import numbers
from .pictures import from_image, grid, to_image
from .projections import with_base
from .queue_errors import checked, unmade
from .sockets import CATEGORY, Direction, check_sockets
from .telling import teller

MOST_MODELS = 1000  # each is a sampling

SWEEP, GRID = "Sweep Modulation Guidance", "Guidance Grid"


class SweepModulationGuidance(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="SweepModulationGuidance",
            display_name=SWEEP,
            category=CATEGORY,
            description="Tries Apply Modulation Guidance with every combination of w and start layer. What you connect after it (sampler, "
            "VAE Decode) runs once for each; nothing is loaded or encoded again. Connect the images and labels to Guidance Grid.",
            search_aliases=["modulation guidance", "compare w", "xy plot", "grid search", "tune guidance"],
            inputs=[
                io.Model.Input("model", lazy=True, tooltip="The diffusion transformer to guide."),
                Direction.Input("direction", lazy=True, tooltip=DIRECTION),
                io.String.Input(
                    "w_values",
                    default="0, 1.5, 3, 6",
                    tooltip="Guidance scales, separated by commas (0..6:1.5 is 0, 1.5, 3, 4.5, 6). 0: no guidance, run once whatever the start "
                    "layers. With a max or mean projection or with base prompts, 0 still adds your prompt; with base prompts it runs once per start layer.",
                ),
                io.String.Input(
                    "start_layers", default="0, 5, 10", tooltip="Values of start_layer to try, separated by commas (0..10:5 is 0, 5, 10)."
                ),
                *settings_inputs(
                    schedule="The schedule in which start_layer is varied. A Layer Schedule keeps its end, taper and final_layer; a curve or text "
                    "gets weight 0 before the start layer. Not connected: the default of the model, with this start layer."
                ),
            ],
            outputs=[
                io.Model.Output(
                    "models",
                    display_name="models",
                    is_output_list=True,
                    tooltip="One guided model for each combination of w and start layer.",
                ),
                io.String.Output(
                    "labels",
                    display_name="labels",
                    is_output_list=True,
                    tooltip="A label for each model, for Guidance Grid: plain, or for example w 3, start 5.",
                ),
            ],
            not_idempotent=True,  # each tells of itself: the host must not give it what it kept of another node
        )

    @classmethod
    @override
    def validate_inputs(cls, w_values=None):
        return checked(_scales, w_values)

    @classmethod
    @override
    def check_lazy_status(cls, **inputs):
        _settings(inputs["w_values"], inputs["start_layers"])
        check_percents(inputs["start_percent"], inputs["end_percent"])
        return unmade(inputs)

    @classmethod
    @override
    def execute(
        cls, model, direction, w_values, start_layers, projection=None, base_positive=None, base_negative=None, **settings
    ) -> io.NodeOutput:
        bases = {"base_positive": base_positive, "base_negative": base_negative}
        check_sockets(cls, model=model, direction=direction, projection=projection, **bases, **settings)
        # The base of a projection goes in at w 0 too; where base_positive and base_negative make it, only where the schedule guides.
        based_by_layer = any(base is not None for base in bases.values())
        projection = with_base(SWEEP, projection, **bases)
        at_0 = "w 0" if projection is not None and projection.has_base else PLAIN
        models = {}
        for w, start in _settings(w_values, start_layers):
            label = at_0 if w == 0 and not based_by_layer else label_of(w, start)
            if label not in models:
                models[label] = guide(model, direction, w, projection=projection, start_layer=start, teller=teller(cls, label), **settings)
        return io.NodeOutput(list(models.values()), list(models))


class GuidanceGrid(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="GuidanceGrid",
            display_name=GRID,
            category=CATEGORY,
            description="Arranges the images of a sweep in one labelled image: w from left to right, start layers from top to bottom. "
            "Images with other labels fill rows, each with its label.",
            search_aliases=["modulation guidance", "xy plot", "image grid", "contact sheet", "compare images"],
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="The images of a sweep, from VAE Decode, in any size. A batch is drawn in one cell."),
                io.String.Input("labels", force_input=True, tooltip="One label for each image, from Sweep Modulation Guidance."),
                io.String.Input("title", default="", multiline=True, optional=True, tooltip="Written above, e.g. your prompt."),
            ],
            outputs=[io.Image.Output("image", display_name="image", tooltip="All images in one, labelled.")],
        )

    @classmethod
    @override
    def execute(cls, images, labels, title=("",)) -> io.NodeOutput:
        pictures = paired(GRID, images, labels)
        return io.NodeOutput(to_image(grid([from_image(image) for image, _ in pictures], labels, title[0])))


def _settings(w_values: str, start_layers: str) -> list[tuple[float, int]]:
    scales, layers = _scales(w_values), _layers(start_layers)
    if len(scales) * len(layers) > MOST_MODELS:
        raise ValueError(
            f"{SWEEP}: {len(scales)} numbers in w_values and {len(layers)} in start_layers make {len(scales) * len(layers)} models to sample; "
            f"{MOST_MODELS} is the most. Sweep in parts."
        )
    return list(itertools.product(scales, layers))


def _scales(text: str) -> list[float]:
    found = numbers(text, SWEEP, "w_values", "0, 1.5, 3, 6")
    for w in found:
        if abs(w) > LARGEST_W:
            raise ValueError(f"{SWEEP}: w_values holds {w:g}; w goes from {-LARGEST_W:g} to {LARGEST_W:g}.")
    return [w + 0.0 for w in found]  # -0 as 0


def _layers(text: str) -> list[int]:
    found = numbers(text, SWEEP, "start_layers", "0, 5, 10", int)
    for layer in found:
        if not 0 <= layer <= LAST_LAYER:
            raise ValueError(f"{SWEEP}: start_layers holds {quoted(layer)}; layers count from 0 and go up to {LAST_LAYER}.")
    return found

"""The node that puts guidance on a model."""

from comfy_api.latest import io
from typing_extensions import override

from ..model_patches.guidance import CFG_ROWS, LARGEST_W, check_percents, guide, guided_depth
from .projections import with_base
from .queue_errors import checked
from .sockets import CATEGORY, Direction, Projection, Schedule, check_sockets
from .telling import teller


def settings_inputs(schedule: str) -> list[io.Input]:
    """The inputs of guidance beside its direction, scale and start layer; schedule: that input's tooltip."""
    return [
        io.Float.Input(
            "start_percent", default=0.0, min=0.0, max=1.0, step=0.001, advanced=True,
            tooltip="When guidance begins: 0 is the start of sampling, 1 its end.",
        ),
        io.Float.Input(
            "end_percent", default=1.0, min=0.0, max=1.0, step=0.001, advanced=True,
            tooltip="When guidance ends: 0 is the start of sampling, 1 its end.",
        ),
        io.Combo.Input(
            "cfg_rows", options=["auto", *CFG_ROWS], default="auto", advanced=True,
            tooltip="Which side of CFG is guided. auto: as in the paper's code for this model; both: positive and negative; cond: positive "
            "only; opposed: positive with w, negative with -w.",
        ),
        io.Boolean.Input(
            "keep_norm", default=False, advanced=True,
            tooltip="Rescale the guided modulation to the length of the plain one. Steadier at high w, at some cost in prompt adherence.",
        ),
        Schedule.Input("schedule", optional=True, tooltip=schedule),
        Projection.Input(
            "projection", optional=True,
            tooltip="Only for models without text in their modulation (Anima, Cosmos, Wan, Qwen-Image ...), which need one: "
            "from Load Pooled Projection.",
        ),
        io.Conditioning.Input(
            "base_positive", optional=True, advanced=True,
            tooltip="Only for projections of a text encoder's pooled output (CLIP + scales): your prompt through that encoder, "
            "e.g. CLIP-L by CLIPLoader with any type but hidream. Unconnected: the conditional rows get the direction alone. "
            "Projections of the model's own text take no notice of it.",
        ),
        io.Conditioning.Input(
            "base_negative", optional=True, advanced=True,
            tooltip="The same for the unconditional rows: the negative or the empty prompt, encoded likewise.",
        ),
    ]


class ApplyModulationGuidance(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="ApplyModulationGuidance",
            display_name="Apply Modulation Guidance",
            category=CATEGORY,
            description="Shifts the modulation of a diffusion transformer along a direction: y + w (y(p+) - y(p-)), layer by layer. "
            "Costs no speed, works with and without CFG, and adds up when applied more than once.",
            search_aliases=[
                "modulation guidance", "guidance", "mod guidance", "detail", "more detail", "quality guidance", "adaln guidance", "clip guidance",
            ],
            has_intermediate_output=True,  # the depth reaches an editor opened after the run, too
            inputs=[
                io.Model.Input("model", tooltip="The diffusion transformer to guide."),
                Direction.Input("direction", tooltip="What is wanted and not wanted, from Encode Guidance Direction."),
                io.Float.Input(
                    "w", default=3.0, min=-LARGEST_W, max=LARGEST_W, step=0.1,
                    tooltip="Guidance scale: how far to go. 0: no guidance (with a projection its base stays in). 3: the paper's value for "
                    "FLUX. Negative: the opposite way. Too much burns the picture or makes it ignore your prompt.",
                ),
                *settings_inputs(
                    schedule="How strongly each layer is guided. Unconnected: the default for the model, every layer from the start layer of "
                    "the paper's code on (FLUX.1: 5), or from a tenth of the depth on; with a max or mean projection layers 8 to 26 of 28. "
                    "The output head is guided on HiDream only."
                ),
            ],
            outputs=[io.Model.Output("model", display_name="model", tooltip="The guided model.")],
        )

    @classmethod
    @override
    def validate_inputs(cls, start_percent=None, end_percent=None):
        return checked(check_percents, start_percent, end_percent, kind=float)

    @classmethod
    @override
    def execute(
        cls, model, direction, w, start_percent, end_percent, cfg_rows, keep_norm, schedule=None, projection=None, base_positive=None,
        base_negative=None,
    ) -> io.NodeOutput:
        check_sockets(
            cls, model=model, direction=direction, schedule=schedule, projection=projection, base_positive=base_positive,
            base_negative=base_negative,
        )
        projection = with_base(projection, base_positive, base_negative)
        return guided(cls, model, direction, w, schedule, cfg_rows, keep_norm, start_percent, end_percent, projection)


def guided(cls, *arguments, **settings) -> io.NodeOutput:
    """The answer of a node of the class `cls` that puts guidance on a model; arguments and errors as those of `guide`."""
    model = guide(*arguments, **settings, teller=teller(cls))
    return io.NodeOutput(model, ui={"model_depth": [guided_depth(model)]})  # for the schedule's drawing in the editor

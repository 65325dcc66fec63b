"""The node that puts guidance on a model."""

from comfy_api.latest import io
from typing_extensions import override

from ..model_patches.guidance import CFG_ROWS, LARGEST_W, check_percents, guide, guided_depth
from .projections import with_base
from .queue_errors import unmade
from .sockets import CATEGORY, Direction, Projection, Schedule, check_sockets, window_inputs
from .telling import teller

NAME = "Apply Modulation Guidance"
DIRECTION = (
    "What you want and do not want: from Encode Guidance Direction, or a learned one, from Load Guidance Direction or Distill Guidance "
    "Direction."
)


def settings_inputs(schedule: str) -> list[io.Input]:
    """The inputs of guidance beside its direction, scale and start layer; schedule: that input's tooltip."""
    return [
        *window_inputs("guidance"),
        io.Combo.Input(
            "cfg_rows",
            options=["auto", *CFG_ROWS],
            default="auto",
            advanced=True,
            tooltip="Which side of CFG is guided. auto: as in the paper's code for this model; both: positive and negative; cond: positive "
            "only; opposed: positive with w, negative with -w.",
        ),
        io.Boolean.Input(
            "keep_norm",
            default=False,
            advanced=True,
            tooltip="Keeps the modulation vector at its unguided length. Steadier at high w, but follows your prompt a little less.",
        ),
        Schedule.Input("schedule", optional=True, tooltip=schedule),
        Projection.Input(
            "projection",
            optional=True,
            tooltip="For models that get no text in their modulation (Anima, Cosmos, Wan, Qwen-Image ...), which need one for encoded "
            "directions; refused by all others. From Load Pooled Projection or Distill Pooled Projection. A learned direction needs none; "
            "with one, both add up.",
        ),
        io.Conditioning.Input(
            "base_positive",
            optional=True,
            advanced=True,
            tooltip="Only for projections with pooling clip (published as CLIP + scales): your positive prompt, encoded with the text "
            "encoder of the projection, e.g. CLIP-L by Load CLIP (CLIPLoader) with any type but hidream. Not connected: the positive side "
            "gets the direction alone. Projections with pooling max or mean ignore it.",
        ),
        io.Conditioning.Input(
            "base_negative",
            optional=True,
            advanced=True,
            tooltip="The same for the negative side: your negative prompt, or an empty one, encoded the same way.",
        ),
    ]


class ApplyModulationGuidance(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="ApplyModulationGuidance",
            display_name=NAME,
            category=CATEGORY,
            description="Steers a diffusion transformer (FLUX.1, SD3.5, HiDream ...) from what you do not want towards what you want, by "
            "shifting its modulation: y + w (y(p+) - y(p-)), layer by layer. As fast as without it, works with and without CFG; several in "
            "a row add up.",
            search_aliases=[
                "modulation guidance",
                "guidance",
                "mod guidance",
                "detail",
                "more detail",
                "quality guidance",
                "adaln guidance",
                "clip guidance",
            ],
            has_intermediate_output=True,  # the depth reaches an editor opened after the run, too
            inputs=[
                io.Model.Input("model", lazy=True, tooltip="The diffusion transformer to guide."),
                Direction.Input("direction", lazy=True, tooltip=DIRECTION),
                io.Float.Input(
                    "w",
                    default=3.0,
                    min=-LARGEST_W,
                    max=LARGEST_W,
                    step=0.1,
                    tooltip="Guidance scale: how far to go. 0: no guidance (a projection may still add your prompt). 3: the paper's value "
                    "for FLUX; 1: as strong as its words, for a learned direction. Negative: the opposite way. Too much "
                    "burns the image or makes it ignore your prompt.",
                ),
                *settings_inputs(
                    schedule="How strongly each layer is guided. Not connected: the default for the model, every layer from the start layer of "
                    "the paper's code on (FLUX.1: 5), or from a tenth of the depth on; with a max or mean projection layers 8 to 26 of 28. "
                    "The final output layer is guided on HiDream only."
                ),
            ],
            outputs=[io.Model.Output("model", display_name="model", tooltip="The guided model.")],
            not_idempotent=True,  # each tells of itself: the host must not give it what it kept of another node
        )

    @classmethod
    @override
    def check_lazy_status(cls, **inputs):
        check_percents(inputs["start_percent"], inputs["end_percent"])
        return unmade(inputs)

    @classmethod
    @override
    def execute(cls, model, direction, w, projection=None, base_positive=None, base_negative=None, **settings) -> io.NodeOutput:
        bases = {"base_positive": base_positive, "base_negative": base_negative}
        check_sockets(cls, model=model, direction=direction, projection=projection, **bases, **settings)
        return guided(cls, model, direction, w, projection=with_base(NAME, projection, **bases), **settings)


def guided(cls, *arguments, ui=None, **settings) -> io.NodeOutput:
    """The answer of a node of the class `cls` that puts guidance on a model; arguments and errors as those of `guide`. ui: more for the editor."""
    model = guide(*arguments, **settings, teller=teller(cls))
    return io.NodeOutput(model, ui={"model_depth": [guided_depth(model)], **(ui or {})})  # for the schedule's drawing in the editor

"""The node that learns a direction from words."""

from comfy_api.latest import io
from typing_extensions import override

from ..training.direction import check_words, learn_direction
from ..training.settings import LARGEST_RATE, Settings
from .distillation import CACHE, Shown, changed, check_clip, further_inputs, lines_of, lines_of_file
from .queue_errors import checked, unmade
from .sockets import CATEGORY, Direction, check_sockets

NAME = "Distill Guidance Direction"


class DistillGuidanceDirection(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="DistillGuidanceDirection",
            display_name=NAME,
            category=CATEGORY,
            description="Learns a guidance direction from words: for each layer a shift of the modulation that does to images what the "
            "words do in a prompt. It works without text in the modulation of the model, so Wan, Qwen-Image, Anima and others need no "
            "projection for it. The model itself is not changed. If you interrupt, what was learned so far is kept and the rest of the "
            "workflow runs.",
            search_aliases=["modulation guidance", "train direction", "learn direction", "distillation", "slider", "concept slider"],
            inputs=[
                io.Model.Input(
                    "model",
                    lazy=True,
                    tooltip="The model to learn on, from its loader or with LoRAs. Connect it from before TorchCompileModel.",
                ),
                io.Clip.Input("clip", lazy=True, tooltip="The text encoder of the model itself."),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="",
                    tooltip="What the images show: one prompt per line, like those you use, a hundred if you can; without the words to be "
                    "learned. Of 8 or more, some are set aside to measure what w 1 means. To read a file, use prompts_file.",
                ),
                io.String.Input(
                    "positive", multiline=True, default="", tooltip="The words to be learned, e.g. highly detailed. w 1 stands for them."
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    default="",
                    tooltip="Their opposite, e.g. very simple, no details at all; a negative w stands for it. One of the two may be empty: "
                    "then the other is learned against the prompt alone.",
                ),
                io.Int.Input(
                    "steps",
                    default=400,
                    min=0,
                    max=1000000,
                    tooltip="Training steps. 0: an untrained direction without effect (or the connected one, unchanged).",
                ),
                io.Int.Input(
                    "batch_size",
                    default=4,
                    min=1,
                    max=4096,
                    tooltip="Images per step. As many as fit in memory; if few fit, raise accumulation.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=5e-3,
                    min=1e-8,
                    max=LARGEST_RATE,
                    step=1e-8,
                    tooltip="The highest learning rate: it warms up over the first 2% of the steps, then falls to a tenth along a cosine. "
                    "A direction needs a far higher one than a network or a LoRA.",
                ),
                io.Int.Input("width", default=1024, min=16, max=16384, step=8, tooltip="Width of the training images, in pixels."),
                io.Int.Input("height", default=1024, min=16, max=16384, step=8, tooltip="Height of the training images, in pixels."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The same seed gives the same direction.",
                ),
                Direction.Input("direction", optional=True, tooltip="A learned direction to continue training, of the same model."),
                *further_inputs("The direction itself stays in fp32."),
            ],
            outputs=[
                Direction.Output("direction", tooltip="For Apply Modulation Guidance, at w 1 first, and for Save Guidance Direction."),
                io.LossMap.Output("loss_map", tooltip="The loss of each step, for Plot Loss Graph."),
                io.Int.Output("steps", tooltip="Training steps done in this run; fewer than asked for if it was interrupted."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def validate_inputs(cls, prompts_file=None):
        return checked(lines_of_file, NAME, prompts_file)

    @classmethod
    @override
    def check_lazy_status(cls, **inputs):
        check_words(inputs["positive"], inputs["negative"])
        lines_of(NAME, inputs["prompts"], inputs.get("prompts_file", ""))
        return unmade(inputs)

    @classmethod
    @override
    def fingerprint_inputs(cls, prompts_file="", **inputs):
        return changed(NAME, prompts_file)

    @classmethod
    @override
    def execute(cls, model, clip, prompts, positive, negative, direction=None, prompts_file="", cache=CACHE, **settings) -> io.NodeOutput:
        check_clip(NAME, clip)
        check_sockets(cls, model=model, clip=clip, direction=direction)
        settings = Settings(cache=cache * 1024**3, **settings)
        with Shown(cls.hidden, settings.steps) as show:
            made = learn_direction(model, clip, lines_of(NAME, prompts, prompts_file), positive, negative, settings, direction, show)
        return io.NodeOutput(made.direction, {"loss": made.losses}, len(made.losses))

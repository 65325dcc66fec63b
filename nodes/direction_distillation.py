"""The node that learns a direction from words."""

from comfy_api.latest import io
from typing_extensions import override

from ..training.direction import check_words, learn_direction
from ..training.settings import Settings
from .learning import (
    Shown,
    changed,
    check_clip,
    first_inputs,
    further_inputs,
    last_outputs,
    lines_of,
    lines_of_file,
    run_inputs,
    settings_of,
)
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
            "workflow runs. Run again unchanged, the node gives that; another seed starts anew.",
            search_aliases=["modulation guidance", "train direction", "learn direction", "distillation", "slider", "concept slider"],
            inputs=[
                *first_inputs(
                    model="learn on",
                    prompts="What the images show: one prompt per line, like those you use, a hundred if you can; without the words to be "
                    "learned. Of 8 or more, some are set aside to measure what w 1 means.",
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
                *run_inputs(
                    "direction",
                    steps=400,
                    steps_told="0: an untrained direction without effect (or the connected one, unchanged).",
                    batch_size=4,
                    learning_rate=5e-3,
                    rate_told="A direction needs a far higher one than a network or a LoRA.",
                ),
                Direction.Input("direction", optional=True, tooltip="A learned direction to continue training, of the same model."),
                *further_inputs("The direction itself stays in fp32."),
            ],
            outputs=[
                Direction.Output("direction", tooltip="For Apply Modulation Guidance, at w 1 first, and for Save Guidance Direction."),
                *last_outputs(),
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
    def execute(cls, model, clip, prompts, positive, negative, direction=None, prompts_file="", **settings) -> io.NodeOutput:
        check_clip(NAME, clip)
        check_sockets(cls, model=model, clip=clip, direction=direction)
        settings = settings_of(Settings, settings)
        with Shown(cls.hidden, settings.steps) as show:
            made = learn_direction(model, clip, lines_of(NAME, prompts, prompts_file), positive, negative, settings, direction, show)
        return io.NodeOutput(made.direction, {"loss": made.losses}, len(made.losses))

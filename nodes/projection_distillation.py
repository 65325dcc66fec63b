"""The node that makes a projection for a text-blind model."""

from comfy_api.latest import io
from typing_extensions import override

from ..pooled_proj.projection import INJECTIONS, POOLINGS
from ..training.projection import ProjectionSettings, distill
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
from .sockets import CATEGORY, Projection, check_sockets

NAME = "Distill Pooled Projection"


class DistillPooledProjection(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="DistillPooledProjection",
            display_name=NAME,
            category=CATEGORY,
            description="Trains a projection for a model that gets no text in its modulation (Wan, Qwen-Image, Anima, Cosmos, FLUX.2 ...), "
            "so that it can be guided. The model is its own teacher: with an empty prompt and the projection it learns to predict what it "
            "predicts with the real prompt. The model itself is not changed. If you interrupt, what was learned so far is kept and the "
            "rest of the workflow runs. Run again unchanged, the node gives that; another seed starts anew.",
            search_aliases=["modulation guidance", "train projection", "distillation", "text blind", "make pooled projection"],
            inputs=[
                *first_inputs(
                    model="make a projection for",
                    prompts="One prompt per line, like those you use; a few hundred if you can. Include words of quality and style, since "
                    "those are what you will guide with.",
                ),
                *run_inputs(
                    "projection",
                    steps=1000,
                    steps_told="The paper uses 4000; few-step models need fewer. 0: an untrained projection without effect (or the "
                    "connected one, unchanged).",
                    batch_size=1,
                    learning_rate=2e-5,
                    rate_told="0.00002 is the paper's; short runs and small models need more.",
                ),
                io.Combo.Input(
                    "pooling",
                    options=list(POOLINGS),
                    default="clip",
                    tooltip="What the projection reads. clip: the pooled output of pooled_clip, as published for COSMOS. max, mean: the "
                    "model's own text tokens, pooled, as published for Anima (there max told prompts apart best).",
                ),
                io.Combo.Input(
                    "injection",
                    options=list(INJECTIONS),
                    default="time embedding",
                    tooltip="Where the projection is added. time embedding: in every such model. adaln lora: only Cosmos 1, "
                    "Cosmos-Predict2 and Anima; each layer then learns a scale of its own.",
                ),
                io.Clip.Input(
                    "pooled_clip",
                    optional=True,
                    lazy=True,
                    tooltip="For pooling clip: the text encoder whose pooled output is read, e.g. CLIP-L. Encode directions for this "
                    "projection with the same encoder. Not connected: clip.",
                ),
                Projection.Input(
                    "projection", optional=True, tooltip="A projection to continue training. Its own pooling and injection are used."
                ),
                *further_inputs("The projection itself stays in fp32."),
            ],
            outputs=[
                Projection.Output("projection", tooltip="For Apply Modulation Guidance, and for Save Pooled Projection."),
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
        lines_of(NAME, inputs["prompts"], inputs.get("prompts_file", ""))
        return unmade(inputs)

    @classmethod
    @override
    def fingerprint_inputs(cls, prompts_file="", **inputs):
        return changed(NAME, prompts_file)

    @classmethod
    @override
    def execute(cls, model, clip, prompts, pooled_clip=None, projection=None, prompts_file="", **settings) -> io.NodeOutput:
        check_clip(NAME, clip)
        check_sockets(cls, model=model, clip=clip, pooled_clip=pooled_clip, projection=projection)
        settings = settings_of(ProjectionSettings, settings)
        with Shown(cls.hidden, settings.steps) as show:
            made = distill(model, clip, lines_of(NAME, prompts, prompts_file), settings, pooled_clip, projection, show)
        return io.NodeOutput(made.projection, {"loss": made.losses}, len(made.losses))

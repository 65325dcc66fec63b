"""The node that makes a projection for a text-blind model."""

import os
import time
from pathlib import Path

import comfy.utils
import folder_paths
from comfy_api.latest import io
from server import PromptServer
from tqdm import tqdm
from typing_extensions import override

from ..model_patches.quoting import quoted
from ..model_patches.text_files import read_text
from ..pooled_proj.projection import INJECTIONS, POOLINGS
from ..training.projection import ProjectionSettings, distill
from ..training.settings import DATA, LARGEST_RATE, PRECISIONS, Settings
from .queue_errors import checked, unmade
from .saving import can_be_a_path
from .sockets import CATEGORY, Projection, check_sockets

NAME = "Distill Pooled Projection"
TEXT_EVERY = 0.5  # seconds
CACHE = Settings.cache / 1024**3  # GB


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
            "rest of the workflow runs.",
            search_aliases=["modulation guidance", "train projection", "distillation", "text blind", "make pooled projection"],
            inputs=[
                io.Model.Input(
                    "model",
                    lazy=True,
                    tooltip="The model to make a projection for, from its loader or with LoRAs. Connect it from before TorchCompileModel.",
                ),
                io.Clip.Input("clip", lazy=True, tooltip="The text encoder of the model itself."),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="",
                    tooltip="One prompt per line, like those you use; a few hundred if you can. Include words of quality and style, since "
                    "those are what you will guide with. To read a file, use prompts_file.",
                ),
                io.Int.Input(
                    "steps",
                    default=1000,
                    min=0,
                    max=1000000,
                    tooltip="Training steps. The paper uses 4000; few-step models need fewer. 0: an untrained projection without effect "
                    "(or the connected one, unchanged).",
                ),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=4096,
                    tooltip="Images per step. As many as fit in memory; if few fit, raise accumulation.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=2e-5,
                    min=1e-8,
                    max=LARGEST_RATE,
                    step=1e-8,
                    tooltip="The highest learning rate: it warms up over the first 2% of the steps, then falls to a tenth along a cosine. "
                    "0.00002 is the paper's; short runs and small models need more.",
                ),
                io.Int.Input("width", default=1024, min=16, max=16384, step=8, tooltip="Width of the training images, in pixels."),
                io.Int.Input("height", default=1024, min=16, max=16384, step=8, tooltip="Height of the training images, in pixels."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The same seed gives the same projection.",
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
        lines_of(NAME, inputs["prompts"], inputs.get("prompts_file", ""))
        return unmade(inputs)

    @classmethod
    @override
    def fingerprint_inputs(cls, prompts_file="", **inputs):
        return changed(NAME, prompts_file)

    @classmethod
    @override
    def execute(cls, model, clip, prompts, pooled_clip=None, projection=None, prompts_file="", cache=CACHE, **settings) -> io.NodeOutput:
        check_clip(NAME, clip)
        check_sockets(cls, model=model, clip=clip, pooled_clip=pooled_clip, projection=projection)
        settings = ProjectionSettings(cache=cache * 1024**3, **settings)
        with Shown(cls.hidden, settings.steps) as show:
            made = distill(model, clip, lines_of(NAME, prompts, prompts_file), settings, pooled_clip, projection, show)
        return io.NodeOutput(made.projection, {"loss": made.losses}, len(made.losses))


def further_inputs(kept: str) -> list:
    """Inputs that are folded away at first, of both nodes. kept: a sentence on the precision of what is learned."""
    return [
        io.String.Input(
            "prompts_file",
            default="",
            optional=True,
            advanced=True,
            tooltip="A text file in ComfyUI's input folder with more prompts, one per line, e.g. prompts.txt.",
        ),
        io.Int.Input(
            "accumulation",
            default=Settings.accumulation,
            min=1,
            max=4096,
            optional=True,
            advanced=True,
            tooltip="Batches per step (gradient accumulation): works like a batch that many times larger, in the memory of one.",
        ),
        io.Boolean.Input(
            "checkpointing",
            default=Settings.checkpointing,
            optional=True,
            advanced=True,
            tooltip="Gradient checkpointing: recomputes each block instead of keeping its intermediate results. About a third slower, much "
            "less memory.",
        ),
        io.Int.Input(
            "frames",
            default=Settings.frames,
            min=1,
            max=4096,
            optional=True,
            advanced=True,
            tooltip="For video models: frames per training clip. 1: still images, which train fastest.",
        ),
        io.Combo.Input(
            "data",
            options=list(DATA),
            default=Settings.data,
            optional=True,
            advanced=True,
            tooltip="samples: trains on images that the model generates first. noise: no images, only noise on empty latents; starts at "
            "once but learns less well.",
        ),
        io.Int.Input(
            "samples_per_prompt",
            default=Settings.samples_per_prompt,
            min=1,
            max=1024,
            optional=True,
            advanced=True,
            tooltip="Images generated per prompt before training, never more than the steps need.",
        ),
        io.Int.Input(
            "sample_steps",
            default=Settings.sample_steps,
            min=1,
            max=1000,
            optional=True,
            advanced=True,
            tooltip="Sampling steps for these images. A few are enough; for a model distilled with mean flow, as many as you sample with.",
        ),
        io.Float.Input(
            "cfg",
            default=Settings.cfg,
            min=0.0,
            max=100.0,
            step=0.1,
            optional=True,
            advanced=True,
            tooltip="CFG for these images; the negative prompt is empty. 1 for few-step models, otherwise what you sample with.",
        ),
        io.Int.Input(
            "pairs",
            default=Settings.pairs,
            min=1,
            max=1024,
            optional=True,
            advanced=True,
            tooltip="Noise levels per image, each with noise of its own. The teacher runs once for each; its prediction is then reused.",
        ),
        io.Float.Input(
            "cache",
            default=CACHE,
            min=0.0,
            max=4096.0,
            step=0.5,
            optional=True,
            advanced=True,
            tooltip="Main memory (RAM) in GB for the predictions of the teacher. What does not fit is computed again, which is slower.",
        ),
        io.Combo.Input(
            "precision",
            options=list(PRECISIONS),
            default=Settings.precision,
            optional=True,
            advanced=True,
            tooltip=f"Data type the model computes in. auto: the same as for sampling. {kept}",
        ),
    ]


class Shown:
    """Progress as a bar on the node and in the console, with the loss and the time left in words."""

    def __init__(self, hidden, steps: int):
        self.node = hidden and hidden.unique_id  # a node that is called outside of a graph has none
        self.bar = comfy.utils.ProgressBar(steps)
        self.console = tqdm(total=steps, desc="Distilling", disable=not comfy.utils.PROGRESS_BAR_ENABLED)
        self.told = 0.0

    def __enter__(self):
        return self.show

    def __exit__(self, *error):
        self.console.close()

    def show(self, progress):
        self.bar.update_absolute(progress.step)
        self.console.set_postfix_str(progress.text, refresh=False)
        self.console.update(progress.step - self.console.n)
        if self.node and (time.monotonic() - self.told > TEXT_EVERY or progress.last):
            PromptServer.instance.send_progress_text(progress.text, self.node)
            self.told = time.monotonic()


def lines_of(node: str, prompts: str, prompts_file: str) -> list[str]:
    """Of both. node: whose inputs they are, for errors."""
    lines = prompts.splitlines() + lines_of_file(node, prompts_file)
    if not any(line.strip() for line in lines):
        raise ValueError(f"{node}: prompts is empty. Write prompts like those you use, one per line.")
    return lines


def lines_of_file(node: str, prompts_file: str) -> list[str]:
    return read_text(_file(node, prompts_file), _told(node, prompts_file)).splitlines() if prompts_file else []


def changed(node: str, prompts_file: str) -> int:
    """When the file was changed; 0 without one."""
    return os.stat(_file(node, prompts_file)).st_mtime_ns if prompts_file else 0


def check_clip(node: str, clip) -> None:
    if clip is None:
        raise ValueError(
            f"{node}: there is no text encoder on the clip input. If it comes from a checkpoint loader, the checkpoint holds none; load it "
            "with a CLIP loader."
        )


def _file(node: str, name: str) -> str:
    if not can_be_a_path(name):
        raise ValueError(f"{_told(node, name)} holds a character that no file's name can have. Write another name.")
    folder = os.path.realpath(folder_paths.get_input_directory())
    path = os.path.realpath(os.path.join(folder, name))
    if not Path(path).is_relative_to(folder) or not os.path.exists(path):
        raise ValueError(f"{_told(node, name)} is not in ComfyUI's input folder ({folder}). Put it there.")
    return path


def _told(node: str, name: str) -> str:
    return f"{node}: prompts_file {quoted(name)}"

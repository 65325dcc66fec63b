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
from ..training.settings import DATA, LARGEST_RATE, PRECISIONS
from .queue_errors import checked
from .saving import can_be_a_path
from .sockets import CATEGORY, Projection, check_sockets

NAME = "Distill Pooled Projection"
TEXT_EVERY = 0.5  # seconds


class DistillPooledProjection(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="DistillPooledProjection",
            display_name=NAME,
            category=CATEGORY,
            description="Makes the small network that lets a model without text in its modulation (Wan, Qwen-Image, Anima, Cosmos, FLUX.2 "
            "...) be guided. The model teaches itself: with the prompt it is the teacher, with the empty prompt and the network the "
            "student. The model itself is not changed. Interrupting keeps what was learned so far, and the rest of the graph runs on.",
            search_aliases=["modulation guidance", "train projection", "distillation", "text blind", "make pooled projection"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to make a projection for, straight from its loader or with LoRAs; not compiled.",
                ),
                io.Clip.Input("clip", tooltip="The text encoder the model itself uses."),
                io.String.Input(
                    "prompts", multiline=True, default="",
                    tooltip="One prompt per line, of the kind you use, some hundreds if you can; words of quality and style among them, as "
                    "those are what you will guide with. For a file, see prompts_file.",
                ),
                io.Int.Input(
                    "steps", default=1000, min=0, max=1000000,
                    tooltip="Steps of training. The paper takes 4000, few-step models need less. 0: a projection that has learned nothing "
                    "and changes nothing, or the connected one as it is.",
                ),
                io.Int.Input(
                    "batch_size", default=1, min=1, max=4096,
                    tooltip="Rows a step. As many as fit in memory; accumulation makes up for few.",
                ),
                io.Float.Input(
                    "learning_rate", default=2e-5, min=1e-8, max=LARGEST_RATE, step=1e-8,
                    tooltip="The highest. It warms up over the first 2 % of the steps and falls to a tenth by a cosine. 0.00002 is the "
                    "paper's; short runs and small models take more.",
                ),
                io.Int.Input("width", default=1024, min=16, max=16384, step=8, tooltip="Of the pictures to train on, in pixels."),
                io.Int.Input("height", default=1024, min=16, max=16384, step=8, tooltip="Of the pictures to train on, in pixels."),
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                    tooltip="The same seed gives the same projection.",
                ),
                io.Combo.Input(
                    "pooling", options=list(POOLINGS), default="clip",
                    tooltip="What is projected. clip: the pooled output of pooled_clip, as for COSMOS; max, mean: over the tokens of the "
                    "model's own text, as for Anima, where max told prompts apart best.",
                ),
                io.Combo.Input(
                    "injection", options=list(INJECTIONS), default="time embedding",
                    tooltip="Where it enters. Every text-blind model has a time embedding; Cosmos 1, Cosmos-Predict2 and Anima also adaln "
                    "lora, where each layer learns a scale of its own.",
                ),
                io.Clip.Input(
                    "pooled_clip", optional=True,
                    tooltip="For pooling clip: the text encoder whose pooled output is projected, e.g. CLIP-L. Directions for the finished "
                    "projection are encoded with the same. Unconnected: clip.",
                ),
                Projection.Input(
                    "projection", optional=True,
                    tooltip="A projection to go on from. Its own pooling and injection count then.",
                ),
                *further_inputs("The projection itself is kept in fp32."),
            ],
            outputs=[
                Projection.Output("projection", tooltip="For Apply Modulation Guidance, and for Save Pooled Projection."),
                io.LossMap.Output("loss_map", tooltip="The loss of each step, for Plot Loss Graph."),
                io.Int.Output("steps", tooltip="Steps done in this run; fewer than asked for if it was interrupted."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def validate_inputs(cls, prompts=None, prompts_file=""):
        return checked(lines_of, NAME, prompts, prompts_file)

    @classmethod
    @override
    def fingerprint_inputs(cls, prompts_file="", **inputs):
        return changed(NAME, prompts_file)

    @classmethod
    @override
    def execute(
        cls, model, clip, prompts, steps, batch_size, learning_rate, width, height, seed, pooling, injection, pooled_clip=None,
        projection=None, prompts_file="", accumulation=1, checkpointing=True, frames=1,
        data="samples", samples_per_prompt=2, sample_steps=8, cfg=1.0, pairs=4, cache=4.0, precision="auto",
    ) -> io.NodeOutput:
        check_clip(NAME, clip)
        check_sockets(cls, model=model, clip=clip, pooled_clip=pooled_clip, projection=projection)
        settings = ProjectionSettings(
            steps=steps, batch_size=batch_size, learning_rate=learning_rate, width=width, height=height, seed=seed, pooling=pooling,
            injection=injection, frames=frames, accumulation=accumulation, checkpointing=checkpointing, data=data,
            samples_per_prompt=samples_per_prompt, sample_steps=sample_steps, cfg=cfg, pairs=pairs, cache=cache * 1024**3,
            precision=precision,
        )
        with Shown(cls.hidden, steps) as show:
            made = distill(model, clip, lines_of(NAME, prompts, prompts_file), settings, pooled_clip, projection, show)
        return io.NodeOutput(made.projection, {"loss": made.losses}, len(made.losses))


def further_inputs(kept: str) -> list:
    """Inputs that are folded away at first, of both nodes. kept: a sentence on the precision of what is learned."""
    return [
        io.String.Input(
            "prompts_file", default="", optional=True, advanced=True,
            tooltip="A text file in ComfyUI's input folder with more prompts, one per line, e.g. prompts.txt.",
        ),
        io.Int.Input(
            "accumulation", default=1, min=1, max=4096, optional=True, advanced=True,
            tooltip="Batches a step; as good as a batch that many times as large, in the memory of one.",
        ),
        io.Boolean.Input(
            "checkpointing", default=True, optional=True, advanced=True,
            tooltip="Compute every block twice and keep less: a third slower, and much less memory.",
        ),
        io.Int.Input(
            "frames", default=1, min=1, max=4096, optional=True, advanced=True,
            tooltip="For video models: frames a picture. 1: still pictures, which train fastest.",
        ),
        io.Combo.Input(
            "data", options=list(DATA), default="samples", optional=True, advanced=True,
            tooltip="samples: pictures that the model itself makes first; noise: none, over empty latents, which starts at once "
            "and learns less well.",
        ),
        io.Int.Input(
            "samples_per_prompt", default=2, min=1, max=1024, optional=True, advanced=True,
            tooltip="Pictures made of each prompt before training, no more than the steps need.",
        ),
        io.Int.Input(
            "sample_steps", default=8, min=1, max=1000, optional=True, advanced=True,
            tooltip="Sampling steps of these pictures. Few do; for a model distilled with mean flow, as many as you sample with.",
        ),
        io.Float.Input(
            "cfg", default=1.0, min=0.0, max=100.0, step=0.1, optional=True, advanced=True,
            tooltip="CFG of these pictures, with an empty negative prompt. 1 is right for few-step models; what you sample with, "
            "for others.",
        ),
        io.Int.Input(
            "pairs", default=4, min=1, max=1024, optional=True, advanced=True,
            tooltip="Noise levels, each with its noise, for every picture. The teacher looks at each once; from then on it is "
            "remembered.",
        ),
        io.Float.Input(
            "cache", default=4.0, min=0.0, max=4096.0, step=0.5, optional=True, advanced=True,
            tooltip="Gigabytes of main memory for what the teacher said. What does not fit is asked again, which is slower.",
        ),
        io.Combo.Input(
            "precision", options=list(PRECISIONS), default="auto", optional=True, advanced=True,
            tooltip=f"What the model computes in. auto: what it samples in. {kept}",
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
    lines = prompts.splitlines()
    if prompts_file:
        lines += read_text(_file(node, prompts_file), _told(node, prompts_file)).splitlines()
    if not any(line.strip() for line in lines):
        raise ValueError(f"{node}: prompts is empty. Write prompts like those you use, one per line.")
    return lines


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

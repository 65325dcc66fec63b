"""What the nodes that train share: inputs, progress, and prompts from a file."""

import os
import time
from pathlib import Path

import comfy.utils
import folder_paths
from comfy_api.latest import io
from server import PromptServer
from tqdm import tqdm

from ..model_patches.quoting import quoted
from ..model_patches.text_files import read_text
from ..training.settings import DATA, LARGEST_RATE, PRECISIONS, Settings
from .saving import can_be_a_path

TEXT_EVERY = 0.5  # seconds
GB = 1024**3


def first_inputs(model: str, prompts: str) -> list[io.Input]:
    """What is learned on, and from; model, prompts: what their tooltips say of this node."""
    return [
        io.Model.Input(
            "model", lazy=True, tooltip=f"The model to {model}, from its loader or with LoRAs. Connect it from before TorchCompileModel."
        ),
        io.Clip.Input("clip", lazy=True, tooltip="The text encoder of the model itself."),
        io.String.Input("prompts", multiline=True, default="", tooltip=f"{prompts} To read a file, use prompts_file."),
    ]


def run_inputs(what: str, steps: int, steps_told: str, batch_size: int, learning_rate: float, rate_told: str) -> list[io.Input]:
    """How long and how fast; what: is made. The rest are defaults and what tooltips say of them."""
    return [
        io.Int.Input("steps", default=steps, min=0, max=1000000, tooltip=f"Training steps. {steps_told}"),
        io.Int.Input(
            "batch_size",
            default=batch_size,
            min=1,
            max=4096,
            tooltip="Images per step. As many as fit in memory; if few fit, raise accumulation.",
        ),
        io.Float.Input(
            "learning_rate",
            default=learning_rate,
            min=1e-8,
            max=LARGEST_RATE,
            step=1e-8,
            tooltip="The highest learning rate: it warms up over the first 2% of the steps, then falls to a tenth along a cosine. "
            + rate_told,
        ),
        io.Int.Input("width", default=1024, min=16, max=16384, step=8, tooltip="Width of the training images, in pixels."),
        io.Int.Input("height", default=1024, min=16, max=16384, step=8, tooltip="Height of the training images, in pixels."),
        io.Int.Input(
            "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip=f"The same seed gives the same {what}."
        ),
    ]


def further_inputs(kept: str) -> list[io.Input]:
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
            default=Settings.cache / GB,
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


def last_outputs() -> list[io.Output]:
    return [
        io.LossMap.Output("loss_map", tooltip="The loss of each step, for Plot Loss Graph."),
        io.Int.Output("steps", tooltip="Training steps done in this run; fewer than asked for if it was interrupted."),
    ]


def settings_of(kind: type[Settings], inputs: dict) -> Settings:
    """From a node's inputs, in which cache is in GB."""
    if "cache" in inputs:
        inputs = inputs | {"cache": inputs["cache"] * GB}
    return kind(**inputs)


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
            server = PromptServer.instance
            if server.client_id is not None:  # without, every editor that is open would show it
                server.send_progress_text(progress.text, self.node, server.client_id)
            self.told = time.monotonic()


def lines_of(node: str, prompts: str, prompts_file: str) -> list[str]:
    """Of both. node: whose inputs they are, for errors."""
    lines = prompts.splitlines() + lines_of_file(node, prompts_file)
    if not any(line.strip() for line in lines):
        raise ValueError(f"{node}: prompts is empty. Write prompts like those you use, one per line.")
    return lines


def lines_of_file(node: str, prompts_file: str) -> list[str]:
    return read_text(_file(node, prompts_file), _told(node, prompts_file)).splitlines() if prompts_file else []


def changed(node: str, prompts_file: str | None) -> int:
    """When the file was changed, or any that it may be where its name comes over a link (None); 0 without one."""
    if prompts_file is None:
        files = (os.path.join(folder, name) for folder, _, names in os.walk(folder_paths.get_input_directory()) for name in names)
        return max((os.lstat(file).st_mtime_ns for file in files), default=0)
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

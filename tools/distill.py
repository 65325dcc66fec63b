"""Distill a pooled projection, or with --positive and --negative a guidance direction, from the command line, on one device or many:

    accelerate launch tools/distill.py --comfyui /path/to/ComfyUI --model wan2.1_t2v_1.3B_fp16.safetensors \\
        --clip umt5_xxl_fp8_e4m3fn_scaled.safetensors --clip-type wan --pooled-clip clip_l.safetensors --prompts prompts.txt --out out/wan

What the nodes Distill Pooled Projection and Distill Guidance Direction do, by the same code. The folder --out holds projection.safetensors
or direction.safetensors (replaced at every checkpoint), checkpoint.safetensors, from which the same command goes on after a cut, and metrics.jsonl, one line a step. On several processes
each takes its own share of the prompts, and a step is batch-size x accumulation x processes rows. Needs accelerate (pip install
accelerate) in ComfyUI's environment; without `accelerate launch`, python tools/distill.py runs one process.
"""

import argparse
import importlib.util
import json
import logging
import math
import os
import sys
import time
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

try:
    import torch
    from accelerate import Accelerator
    from tqdm import tqdm
except ModuleNotFoundError as error:
    sys.exit(
        f"error: {sys.executable} has no {error.name}. Run this with your ComfyUI's Python; accelerate is added by: pip install accelerate"
    )

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.append(str(CHECKOUT))

from model_patches.quoting import quoted
from model_patches.text_files import read_text
from tools.files import write_whole
from tools.gpu import has_gpu
from tools.small_world.host import use_host

HELP = {
    "steps": "of the optimizer (default: 4000, as the paper; of a direction 400)",
    "batch_size": "rows a process and pass (default: 1)",
    "learning_rate": "the highest (default: 2e-5; of a direction 5e-3)",
    "width": "of the pictures, in pixels (default: 1024)",
    "height": "of the pictures, in pixels (default: 1024)",
    "seed": "(default: 0)",
    "pooling": "clip: the pooled output of --pooled-clip; max, mean: of the model's own text (default: clip)",
    "injection": "time embedding, or adaln lora on Cosmos-Predict2 and Anima (default: time embedding)",
    "cache": "bytes of main memory a process for the teacher's predictions (default: 4 GB)",
}
DEFAULTS = dict(steps=4000, batch_size=1, learning_rate=2e-5, width=1024, height=1024, seed=0, pooling="clip", injection="time embedding")
OF_A_DIRECTION = dict(steps=400, learning_rate=5e-3)


def pack(name: str):
    """A module of this pack, which is a package wherever its folder is and whatever its name."""
    if "modulation_guidance" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "modulation_guidance", CHECKOUT / "__init__.py", submodule_search_locations=[str(CHECKOUT)]
        )
        sys.modules["modulation_guidance"] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"modulation_guidance.{name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False)
    parser.add_argument("--comfyui", help="the ComfyUI folder (default: $COMFYUI_PATH)")
    known, _ = parser.parse_known_args()
    accelerator = Accelerator(cpu=not has_gpu())
    use_host(known.comfyui)
    options = parsed(parser)
    try:
        run(accelerator, options)
    except ValueError as error:
        sys.exit(str(error))


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    parser.add_argument("--positive", help="the words of a direction; with them or --negative one is learned, and no projection")
    parser.add_argument("--negative", help="the words that it leads away from")
    known, _ = parser.parse_known_args()
    of_a_direction = known.positive is not None or known.negative is not None
    parser.add_argument("-h", "--help", action="help")
    parser.add_argument("--model", type=Path, required=True, help="the diffusion model")
    parser.add_argument("--clip", type=Path, nargs="+", required=True, help="the model's own text encoders")
    parser.add_argument("--clip-type", default="stable_diffusion", help="as in CLIPLoader, e.g. wan, qwen_image, lumina2")
    parser.add_argument("--shift", type=float, help="of the noise levels, as ModelSamplingSD3's (default: the model's own)")
    parser.add_argument("--pooled-clip", type=Path, nargs="+", help="text encoders whose pooled output is projected (default: --clip)")
    parser.add_argument("--pooled-clip-type", default="stable_diffusion", help="as in CLIPLoader")
    parser.add_argument("--prompts", type=Path, required=True, help="a text file, one prompt per line")
    parser.add_argument("--held-out", type=Path, help="a text file with prompts never trained on, whose loss is measured")
    parser.add_argument("--held-out-every", type=int, default=200, help="steps from one such measurement to the next")
    parser.add_argument("--projection", type=Path, help="a projection file to go on from")
    parser.add_argument("--direction", type=Path, help="a learned direction's file to go on from")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the results")
    parser.add_argument("--checkpoint-every", type=int, default=200, help="steps")
    parser.add_argument("--stop-at", type=int, help="leave the run at this step, as a cut would")
    defaults = DEFAULTS | (OF_A_DIRECTION if of_a_direction else {})
    for setting in fields(pack("training.projection").ProjectionSettings):
        default = defaults.get(setting.name, setting.default)
        flag, text = "--" + setting.name.replace("_", "-"), HELP.get(setting.name, "see the node's help (default: %(default)s)")
        if isinstance(default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=text)
        else:
            parser.add_argument(flag, type=type(default), default=default, help=text)
    options = parser.parse_args()
    options.course = Directions(options) if of_a_direction else Projections(options)
    return options


class Projections:
    """What is learned without words."""

    name = "projection"

    def __init__(self, options):
        self.options, self.module = options, pack("training.projection")
        self.settings_class = self.module.ProjectionSettings

    def training(self, *given, **more):
        given_projection = pack("pooled_proj.formats").load(self.options.projection) if self.options.projection else None
        return self.module.Distillation(*given, pooled_clip=pooled_clip(self.options), projection=given_projection, **more)

    def save(self, projection, path: Path) -> None:
        pack("pooled_proj.formats").save(projection, path)


class Directions:
    """What is learned of words."""

    name = "direction"

    def __init__(self, options):
        self.options, self.module = options, pack("training.direction")
        self.settings_class = pack("training.settings").Settings

    def training(self, model, clip, prompts, settings, **more):
        given = pack("model_patches.direction_files").load(self.options.direction) if self.options.direction else None
        words = [words or "" for words in (self.options.positive, self.options.negative)]
        return self.module.DirectionTraining(model, clip, prompts, *words, settings, direction=given, **more)

    def save(self, direction, path: Path) -> None:
        pack("model_patches.direction_files").save(direction, path)


def run(accelerator: Accelerator, options: argparse.Namespace) -> None:
    loop, course = pack("training.loop"), options.course
    settings = course.settings_class(**{setting.name: getattr(options, setting.name) for setting in fields(course.settings_class)})
    workers = loop.Workers(accelerator.process_index, accelerator.num_processes, lambda tensor: accelerator.reduce(tensor, "mean"))
    check(options)
    prompts = lines("--prompts", options.prompts)
    held_out = lines("--held-out", options.held_out) if options.held_out else []
    files = Files(options.out, course, main=accelerator.is_main_process)
    checkpoint = files.checkpoint()
    with loop.out_of_memory_explained(settings):
        training = course.training(
            *loaded(options), prompts, settings, held_out=held_out, workers=workers, checkpoint=checkpoint, origin=origin(options)
        )
        accelerator.wait_for_everyone()  # all have looked at the files before one writes them
        files.begin(training)
        with torch.inference_mode(), tqdm(disable=workers.rank > 0, leave=False) as bar:

            def show(what, done, total):
                bar.set_description(f"{what}: {done} of {total}")

            training.prepare(show)
        with training.running():
            train(training, files, options, show=accelerator.is_main_process)


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for what the settings' own check does not see, before anything is loaded."""
    for path in (options.model, *options.clip, *(options.pooled_clip or ())):
        if not path.is_file():
            raise ValueError(f"There is no file {path}.")
    for kind in (options.clip_type, options.pooled_clip_type):
        clip_type(kind)
    if options.shift is not None and not 0 < options.shift < math.inf:
        raise ValueError(f"--shift is {options.shift}; it must be a finite number above 0, e.g. 3.")
    for name, least in (("held_out_every", 1), ("checkpoint_every", 1), ("stop_at", 0)):
        number = getattr(options, name)
        if number is not None and number < least:
            raise ValueError(f"--{name.replace('_', '-')} is {number}; it must be {least} at least.")


def train(training, files, options, show: bool) -> None:
    steps = training.settings.steps
    last = steps if options.stop_at is None else min(steps, options.stop_at)
    with tqdm(total=steps, initial=training.step, desc="distilling", disable=not show) as bar:
        while training.step < last:
            started = time.perf_counter()
            loss = training.take_step()
            measured = {"step": training.step, "loss": loss, "learning_rate": training.settings.rate(training.step - 1)}
            if training.held_out and (training.step % options.held_out_every == 0 or training.step == steps):
                measured["held_out_loss"] = training.held_out_loss()
            files.note(measured | {"seconds": round(time.perf_counter() - started, 4)})
            if training.step % options.checkpoint_every == 0 or training.step == steps:
                files.save(training)
            bar.set_postfix(loss=f"{loss:.5f}", refresh=False)
            bar.update()
    measured = training.measure() if training.step == steps else ""
    if measured:
        files.save_result(training)
        if show:
            print(measured)


class Files:
    """The files of a run. All processes read them, the main one writes them. Raises ValueError with a file's name and what to do."""

    def __init__(self, folder: Path, course, main: bool):
        self.folder, self.course, self.main = folder, course, main
        names = ("checkpoint.safetensors", "metrics.jsonl", f"{course.name}.safetensors")
        self.state, self.metrics, self.result = (folder / name for name in names)
        with self._said(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def checkpoint(self):
        """Where the run was cut, or None at its start."""
        if self.state.exists():
            return pack("training.checkpoints").load(self.state)
        if self.result.exists():
            raise ValueError(
                f"{self.result} is there, without a checkpoint to go on from, and would be replaced. Choose another --out; to go on from what "
                f"it has learned, give it as --{self.course.name}."
            )
        return None

    def begin(self, training) -> None:
        """Lines of metrics beyond the checkpoint go; the result is that of the checkpoint."""
        if not self.main:
            return
        with self._said(self.metrics):
            text = self.metrics.read_text(encoding="utf-8", errors="replace") if self.metrics.exists() else ""
        # What stands after the last end of a line was cut while it was written.
        kept = [line for number, line in enumerate(text.split("\n")[:-1], 1) if self._step(line, number) <= training.step]
        with self._said(self.metrics):
            write_whole(self.metrics, lambda path: path.write_text("".join(line + "\n" for line in kept), encoding="utf-8"))
        if training.step:
            logging.info("going on after step %d", training.step)
            self.save_result(training)

    def _step(self, line: str, number: int) -> int:
        try:
            step = json.loads(line)["step"]
        except (ValueError, RecursionError, TypeError, KeyError):
            step = None
        if not isinstance(step, int):
            raise ValueError(
                f"{self.metrics}, line {number} is not what this command has written. Remove the line, or choose another --out."
            )
        return step

    def note(self, measured: dict) -> None:
        if self.main:
            with self._said(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(measured) + "\n")

    def save(self, training) -> None:
        """The checkpoint first: after a cut between the two, the result is made from it."""
        if self.main:
            with self._said(self.state):
                pack("training.checkpoints").save(training.state(), self.state)
            self.save_result(training)

    def save_result(self, training) -> None:
        if self.main:
            with self._said(self.result):
                self.course.save(training.result(), self.result)

    @contextmanager
    def _said(self, path: Path):
        try:
            yield
        except OSError as error:
            raise ValueError(
                f"{path}: {error.strerror}. See that --out is a folder that can be written to, with room on its disk, and start the same command "
                "again: it goes on from the last checkpoint."
            ) from None


def origin(options) -> dict:
    """What of the command a run must share with its checkpoint, beside its settings: files by what is in them, not by name."""
    return {
        "model": contents([options.model]),
        "clip": contents(options.clip),
        "clip_type": options.clip_type,
        "shift": options.shift,
        "pooled_clip": contents(options.pooled_clip or options.clip),
        "pooled_clip_type": options.pooled_clip_type if options.pooled_clip else options.clip_type,
    }


def contents(paths: list[Path]) -> str:
    """A digest of the files' sizes and of 256 samples of each, as whole models take minutes to read."""
    parts = []
    for path in paths:
        size = path.stat().st_size
        with path.open("rb") as file:
            for number in range(256):
                file.seek(size * number // 256)
                parts.append(file.read(4096))
        parts.append(str(size))
    return pack("training.checkpoints").digest(*parts)


def loaded(options):
    """The model and its text encoder, by the host's own loaders."""
    import comfy.sd

    model = comfy.sd.load_diffusion_model(str(options.model))
    if options.shift is not None:
        from comfy_extras.nodes_model_advanced import ModelSamplingSD3

        (model,) = ModelSamplingSD3().patch(model, options.shift)
    return model, clip(options.clip, options.clip_type)


def pooled_clip(options):
    return clip(options.pooled_clip, options.pooled_clip_type) if options.pooled_clip else None


def clip(paths, kind: str):
    import comfy.sd

    return comfy.sd.load_clip([str(path) for path in paths], clip_type=clip_type(kind))


def clip_type(kind: str):
    import comfy.sd

    if kind.upper() not in comfy.sd.CLIPType.__members__:
        kinds = ", ".join(name.lower() for name in comfy.sd.CLIPType.__members__)
        raise ValueError(f"There is no type of text encoder {quoted(kind)}; choose one of {kinds}.")
    return comfy.sd.CLIPType[kind.upper()]


def lines(option: str, path: Path) -> list[str]:
    return read_text(path, f"{option} {path}").splitlines()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()

"""The loop of a training run: steps of the optimizer, checkpoints, held-out prompts, and what ends it early.

What is learned, and from whom, is a course: `projection.py` and `direction.py`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY
from torch import Tensor, nn

from ..model_patches.families import family_of
from ..model_patches.host_model import HostModel
from ..model_patches.memory import out_of_memory
from .checkpoints import Checkpoint
from .differentiable import differentiable
from .lessons import Batch, Lessons, latent_shape, make_samples, sampled_prompts
from .settings import PRECISIONS, Settings
from .teaching import Course, Teaching

GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Workers:
    """The processes that train together. mean: of a tensor over all of them."""

    rank: int = 0
    count: int = 1
    mean: Callable[[Tensor], Tensor] = lambda tensor: tensor


@dataclass(frozen=True)
class Progress:
    """step: how many steps have been taken. text: for people, with the loss and the time left. last: nothing comes after it."""

    step: int
    text: str
    last: bool = False


class Diverged(ValueError):
    """A step that would make the weights NaN or infinite; it was not taken."""


class Training:
    """One run on one model. Take steps within `running()`.

    prompts: the texts. held_out: more of them, for held_out_loss. Raises ValueError, with what to do, for what cannot work.
    A course says what is learned: it sets `injection`, the family's that takes the shift, calls `_begin`, and has the methods below
    that say nothing here.
    """

    learned = "what is learned"  # in words

    def __init__(self, model, clip, prompts: list[str], settings: Settings, held_out: list[str] = (), workers: Workers = Workers()):
        settings.check()
        self.settings, self.workers, self.clip = settings, workers, clip
        if model.get_wrappers(WrappersMP.APPLY_MODEL, COMPILE_KEY):
            raise ValueError("Distilling: the model is compiled, and gradients cannot pass. Connect it from before the compile node.")
        if model.get_additional_models_with_key("multigpu"):
            raise ValueError(
                "Distilling: the model is spread over several devices (MultiGPU CFG Split), and gradients pass on one only. Connect it "
                "from before that node."
            )
        if not hasattr(model.get_model_object("latent_format"), "temporal_downscale_ratio"):
            raise ValueError(
                "Distilling needs ComfyUI 0.24.0 or newer: this one does not say how its models compress time. Update ComfyUI."
            )
        # The host's dynamic loading casts weights into memory that it uses again before the gradients come back.
        self.model = model.clone(disable_dynamic=True)
        if PRECISIONS[settings.precision]:
            self.model.set_model_compute_dtype(PRECISIONS[settings.precision])
        host = HostModel.of(self.model)
        self.diffusion_model, self.family = host.diffusion_model, family_of(host)
        self.shape = latent_shape(self.model.get_model_object("latent_format"), settings.width, settings.height, settings.frames)
        self.prompts, self.held_out = _share(prompts, workers), stripped(held_out)

    def _begin(self, weights: dict[str, Tensor], run: Mapping[str, Any], checkpoint: Checkpoint | None) -> None:
        """weights: by name, what is trained, at the start. run: what a run must share with its checkpoint, as JSON has it."""
        self.run = asdict(self.settings) | {"family": self.family.name, "processes": self.workers.count} | run
        if checkpoint is not None:
            checkpoint.check(self.run, {name: tensor.shape for name, tensor in weights.items()}, self.learned)
            weights = checkpoint.weights
        self.checkpoint = checkpoint
        with torch.inference_mode(False):  # copies that autograd can follow
            self.network = self._network({name: tensor.to("cpu", torch.float32, copy=True) for name, tensor in weights.items()})
            self.network.requires_grad_(True)
        self.parameters = list(self.network.parameters())
        self.losses = [] if checkpoint is None else list(checkpoint.losses)

    def _network(self, weights: dict[str, Tensor]) -> nn.Module:
        """The module that is trained; its `weights()` are those, and its parameters, in one order."""
        raise NotImplementedError

    def _course(self, texts: list[str], rows: int, seeds: tuple, on_progress) -> Course:
        """What is taught with those texts, in lessons for that many rows."""
        raise NotImplementedError

    def _teaching(self) -> Teaching:
        """On the loaded model."""
        raise NotImplementedError

    def result(self) -> Any:
        """What has been learned so far."""
        raise NotImplementedError

    def measure(self) -> str:
        """At the end, within `running()`: measures what was learned and returns it in words; empty where there is nothing to say."""
        return ""

    @property
    def step(self) -> int:
        """How many steps have been taken."""
        return len(self.losses)

    def _record(self) -> dict[str, Any]:
        """Of this run, for the file of what was learned."""
        run = asdict(self.settings) | {
            "steps": self.step,
            "of": self.settings.steps,
            "prompts": len(self.prompts),
            "processes": self.workers.count,
        }
        if self.losses:
            run["last loss"] = sum(self.losses[-100:]) / len(self.losses[-100:])
        return run

    def state(self) -> Checkpoint:
        """All that a run that is cut here needs to go on. Within running(), after a step."""
        moments = {name: self.optimizer.state[parameter] for name, parameter in zip(self.network.weights(), self.parameters, strict=True)}
        means, squares = ({name: state[moment] for name, state in moments.items()} for moment in ("exp_avg", "exp_avg_sq"))
        return Checkpoint(self.run, list(self.losses), self.network.weights(), means, squares)

    def _resume(self, checkpoint: Checkpoint) -> None:
        for name, parameter in zip(self.network.weights(), self.parameters, strict=True):
            moments = {"exp_avg": checkpoint.means[name], "exp_avg_sq": checkpoint.squares[name]}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(self.step))} | {
                moment: tensor.to(parameter.device, copy=True) for moment, tensor in moments.items()
            }

    def prepare(self, on_progress: Callable[[str, int, int], None] = lambda what, done, total: None) -> None:
        """Encodes the prompts and makes the samples. on_progress: (what is being made, how many are, of how many)."""
        settings = self.settings
        rows = settings.steps * settings.accumulation * settings.batch_size
        self.course = self._course(self.prompts, rows, ("lessons", self.workers.rank), on_progress)
        if self.held_out:
            self.exam = self._course(self.held_out, settings.pairs * len(self.held_out), ("exam",), on_progress)

    def _sampled(self, count: int, rows: int, seeds: tuple) -> list[int]:
        """Which of `count` prompts samples are made of, for that many rows; fewer if the prompts give fewer."""
        return sampled_prompts(count, self.settings.samples_per_prompt, rows, self.settings.pairs, (self.settings.seed, *seeds))

    def _lessons(self, conditionings: list, numbers: list[int], empty, seeds: tuple, on_progress) -> Lessons:
        """With a sample of each conditioning, that of the prompt of that number; empty: the conditioning of the empty prompt."""
        settings, seeds = self.settings, (self.settings.seed, *seeds)
        if settings.data == "samples":
            samples = make_samples(
                self.model,
                conditionings,
                empty,
                self.shape,
                settings.sample_steps,
                settings.cfg,
                seeds,
                lambda done, total: on_progress("Making samples", done, total),
            )
        else:
            samples = torch.zeros(len(numbers), *self.shape)
        return Lessons(samples, numbers, settings.pairs, settings.batch_size, seeds)

    def _each(self, numbers: Iterable[int], encode: Callable[[int], Any], on_progress) -> dict[int, Any]:
        """encode(number) of each number, once."""
        used = sorted(set(numbers))
        encoded = {}
        for number in used:
            comfy.model_management.throw_exception_if_processing_interrupted()
            on_progress("Encoding prompts", len(encoded), len(used))
            encoded[number] = encode(number)
        return encoded

    @contextmanager
    def running(self):
        """The model on its device, for steps to be taken; afterwards it is what it was."""
        with torch.inference_mode(False), torch.enable_grad():
            comfy.model_management.load_models_gpu([self.model], memory_required=1e20, force_full_load=True)
            blocks = self.family.injections[self.injection].blocks(self.diffusion_model)
            recomputed = [target.module for target in blocks] if self.settings.checkpointing else []
            self.model.pre_run()
            try:
                with differentiable(self.diffusion_model, recomputed):
                    self._set_up()
                    yield self
            finally:
                self.model.cleanup()

    def _set_up(self) -> None:
        device = self.model.load_device
        self.network.to(device)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=self.settings.learning_rate)
        if self.checkpoint is not None:
            self._resume(self.checkpoint)
        self.teaching = self._teaching()
        # Told by the first step: blocks that add to their streams in place, which autograd refuses, cost a little more.
        self.in_place = nullcontext

    def take_step(self) -> float:
        """One step of the optimizer; its loss, a mean over the rows of all processes. Raises Diverged, with nothing changed."""
        settings = self.settings
        gradients, losses = [torch.zeros_like(parameter) for parameter in self.parameters], []
        for turn in range(settings.accumulation):
            loss, new = self._gradients(self.course.lessons.visited(self.step * settings.accumulation + turn))
            torch._foreach_add_(gradients, new, alpha=1 / settings.accumulation)
            losses.append(loss)
        loss = self.workers.mean(torch.stack(losses).mean()).item()
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = self.workers.mean(gradient)
        # Both are of all processes, so that all stop at the same step. Clipping makes an infinite gradient NaN, not 1.
        norm = nn.utils.clip_grad_norm_(self.parameters, GRADIENT_NORM).item()
        for what, number in (("loss", loss), ("gradient", norm)):
            if not math.isfinite(number):
                raise Diverged(
                    f"Distilling: the {what} is {number} at step {self.step + 1}. Lower learning_rate, now {settings.learning_rate}."
                )
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(self.step)
        self.optimizer.step()
        self.losses.append(loss)
        return loss

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The mean loss on the held-out prompts."""
        total = torch.zeros(2, device=self.teaching.device)
        for batch in self._examined():
            rows = len(batch.prompts)
            total += torch.stack((self._loss(self.exam, batch) * rows, torch.full((), float(rows), device=total.device)))
        loss, rows = self.workers.mean(total).tolist()
        return loss / rows

    def _examined(self) -> Iterable[Batch]:
        """This process's batches of the held-out prompts."""
        lessons = self.exam.lessons
        return (lessons[number] for number in range(self.workers.rank, len(lessons), self.workers.count))

    def _gradients(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        try:
            with self.in_place():
                loss = self._loss(self.course, batch)
                return loss.detach(), torch.autograd.grad(loss, self.parameters)
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error) or self.in_place is not nullcontext:
                raise
        self.in_place = torch.autograd.graph.allow_mutation_on_saved_tensors
        return self._gradients(batch)

    def _loss(self, course: Course, batch: Batch) -> Tensor:
        target = self.teaching.teacher(course, batch)
        return nn.functional.mse_loss(self.teaching.student(course, batch), target)


def learn(training: Training, on_progress: Callable[[Progress], None]) -> None:
    """The whole run. An interrupt, or a step that would make it NaN, ends it early; before the first step it raises.

    What is measured is told last.
    """
    if not training.settings.steps:
        return
    try:
        training.prepare(lambda what, done, total: on_progress(Progress(0, f"{what}: {done} of {total}")))
        with training.running():
            _take_steps(training, on_progress)
    except comfy.model_management.InterruptProcessingException:
        on_progress(Progress(0, "Interrupted before the first step: nothing was learned.", last=True))
        raise


def _take_steps(training: Training, on_progress: Callable[[Progress], None]) -> None:
    """Takes the steps. What ends them early, after the first, keeps what was learned."""
    steps, started, ended = training.settings.steps, time.monotonic(), None
    try:
        while training.step < steps:
            comfy.model_management.throw_exception_if_processing_interrupted()
            training.take_step()
            latest = progress_of(training, time.monotonic() - started, training.step)
            on_progress(latest)
    except (comfy.model_management.InterruptProcessingException, Diverged) as error:
        if not training.step:
            raise
        reason = str(error) if isinstance(error, Diverged) else "Distilling was interrupted."
        ended = f"{reason} What was learned in {training.step} of {steps} steps is kept."
        logging.warning(ended)
    measured = training.measure()
    if ended or measured:
        on_progress(Progress(training.step, " ".join(filter(None, (ended or f"{latest.text}.", measured))), last=True))


def progress_of(training: Training, seconds: float, taken: int) -> Progress:
    """seconds: those of the `taken` latest steps."""
    step, steps = training.step, training.settings.steps
    recent = training.losses[-50:]
    left = round(seconds / taken * (steps - step))
    return Progress(step, f"Step {step} of {steps}, loss {sum(recent) / len(recent):.5f}, {left // 60}:{left % 60:02} left", step == steps)


@contextmanager
def out_of_memory_explained(settings: Settings):
    """Raises a ValueError that says what to lower where memory runs out."""
    try:
        yield
        return
    except (comfy.model_management.OOM_EXCEPTION, MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
    comfy.model_management.unload_all_models()
    hints = ["lower batch_size (and raise accumulation to match)"] if settings.batch_size > 1 else []
    hints += ["lower width, height or frames"] + ([] if settings.checkpointing else ["switch checkpointing on"])
    raise ValueError(
        f"Distilling ran out of memory, at batch_size {settings.batch_size} and {settings.width} x {settings.height} pixels, "
        f"{settings.frames} frames: {'; or '.join(hints)}. ({reason})"
    )


def stripped(lines: Iterable[str]) -> list[str]:
    return [line.strip() for line in lines if line.strip()]


def _share(prompts: list[str], workers: Workers) -> list[str]:
    """This process's share of the prompts."""
    lines = stripped(prompts)
    if len(lines) < workers.count:
        raise ValueError(
            f"Distilling: there are {len(lines)} prompts for {workers.count} processes. Give each one at least."
            if lines
            else "Distilling: prompts is empty. Write prompts like those you use, one per line."
        )
    return lines[workers.rank :: workers.count]

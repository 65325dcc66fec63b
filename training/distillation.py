"""Distilling a pooled projection: a text-blind model learns to take its prompt through its modulation.

The teacher is the model with the prompt, the student the same frozen model with the empty prompt in its place, and the prompt's
pooled text through the projection, whose output starts at zero. The loss is the mean square of the difference of their predictions.
"Rethinking Global Text Conditioning in Diffusion Transformers", Starodubcev et al., ICLR 2026, section 5.
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
from ..pooled_proj.network import ProjectionNetwork
from ..pooled_proj.projection import PooledProjection
from ..pooled_proj.text_path import TIME, check_fits
from .checkpoints import Checkpoint, digest
from .differentiable import differentiable
from .lessons import Batch, Lessons, Prompt, generator, latent_shape, make_samples, sampled_prompts
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


class Distillation:
    """A projection in training on one model. Take steps within `running()`.

    prompts: the texts. held_out: more of them, for held_out_loss. checkpoint: where a run like this was cut, to go on from.
    origin: by name, what else a run must share with its checkpoint, as JSON has it, e.g. the model's file.
    Raises ValueError, with what to do, for what cannot work.
    """

    def __init__(
        self, model, clip, prompts: list[str], settings: Settings, pooled_clip=None, projection: PooledProjection | None = None,
        held_out: list[str] = (), workers: Workers = Workers(), checkpoint: Checkpoint | None = None, origin: Mapping[str, Any] | None = None,
    ):
        settings.check()
        self.settings, self.workers = settings, workers
        if model.get_wrappers(WrappersMP.APPLY_MODEL, COMPILE_KEY):
            raise ValueError("Distilling: the model is compiled, and gradients cannot pass. Connect it from before the compile node.")
        if model.get_additional_models_with_key("multigpu"):
            raise ValueError(
                "Distilling: the model is spread over several devices (MultiGPU CFG Split), and gradients pass on one only. Connect it "
                "from before that node."
            )
        if not hasattr(model.get_model_object("latent_format"), "temporal_downscale_ratio"):
            raise ValueError("Distilling needs ComfyUI 0.24.0 or newer: this one does not say how its models compress time. Update ComfyUI.")
        # The host's dynamic loading casts weights into memory that it uses again before the gradients come back.
        self.model = model.clone(disable_dynamic=True)
        if PRECISIONS[settings.precision]:
            self.model.set_model_compute_dtype(PRECISIONS[settings.precision])
        host = HostModel.of(self.model)
        self.diffusion_model, self.family = host.diffusion_model, family_of(host)
        if self.family.text is not None:
            raise ValueError(f"{self.family.name} has pooled text in its modulation already and needs no projection. Guide it without one.")
        self.prompts, self.held_out = _share(prompts, workers), _stripped(held_out)
        self.shape = latent_shape(self.model.get_model_object("latent_format"), settings.width, settings.height, settings.frames)
        self.clip, self.pooled_clip = clip, pooled_clip or clip
        self.given = projection
        if projection is not None:
            check_fits(projection, self.family, self.diffusion_model)
        elif settings.injection not in self.family.injections:
            raise ValueError(
                f"Distilling: {self.family.name} takes no shift at its {settings.injection}. Set injection to {' or '.join(self.family.injections)}."
            )
        self.pooling, self.injection = (settings.pooling, settings.injection) if projection is None else (projection.pooling, projection.injection)
        self.empty = self._encoded("")
        weights = self._first_weights() if projection is None else _copied(projection.weights)
        self.run = self._run(prompts, origin or {})
        if checkpoint is not None:
            checkpoint.check(self.run, {name: tensor.shape for name, tensor in weights.items()})
            weights = _copied(checkpoint.weights)
        self.checkpoint = checkpoint
        self.network = _trained(weights)
        self.parameters = list(self.network.parameters())
        self.losses = [] if checkpoint is None else list(checkpoint.losses)

    @property
    def step(self) -> int:
        """How many steps have been taken."""
        return len(self.losses)

    def projection(self) -> PooledProjection:
        """What has been learned so far."""
        if self.step == 0 and self.given is not None:
            return self.given
        weights = {name: tensor.detach().clone().cpu() for name, tensor in self.network.weights().items()}
        before = [] if self.given is None else self.given.record.get("runs", [])
        run = asdict(self.settings) | {"steps": self.step, "of": self.settings.steps, "prompts": len(self.prompts), "processes": self.workers.count}
        if self.losses:
            run["last loss"] = sum(self.losses[-100:]) / len(self.losses[-100:])
        return PooledProjection(weights, self.pooling, self.injection, self.family.name, {"runs": [*before, run]})

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

    def _run(self, prompts: list[str], origin: Mapping[str, Any]) -> dict[str, Any]:
        given = {} if self.given is None else self.given.weights
        numbers = (part for name, tensor in sorted(given.items()) for part in (name, tensor.float().cpu().numpy().tobytes()))
        return asdict(self.settings) | {
            "family": self.family.name, "processes": self.workers.count, "prompts": digest(*_stripped(prompts)), "projection": digest(*numbers),
        } | dict(origin)

    def prepare(self, on_progress: Callable[[str, int, int], None] = lambda what, done, total: None) -> None:
        """Encodes the prompts and makes the samples. on_progress: (what is being made, how many are, of how many)."""
        settings = self.settings
        rows = settings.steps * settings.accumulation * settings.batch_size
        self.course = self._course(self.prompts, rows, ("lessons", self.workers.rank), on_progress)
        if self.held_out:
            self.exam = self._course(self.held_out, settings.pairs * len(self.held_out), ("exam",), on_progress)

    def _course(self, texts: list[str], rows: int, seeds: tuple, on_progress) -> Course:
        """Lessons for that many rows, fewer if the prompts give fewer."""
        settings, seeds = self.settings, (self.settings.seed, *seeds)
        numbers = sampled_prompts(len(texts), settings.samples_per_prompt, rows, settings.pairs, seeds)
        used = sorted(set(numbers))
        prompts = []
        for number in used:
            comfy.model_management.throw_exception_if_processing_interrupted()
            on_progress("Encoding prompts", len(prompts), len(used))
            prompts.append(self._encoded(texts[number]))
        numbers = [used.index(number) for number in numbers]
        if settings.data == "samples":
            samples = make_samples(
                self.model, [prompts[number] for number in numbers], self.empty, self.shape, settings.sample_steps, settings.cfg, seeds,
                lambda done, total: on_progress("Making samples", done, total),
            )
        else:
            samples = torch.zeros(len(numbers), *self.shape)
        return Course(Lessons(samples, numbers, settings.pairs, settings.batch_size, seeds), prompts)

    def _encoded(self, text: str) -> Prompt:
        conditioning = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
        if self.pooling != "clip":
            return Prompt(conditioning, None)
        if self.pooled_clip is self.clip:
            pooled = conditioning[0][1].get("pooled_output")
        else:
            pooled = self.pooled_clip.encode_from_tokens(self.pooled_clip.tokenize(text), return_pooled=True)[1]
        if pooled is None:
            raise ValueError(
                "Distilling: the text encoder gives no pooled output. Connect one that does to pooled_clip (e.g. CLIP-L), or set pooling "
                "to max or mean, which pool the model's own text."
            )
        if self.given is not None and pooled.shape[-1] < self.given.input_width:
            raise ValueError(
                f"Distilling: the pooled output is {pooled.shape[-1]} wide, but the projection reads {self.given.input_width}. Connect the text "
                "encoder it was made with to pooled_clip."
            )
        width = None if self.given is None else self.given.input_width
        return Prompt(conditioning, pooled[:, :width].float().cpu())

    def _first_weights(self) -> dict[str, Tensor]:
        """Of a projection that gives zeros; its first layer as torch.nn.Linear starts one."""
        width = self.empty.pooled.shape[-1] if self.pooling == "clip" else self.family.context.width(self.diffusion_model)
        hidden = self.family.injections[TIME].width(self.diffusion_model)
        output = self.family.injections[self.injection].width(self.diffusion_model)
        draw = generator(self.settings.seed, "projection")
        bound = width ** -0.5
        weights = {
            "linear_1.weight": torch.empty(hidden, width).uniform_(-bound, bound, generator=draw),
            "linear_1.bias": torch.empty(hidden).uniform_(-bound, bound, generator=draw),
            "linear_2.weight": torch.zeros(output, hidden),
            "linear_2.bias": torch.zeros(output),
        }
        if self.injection == "adaln lora":
            weights["scales"] = torch.ones(self.family.depth(self.diffusion_model), output)
        return weights

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
        self.teaching = Teaching(
            self.model, self.family, self.network, self.pooling, self.injection, self.empty, self.shape, self.settings.cache,
            self.settings.sample_steps,
        )
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
                raise Diverged(f"Distilling: the {what} is {number} at step {self.step + 1}. Lower learning_rate, now {settings.learning_rate}.")
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(self.step)
        self.optimizer.step()
        self.losses.append(loss)
        return loss

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The mean loss on the held-out prompts."""
        lessons = self.exam.lessons
        batches = [lessons[number] for number in range(self.workers.rank, len(lessons), self.workers.count)]
        total = torch.zeros(2, device=self.teaching.device)
        for batch in batches:
            rows = len(batch.prompts)
            total += torch.stack((self._loss(self.exam, batch) * rows, torch.full((), float(rows), device=total.device)))
        loss, rows = self.workers.mean(total).tolist()
        return loss / rows

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


@dataclass(frozen=True, eq=False)
class Distilled:
    """losses: one for each step taken in this call."""

    projection: PooledProjection
    losses: list[float]


def distill(
    model, clip, prompts: list[str], settings: Settings, pooled_clip=None, projection: PooledProjection | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Distilled:
    """A projection of the model's family. An interrupt, or a step that would make it NaN, ends it early and keeps what was learned.

    model: ModelPatcher. clip: the model's own text encoder; pooled_clip: the one whose pooled output is projected, or None for clip.
    projection: to go on from; its own pooling and injection count then. Raises ValueError, with what to do, for what cannot work.
    """
    with out_of_memory_explained(settings):
        distillation = Distillation(model, clip, prompts, settings, pooled_clip, projection)
        if settings.steps:
            try:
                distillation.prepare(lambda what, done, total: on_progress(Progress(0, f"{what}: {done} of {total}")))
                with distillation.running():
                    _learn(distillation, on_progress)
            except comfy.model_management.InterruptProcessingException:
                on_progress(Progress(0, "Interrupted before the first step: nothing was learned.", last=True))
                raise
        return Distilled(distillation.projection(), distillation.losses)


def _learn(distillation: Distillation, on_progress: Callable[[Progress], None]) -> None:
    """Takes the steps. What ends them early, after the first, keeps what was learned."""
    steps, started = distillation.settings.steps, time.monotonic()
    try:
        while distillation.step < steps:
            comfy.model_management.throw_exception_if_processing_interrupted()
            distillation.take_step()
            on_progress(progress_of(distillation, time.monotonic() - started, distillation.step))
    except (comfy.model_management.InterruptProcessingException, Diverged) as error:
        if not distillation.step:
            raise
        reason = str(error) if isinstance(error, Diverged) else "Distilling was interrupted."
        text = f"{reason} What was learned in {distillation.step} of {steps} steps is kept."
        logging.warning(text)
        on_progress(Progress(distillation.step, text, last=True))


def progress_of(distillation: Distillation, seconds: float, taken: int) -> Progress:
    """seconds: those of the `taken` latest steps."""
    step, steps = distillation.step, distillation.settings.steps
    recent = distillation.losses[-50:]
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


def _stripped(lines: Iterable[str]) -> list[str]:
    return [line.strip() for line in lines if line.strip()]


def _share(prompts: list[str], workers: Workers) -> list[str]:
    """This process's share of the prompts."""
    lines = _stripped(prompts)
    if len(lines) < workers.count:
        raise ValueError(
            f"Distilling: there are {len(lines)} prompts for {workers.count} processes. Give each one at least." if lines else
            "Distilling: prompts is empty. Write prompts like those you use, one per line."
        )
    return lines[workers.rank::workers.count]


def _copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to("cpu", torch.float32, copy=True) for name, tensor in weights.items()}


def _trained(weights: Mapping[str, Tensor]) -> ProjectionNetwork:
    """A network to be trained, of copies that autograd can follow."""
    with torch.inference_mode(False):
        return ProjectionNetwork({name: tensor.clone() for name, tensor in weights.items()}, nn).requires_grad_(True)

"""Teacher and student: one frozen model, called as the host's sampler calls it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ..model_patches.directions import GuidanceDirection
from ..model_patches.families import OWN_TEXT, Family, TextPath
from ..model_patches.guidance import guide
from ..model_patches.schedules import RangeSchedule
from .differentiable import plain_attention
from .lessons import Batch, Lessons
from .settings import Settings


@dataclass(frozen=True, eq=False)
class Course:
    """Lessons and their prompts, by number. known: the teacher's predictions by number of the batch, kept."""

    lessons: Lessons
    prompts: dict[int, Any]
    known: dict[int, Tensor] = field(default_factory=dict)


class Shift(TextPath):
    """What is in training, as guidance takes it: a base that every row gets. of_rows: (R, ...), what it is made of for those of a call."""

    base_texts = (OWN_TEXT,)
    of_rows: Tensor | None = None

    def text_path(self, family: Family, diffusion_model) -> TextPath:
        """This one, for `guide`."""
        return self

    def takes_base(self, weight):
        return weight != 0


class Teaching:
    """On a model that is loaded.

    shape: of a latent. settings: cache, bytes of predictions to keep; sample_steps, of a sampling, for models that are told where it
    goes next. shift: what the student has; head: its weight at the output head.
    """

    def __init__(self, model, family: Family, shape: tuple[int, ...], settings: Settings, shift: Shift, head: float = 0.0):
        self.model, self.family, self.shape, self.shift = model, family, shape, shift
        self.cache, self.steps = settings.cache, settings.sample_steps
        self.device = model.load_device
        self.plain = _options(model)
        self.shifted = _options(guide(model, GuidanceDirection(()), 0.0, RangeSchedule(0, final_layer=head), projection=shift))

    def taught(self, course: Course, batch: Batch) -> list:
        """The conditioning that the teacher has, for each row."""
        raise NotImplementedError

    def student(self, course: Course, batch: Batch) -> Tensor:
        """(R, ...) the prediction with what is learned."""
        raise NotImplementedError

    @torch.no_grad()
    def teacher(self, course: Course, batch: Batch) -> Tensor:
        """(R, ...) what the model itself predicts for the batch; kept from the first time on, within the bound."""
        if batch.number in course.known:
            return course.known[batch.number].to(self.device).float()
        prediction = self.predicted(self.plain, batch, self.taught(course, batch))
        size = prediction.numel() * prediction.element_size()
        if size <= self.cache:
            self.cache -= size
            course.known[batch.number] = prediction.cpu()
        return prediction.float()

    def predicted(self, options: dict, batch: Batch, conditionings: Sequence, of_rows: Tensor | None = None) -> Tensor:
        """What the diffusion model itself gives, before the host makes a clean latent of it. conditionings, of_rows: of each row."""
        known = {id(conditioning): conditioning for conditioning in conditionings}
        conds = {key: self._conds(conditioning) for key, conditioning in known.items()}
        conds = [conds[id(conditioning)] for conditioning in conditionings]
        sampling = self.model.get_model_object("model_sampling")
        sigmas, next_sigmas = batch.sigmas(sampling).to(self.device), batch.next_sigmas(sampling, self.steps).to(self.device)
        x = sampling.noise_scaling(sigmas, batch.noise.to(self.device), batch.clean.to(self.device))
        alone = self.family.next_level(self.model.model.diffusion_model)
        groups = [[row] for row in range(len(x))] if alone else _alike(conds)
        predictions = []
        for rows in groups:
            self.shift.of_rows = None if of_rows is None else of_rows[rows]
            levels = torch.stack((sigmas[rows[0]], next_sigmas[rows[0]]))
            predictions.append(self._called(options | {"sample_sigmas": levels}, x[rows], sigmas[rows], [conds[row] for row in rows]))
        order = torch.tensor([row for rows in groups for row in rows], device=self.device)
        return torch.cat(predictions)[order.argsort()]

    def _called(self, options: dict, x: Tensor, sigmas: Tensor, conds: list[dict]) -> Tensor:
        base_model, given = self.model.model, []
        inputs = {name: cond.concat([other[name] for other in conds[1:]]) for name, cond in conds[0].items()}
        hook = base_model.diffusion_model.register_forward_hook(lambda module, args, output: given.append(output))
        options = options | {"cond_or_uncond": [0], "uuids": [uuid4()], "sigmas": sigmas}
        try:
            base_model.apply_model(x, sigmas, transformer_options=options, **inputs)
        finally:
            hook.remove()
        return given[-1]

    def _conds(self, conditioning) -> dict:
        """The model's inputs for one row, by the host's names, as when sampling."""
        with torch.inference_mode():
            noise = torch.zeros(1, *self.shape, device=self.device)
            conds = {"positive": comfy.sampler_helpers.convert_cond(conditioning)}
            made = comfy.samplers.process_conds(
                self.model.model, noise, conds, self.device, latent_image=noise, seed=0, latent_shapes=[noise.shape]
            )["positive"][0]["model_conds"]
            return {name: cond.process_cond(batch_size=1, area=None) for name, cond in made.items()}


def _options(model) -> dict:
    """The transformer_options that the model is called with when sampling."""
    options = comfy.model_patcher.create_model_options_clone(model.model_options)
    comfy.sampler_helpers.prepare_model_patcher(model, {}, options)
    return options["transformer_options"] | {"optimized_attention_override": plain_attention}


def _alike(conds: list[dict]) -> list[list[int]]:
    """The rows that can go through the model together, prompts of one length each."""
    groups: list[list[int]] = []
    for row, cond in enumerate(conds):
        for group in groups:
            first = conds[group[0]]
            if first.keys() == cond.keys() and all(
                first[name].size() == cond[name].size() and first[name].can_concat(cond[name]) for name in cond
            ):
                group.append(row)
                break
        else:
            groups.append([row])
    return groups

"""Teacher and student: one frozen model, with the prompt, and with the empty prompt and the pooled text through a projection."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import uuid4

import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ..model_patches.directions import EncodedPrompt, GuidanceDirection
from ..model_patches.families import OWN_TEXT, Call, Family, TextPath
from ..model_patches.guidance import guide
from ..model_patches.places import Placed
from ..model_patches.schedules import RangeSchedule
from .differentiable import plain_attention
from .lessons import Batch, Lessons, Prompt
from .network import ProjectionNetwork, pool
from .text_path import TIME


@dataclass(frozen=True, eq=False)
class Course:
    """Lessons and their prompts. known: the teacher's predictions by number of the batch, kept. pooled: what is projected, by prompt."""

    lessons: Lessons
    prompts: list[Prompt]
    known: dict[int, Tensor] = field(default_factory=dict)
    pooled: dict[int, Tensor] = field(default_factory=dict)


@dataclass(eq=False)
class _Shift(TextPath):
    """The projection in training, as guidance takes one: the rows' own pooled text, at full strength in every layer; pooled: (R, C)."""

    family: Family
    network: ProjectionNetwork
    pools_context: bool
    injection: str
    pooled: Tensor | None = None
    placed: Placed | None = None

    base_texts = (OWN_TEXT,)

    def text_path(self, family, diffusion_model):
        self.placed = Placed.of(None if self.network.scales is None else len(self.network.scales.weight), family, diffusion_model)
        return self

    def contributions(self, model, texts, call):
        time = None if self.network.film is None else self.family.injections[TIME].y(model, call).float()
        return {OWN_TEXT: self.network(self.pooled, time)}

    def takes_base(self, weight):
        return self.pools_context or weight != 0

    def layer_scales(self, call):
        return None if self.network.scales is None else self.placed.rows(self.network.scales.weight)

    def weights(self, schedule, depth):
        return self.placed.weights(schedule.resolve(depth))


class Teaching:
    """On a model that is loaded.

    network: the projection, on the model's device. pooling, injection: as in PooledProjection. cache: bytes of predictions to keep.
    steps: of a sampling, for models that are told where it goes next.
    """

    def __init__(
        self, model, family: Family, network: ProjectionNetwork, pooling: str, injection: str, empty: Prompt, shape, cache: float, steps: int
    ):
        self.model, self.family, self.network, self.pooling, self.shape, self.cache = model, family, network, pooling, shape, cache
        self.steps = steps
        self.device = model.load_device
        # As with guidance: what pools the context goes to the head too.
        pools_context = pooling != "clip"
        head = float(pools_context and family.injections[injection].head is not None)
        self.shift = _Shift(family, network, pools_context, injection)
        self.plain = _options(model)
        self.shifted = _options(guide(model, GuidanceDirection(()), 0.0, RangeSchedule(0, final_layer=head), projection=self.shift))
        self.empty = self._conds(empty)

    @torch.no_grad()
    def teacher(self, course: Course, batch: Batch) -> Tensor:
        """(R, ...) what the model itself predicts for the batch; kept from the first time on, within the bound."""
        if batch.number in course.known:
            return course.known[batch.number].to(self.device).float()
        conds = {number: self._conds(course.prompts[number]) for number in dict.fromkeys(batch.prompts)}
        prediction = self._predicted(self.plain, batch, [conds[number] for number in batch.prompts])
        size = prediction.numel() * prediction.element_size()
        if size <= self.cache:
            self.cache -= size
            course.known[batch.number] = prediction.cpu()
        return prediction.float()

    def student(self, course: Course, batch: Batch) -> Tensor:
        """(R, ...) the prediction with the empty prompt and the projection."""
        pooled = torch.cat([self._pooled(course, number) for number in batch.prompts])
        return self._predicted(self.shifted, batch, [self.empty] * len(pooled), pooled).float()

    def _predicted(self, options: dict, batch: Batch, conds: list[dict], pooled: Tensor | None = None) -> Tensor:
        """What the diffusion model itself gives, before the host makes a clean latent of it. conds, pooled: of each row."""
        sampling = self.model.get_model_object("model_sampling")
        sigmas, next_sigmas = batch.sigmas(sampling).to(self.device), batch.next_sigmas(sampling, self.steps).to(self.device)
        x = sampling.noise_scaling(sigmas, batch.noise.to(self.device), batch.clean.to(self.device))
        alone = self.family.next_level(self.model.model.diffusion_model)
        groups = [[row] for row in range(len(x))] if alone else _alike(conds)
        predictions = []
        for rows in groups:
            self.shift.pooled = None if pooled is None else pooled[rows]
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

    def _conds(self, prompt: Prompt) -> dict:
        """The model's inputs for one row, by the host's names, as when sampling."""
        with torch.inference_mode():
            noise = torch.zeros(1, *self.shape, device=self.device)
            conds = {"positive": comfy.sampler_helpers.convert_cond(prompt.conditioning)}
            made = comfy.samplers.process_conds(
                self.model.model, noise, conds, self.device, latent_image=noise, seed=0, latent_shapes=[noise.shape]
            )["positive"][0]["model_conds"]
            return {name: cond.process_cond(batch_size=1, area=None) for name, cond in made.items()}

    @torch.no_grad()
    def _pooled(self, course: Course, number: int) -> Tensor:
        """(1, C) in fp32."""
        if number not in course.pooled:
            pooled, base_model = course.prompts[number].pooled, self.model.model
            if pooled is None:
                [[tokens, extras]] = course.prompts[number].conditioning
                call = Call(base_model, torch.zeros(1, *self.shape, device=self.device), torch.ones(1, device=self.device), 1, None, {})
                context = self.family.context.of_prompt(base_model.diffusion_model, EncodedPrompt(None, tokens, extras), call)
                pooled = pool(context, self.pooling)
            course.pooled[number] = pooled.to(self.device, copy=True)
        return course.pooled[number]


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
            if first.keys() == cond.keys() and all(first[name].size() == cond[name].size() and first[name].can_concat(cond[name]) for name in cond):
                group.append(row)
                break
        else:
            groups.append([row])
    return groups

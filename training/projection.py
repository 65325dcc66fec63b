"""A pooled projection: a text-blind model learns to take its prompt through its modulation.

The teacher is the model with the prompt, the student the same frozen model with the empty prompt in its place, and the prompt's
pooled text through the projection, whose output starts at zero. The loss is the mean square of the difference of their predictions.
"Rethinking Global Text Conditioning in Diffusion Transformers", Starodubcev et al., ICLR 2026, section 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..model_patches.directions import EncodedPrompt
from ..model_patches.families import OWN_TEXT, Call, Family
from ..model_patches.places import Placed
from ..pooled_proj.network import ProjectionNetwork, pool
from ..pooled_proj.projection import INJECTIONS, POOLINGS, PooledProjection
from ..pooled_proj.text_path import TIME, check_fits
from .checkpoints import Checkpoint, digest
from .lessons import Batch, generator
from .loop import Progress, Training, Workers, learn, out_of_memory_explained, stripped
from .settings import Settings
from .teaching import Course, Shift, Teaching


@dataclass(frozen=True, kw_only=True)
class ProjectionSettings(Settings):
    """pooling, injection: of a new projection; one that is gone on from keeps its own."""

    pooling: str
    injection: str

    def choices(self):
        return {"pooling": POOLINGS, "injection": INJECTIONS} | super().choices()


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt as text encoders made it.

    conditioning: by the model's own, in the host's form. pooled: (1, C) by the one whose pooled output is projected, or None.
    """

    conditioning: list
    pooled: Tensor | None


class Distillation(Training):
    """A projection in training on one model.

    checkpoint: where a run like this was cut, to go on from. origin: by name, what else a run must share with its checkpoint, as JSON
    has it, e.g. the model's file. projection: to go on from.
    """

    learned = "projection"

    def __init__(
        self,
        model,
        clip,
        prompts: list[str],
        settings: ProjectionSettings,
        pooled_clip=None,
        projection: PooledProjection | None = None,
        held_out: list[str] = (),
        workers: Workers = Workers(),
        checkpoint: Checkpoint | None = None,
        origin: Mapping[str, Any] | None = None,
    ):
        super().__init__(model, clip, prompts, settings, held_out, workers)
        if self.family.text is not None:
            raise ValueError(f"{self.family.name} has pooled text in its modulation already and needs no projection. Guide it without one.")
        self.pooled_clip, self.given = pooled_clip or clip, projection
        if projection is not None:
            check_fits(projection, self.family, self.diffusion_model)
        elif settings.injection not in self.family.injections:
            raise ValueError(
                f"Distilling: {self.family.name} takes no shift at its {settings.injection}. Set injection to {' or '.join(self.family.injections)}."
            )
        self.pooling, self.injection = (
            (settings.pooling, settings.injection) if projection is None else (projection.pooling, projection.injection)
        )
        self.empty = self._encoded("")
        given = {} if projection is None else projection.weights
        numbers = (part for name, tensor in sorted(given.items()) for part in (name, tensor.float().cpu().numpy().tobytes()))
        run = {"prompts": digest(*stripped(prompts)), "projection": digest(*numbers)} | dict(origin or {})
        self._begin(given or self._first_weights(), run, checkpoint)

    def result(self) -> PooledProjection:
        """What has been learned so far."""
        if self.step == 0 and self.given is not None:
            return self.given
        weights = {name: tensor.detach().clone().cpu() for name, tensor in self.network.weights().items()}
        before = [] if self.given is None else self.given.record.get("runs", [])
        return PooledProjection(weights, self.pooling, self.injection, self.family.name, {"runs": [*before, self._record()]})

    def _network(self, weights):
        return ProjectionNetwork(weights, nn)

    def _course(self, texts, rows, seeds, on_progress):
        numbers = self._sampled(len(texts), rows, seeds)
        prompts = self._each(numbers, lambda number: self._encoded(texts[number]), on_progress)
        conditionings = [prompts[number].conditioning for number in numbers]
        return Course(self._lessons(conditionings, numbers, self.empty.conditioning, seeds, on_progress), prompts)

    def _teaching(self):
        return ProjectionTeaching(
            self.model, self.family, self.shape, self.settings, self.network, self.pooling, self.injection, self.empty
        )

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
        bound = width**-0.5
        weights = {
            "linear_1.weight": torch.empty(hidden, width).uniform_(-bound, bound, generator=draw),
            "linear_1.bias": torch.empty(hidden).uniform_(-bound, bound, generator=draw),
            "linear_2.weight": torch.zeros(output, hidden),
            "linear_2.bias": torch.zeros(output),
        }
        if self.injection == "adaln lora":
            weights["scales"] = torch.ones(self.family.depth(self.diffusion_model), output)
        return weights


class _Shift(Shift):
    """The rows' own pooled text through the projection, at full strength in every layer; of_rows: (R, C)."""

    def __init__(self, family: Family, network: ProjectionNetwork, pools_context: bool, injection: str):
        self.family, self.network, self.pools_context, self.injection = family, network, pools_context, injection

    def text_path(self, family, diffusion_model):
        self.placed = Placed.of(None if self.network.scales is None else len(self.network.scales.weight), family, diffusion_model)
        return self

    def contributions(self, model, texts, call):
        time = None if self.network.film is None else self.family.injections[TIME].y(model, call).float()
        return {OWN_TEXT: self.network(self.of_rows, time)}

    def takes_base(self, weight):
        return self.pools_context or super().takes_base(weight)

    def layer_scales(self, call):
        return None if self.network.scales is None else self.placed.rows(self.network.scales.weight)

    def weights(self, schedule, depth):
        return self.placed.weights(schedule.resolve(depth))


class ProjectionTeaching(Teaching):
    """network: the projection, on the model's device. pooling, injection: as in PooledProjection. empty: the student's prompt."""

    def __init__(self, model, family, shape, settings, network: ProjectionNetwork, pooling: str, injection: str, empty: Prompt):
        # As with guidance: what pools the context goes to the head too.
        pools_context = pooling != "clip"
        head = float(pools_context and family.injections[injection].head is not None)
        super().__init__(model, family, shape, settings, _Shift(family, network, pools_context, injection), head)
        self.pooling, self.empty = pooling, empty.conditioning
        self.pooled: dict[Prompt, Tensor] = {}

    def taught(self, course, batch):
        return [course.prompts[number].conditioning for number in batch.prompts]

    def student(self, course: Course, batch: Batch) -> Tensor:
        """(R, ...) the prediction with the empty prompt and the projection."""
        pooled = torch.cat([self._pooled(course.prompts[number]) for number in batch.prompts])
        return self.predicted(self.shifted, batch, [self.empty] * len(pooled), pooled).float()

    @torch.no_grad()
    def _pooled(self, prompt: Prompt) -> Tensor:
        """(1, C) in fp32."""
        if prompt not in self.pooled:
            pooled, base_model = prompt.pooled, self.model.model
            if pooled is None:
                [[tokens, extras]] = prompt.conditioning
                call = Call(base_model, torch.zeros(1, *self.shape, device=self.device), torch.ones(1, device=self.device), 1, None, {})
                context = self.family.context.of_prompt(base_model.diffusion_model, EncodedPrompt(None, tokens, extras), call)
                pooled = pool(context, self.pooling)
            self.pooled[prompt] = pooled.to(self.device, copy=True)
        return self.pooled[prompt]


@dataclass(frozen=True, eq=False)
class Distilled:
    """losses: one for each step taken in this call."""

    projection: PooledProjection
    losses: list[float]


def distill(
    model,
    clip,
    prompts: list[str],
    settings: ProjectionSettings,
    pooled_clip=None,
    projection: PooledProjection | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Distilled:
    """A projection of the model's family. An interrupt, or a step that would make it NaN, ends it early and keeps what was learned.

    model: ModelPatcher. clip: the model's own text encoder; pooled_clip: the one whose pooled output is projected, or None for clip.
    projection: to go on from; its own pooling and injection count then. Raises ValueError, with what to do, for what cannot work.
    """
    with out_of_memory_explained(settings):
        training = Distillation(model, clip, prompts, settings, pooled_clip, projection)
        learn(training, on_progress)
        return Distilled(training.result(), training.losses)

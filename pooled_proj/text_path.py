"""How guidance uses a projection: the shift of y that a direction makes, and the base term of the rows' own prompts.

Form of the sum, method by method: with pooling clip (COSMOS) the base is the pooled prompt given for the row's side of CFG, and
enters the scheduled blocks; with pooling max or mean (Anima) it is pooled from the row's own context, and enters every block and
the head. Either way at full strength and at every step; w, the schedule's weights and the percent window act on the delta only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import comfy.model_management
import torch
from torch import Tensor, nn

from ..model_patches.conditionings import check_known
from ..model_patches.directions import EncodedPrompt
from ..model_patches.families import Family, OncePerPrompt, TextPath
from ..model_patches.schedules import RangeSchedule
from .network import ProjectionNetwork, pool

if TYPE_CHECKING:
    from .projection import PooledProjection

TIME = "time embedding"


def check_fits(projection: PooledProjection, family: Family, model: nn.Module) -> None:
    """Raises ValueError unless the projection is one for this model: family, place, widths, depth, base prompts."""
    if family.text is not None:
        raise ValueError(
            f"{family.name} has a pooled text path of its own, and this projection is one for text-blind models"
            f"{_made_for(projection)}. Disconnect the projection."
        )
    if projection.family not in (None, family.name):
        raise ValueError(
            f"The pooled projection was made for {projection.family}, but the model is a {family.name}. "
            f"Load a projection made for {family.name}, or connect a {projection.family} model."
        )
    if projection.injection not in family.injections:
        raise ValueError(
            f"The pooled projection enters a model at its {projection.injection}, but {family.name} takes one at "
            f"{' or '.join(family.injections)} only. Load a projection made for {family.name}."
        )
    injection = family.injections[projection.injection]
    _check_width("output", projection.output_width, f"the {projection.injection} of this {family.name} model", injection.width(model))
    if projection.pooling != "clip":
        _check_width("input", projection.input_width, f"the text context of this {family.name} model", family.context.width(model))
    if projection.time_width is not None:
        _check_width("FiLM", projection.time_width, f"the time embedding of this {family.name} model", family.injections[TIME].width(model))
    depth = family.depth(model)
    if projection.depth not in (None, depth):
        raise ValueError(
            f"The pooled projection's scales are for {projection.depth} layers, but this {family.name} model has {depth}. "
            "Load a projection made for this model."
        )
    for name, prompt in (("base_positive", projection.base_positive), ("base_negative", projection.base_negative)):
        if prompt is not None and projection.pooling == "clip":
            _check_pooled(name, projection, prompt)


def _made_for(projection) -> str:
    return f" (made for {projection.family})" if projection.family else ""


def _check_width(part, width, of, expected):
    if width != expected:
        raise ValueError(
            f"The pooled projection's {part} is {width} wide, but {of} is {expected} wide. Load a projection made for this model."
        )


def _check_pooled(name: str, projection: PooledProjection, prompt: EncodedPrompt) -> None:
    width = projection.input_width
    encoder = "CLIP-L as FLUX uses it: DualCLIPLoader with type flux" if width == 768 else "the one the projection was made with"
    if prompt.pooled is None:
        raise ValueError(
            f"{name} has no pooled output, which this projection reads. Encode it with another text encoder, {encoder}."
        )
    if prompt.pooled.shape[-1] < width:
        raise ValueError(
            f"{name}'s pooled output is {prompt.pooled.shape[-1]} wide, but this projection reads {width}. "
            f"Encode it with another text encoder, {encoder}."
        )


@dataclass(frozen=True, eq=False)
class ProjectedText(TextPath):
    """Text that reaches y through a projection.

    known: what was made of a prompt; what is pooled may come out of the model's own layers.
    """

    projection: PooledProjection
    family: Family
    known: OncePerPrompt = field(default_factory=OncePerPrompt)

    @property
    def injection(self) -> str:
        return self.projection.injection

    @property
    def network(self) -> ProjectionNetwork:
        return self.projection.patcher.model

    @property
    def pools_context(self) -> bool:
        return self.projection.pooling != "clip"

    @property
    def has_base(self) -> bool:
        return self.pools_context or self.projection.base_positive is not None or self.projection.base_negative is not None

    def patchers(self, device):
        return [self.projection.patcher_on(device)]

    def check(self, family, model, prompt):
        if not self.pools_context:
            _check_pooled("The guidance direction", self.projection, prompt)
        elif prompt.tokens.shape[-1] != family.context.width(model):
            raise ValueError(
                f"The guidance direction's tokens are {prompt.tokens.shape[-1]} wide, but this {family.name} model reads "
                f"{family.context.width(model)}. Encode it with the text encoder the model uses: {family.encoder}."
            )

    def difference(self, model, pair, call):
        time = self._time(model, call)
        return self._projected(model, pair.positive, call, time) - self._projected(model, pair.negative, call, time)

    def base(self, model, call, conditional):
        time = self._time(model, call)
        if self.pools_context:
            return self.projection.network_beside(call)(pool(self.family.context.of_rows(model, call), self.projection.pooling), time)
        sides = [
            None if prompt is None else self._projected(model, prompt, call, time)
            for prompt in (self.projection.base_negative, self.projection.base_positive)
        ]
        if not any(side is not None for side in sides):
            return None
        check_known(conditional, "base_positive and base_negative need that: disconnect both.")
        nothing = torch.zeros_like(next(side for side in sides if side is not None))
        negative, positive = (nothing if side is None else side for side in sides)
        return torch.cat([
            (positive if is_conditional else negative).chunk(len(conditional))[chunk] for chunk, is_conditional in enumerate(conditional)
        ])

    def takes_base(self, weight):
        return self.pools_context or weight != 0

    def layer_scales(self, call):
        scales = self.projection.network_beside(call).scales
        if scales is None:
            return None
        return comfy.model_management.cast_to_device(scales.weight, call.x.device, torch.float32)

    def schedule(self, family, depth):
        if not self.pools_context:
            return family.default_schedule(depth)
        # Anima's profile, blocks 8 to 26 of 28: guiding the first ones can collapse colors, and the last one compensates.
        start = round(8 / 28 * depth)
        return RangeSchedule(start, max(depth - 2, start))

    def cfg_rows(self, family):
        return "both" if self.pools_context else family.cfg_rows

    def _time(self, model, call) -> Tensor | None:
        if self.network.film is None:
            return None
        return self.family.injections[TIME].y(model, call).float()

    def _projected(self, model, prompt, call, time) -> Tensor:
        """proj(c) for every row, (R, D), or (R, T, D)."""
        network = self.projection.network_beside(call)
        if time is None:  # then it is the same at every step
            return call.to_rows(self.known.get(model, prompt, call, lambda: network(self._pooled(model, prompt, call))))
        pooled = self.known.get(model, prompt, call, lambda: self._pooled(model, prompt, call))
        return network(call.to_rows(pooled), time)

    def _pooled(self, model, prompt, call) -> Tensor:
        if self.pools_context:
            return pool(self.family.context.of_prompt(model, prompt, call), self.projection.pooling)
        return call.cast(prompt.pooled[:, :self.projection.input_width]).float()

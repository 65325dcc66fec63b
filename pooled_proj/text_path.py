"""How guidance uses a projection: the shift of y that a direction makes, and the base term of the rows' own prompts.

Form of the sum, method by method: with pooling clip (COSMOS) the base is the pooled prompt given for the row's side of CFG, and
enters the scheduled blocks; with pooling max or mean (Anima) it is pooled from the row's own context, and enters every block and
the head. Either way at full strength and at every step; w, the schedule's weights and the percent window act on the delta only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import comfy.model_management
import torch
from torch import Tensor, nn

from ..model_patches.conditionings import check_known
from ..model_patches.directions import EncodedPrompt
from ..model_patches.families import OWN_TEXT, Family, OncePerPrompt, TextPath
from ..model_patches.places import Placed
from ..model_patches.schedules import RangeSchedule
from .network import pool

if TYPE_CHECKING:
    from .projection import PooledProjection

TIME = "time embedding"
CLIP_L, CLIP_G = 768, 1280  # how wide their pooled outputs are


class _Profile(NamedTuple):
    """Settings of those who use a projection: w on blocks first to last."""

    blocks: int
    first: int
    last: int
    w: float


# The max-pool projection's on Anima (github.com/sorryhyun/anima_lora): guiding the first blocks can collapse colors, and the last one
# compensates. Nobody is known to use any other that pools the context.
_PROFILE = _Profile(blocks=28, first=8, last=26, w=3.0)


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
    if projection.depth is not None and family.places(projection.depth, depth) is None:
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
    encoder = "a CLIP-L, with CLIPLoader and any type but hidream" if width == CLIP_L else "the one the projection was made with"
    if prompt.pooled is None:
        raise ValueError(f"{name} has no pooled output, which this projection reads. Encode it with another text encoder, {encoder}.")
    given = prompt.pooled.shape[-1]
    if given < width or (given, width) == (CLIP_G, CLIP_L):  # a wider one has its CLIP-L in front, as SD3's; CLIP-G's alone has none
        raise ValueError(
            f"{name}'s pooled output is {given} wide, but this projection reads {width}. Encode it with another text encoder, {encoder}."
        )


@dataclass(frozen=True, eq=False)
class ProjectedText(TextPath):
    """Text that reaches y through a projection.

    known: what was made of a prompt; what is pooled may come out of the model's own layers.
    """

    projection: PooledProjection
    family: Family
    placed: Placed
    known: OncePerPrompt = field(default_factory=OncePerPrompt)

    @property
    def injection(self) -> str:  # type: ignore[override]
        return self.projection.injection

    @property
    def pools_context(self) -> bool:
        return self.projection.pooling != "clip"

    @property
    def source(self):
        return id(self.projection.weights)  # which copies with other base prompts share

    @property
    def base_texts(self):  # type: ignore[override]
        if self.pools_context:
            return (OWN_TEXT,)
        return tuple(prompt for prompt in (self.projection.base_positive, self.projection.base_negative) if prompt is not None)

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

    def contributions(self, model, texts, call):
        """proj(c) of each text."""
        network = self.projection.network_beside(call)
        if network.film is None:  # then a prompt's is the same at every step
            return self._rows(call, {text: self._made_by(network, model, text, call) for text in texts})
        time = _distinct(self.family.injections[TIME].y(model, call).float())
        hidden = {text: self._made_by(network.linear_1, model, text, call) for text in texts}
        if len(time) == 1:
            return self._rows(call, network.from_hidden(hidden, time))
        return network.from_hidden(self._rows(call, hidden), time)

    def base(self, of_text, conditional):
        if self.pools_context or not self.base_texts:
            return super().base(of_text, conditional)
        check_known(conditional, "base_positive and base_negative need that: disconnect both.")
        nothing = torch.zeros_like(of_text[self.base_texts[0]])
        negative, positive = (of_text.get(prompt, nothing) for prompt in (self.projection.base_negative, self.projection.base_positive))
        return torch.cat(
            [(positive if is_conditional else negative).chunk(len(conditional))[chunk] for chunk, is_conditional in enumerate(conditional)]
        )

    def takes_base(self, weight):
        return self.pools_context or weight != 0

    def layer_scales(self, call):
        scales = self.projection.network_beside(call).scales
        if scales is None:
            return None
        return self.placed.rows(comfy.model_management.cast_to_device(scales.weight, call.x.device, torch.float32))

    def weights(self, schedule, depth):
        return self.placed.weights(schedule.resolve(depth))

    def schedule(self, family, depth):
        if not self.pools_context:
            return family.default_schedule(depth)
        places = family.places(_PROFILE.blocks, depth)
        if places is not None:
            return RangeSchedule(places[_PROFILE.first], places[_PROFILE.last])
        start = round(_PROFILE.first / _PROFILE.blocks * depth)
        return RangeSchedule(start, max(depth - 2, start))

    def w(self, family):
        return _PROFILE.w if self.pools_context else family.w

    def cfg_rows(self, family):
        return "both" if self.pools_context else family.cfg_rows

    def _made_by(self, layers, model, text, call) -> Tensor:
        """layers(c): (N, ...) for a prompt, (R, ...) for the rows' own text."""
        if text is OWN_TEXT:
            return layers(pool(self.family.context.of_rows(model, call), self.projection.pooling))
        return self.known.get(model, text, call, lambda: layers(self._pooled(model, text, call)))

    def _rows(self, call, of_text):
        return {text: made if text is OWN_TEXT else call.to_rows(made) for text, made in of_text.items()}

    def _pooled(self, model, prompt, call) -> Tensor:
        if self.pools_context:
            return pool(self.family.context.of_prompt(model, prompt, call), self.projection.pooling)
        return call.cast(prompt.pooled[:, : self.projection.input_width]).float()


def _distinct(time: Tensor) -> Tensor:
    """One row where all are the same, as they nearly always are.

    Asked on a CPU only, where each row costs: elsewhere reading the answer back would drain the device's queue.
    """
    return time[:1] if time.device.type == "cpu" and bool((time == time[:1]).all()) else time

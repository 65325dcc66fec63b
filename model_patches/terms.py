"""What guidances add to y at one call of the model: w times the difference of texts, what was learned, and the base of a projection."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .directions import EncodedPrompt
from .families import Call, TextPath

if TYPE_CHECKING:
    from .guidance import Guidance


@dataclass(frozen=True)
class Terms:
    """What one guidance adds at one place at one call: at each layer, scales * (weight * delta + base) + learned.

    delta, base: (R, D) or (R, T, D) in fp32. scales: (L, D); the head has none. learned: (L + 1, R, D) in fp32, the layers' weights in it.
    Any of them may be None.
    """

    guidance: Guidance
    delta: Tensor | None
    base: Tensor | None
    scales: Tensor | None
    learned: Tensor | None

    def __bool__(self) -> bool:
        return self.guides or self.base is not None

    @property
    def guides(self) -> bool:
        """Whether the direction is in it."""
        return self.delta is not None or self.learned is not None

    @property
    def keep_norm(self) -> bool:
        return self.guidance.keep_norm

    @property
    def alike(self) -> bool:
        """Whether every row of the batch is known to take the same."""
        guidance = self.guidance
        return (
            self.base is None
            and guidance.cfg_rows == "both"
            and (self.delta is None or guidance.text.same_for_rows)
            and all(prompt.count == 1 for prompt in guidance.direction.prompts)
        )

    def acts(self, layer: int) -> bool:
        """Whether it changes anything at that layer."""
        weight = self.guidance.layer_weights[layer]
        moves = self.delta is not None or (self.learned is not None and self.guidance.learned.acts(layer))
        return (moves and weight != 0) or (self.base is not None and self.guidance.text.takes_base(weight))

    def key(self, layer: int):
        weight = self.guidance.layer_weights[layer]
        return (weight, None if self.scales is None and self.learned is None else layer)

    def at(self, layer: int) -> Tensor:
        if self.delta is None and self.base is None:
            return self.learned[layer]
        scaled = self.scales is not None and layer < len(self.scales)
        of_text = self._scaled[layer] if scaled else self._unscaled(self.guidance.layer_weights[layer])
        return of_text if self.learned is None else _sum([of_text, self.learned[layer]])

    @cached_property
    def _scaled(self) -> Tensor:
        """All layers at once, (L, R, D) or (L, R, T, D): a few kernels instead of a few for each layer."""
        weights = self.guidance.layer_weights[: len(self.scales)]
        shifts = {weight: self._unscaled(weight) for weight in set(weights)}
        shifts = torch.stack([shifts[weight] for weight in weights])
        return shifts * self.scales.reshape(len(weights), *[1] * (shifts.ndim - 2), -1)

    @property
    def lengths(self) -> Tensor:
        """Of what the direction adds to y, at the layer where it adds most, (R,) or (R, T)."""
        direction = replace(self, base=None)
        layers = {direction.key(layer): layer for layer in range(len(self.guidance.layer_weights))}
        return torch.stack([direction.at(layer).norm(dim=-1) for layer in layers.values()]).amax(dim=0)

    def _unscaled(self, weight: float) -> Tensor:
        terms = [] if self.delta is None else [weight * self.delta]
        if self.base is not None:
            terms.append(self.base if self.guidance.text.takes_base(weight) else torch.zeros_like(self.base))
        return sum(terms[1:], terms[0])


def all_terms(guidances: list[Guidance], place: str, diffusion_model: nn.Module, call: Call, conditional: list[bool | None]) -> list[Terms]:
    """Of each guidance; what one source makes, a projection that several share, is made in one go."""
    acting = [guidance.acts_at(call, conditional) for guidance in guidances]
    paths: dict[Hashable, TextPath] = {}
    texts: dict[Hashable, dict] = {}
    for guidance, acts in zip(guidances, acting, strict=True):
        wanted = (*guidance.text.base_texts, *(guidance.direction.prompts if acts else ()))
        if wanted and guidance.text.injection == place:
            paths[guidance.text.source] = guidance.text
            texts.setdefault(guidance.text.source, {}).update(dict.fromkeys(wanted))
    made = {source: path.contributions(diffusion_model, list(texts[source]), call) for source, path in paths.items()}
    return [
        terms_of(guidance, place, made.get(guidance.text.source, {}), call, conditional, acts)
        for guidance, acts in zip(guidances, acting, strict=True)
    ]


def terms_of(
    guidance: Guidance,
    place: str,
    of_text: dict[EncodedPrompt | str, Tensor],
    call: Call,
    conditional: list[bool | None],
    acts: bool = True,
) -> Terms:
    """of_text: what its texts contribute there, none if they do at another place. acts: whether its direction does."""
    reads = bool(of_text) and guidance.text.injection == place
    learns = guidance.learned is not None and guidance.learned.injection == place
    return Terms(
        guidance,
        delta=_row_deltas(guidance, of_text, conditional) if acts and reads and guidance.direction.pairs else None,
        base=guidance.text.base(of_text, conditional) if reads else None,
        scales=guidance.text.layer_scales(call) if reads else None,
        learned=_learned_rows(guidance, call, conditional) if acts and learns else None,
    )


def summed(terms: list[Tensor], dtype: torch.dtype) -> Tensor | None:
    return _sum(terms).to(dtype) if terms else None


def _sum(terms: list[Tensor]) -> Tensor:
    """Of (R, D) and (R, T, D), (R, T, D) where there is one."""
    most = max(term.ndim for term in terms)
    aligned = [term if term.ndim == most else term.unsqueeze(1) for term in terms]
    return sum(aligned[1:], aligned[0])


def layer_shifts(guidance: Guidance, place: str, diffusion_model: nn.Module, call: Call) -> list[Tensor]:
    """What the direction adds there for a conditional row at each layer and last at the head, (R, D) or (R, T, D) in fp32."""
    prompts = list(dict.fromkeys(guidance.direction.prompts)) if guidance.text.injection == place else []
    of_text = guidance.text.contributions(diffusion_model, prompts, call) if prompts else {}
    terms = replace(terms_of(guidance, place, of_text, call, [True]), base=None)
    return [terms.at(layer) for layer in range(len(guidance.layer_weights))]


def _row_deltas(guidance: Guidance, of_text: dict[EncodedPrompt | str, Tensor], conditional: list[bool | None]) -> Tensor:
    """sign * w * (y(p+) - y(p-)) for every row of the batch, (R, D) or (R, T, D) in fp32."""
    terms = [guidance.w * pair.weight * (of_text[pair.positive] - of_text[pair.negative]) for pair in guidance.direction.pairs]
    return _signed(sum(terms[1:], terms[0]), guidance.signs(conditional))


def _learned_rows(guidance: Guidance, call: Call, conditional: list[bool | None]) -> Tensor:
    """sign * w * weight * shift at each layer for every row of the batch, zeros at the head, (L + 1, R, D) in fp32."""
    # Not expanded: torch.compile would tell it from a shift of text by its strides.
    rows = guidance.learned.at(call, guidance.w, guidance.layer_weights).unsqueeze(1).repeat(1, call.rows, 1)
    return _signed(rows, guidance.signs(conditional), dim=1)


def _signed(rows: Tensor, signs: list[int], dim: int = 0) -> Tensor:
    if all(sign == 1 for sign in signs):
        return rows
    return torch.cat([sign * chunk for sign, chunk in zip(signs, rows.chunk(len(signs), dim), strict=True)], dim)

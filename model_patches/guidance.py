"""Modulation guidance: y_hat = y + w (y(p+) - y(p-)), layer by layer, or with shifts learned for each layer in place of the difference.

"Rethinking Global Text Conditioning in Diffusion Transformers", Starodubcev et al., ICLR 2026, equation 3 and section 4.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from .calls import CallPatch
from .conditionings import check_known
from .directions import EncodedPrompt, GuidanceDirection
from .families import Call, Family, Injection, NoText, TextPath, family_of
from .host_model import HostModel
from .injection import Edit
from .layers import as_applied, remember
from .learned import LearnedShifts
from .quoting import quoted
from .schedules import LayerSchedule, ProportionalSchedule, starting_at
from .shifts import shifted, shifted_in_sight, views
from .telling import Teller, longest, of_guidance, without_harm

KEY = "modulation_guidance"

CFG_ROWS = ("both", "cond", "opposed")

LARGEST_W = 50.0  # of the nodes' inputs
# Of w, the layer weights and the direction's weights together: from some millions on, models in fp32 and bf16 give NaN.
LARGEST_STRENGTH = 10_000.0


@dataclass(frozen=True)
class Guidance:
    """One guidance on one model.

    text: how the direction's prompts become a shift of y: the model's own way, or a projection's. learned: what it holds beside them.
    layer_weights: one unitless weight per layer, and last the output head's; they multiply w.
    cfg_rows: "both" guides every row, "cond" the conditional rows only, "opposed" the unconditional rows with -w.
    keep_norm: rescale the guided y to the norm of the plain y, per row.
    start_percent, end_percent: the part of sampling that is guided, 0 the start, 1 the end.
    family: the model's, by name. teller: gets what is told after each sampling; None where nobody asks.
    """

    family: str
    direction: GuidanceDirection
    text: TextPath
    learned: LearnedShifts | None
    w: float
    layer_weights: tuple[float, ...]
    cfg_rows: str
    keep_norm: bool
    start_percent: float
    end_percent: float
    teller: Teller | None = None

    @property
    def places(self) -> set[str]:
        """The names of the family's injections that it enters by."""
        text = {self.text.injection} if self.direction.pairs or self.text.base_texts else set()
        return text if self.learned is None else text | {self.learned.injection}

    def acts_at(self, call: Call, conditional: list[bool | None]) -> bool:
        """Whether the direction shifts anything at this call."""
        return self.w != 0 and any(self.signs(conditional)) and in_window(call, self.start_percent, self.end_percent)

    def signs(self, conditional: list[bool | None]) -> list[int]:
        """The sign of w for each chunk of the batch."""
        if self.cfg_rows != "both":
            check_known(conditional, f"Modulation guidance with cfg_rows {self.cfg_rows} needs that: set cfg_rows to both.")
        unconditional = {"both": 1, "cond": 0, "opposed": -1}[self.cfg_rows]
        return [1 if is_conditional else unconditional for is_conditional in conditional]


def guide(
    model,
    direction: GuidanceDirection,
    w: float,
    schedule: LayerSchedule | None = None,
    cfg_rows: str = "auto",
    keep_norm: bool = False,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    projection=None,
    start_layer: int | None = None,
    teller: Teller | None = None,
):
    """A clone of the ModelPatcher `model` with one more guidance on it.

    schedule None and cfg_rows "auto" take what the reference implementation does for the model's family; start_layer, where given,
    takes the place of the schedule's.
    projection: for text-blind models, what makes a TextPath: projection.text_path(family, diffusion_model).
    teller: called after each sampling with what was done in it, or why nothing was.
    Raises ValueError for a model, direction, schedule or number that cannot work, with what to do about it.
    """
    check_percents(start_percent, end_percent)
    if not math.isfinite(w):
        raise ValueError(f"Modulation guidance: w is {w}; it must be a finite number.")
    if cfg_rows not in ("auto", *CFG_ROWS):
        raise ValueError(f"Modulation guidance: cfg_rows is {quoted(cfg_rows)}; choose auto, {', '.join(CFG_ROWS)}.")
    host = HostModel.of(model)
    family, diffusion_model = family_of(host), host.diffusion_model
    learned = LearnedShifts.of(direction.learned, family, diffusion_model)
    text = _text_path(family, diffusion_model, projection, reads=learned is None or bool(direction.pairs))
    _check_direction(direction, family, text, diffusion_model)
    depth = family.depth(diffusion_model)
    reaches_head = bool(direction.pairs or text.base_texts) and family.injections[text.injection].head is not None
    if schedule is not None and schedule.final_layer and not reaches_head:
        raise ValueError(
            f"Layer schedule: final_layer is {schedule.final_layer}, but this {'direction' if learned else 'projection'} adds nothing at "
            "the output head. Set it to 0."
        )
    schedule = schedule or text.schedule(family, depth)
    if isinstance(schedule, ProportionalSchedule) and (places := family.places(schedule.depth, depth)):
        schedule = schedule.placed(places)
    if start_layer is not None:
        schedule = starting_at(schedule, start_layer)
    layer_weights = (*_layer_weights(schedule, depth, text, direction, learned), schedule.final_layer if reaches_head else 0.0)
    _check_strength(w, layer_weights, direction)
    guidance = Guidance(
        family=family.name,
        direction=direction,
        text=text,
        learned=learned,
        w=w,
        layer_weights=layer_weights,
        cfg_rows=text.cfg_rows(family) if cfg_rows == "auto" else cfg_rows,
        keep_norm=keep_norm,
        start_percent=start_percent,
        end_percent=end_percent,
        teller=teller,
    )
    for place in guidance.places:
        remember(diffusion_model, place, family.injections[place].blocks(diffusion_model))
    model = _PATCH.put_on(model, guidance)
    beside = model.get_additional_models_with_key(KEY)
    new = [patcher for patcher in text.patchers(model.load_device) if not any(map(patcher.is_clone, beside))]
    if new:
        model.set_additional_models(KEY, [*beside, *new])
    return model


def family_and_depth(model) -> tuple[str, int]:
    """The name of the family of a ModelPatcher's model, and how many layers it has. Raises ValueError where it has no family."""
    host = HostModel.of(model)
    family = family_of(host)
    return family.name, family.depth(host.diffusion_model)


def known_w(model, projection=None) -> float | None:
    """The guidance scale in use for the model of a ModelPatcher, with that projection; None where none is known. Errors as of `guide`."""
    host = HostModel.of(model)
    family = family_of(host)
    return _text_path(family, host.diffusion_model, projection, reads=True).w(family)


def guided_depth(model) -> int:
    """How many layers the model of a guided ModelPatcher has."""
    return len(model.model_options["transformer_options"][KEY][-1].layer_weights) - 1


def in_window(call: Call, start_percent: float, end_percent: float) -> bool:
    """Whether this call lies in that part of sampling."""
    if start_percent == 0 and end_percent == 1:
        return True  # spares reading sigma back from the device
    first, last = map(call.base_model.model_sampling.percent_to_sigma, (start_percent, end_percent))
    sigma = call.sigma.max()
    # Compared as tensors, in the precision of sigma, as the host does: a step right on the edge belongs to the window.
    return bool((last <= sigma) & (sigma <= first))


def check_percents(start_percent: float, end_percent: float) -> None:
    """Raises ValueError unless 0 <= start_percent <= end_percent <= 1."""
    for name, value in (("start_percent", start_percent), ("end_percent", end_percent)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; it must lie between 0 (start of sampling) and 1 (end).")
    if start_percent > end_percent:
        raise ValueError(f"start_percent {start_percent} is past end_percent {end_percent}; lower start_percent or raise end_percent.")


def _text_path(family: Family, diffusion_model: nn.Module, projection, reads: bool) -> TextPath:
    """reads: whether there is text to be read."""
    if projection is not None:
        return projection.text_path(family, diffusion_model)
    if family.text is None and reads:
        raise ValueError(
            f"{family.name} is text-blind: its modulation holds no pooled text. Connect a pooled projection made for it "
            "(Load Pooled Projection, or Distill Pooled Projection to make one), or a learned direction alone (Load Guidance Direction)."
        )
    return family.text or NoText(family.place_of_y)


def _layer_weights(
    schedule: LayerSchedule, depth: int, text: TextPath, direction: GuidanceDirection, learned: LearnedShifts | None
) -> tuple[float, ...]:
    """The schedule's, or 0 where neither text nor what was learned enters."""
    of_text = text.weights(schedule, depth)
    if learned is None:
        return of_text
    of_learned = learned.weights(schedule.resolve(depth))
    if not (direction.pairs or text.base_texts):
        return of_learned
    return tuple(weight or other for weight, other in zip(of_text, of_learned, strict=True))


def _check_direction(direction: GuidanceDirection, family: Family, text: TextPath, diffusion_model: nn.Module) -> None:
    for pair in direction.pairs:
        text.check_pair(family, diffusion_model, pair)
    counts = {prompt.count for prompt in direction.prompts} - {1}
    if len(counts) > 1:
        raise ValueError(
            f"The guidance direction holds batches of {' and '.join(map(str, sorted(counts)))} prompts; "
            "batches in one direction must be of one size."
        )


def _check_strength(w: float, layer_weights: tuple[float, ...], direction: GuidanceDirection) -> None:
    layers = max(map(abs, layer_weights))
    terms = sum(abs(pair.weight) for pair in direction.pairs) + sum(abs(learned.weight) for learned in direction.learned)
    if not abs(w) * layers * terms <= LARGEST_STRENGTH:
        raise ValueError(
            f"Modulation guidance: w {w:g} times the schedule's largest weight, {layers:g}, times the direction's weights, together "
            f"{terms:g}, is beyond {LARGEST_STRENGTH:g}, where numbers overflow and the picture becomes NaN. Lower w or the weights."
        )


def _edits(guidances: tuple[Guidance, ...], host: HostModel, call: Call, conditional: list[bool | None]) -> list[Edit]:
    """One Edit per block and one for the head; unguided ones too.

    Zeros are added where a layer is not guided, so that another schedule is other numbers for torch.compile and not another
    graph. Layers of equal weights share memory, each through a view of its own: the same tensor object on two layers would
    be a guard.
    """
    acting = [guidance for guidance in guidances if guidance.text.base_texts or guidance.acts_at(call, conditional)]
    if not acting:
        return []
    edits = []
    for name, injection in family_of(host).injections.items():
        entering = [guidance for guidance in acting if name in guidance.places]
        if entering:
            edits += _injected(entering, name, injection, host, call, conditional)
    return edits


def _acts_at_the_head(guidances: tuple[Guidance, ...]) -> bool:
    return any(
        weights[-1] != 0 or (guidance.text.base_texts and guidance.text.takes_base(weights[-1]))
        for guidance in guidances
        for weights in [guidance.layer_weights]
    )


_PATCH = CallPatch("Modulation guidance", KEY, _edits, of_guidance, _acts_at_the_head)


def _injected(
    guidances: list[Guidance], place: str, injection: Injection, host: HostModel, call: Call, conditional: list[bool | None]
) -> list[Edit]:
    diffusion_model = host.diffusion_model
    depths = {len(guidance.layer_weights) - 1 for guidance in guidances}
    targets = as_applied(diffusion_model, place, injection.blocks(diffusion_model), depths, "Modulation guidance")
    if injection.head:
        targets = [*targets, injection.head(diffusion_model)]
    sums = [terms for terms in _terms(guidances, place, diffusion_model, call, conditional) if terms]
    if not sums:
        return []
    see = _measuring(sums, injection, diffusion_model, call)
    alike, own = all(terms.alike for terms in sums), any(terms.base is not None for terms in sums)

    def shifts(layer: int) -> tuple[Tensor | None, Tensor | None]:
        """Those added to y there, without and with its norm kept."""
        return tuple(_summed([terms.at(layer) for terms in sums if terms.keep_norm == kept], call.dtype) for kept in (False, True))

    def is_head(layer: int) -> bool:
        return layer == len(guidances[0].layer_weights) - 1

    def matters(layer: int) -> bool:
        return any(terms.acts(layer) for terms in sums)

    if injection.carry_all is not None:
        made = injection.carry_all(diffusion_model, call, [shifts(layer) for layer in range(len(targets))])
        return [
            Edit(target, shifted, (target.part(diffusion_model, made), None), own=own, around=is_head(layer), matters=matters(layer))
            for layer, target in enumerate(targets)
        ]
    layers: dict[tuple, list[int]] = {}
    for layer, target in enumerate(targets):
        # What tells this layer's shift from another's.
        layers.setdefault((*(terms.key(layer) for terms in sums), target.carry), []).append(layer)
    changes: dict[tuple, Any] = {}
    for carry in {target.carry for target in targets} - {None}:
        keys = [key for key in layers if key[-1] is carry]
        firsts = [layers[key][0] for key in keys]
        changed = carry(diffusion_model, call, [shifts(layer) if matters(layer) else None for layer in firsts])
        changes |= zip(keys, changed, strict=True)
    edits: list[Edit | None] = [None] * len(targets)
    for key, of_these in layers.items():
        carry = key[-1]
        added, norm_kept = (changes[key], None) if carry else shifts(of_these[0])
        for layer, view, kept_view in zip(of_these, views(added, len(of_these)), views(norm_kept, len(of_these)), strict=True):
            part = targets[layer].part
            tensors = (part(diffusion_model, view) if part else view, kept_view)
            if carry:
                edits[layer] = Edit(targets[layer], shifted, tensors, own=own, around=is_head(layer), matters=matters(layer))
            else:
                edits[layer] = Edit(targets[layer], shifted_in_sight, tensors, alike, own, is_head(layer), matters(layer), see)
    return edits


def _measuring(sums: list[_Terms], injection: Injection, diffusion_model: nn.Module, call: Call):
    """Notes which guidances act; once in a sampling, what measures their shifts beside y, for the edits of this call to do it with y."""
    if call.sampling is None:
        return None
    tallies = [(terms, call.sampling.acted(terms.guidance)) for terms in sums if terms.guides]
    unknown = [(terms, tally) for terms, tally in tallies if tally.longest is None and terms.guidance.teller is not None]
    if not unknown:
        return None

    def measure(y: Tensor) -> None:
        for terms, tally in unknown:
            if tally.longest is None:
                tally.longest = longest(terms.lengths, y)

    if not injection.carries(diffusion_model):
        return partial(without_harm, measure)
    without_harm(lambda: measure(injection.y(diffusion_model, call)))
    return None


@dataclass(frozen=True)
class _Terms:
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
        return (self.guides and weight != 0) or (self.base is not None and self.guidance.text.takes_base(weight))

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


def _terms(guidances: list[Guidance], place: str, diffusion_model: nn.Module, call: Call, conditional: list[bool | None]) -> list[_Terms]:
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
        _terms_of(guidance, place, made.get(guidance.text.source, {}), call, conditional, acts)
        for guidance, acts in zip(guidances, acting, strict=True)
    ]


def _terms_of(
    guidance: Guidance,
    place: str,
    of_text: dict[EncodedPrompt | str, Tensor],
    call: Call,
    conditional: list[bool | None],
    acts: bool = True,
) -> _Terms:
    """of_text: what its texts contribute there, none if they do at another place. acts: whether its direction does."""
    reads = bool(of_text) and guidance.text.injection == place
    learns = guidance.learned is not None and guidance.learned.injection == place
    return _Terms(
        guidance,
        delta=_row_deltas(guidance, of_text, conditional) if acts and reads and guidance.direction.pairs else None,
        base=guidance.text.base(of_text, conditional) if reads else None,
        scales=guidance.text.layer_scales(call) if reads else None,
        learned=_learned_rows(guidance, call, conditional) if acts and learns else None,
    )


def _summed(terms: list[Tensor], dtype: torch.dtype) -> Tensor | None:
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
    terms = replace(_terms_of(guidance, place, of_text, call, [True]), base=None)
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

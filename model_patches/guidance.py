"""Modulation guidance: y_hat = y + w (y(p+) - y(p-)), layer by layer, or with shifts learned for each layer in place of the difference.

"Rethinking Global Text Conditioning in Diffusion Transformers", Starodubcev et al., ICLR 2026, equation 3 and section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from .calls import CallPatch
from .conditionings import check_known
from .directions import GuidanceDirection
from .families import Call, Family, Injection, NoText, TextPath, family_of
from .host_model import HostModel
from .injection import Edit
from .layers import as_applied, remember
from .learned import LearnedShifts
from .quoting import quoted
from .schedules import LayerSchedule, ProportionalSchedule, starting_at
from .shifts import shifted, shifted_in_sight, views
from .telling import Teller, longest, of_guidance, without_harm
from .terms import Terms, all_terms, summed

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
        """Whether the direction shifts anything at this call. Raises ValueError where that has to be known of each row, and is not."""
        acts = self.w != 0 and any(self.signs(conditional)) and in_window(call, self.start_percent, self.end_percent)
        if acts and any(prompt.count > 1 for prompt in self.direction.prompts):
            self._check_whole(call, conditional)
        return acts

    def _check_whole(self, call: Call, conditional: list[bool | None]) -> None:
        batch = None if call.sampling is None else call.sampling.batch
        if None in conditional or batch not in (None, call.rows // call.chunks):
            raise ValueError(
                "Modulation guidance: the direction holds a prompt for each image of the batch, and another node runs the model on a part of "
                "the batch (context windows over it, or a batch that it splits without saying so), so that nothing says whose is whose. Guide "
                "by a direction of one prompt, or sample one image at a time."
            )

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
    if not abs(w) <= LARGEST_W:
        raise ValueError(f"Modulation guidance: w is {w:g}; it goes from {-LARGEST_W:g} to {LARGEST_W:g}.")
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
            "the final output layer. Set it to 0."
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
    # Compared as tensors, in the precision of sigma, as the host does: a step right on the edge belongs to the window.
    return bool((last <= call.noise_level) & (call.noise_level <= first))


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
            f"{terms:g}, is beyond {LARGEST_STRENGTH:g}, where numbers overflow and the image becomes NaN. Lower w or the weights."
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
    sums = [terms for terms in all_terms(guidances, place, diffusion_model, call, conditional) if terms]
    if not sums:
        return []
    see = _measuring(sums, injection, diffusion_model, call)
    alike, own = all(terms.alike for terms in sums), any(terms.base is not None for terms in sums)

    def shifts(layer: int) -> tuple[Tensor | None, Tensor | None]:
        """Those added to y there, without and with its norm kept."""
        return tuple(summed([terms.at(layer) for terms in sums if terms.keep_norm == kept], call.dtype) for kept in (False, True))

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


def _measuring(sums: list[Terms], injection: Injection, diffusion_model: nn.Module, call: Call):
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

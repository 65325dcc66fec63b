"""What guidance will do to a model, measured before anything is sampled.

Two questions: how alike are directions, and how strong is the shift of y at each layer beside y itself. y depends on the prompt,
which is not known here: it is taken for each direction's own p+ and p-, whose length is much like any prompt's, or for a prompt of zeros
where all are learned, at three noise levels of the model's schedule, and averaged. Only the embedders of the model run, not its blocks.
"""

from __future__ import annotations

import itertools
import re
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial, reduce
from uuid import uuid4

import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor, nn

from . import variance
from .directions import EncodedPrompt, GuidanceDirection
from .families import BlockInput, Call, Family, Injection, Sampling, family_of
from .guidance import KEY, Guidance, guide
from .host_model import HostModel
from .injection import Edit, Watch, run_edited
from .memory import out_of_memory
from .schedules import LayerSchedule
from .telling import BURNING, burning, nothing_in
from .terms import layer_shifts

PERCENTS = (0.1, 0.5, 0.9)  # of the sampling schedule, where y is looked at

# Cosines from here on count as the same direction, or as opposite ones.
ALIKE = 0.9


@dataclass(frozen=True)
class Inspection:
    """What was measured of D directions.

    family, depth: of the model. sigmas: the noise levels looked at.
    pooled: (D, D) cosines between the directions' pooled outputs, averaged over prompts; None where one has none.
    modulation: (D, D) cosines between their shifts of y, those of all layers together.
    strengths: (D, depth + 1), |w shift| / |y| at each layer and last at the head; NaN at a head that takes no shift.
    warnings: sentences on directions that cancel, repeat each other or do nothing, and on strengths that will burn the picture.
    """

    family: str
    depth: int
    sigmas: tuple[float, ...]
    pooled: list[list[float]] | None
    modulation: list[list[float]]
    strengths: list[list[float]]
    warnings: tuple[str, ...]


def inspect(
    model, directions: list[GuidanceDirection], labels: list[str], w: float, schedule: LayerSchedule | None = None, projection=None
) -> Inspection:
    """Measures the directions, each at guidance scale w, on the ModelPatcher `model`; errors as those of `guide`."""
    guided = [guide(model, direction, w, schedule, projection=projection) for direction in directions]
    guidances = [one.model_options["transformer_options"][KEY][-1] for one in guided]
    host = HostModel.of(model)
    family, diffusion_model = family_of(host), host.diffusion_model
    sigmas = _sigmas(model)
    pairs = [direction.pairs[0] for direction in directions if direction.pairs]
    prompts = [prompt for pair in pairs for prompt in (pair.positive, pair.negative)]
    look = _Look(guidances, family, prompts or [family.blank_prompt(diffusion_model)])
    _run(guided[0], look, sigmas)
    strengths = torch.stack(look.strengths).mean(dim=0)
    modulation = _cosines([torch.cat(shifts) for shifts in zip(*look.directions, strict=True)])
    return Inspection(
        family=family.name,
        depth=family.depth(diffusion_model),
        sigmas=tuple(sigmas[:-1].tolist()),
        pooled=_pooled_cosines(directions),
        modulation=modulation,
        strengths=strengths.tolist(),
        warnings=(*_on_pairs(labels, modulation), *_on_strengths(labels, strengths, look.directions[0], directions, w)),
    )


class _Reached(Exception):
    """y, raised where the first block gets it, so that no block runs."""


def _reach(y, made):
    raise _Reached(y)


class _Look(comfy.samplers.Sampler):
    """A sampler of the host's that samples nothing: it looks at each noise level how long each direction's shifts are beside y.

    prompts: whose y. strengths: [(D, depth + 1), |shift| / |y|, averaged over them, and the larger one where a direction enters at two
    places; NaN at a head that takes no shift]. directions: [[each direction's own shifts of y, of all layers]].
    """

    def __init__(self, guidances: list[Guidance], family: Family, prompts: list[EncodedPrompt]):
        self.guidances, self.family, self.prompts = guidances, family, prompts
        entered = set().union(*(guidance.places for guidance in guidances))
        self.places = [place for place in family.injections if place in entered]
        self.strengths: list[Tensor] = []
        self.directions: list[list[Tensor]] = []

    def sample(self, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        base_model, options = guider.inner_model, extra_args["model_options"]["transformer_options"]
        diffusion_model = HostModel.called(base_model).diffusion_model
        inputs = [_inputs(prompt, self.family, base_model, latent_image) for prompt in self.prompts]
        sampling = Sampling()
        for sigma in sigmas[:-1]:
            calls = [_call(base_model, noise, sigma.expand(len(noise)), one, sigmas, sampling) for one in inputs]
            strengths: list[Tensor] = []
            own_shifts: list[list[Tensor]] = [[] for _ in self.guidances]
            for place in self.places:
                injection = self.family.injections[place]
                ys = [
                    _y(injection, diffusion_model, call, partial(self._run, call, one, prompt, options))
                    for call, one, prompt in zip(calls, inputs, self.prompts, strict=True)
                ]
                shifts = [self._shifts(guidance, place, diffusion_model, calls[0]) for guidance in self.guidances]
                strength = torch.tensor([[*map(_length, layers)] for layers in shifts]) * len(ys) / sum(map(_length, ys))
                if injection.head is None:
                    strength[:, -1] = float("nan")
                strengths.append(strength)
                for own, guidance in zip(own_shifts, self.guidances, strict=True):
                    own += [shift.flatten().cpu() for shift in self._shifts(_at_1(guidance), place, diffusion_model, calls[0])[:-1]]
            self.strengths.append(reduce(torch.fmax, strengths))
            self.directions.append([*map(torch.cat, own_shifts)])
        return latent_image

    def _shifts(self, guidance: Guidance, place: str, diffusion_model: nn.Module, call: Call) -> list[Tensor]:
        """At each layer and last at the head, zeros where it does not enter."""
        if place in guidance.places:
            return layer_shifts(guidance, place, diffusion_model, call)
        nothing = torch.zeros(call.rows, self.family.injections[place].width(diffusion_model), device=call.x.device)
        return [nothing] * len(guidance.layer_weights)

    def _run(self, call: Call, inputs: dict, prompt: EncodedPrompt, options: dict) -> None:
        """The model on its inputs, made of the prompt; raises ValueError where it cannot read the prompt's tokens."""
        options = options | {"cond_or_uncond": [0], "uuids": [uuid4()], "sigmas": call.sigma}
        try:
            call.base_model.apply_model(call.x, call.sigma, transformer_options=options, **inputs)
        except RuntimeError as error:
            if out_of_memory(error) or not _names_a_width(str(error), prompt):
                raise
            raise ValueError(
                f"Inspect Guidance: {self.family.name} could not read a direction's tokens ({error}). Encode the directions with the text "
                f"encoder the model uses: {self.family.encoder}."
            ) from error


def _at_1(guidance: Guidance) -> Guidance:
    """At w 1 in every layer."""
    return replace(guidance, w=1.0, layer_weights=tuple(1.0 for _ in guidance.layer_weights))


def _y(injection: Injection, diffusion_model: nn.Module, call: Call, run) -> Tensor:
    """The vector itself: as the family makes it, or as the first block gets it."""
    if injection.carries(diffusion_model):
        return injection.y(diffusion_model, call)
    first: BlockInput = injection.blocks(diffusion_model)[0]
    try:
        with _eager():
            run_edited(diffusion_model, [Edit(first, _reach, ())], run, Watch(), "inspection")
    except _Reached as reached:
        return reached.args[0]
    raise RuntimeError("Inspect Guidance: the model ran without its first block, so something in the graph answers in its place.")


def _eager():
    """Compiled models run as they are. torch before 2.6 can't say so: there they compile the little that is run of them."""
    return torch.compiler.set_stance("force_eager") if hasattr(torch.compiler, "set_stance") else nullcontext()


def _run(model, look: _Look, sigmas: Tensor) -> None:
    """By the host's own sampling, which loads the model and what is beside it, and readies them."""
    model = model.clone()
    for key in (KEY, variance.KEY):  # y as it is without guidance; text tokens do not reach it
        model.model_options["transformer_options"].pop(key, None)
    latent = comfy.sample.fix_empty_latent_channels(model, torch.zeros(1, 4, 16, 16))
    comfy.sample.sample_custom(model, torch.zeros_like(latent), 1.0, look, sigmas, [], [], latent, disable_pbar=True)


def _sigmas(model) -> Tensor:
    model_sampling = model.get_model_object("model_sampling")
    return torch.tensor([*(float(model_sampling.percent_to_sigma(percent)) for percent in PERCENTS), 0.0])


def _inputs(prompt: EncodedPrompt, family: Family, base_model, latent: Tensor) -> dict:
    """The model's inputs where the prompt is the user's own, by the host's names.

    Nothing else of its conditioning counts: when and where in the picture it was to be used, and with what beside it.
    Without its tokens where they are another encoder's than the text-blind model's.
    """
    tokens, extras = prompt.tokens, dict(prompt.extras)
    if prompt.pooled is not None:
        extras["pooled_output"] = prompt.pooled
    diffusion_model = HostModel.called(base_model).diffusion_model
    width = None if family.context is None else family.context.width(diffusion_model)
    if width not in (None, tokens.shape[-1]):
        blank = family.blank_prompt(diffusion_model)
        tokens, extras = blank.tokens, extras | dict(blank.extras)
    [made] = comfy.samplers.encode_model_conds(
        base_model.extra_conds,
        comfy.sampler_helpers.convert_cond([[tokens, extras]]),
        latent,
        latent.device,
        "positive",
        latent_image=latent,
        denoise_mask=None,
        seed=0,
        latent_shapes=[latent.shape],
    )
    return {name: cond.process_cond(batch_size=len(latent), area=None).concat([]) for name, cond in made["model_conds"].items()}


def _call(base_model, x: Tensor, sigma: Tensor, inputs: dict, sigmas: Tensor, sampling: Sampling) -> Call:
    conds = {name: value for name, value in inputs.items() if name not in ("c_concat", "c_crossattn")}
    return Call(base_model, x, sigma, 1, inputs.get("c_crossattn"), conds, sigmas, sampling)


def _names_a_width(message: str, prompt: EncodedPrompt) -> bool:
    """Whether an error speaks of the width of the prompt's tokens, as those of layers do that read another."""
    tokens = [part for part in (prompt.tokens, *prompt.extras.values()) if isinstance(part, Tensor) and part.ndim > 2]
    return bool({str(part.shape[-1]) for part in tokens} & {*re.findall(r"\d+", message)})


def _length(vectors: Tensor) -> float:
    """Of the vectors in the last dimension, averaged."""
    return vectors.float().norm(dim=-1).mean().item()


def _cosines(vectors: list[Tensor]) -> list[list[float]]:
    unit = nn.functional.normalize(torch.stack(vectors).cpu().double(), dim=-1)  # Apple's GPUs have no float64
    return (unit @ unit.T).clamp(-1, 1).tolist()


def _pooled_cosines(directions: list[GuidanceDirection]) -> list[list[float]] | None:
    prompts = [prompt for direction in directions for pair in direction.pairs for prompt in (pair.positive, pair.negative)]
    if any(direction.learned for direction in directions) or any(prompt.pooled is None for prompt in prompts):
        return None
    if len({prompt.pooled.shape[-1] for prompt in prompts}) > 1:
        return None
    return _cosines(
        [
            sum(
                pair.weight * (pair.positive.pooled.float().mean(dim=0) - pair.negative.pooled.float().mean(dim=0))
                for pair in direction.pairs
            )
            for direction in directions
        ]
    )


def _on_pairs(labels: list[str], cosines: list[list[float]]):
    for (i, a), (j, b) in itertools.combinations(enumerate(labels), 2):
        if cosines[i][j] >= ALIKE:
            yield (
                f"{a} and {b} are nearly the same direction to this model (cosine {cosines[i][j]:.2f}): together they count twice. "
                "Leave one out, or halve w."
            )
        elif cosines[i][j] <= -ALIKE:
            yield f"{a} and {b} nearly cancel (cosine {cosines[i][j]:.2f}): together they do next to nothing. Leave one out."


def _on_strengths(labels: list[str], strengths: Tensor, shifts: list[Tensor], directions: list[GuidanceDirection], w: float):
    for label, layers, shift, direction in zip(labels, strengths, shifts, directions, strict=True):
        strongest = layers.nan_to_num().max().item()
        if not shift.any():
            yield f"{label} does nothing: its {nothing_in(direction)}."
        elif strongest >= BURNING:
            at = layers.nan_to_num().argmax().item()
            where = "the final output layer" if at == len(layers) - 1 else f"layer {at}"
            yield burning(f"{label} at w {w:g} will", w, strongest, f" ({where})")

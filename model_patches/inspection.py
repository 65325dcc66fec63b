"""What guidance will do to a model, measured before anything is sampled.

Two questions: how alike are directions, and how strong is the shift of y at each layer beside y itself. y depends on the prompt,
which is not known here: it is taken for each direction's own p+ and p-, whose length is much like any prompt's, at three
steps of the model's schedule, and averaged. Only the embedders of the model run, not its blocks.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import comfy.sample
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from .directions import EncodedPrompt, GuidanceDirection
from .families import BlockInput, Call, Family, Injection, family_of
from .guidance import KEY, Guidance, direction_shift, guide, layer_shifts
from .host_model import HostModel
from .injection import Edit, Watch, run_edited
from .schedules import LayerSchedule

PERCENTS = (0.1, 0.5, 0.9)  # of the sampling schedule, where y is looked at

# Cosines from here on count as the same direction, or as opposite ones.
ALIKE = 0.9
# A shift this long beside y breaks pictures, at 1 nothing of them is left. Seen on the small world's model (tools/small_world), all
# layers guided; the later guidance starts, the more it takes.
BURNING = 0.6

_PROBE = "modulation_guidance_inspection"


@dataclass(frozen=True)
class Inspection:
    """What was measured of D directions.

    family, depth: of the model. sigmas: the noise levels looked at.
    pooled: (D, D) cosines between the directions' pooled outputs, averaged over prompts; None where an encoder gives none.
    modulation: (D, D) cosines between their shifts of y.
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
    probe = _Probe(guidances)
    host = HostModel.of(model)
    family, diffusion_model = family_of(host), host.diffusion_model
    sigmas = _sigmas(model)
    pairs = [direction.pairs[0] for direction in directions]
    for prompt in itertools.chain.from_iterable((pair.positive, pair.negative) for pair in pairs):
        _run(guided[0], probe, _conditioning(prompt, family, diffusion_model), sigmas, family)
    steps = len(PERCENTS)
    y = torch.tensor(probe.lengths).view(-1, steps).mean(dim=0)  # (S,)
    lengths = torch.tensor(probe.shift_lengths[:steps])  # (S, D, depth + 1)
    strengths = (lengths / y[:, None, None]).mean(dim=0)
    modulation = _cosines([torch.cat(shifts) for shifts in zip(*probe.directions[:steps], strict=True)])
    if family.injections[guidances[0].text.injection].head is None:
        strengths[:, -1] = float("nan")
    return Inspection(
        family=family.name,
        depth=family.depth(diffusion_model),
        sigmas=tuple(sigmas[:-1].tolist()),
        pooled=_pooled_cosines(directions),
        modulation=modulation,
        strengths=strengths.tolist(),
        warnings=(*_on_pairs(labels, modulation), *_on_strengths(labels, strengths, probe.directions[0], w)),
    )


class _Reached(Exception):
    """y, raised where the first block gets it, so that no block runs."""


def _reach(y, made):
    raise _Reached(y)


class _Probe:
    """Stands in for the model and notes, at each call, how long y is and how long each direction's shifts are.

    lengths: [|y|]. shift_lengths: [[|shift at each layer|] of each direction]. directions: [[the direction's own shift of y]].
    """

    def __init__(self, guidances: list[Guidance]):
        self.guidances = guidances
        self.lengths, self.shift_lengths, self.directions = [], [], []

    def __call__(self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
        call = Call(executor.class_obj, x, t, 1, c_crossattn, kwargs)
        host = HostModel.called(call.base_model)
        diffusion_model = host.diffusion_model
        injection = family_of(host).injections[self.guidances[0].text.injection]

        def run():
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

        self.lengths.append(_length(_y(injection, diffusion_model, call, run)))
        self.shift_lengths.append([
            [_length(shift) for shift in layer_shifts(guidance, diffusion_model, call)] for guidance in self.guidances
        ])
        self.directions.append([direction_shift(guidance, diffusion_model, call).flatten().cpu() for guidance in self.guidances])
        return x


def _y(injection: Injection, diffusion_model: nn.Module, call: Call, run) -> Tensor:
    """The vector itself: as the family makes it, or as the first block gets it."""
    first: BlockInput = injection.blocks(diffusion_model)[0]
    if first.carry is not None:
        return injection.y(diffusion_model, call)
    try:
        with torch.compiler.set_stance("force_eager"):
            run_edited(diffusion_model, [Edit(first, _reach, ())], run, Watch(), _PROBE)
    except _Reached as reached:
        return reached.args[0]
    raise RuntimeError("Inspect Guidance: the model ran without its first block, so something in the graph answers in its place.")


def _run(model, probe: _Probe, conditioning, sigmas: Tensor, family: Family) -> None:
    """One call of the probe per sigma, by the host's own sampler, which loads the model and prepares its inputs."""
    model = model.clone()
    model.model_options["transformer_options"].pop(KEY)  # y as it is without guidance
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, _PROBE, probe)
    latent = comfy.sample.fix_empty_latent_channels(model, torch.zeros(1, 4, 16, 16))
    noise = torch.zeros_like(latent)
    try:
        comfy.sample.sample_custom(
            model, noise, 1.0, comfy.samplers.sampler_object("euler"), sigmas, conditioning, conditioning, latent, disable_pbar=True
        )
    except RuntimeError as error:
        raise ValueError(
            f"Inspect Guidance: {family.name} could not read a direction's tokens ({error}). Encode the directions with the text "
            f"encoder the model uses: {family.encoder}."
        ) from error


def _sigmas(model) -> Tensor:
    model_sampling = model.get_model_object("model_sampling")
    return torch.tensor([*(float(model_sampling.percent_to_sigma(percent)) for percent in PERCENTS), 0.0])


def _conditioning(prompt: EncodedPrompt, family: Family, diffusion_model: nn.Module):
    """The prompt as the user's own; without its tokens where they are another encoder's than the text-blind model's."""
    tokens, extras = prompt.tokens, dict(prompt.extras)
    if prompt.pooled is not None:
        extras["pooled_output"] = prompt.pooled
    if family.context is not None and tokens.shape[-1] != family.context.width(diffusion_model):
        tokens = torch.zeros(1, 8, family.context.width(diffusion_model))
    return [[tokens, extras]]


def _length(vectors: Tensor) -> float:
    """Of the vectors in the last dimension, averaged."""
    return vectors.float().norm(dim=-1).mean().item()


def _cosines(vectors: list[Tensor]) -> list[list[float]]:
    unit = nn.functional.normalize(torch.stack(vectors).double(), dim=-1)
    return (unit @ unit.T).clamp(-1, 1).tolist()


def _pooled_cosines(directions: list[GuidanceDirection]) -> list[list[float]] | None:
    prompts = [prompt for direction in directions for pair in direction.pairs for prompt in (pair.positive, pair.negative)]
    if any(prompt.pooled is None for prompt in prompts) or len({prompt.pooled.shape[-1] for prompt in prompts}) > 1:
        return None
    return _cosines([
        sum(pair.weight * (pair.positive.pooled.float().mean(dim=0) - pair.negative.pooled.float().mean(dim=0)) for pair in direction.pairs)
        for direction in directions
    ])


def _on_pairs(labels: list[str], cosines: list[list[float]]):
    for (i, a), (j, b) in itertools.combinations(enumerate(labels), 2):
        if cosines[i][j] >= ALIKE:
            yield (
                f"{a} and {b} are nearly the same direction to this model (cosine {cosines[i][j]:.2f}): together they count twice. "
                "Leave one out, or halve w."
            )
        elif cosines[i][j] <= -ALIKE:
            yield f"{a} and {b} nearly cancel (cosine {cosines[i][j]:.2f}): together they do next to nothing. Leave one out."


def _on_strengths(labels: list[str], strengths: Tensor, directions: list[Tensor], w: float):
    for label, layers, direction in zip(labels, strengths, directions, strict=True):
        strongest = layers.nan_to_num().max().item()
        if not direction.any():
            yield f"{label} does nothing: its positive and negative are the same to this model."
        elif strongest >= BURNING:
            at = layers.nan_to_num().argmax().item()
            where = "the output head" if at == len(layers) - 1 else f"layer {at}"
            yield (
                f"{label} at w {w:g} will burn the picture: its shift is {strongest:.2f} times as long as y ({where}), and {BURNING:g} is "
                f"much. Stay below w {abs(w) * BURNING / strongest:.2g}."
            )

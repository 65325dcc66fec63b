"""What is learned from: prompts, the model's own pictures of them, and fixed pairs of noise level and noise.

Everything follows from the seed, batch by batch, so that a batch is the same whenever it is asked for, and a run that was cut goes
on as if it had not been.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import comfy.sample
import torch
from torch import Tensor

SAMPLER, SCHEDULER = "euler", "simple"


def generator(*seeds) -> torch.Generator:
    """A random generator for a purpose: every sequence of seeds has its own."""
    digest = hashlib.sha256(repr(seeds).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass(frozen=True, eq=False)
class Batch:
    """number: which one it is. prompts: R numbers of prompts. clean, noise: (R, ...) latents as the model has them, fp32.

    percents: (R,), how far into sampling each row is.
    """

    number: int
    prompts: list[int]
    clean: Tensor
    noise: Tensor
    percents: Tensor

    def sigmas(self, model_sampling) -> Tensor:
        """(R,) noise levels, as the model samples them."""
        return _sigmas(model_sampling, self.percents)

    def next_sigmas(self, model_sampling, steps: int) -> Tensor:
        """(R,) where a sampling of that many equal steps goes from them."""
        return _sigmas(model_sampling, (self.percents + 1 / steps).clamp(max=1))


def _sigmas(model_sampling, percents: Tensor) -> Tensor:
    return torch.tensor([float(model_sampling.percent_to_sigma(percent)) for percent in percents.tolist()])


@dataclass(frozen=True, eq=False)
class Lessons:
    """Batches of fixed pairs of noise level and noise, `pairs` for each sample.

    samples: (S, ...) clean latents. prompts: S numbers of prompts. seeds: of the random generators.
    """

    samples: Tensor
    prompts: list[int]
    pairs: int
    batch_size: int
    seeds: tuple

    def __len__(self) -> int:
        return math.ceil(len(self.samples) * self.pairs / self.batch_size)

    def __getitem__(self, number: int) -> Batch:
        rows = self._order[number * self.batch_size : (number + 1) * self.batch_size]
        samples, pairs = rows // self.pairs, rows % self.pairs
        draw = generator(*self.seeds, "pairs", number)
        return Batch(
            number=number,
            prompts=[self.prompts[sample] for sample in samples.tolist()],
            clean=self.samples[samples],
            noise=torch.randn(len(rows), *self.samples.shape[1:], generator=draw),
            # The pairs of a sample lie in equal parts of sampling, one in each.
            percents=(pairs + torch.rand(len(rows), generator=draw, dtype=torch.float64)) / self.pairs,
        )

    def visited(self, visit: int) -> Batch:
        """The batch of that visit; every batch once in each pass, in a new order."""
        number, place = divmod(visit, len(self))
        return self[_permutation(len(self), *self.seeds, "pass", number)[place].item()]

    @property
    def _order(self) -> Tensor:
        return _permutation(len(self.samples) * self.pairs, *self.seeds, "order")


@lru_cache(maxsize=8)
def _permutation(length: int, *seeds) -> Tensor:
    return torch.randperm(length, generator=generator(*seeds))


def sampled_prompts(prompts: int, per_prompt: int, rows: int, pairs: int, seeds: tuple) -> list[int]:
    """Which prompts to make samples of, in order: no more than `rows` rows of a whole training run need, all prompts alike."""
    order = torch.cat([torch.randperm(prompts, generator=generator(*seeds, "prompts", turn)) for turn in range(per_prompt)])
    return order[: math.ceil(rows / pairs)].tolist()


def latent_shape(latent_format, width: int, height: int, frames: int) -> tuple[int, ...]:
    """(C, H, W), or (C, T, H, W), of pictures of that many pixels. Raises ValueError where that is less than one latent."""
    ratio = latent_format.spacial_downscale_ratio
    if min(width, height) < ratio:
        raise ValueError(
            f"An image of {width} x {height} pixels is less than one latent of this model, which is {ratio} x {ratio}. Raise width and height."
        )
    size = (height // ratio, width // ratio)
    if latent_format.latent_dimensions != 3:
        return latent_format.latent_channels, *size
    return latent_format.latent_channels, (frames - 1) // latent_format.temporal_downscale_ratio + 1, *size


def make_samples(
    model, conditionings: list, empty, shape: tuple[int, ...], steps: int, cfg: float, seeds: tuple, on_progress: Callable[[int, int], None]
) -> Tensor:
    """(S, ...) latents as the model has them: a picture of each of S conditionings, by the host's sampler. empty: the negative of CFG."""
    samples = []
    for number, conditioning in enumerate(conditionings):
        noise = torch.randn(1, *shape, generator=generator(*seeds, "sample", number))
        latent = comfy.sample.sample(
            model, noise, steps, cfg, SAMPLER, SCHEDULER, conditioning, empty, torch.zeros_like(noise), disable_pbar=True, seed=number
        )
        samples.append(model.model.process_latent_in(latent).float().cpu())
        on_progress(number + 1, len(conditionings))
    return torch.cat(samples)

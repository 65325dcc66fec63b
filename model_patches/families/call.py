"""One call of a model, the sampling that it belongs to, and what is remembered for as long."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor, nn

from ..directions import EncodedPrompt


@dataclass
class Tally:
    """What one value on a model did in a sampling.

    steps: those at which it acted, by how many were done before. longest: |shift of y| / |y| where it acted first, the largest of rows
    and layers, a tensor of no dimension; None where it is not known. strongest: the same as a number, once the sampling is over.
    """

    steps: set[int] = field(default_factory=set)
    longest: Tensor | None = None
    strongest: float | None = None


class Sampling:
    """One sampling, from its first step to its last.

    known: what is remembered for as long, see OncePerPrompt. steps: how many are due; done: how many are done; calls: how many calls of
    the model came by. batch: how many images are sampled at once, None where nobody said. interrupted: whether the user stopped it.
    lost: whether what came of it holds NaN or infinity.
    """

    def __init__(self, steps: int = 0, batch: int | None = None):
        self.known: dict[tuple, Tensor] = {}
        self.steps = steps
        self.batch = batch
        self.done = self.calls = 0
        self.interrupted = self.lost = False
        self._tallies: dict[int, Tally] = {}

    def tally(self, value: Any) -> Tally:
        """Of a value on the model, by its identity."""
        return self._tallies.setdefault(id(value), Tally())

    def acted(self, value: Any) -> Tally:
        """Notes that the value acts at the step under way."""
        tally = self.tally(value)
        tally.steps.add(self.done)
        return tally

    def over(self, samples: Any) -> None:
        """Reads back from the device, all at once, what is told of the sampling. samples: what came of it, None where nothing did."""
        measured = [tally for tally in self._tallies.values() if tally.longest is not None]
        numbers = [tally.longest for tally in measured]
        if isinstance(samples, Tensor):
            numbers.append(samples.isfinite().all())
        if not numbers:
            return
        read = torch.stack([number.to(numbers[-1].device, torch.float32) for number in numbers]).tolist()
        for tally, number in zip(measured, read, strict=False):
            tally.strongest = number
        self.lost = isinstance(samples, Tensor) and not read[-1]

    def counting(self, callback: Callable | None) -> Callable:
        """A sampler's callback that counts its steps."""

        def count(step, *state, **named):
            self.done = max(self.done, step + 1)
            if callback is not None:
                callback(step, *state, **named)

        return count


@dataclass(frozen=True)
class Call:
    """One call of the model, for families whose y depends on more than the text.

    sigma: (R,) noise levels, R the rows of the batch, which is made of `chunks` equal parts (one per conditioning).
    context: (R, L, C) the rows' own text tokens. conds: the model's other inputs, by the host's names.
    sample_sigmas: all noise levels of this sampling, where the host tells. sampling: the one that the call belongs to, None outside of any.
    options: the transformer options that the model gets in this call and no other; whoever edits the call may put patches there.
    """

    base_model: Any
    x: Tensor
    sigma: Tensor
    chunks: int
    context: Tensor | None
    conds: dict[str, Any]
    sample_sigmas: Tensor | None = None
    sampling: Sampling | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return self.x.shape[0]

    @cached_property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self.base_model.get_dtype_inference()

    @cached_property
    def noise_level(self) -> Tensor:
        """The highest sigma, on the CPU: read back from the device once, however many ask."""
        return self.sigma.max().cpu()

    @cached_property
    def timestep(self) -> Tensor:
        """The timestep as the diffusion model gets it: (R,), or (R, T) where the host gives each frame its own."""
        timestep = self.base_model.model_sampling.timestep(self.sigma).float()
        conds = {name: self.cast(value) if isinstance(value, Tensor) else value for name, value in self.conds.items()}
        return self.base_model.process_timestep(timestep, x=self.x, **conds)

    def cast(self, tensor: Tensor) -> Tensor:
        """On the model's device; floats in the model's dtype."""
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        # A blocking copy would drain the GPU's queue at every step.
        non_blocking = comfy.model_management.device_supports_non_blocking(self.x.device)
        return comfy.model_management.cast_to(tensor, dtype, self.x.device, non_blocking=non_blocking)

    def to_rows(self, tensor: Tensor) -> Tensor:
        """(N, ...), one for each prompt of a batch or one for all -> (R, ...), the same in every chunk."""
        if len(tensor) == 1:
            # Right even where another pack splits or reorders the rows without saying so.
            return tensor.repeat(self.rows, *[1] * (tensor.ndim - 1))
        per_chunk = comfy.utils.repeat_to_batch_size(tensor, self.rows // self.chunks)
        return per_chunk.repeat(self.chunks, *[1] * (tensor.ndim - 1))


class OncePerPrompt:
    """What layers make of a prompt whatever the step, made once in a sampling.

    No longer: before the next one a LoRA of any kind, an object patch or another pack may have changed those layers, in more ways
    than could be asked for. Within one the host's hooks do.
    """

    def get(self, model: nn.Module, prompt: EncodedPrompt, call: Call, make: Callable[[], Tensor]) -> Tensor:
        """make(), or what it gave before for this prompt; it may use the model's weights, dtype and device, and nothing else of the call."""
        patcher = call.base_model.current_patcher
        if call.sampling is None or (patcher is not None and patcher.current_hooks is not None):
            return make()  # the strength of hooks changes from step to step
        key = (self, weakref.ref(model), prompt, call.dtype, call.x.device)
        known = call.sampling.known
        if key not in known:
            known[key] = make()
        return known[key]

"""A pooled projection as a value: its tensors, and what they are for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import CoreModelPatcher, ModelPatcher
from torch import Tensor, nn

from ..model_patches.directions import EncodedPrompt
from ..model_patches.families import Call, Family
from ..model_patches.guidance import KEY
from ..model_patches.places import Placed
from .network import ProjectionNetwork
from .text_path import ProjectedText, check_fits

# clip: a text encoder's pooled output; max, mean: over the tokens of the model's own context.
POOLINGS = ("clip", "max", "mean")
INJECTIONS = ("time embedding", "adaln lora")

_WEIGHTS = f"{KEY}_weights"  # on a ModelPatcher: whose network it holds


@dataclass(frozen=True, eq=False)
class PooledProjection:
    """A projection as its file holds it.

    weights: linear_1.weight (H, C), linear_1.bias, linear_2.weight (D, H), linear_2.bias, and where it has them scales (L, D),
    film.weight (2 H, width of the time embedding), film.bias.
    pooling: what is projected, one of POOLINGS. injection: where it enters the model, one of INJECTIONS.
    family: the name of the family it was made for; None where the file does not say. record: of its training, as JSON has it.
    base_positive, base_negative: for pooling clip, the prompt of the conditional and of the unconditional rows.
    """

    weights: dict[str, Tensor]
    pooling: str
    injection: str
    family: str | None = None
    record: dict[str, Any] = field(default_factory=dict)
    base_positive: EncodedPrompt | None = None
    base_negative: EncodedPrompt | None = None

    @property
    def input_width(self) -> int:
        """C, of what is projected."""
        return self.weights["linear_1.weight"].shape[1]

    @property
    def output_width(self) -> int:
        """D, of what it is added to."""
        return self.weights["linear_2.weight"].shape[0]

    @property
    def time_width(self) -> int | None:
        """Of the time embedding FiLM reads; None without FiLM."""
        return self.weights["film.weight"].shape[1] if "film.weight" in self.weights else None

    @property
    def depth(self) -> int | None:
        """How many layers the scales are for; None without scales."""
        return self.weights["scales"].shape[0] if "scales" in self.weights else None

    @property
    def has_base(self) -> bool:
        """Whether the prompt's own text goes into the model, whatever w."""
        return self.pooling != "clip" or self.base_positive is not None or self.base_negative is not None

    @property
    def patcher(self) -> ModelPatcher:
        """The network on the host's own device."""
        return self.patcher_on(comfy.model_management.get_torch_device())

    def patcher_on(self, device: torch.device) -> ModelPatcher:
        """The network as the host moves models: loaded beside a model on that device, and offloaded when memory runs short."""
        if device not in self._patchers:
            self._patchers[device] = _patcher(self.weights, device)
        return self._patchers[device]

    @cached_property
    def _patchers(self) -> dict[torch.device, ModelPatcher]:
        return {}

    def network_beside(self, call: Call) -> ProjectionNetwork:
        """The network as it is loaded beside the model of this call: the host makes copies of both for other devices."""
        patcher = call.base_model.current_patcher
        for beside in [] if patcher is None else patcher.get_additional_models_with_key(KEY):
            if beside.get_attachment(_WEIGHTS) is self.weights:
                return beside.model
        return self.patcher.model

    def with_base(self, positive: EncodedPrompt | None, negative: EncodedPrompt | None) -> PooledProjection:
        """The same projection, network included, with the prompts that feed the conditional and unconditional rows."""
        copy = replace(self, base_positive=positive, base_negative=negative)
        copy.__dict__["_patchers"] = self._patchers
        return copy

    def text_path(self, family: Family, diffusion_model: nn.Module) -> ProjectedText:
        """What `guide` needs. Raises ValueError if the projection does not fit the model, with both sides' names and widths."""
        check_fits(self, family, diffusion_model)
        return ProjectedText(self, family, Placed.of(self.depth, family, diffusion_model))


def _patcher(weights: dict[str, Tensor], device: torch.device, disable_dynamic: bool = False) -> ModelPatcher:
    patcher_class = ModelPatcher if disable_dynamic else CoreModelPatcher
    # In fp32, what it computes in: casting half-precision weights at each step costs more than all it does with them.
    network = ProjectionNetwork({name: tensor.float() for name, tensor in weights.items()})
    patcher = patcher_class(network, load_device=device, offload_device=comfy.model_management.unet_offload_device())
    patcher.set_attachments(_WEIGHTS, weights)
    patcher.cached_patcher_init = (_patcher, (weights, device))  # by which the host makes copies for other devices
    return patcher

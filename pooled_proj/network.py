"""A small network that adds the pooled text to the modulation of a text-blind model.

    proj(c) = linear_2(silu(h)),    h = linear_1(c)

and with sigma-FiLM h * (1 + scale) + shift instead of h, where (scale, shift) = film(t), t the normalised time embedding.
"Rethinking Global Text Conditioning in Diffusion Transformers", Starodubcev et al., ICLR 2026, section 5.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import comfy.ops
import torch
from torch import Tensor, nn


def pool(context: Tensor, pooling: str) -> Tensor:
    """(N, L, C) tokens -> (N, C) in fp32, their maximum or mean over L."""
    context = context.float()
    return context.amax(dim=1) if pooling == "max" else context.mean(dim=1)


def film(hidden: Tensor, scale_and_shift: Tensor) -> Tensor:
    """hidden * (1 + scale) + shift. hidden: (R, H); scale_and_shift: (R, 2 H), or (R, T, 2 H), which makes the result (R, T, H)."""
    scale, shift = scale_and_shift.chunk(2, dim=-1)
    if scale.ndim > hidden.ndim:
        hidden = hidden.unsqueeze(1)
    return hidden * (1 + scale) + shift


class LayerScales(nn.Module):
    """(L, D), one row per layer. A module of its own, as the host moves only those without children piece by piece."""

    def __init__(self, scales: Tensor):
        super().__init__()
        self.weight = nn.Parameter(scales, requires_grad=False)


class ProjectionNetwork(nn.Module):
    """proj(c). operations: whose Linear layers, e.g. torch.nn to train it; the host's cast to the input's dtype and device.

    Holds the given tensors themselves, not copies.
    """

    def __init__(self, weights: Mapping[str, Tensor], operations=comfy.ops.manual_cast):
        super().__init__()
        self.linear_1 = _linear(weights, "linear_1", operations)
        self.linear_2 = _linear(weights, "linear_2", operations)
        self.film = _linear(weights, "film", operations) if "film.weight" in weights else None
        self.scales = LayerScales(weights["scales"]) if "scales" in weights else None

    def forward(self, pooled: Tensor, time: Tensor | None = None) -> Tensor:
        """pooled: (R, C). time: (R, D) or (R, T, D), the normalised time embedding, for a network with FiLM -> (R, D) or (R, T, D)."""
        hidden = self.linear_1(pooled)
        if self.film is not None:
            hidden = film(hidden, self.film(time))
        return self.linear_2(nn.functional.silu(hidden))

    def from_hidden(self, hidden: dict[Hashable, Tensor], time: Tensor) -> dict[Hashable, Tensor]:
        """The rest of `forward` for several texts' linear_1(c), in one pass over the weights.

        hidden: (N, H) by text; N is R for all of them where time has R rows. time: (1 or R, D), or (1 or R, T, D) -> (N, [T,] D) by text.
        """
        scale_and_shift = self.film(time)
        if len(time) > 1:
            scale_and_shift = scale_and_shift.repeat(len(hidden), *[1] * (time.ndim - 1))
        made = self.linear_2(nn.functional.silu(film(torch.cat([*hidden.values()]), scale_and_shift)))
        return dict(zip(hidden, made.split([len(each) for each in hidden.values()]), strict=True))

    def weights(self) -> dict[str, Tensor]:
        """The tensors under their canonical names."""
        return {"scales" if name == "scales.weight" else name: tensor for name, tensor in self.state_dict().items()}


def _linear(weights, name, operations):
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    linear = operations.Linear(weight.shape[1], weight.shape[0], device="meta", dtype=weight.dtype)
    linear.weight, linear.bias = (nn.Parameter(tensor, requires_grad=False) for tensor in (weight, bias))
    return linear

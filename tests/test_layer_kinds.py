"""Models whose linear layers are of another class than torch's and the host's, as those of loaders that quantise."""

from dataclasses import dataclass, replace

import comfy.ops
import pytest
import torch
from support import families, text_blind, text_blind_families, time_shift
from support.families import HIDREAM_I1, KANDINSKY5_VIDEO, NEWBIE, SD35_MEDIUM, TEXT_TO_VIDEO
from support.families.small import default_term
from support.families.small import reference as families_reference
from support.flux import apply, node, schedule
from support.matrix import FLUX
from support.text_blind import ANIMA, COSMOS, form_b, loaded, own, weights_from, write
from support.time_shift import CONTEXT, Term, network
from torch import nn

TOLERANCE = dict(rtol=0, atol=1e-5)


@dataclass
class QuantState:
    shape: torch.Size
    largest: torch.Tensor


class _Linear(nn.Module):
    """As bitsandbytes' NF4 in ComfyUI: made without widths, two numbers in a byte, and what they mean in a state of its own."""

    def __init__(self, *args, device=None, dtype=None, **kwargs):
        super().__init__()
        self.weight = self.bias = None

    def _load_from_state_dict(self, state, prefix, *args):
        self.bias = nn.Parameter(state[f"{prefix}bias"], requires_grad=False) if f"{prefix}bias" in state else None
        self._hold(state[f"{prefix}weight"])

    def _pack(self, weight):
        state = QuantState(weight.shape, weight.abs().max())
        codes = ((weight / state.largest + 1) * 7.5).round().to(torch.uint8).flatten()
        self.weight = nn.Parameter((16 * codes[::2] + codes[1::2]).unsqueeze(1), requires_grad=False)
        return state

    def forward(self, x):
        return nn.functional.linear(x, self._unpacked().to(x), None if self.bias is None else self.bias.to(x))

    def _unpacked(self):
        state = self._state()
        codes = torch.stack((self.weight.squeeze(1) // 16, self.weight.squeeze(1) % 16), dim=1).reshape(state.shape)
        return (codes / 7.5 - 1) * state.largest


class StateOnWeight(comfy.ops.disable_weight_init):
    class Linear(_Linear):
        def _hold(self, weight):
            self.weight.quant_state = self._pack(weight)

        def _state(self):
            return self.weight.quant_state


class StateOnLayer(comfy.ops.disable_weight_init):
    class Linear(_Linear):
        def _hold(self, weight):
            self.quant_state = self._pack(weight)

        def _state(self):
            return self.quant_state


class NotYetPacked(comfy.ops.disable_weight_init):
    class Linear(_Linear):
        def _hold(self, weight):
            self.quant_state, self.weight = None, nn.Parameter(weight, requires_grad=False)

        def _unpacked(self):
            return self.weight


KINDS = pytest.mark.parametrize("kind", [StateOnWeight, StateOnLayer, NotYetPacked], ids=lambda kind: kind.__name__)


def of_kind(small, kind):
    """The family with such layers, and a model of it."""
    small = replace(small, operations=kind)
    model = small.load()
    assert any(isinstance(module, kind.Linear) for module in model.model.diffusion_model.modules())
    assert not any(hasattr(module, "in_features") for module in model.model.diffusion_model.modules())
    return small, model


def assert_equal_and_moved(small, model, guided, expected):
    expected, plain = small.sample(expected), small.sample(model)
    assert (expected - plain).abs().max() > 1e-2
    torch.testing.assert_close(small.sample(guided), expected, **TOLERANCE)


@pytest.mark.parametrize("small", [FLUX, *families.FAMILIES], ids=lambda small: small.name)
def test_families_with_pooled_text_are_guided(small):
    small, model = of_kind(small, StateOnWeight)
    assert_equal_and_moved(small, model, apply(model, small.direction()), families_reference(small, model, default_term(small)))


@pytest.mark.parametrize("small", text_blind_families.FAMILIES, ids=lambda small: small.name)
def test_text_blind_families_are_guided(small, tmp_path):
    small, model = of_kind(small, StateOnWeight)
    expected = time_shift.reference(small, model, Term(network(small), [0, 1, 1, 1, 0, 0]))
    assert_equal_and_moved(small, model, with_projection(small, model, tmp_path, network(small)), expected)


@pytest.mark.parametrize("small", [COSMOS, ANIMA], ids=lambda small: small.name)
def test_the_cosmos_kind_is_guided(small, tmp_path):
    small, model = of_kind(small, StateOnWeight)
    projection = loaded(write(tmp_path / "b.safetensors", form_b()))
    guided = apply(model, small.direction(), w=2.0, cfg_rows="both", schedule=schedule(1), projection=projection)
    assert_equal_and_moved(small, model, guided, text_blind.reference(small, model, text_blind.Projected(form_b(), weights_from(1), w=2.0)))


@KINDS
@pytest.mark.parametrize("small", [FLUX, SD35_MEDIUM, HIDREAM_I1, TEXT_TO_VIDEO, KANDINSKY5_VIDEO, NEWBIE], ids=lambda small: small.name)
def test_the_width_of_a_pooled_output_is_known(small, kind):
    small, model = of_kind(small, kind)
    [[tokens, extras]] = small.encoded(10)
    narrow = [[tokens, extras | {"pooled_output": extras["pooled_output"][..., :8]}]]
    direction = node("GuidanceDirectionFromConditioning", positive=narrow, negative=narrow)[0]
    with pytest.raises(ValueError, match=f"8 wide, but this .* model reads {extras['pooled_output'].shape[-1]}"):
        apply(model, direction)


@KINDS
@pytest.mark.parametrize("small", text_blind_families.FAMILIES, ids=lambda small: small.name)
def test_the_widths_of_a_projection_are_known(small, kind, tmp_path):
    small, model = of_kind(small, kind)
    tensors = network(small)
    narrow = tensors | {name: tensors[name][:-8].contiguous() for name in ("linear_2.weight", "linear_2.bias")}
    with pytest.raises(ValueError, match=f"{small.width - 8} wide, but the time embedding of this .* model is {small.width} wide"):
        with_projection(small, model, tmp_path, narrow)
    of_another_encoder = tensors | {"linear_1.weight": tensors["linear_1.weight"][:, :8].contiguous()}
    with pytest.raises(ValueError, match=f"8 wide, but the text context of this .* model is {CONTEXT} wide"):
        with_projection(small, model, tmp_path, of_another_encoder)


def with_projection(small, model, folder, tensors):
    file = loaded(write(folder / "projection.safetensors", *own(tensors, "max", "time embedding", small.name)))
    return apply(model, small.direction(), projection=file)

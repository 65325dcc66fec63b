"""What is made of a direction once is made again when the layers that make it have changed, in whatever way."""

from functools import partial

import comfy.sd
import pytest
import torch
from support.families import HUNYUAN_DIT_11, MOCHI
from support.families.small import default_term
from support.families.small import reference as text_reference
from support.flux import apply, schedule
from support.text_blind import ANIMA, Projected, form_b, loaded, reference, weights_from, write
from torch import nn

TOLERANCE = dict(rtol=0, atol=1e-5)

# The layers that a direction is made with, and one of their linear layers.
LAYERS = {ANIMA: ("llm_adapter", "out_proj"), MOCHI: ("t5_y_embedder", "to_kv"), HUNYUAN_DIT_11: ("pooler", "c_proj")}


class Twice(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return 2 * self.inner(*args, **kwargs)


def bypass_lora(small, patcher):
    """As the host's LoraLoaderBypass does with its file."""
    name = ".".join(LAYERS[small])
    wide, narrow = patcher.model.diffusion_model.get_submodule(name).weight.shape
    draw = torch.Generator().manual_seed(7)
    lora = {
        f"diffusion_model.{name}.lora_up.weight": torch.randn(wide, 4, generator=draw),
        f"diffusion_model.{name}.lora_down.weight": torch.randn(4, narrow, generator=draw) / narrow**0.5,
    }
    return comfy.sd.load_bypass_lora_for_models(patcher, None, lora, 1.0, 0.0)[0]


def object_patch(small, patcher):
    name = f"diffusion_model.{LAYERS[small][0]}"
    patcher = patcher.clone()
    patcher.add_object_patch(name, Twice(patcher.get_model_object(name)))
    return patcher


def forward_left_behind(small, patcher):
    layers = patcher.model.diffusion_model.get_submodule(LAYERS[small][0])
    layers.forward = lambda *args, run=layers.forward, **kwargs: 2 * run(*args, **kwargs)
    return patcher


def class_left_behind(small, patcher):
    layers = patcher.model.diffusion_model.get_submodule(LAYERS[small][0])

    class Doubling(type(layers)):
        def forward(self, *args, **kwargs):
            return 2 * super().forward(*args, **kwargs)

    layers.__class__ = Doubling
    return patcher


def weights_written_over(small, patcher):
    patcher.model.diffusion_model.get_submodule(".".join(LAYERS[small])).weight.mul_(2)
    return patcher


@pytest.mark.parametrize("change", [bypass_lora, object_patch, forward_left_behind, class_left_behind, weights_written_over])
@pytest.mark.parametrize("small", LAYERS, ids=lambda small: small.name)
def test_a_change_of_the_layers_is_seen(small, change, tmp_path):
    model = small.load()
    if small is ANIMA:
        projection = loaded(write(tmp_path / "projection.safetensors", form_b()))
        made = apply(model, small.direction(), w=2.0, schedule=schedule(1), projection=projection)
        equation = partial(reference, small, model, Projected(form_b(), weights_from(1), w=2.0))
    else:
        made = apply(model, small.direction())
        equation = partial(text_reference, small, model, default_term(small))
    plain = equation()
    torch.testing.assert_close(small.sample(made), small.sample(plain), **TOLERANCE)
    expected = small.sample(change(small, equation()))
    assert (expected - small.sample(plain)).abs().max() > 1e-2
    torch.testing.assert_close(small.sample(change(small, made)), expected, **TOLERANCE)


@pytest.mark.parametrize("small", LAYERS, ids=lambda small: small.name)
def test_a_sampling_reads_each_prompt_once(small, tmp_path):
    model = small.load()
    projection = loaded(write(tmp_path / "projection.safetensors", form_b())) if small is ANIMA else None
    runs = []
    model.model.diffusion_model.get_submodule(LAYERS[small][0]).register_forward_pre_hook(lambda module, args: runs.append(1))

    def counted(model):
        runs.clear()
        small.sample(model, steps=4)
        return len(runs)

    plain = counted(model)
    assert counted(apply(model, small.direction(), projection=projection)) == plain + 2

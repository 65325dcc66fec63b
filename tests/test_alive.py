"""What a prompt has made is gone with it: objects that are alive are counted, as a process's memory also grows where none stay."""

import gc
from collections import Counter

import comfy.model_management
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from support import flux
from support.text_blind import ANIMA, form_a, loaded, write

import nodes
from benchmarks.in_process import node

PACK = nodes.NODE_CLASS_MAPPINGS["ApplyModulationGuidance"].__module__.rpartition(".nodes.")[0]
COUNTED = (torch.Tensor, torch.nn.Module, ModelPatcher)


def alive():
    """How many there are of tensors, modules, the host's model patchers and every class of ours."""
    comfy.model_management.cleanup_models()
    gc.collect()
    kinds = [type(each) for each in gc.get_objects()]
    return Counter(kind.__qualname__ for kind in kinds if issubclass(kind, COUNTED) or str(kind.__module__).startswith(PACK))


def a_prompt(model):
    """Every kind of node that has something on a model, on a model of its own."""
    guided = flux.apply(model, flux.direction(), schedule=flux.schedule(1, taper_layers=2, final_layer=0.5), keep_norm=True)
    flux.sample(node("ScaleTextVariance", model=guided, scale=2.0)[0], cfg=2.0)
    models, *_ = node("SweepModulationGuidance", model=model, direction=flux.direction(), w_values="0, 3", start_layers="0")
    for each in models:
        flux.sample(each)


def interrupted(model):
    def stop(*_):
        raise comfy.model_management.InterruptProcessingException

    model = flux.apply(model, flux.direction())
    model.set_model_sampler_post_cfg_function(stop)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        flux.sample(model)


def projected(tmp_path):
    projection = loaded(write(tmp_path / "a.safetensors", form_a()))
    ANIMA.sample(flux.apply(ANIMA.load(), ANIMA.pooled_direction(), projection=projection))


@pytest.mark.parametrize("kind", ["guided", "interrupted", "projected"])
def test_no_object_outlives_its_prompt(kind, tmp_path):
    prompts = {
        "guided": lambda: a_prompt(flux.flux()),
        "interrupted": lambda: interrupted(flux.flux()),
        "projected": lambda: projected(tmp_path),
    }
    for _ in range(2):  # what is made once, at the first time
        prompts[kind]()
    before = alive()
    for _ in range(3):
        prompts[kind]()
    assert alive() - before == Counter()

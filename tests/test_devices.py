"""Guidance on models that the host spreads over devices or moves to one, by its own nodes; both devices are the CPU, under two names."""

import gc
import threading
from contextlib import contextmanager
from functools import partial

import comfy.model_management
import pytest
import torch
from support.distilling import PROMPTS, TextOf, distillation, needs_distilling, settings
from support.families import MOCHI, SD35_MEDIUM
from support.families.small import default_term
from support.families.small import reference as text_reference
from support.flux import apply, schedule
from support.learned import learned, shifts
from support.text_blind import ANIMA, COSMOS, Projected, form_a, form_b, loaded, reference, weights_from, write
from test_learned import family, from_layer, width
from test_learned import reference as learned_reference
from torch.nn.modules.module import register_module_forward_pre_hook

import nodes
from benchmarks.in_process import node

pytestmark = pytest.mark.skipif("MultiGPU_WorkUnits" not in nodes.NODE_CLASS_MAPPINGS, reason="MultiGPU CFG Split came with ComfyUI 0.24")

TOLERANCE = dict(rtol=0, atol=1e-5)
DEVICES = [torch.device("cpu"), torch.device("cpu", 0)]


@pytest.fixture(autouse=True)
def two_devices(monkeypatch):
    gc.collect()  # MultiGPU CFG Split trips over models that only their own cycles keep, as earlier tests' references
    comfy.model_management.cleanup_models()
    monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", lambda exclude_current=False: DEVICES[exclude_current:])


def load(small):
    """With what the host's own loaders note, for copies on other devices."""
    model = small.load()
    model.cached_patcher_init = (lambda disable_dynamic=False: small._loaded(*model.model.made_from), ())
    return model


def split(model):
    return node("MultiGPU_WorkUnits", model=model, max_gpus=2)[0]


def moved(model):
    return node("SelectModelDevice", model=model, device="gpu:1")[0]


def moved_back(model):
    """By a copy: on a device that is called a CPU the node only notes it."""
    return node("SelectModelDevice", model=moved(model), device="default")[0]


@pytest.fixture(scope="module")
def projections(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pooled_projections")
    files = {"A": form_a(), "B": form_b(), "B with FiLM": form_b(film=True)}
    return {name: (loaded(write(folder / f"{number}.safetensors", file)), file) for number, (name, file) in enumerate(files.items())}


@contextmanager
def networks_that_run():
    """{network: threads it ran in}, of projections."""
    ran = {}

    def note(module, args):
        for patcher in comfy.model_management.loaded_models():
            if getattr(patcher.model, "linear_2", None) is module:
                ran.setdefault(patcher.model, set()).add(threading.get_ident())

    hook = register_module_forward_pre_hook(note)
    try:
        yield ran
    finally:
        hook.remove()


@pytest.mark.parametrize("order", ["guidance first", "guidance last"])
@pytest.mark.parametrize(
    "spread, devices",
    [(split, 2), (moved, 1), (moved_back, 1), (lambda model: split(moved(model)), 2)],
    ids=["split", "moved", "moved back", "moved and split"],
)
@pytest.mark.parametrize("form", ["A", "B", "B with FiLM"])
def test_a_projection_is_right_on_every_device(projections, form, spread, devices, order):
    small = COSMOS if form == "A" else ANIMA
    plain = load(small)
    projection, file = projections[form]
    inputs = dict(projection=projection, w=2.0, cfg_rows="both", schedule=schedule(1))
    if form == "A":
        inputs |= dict(direction=small.pooled_direction(), base_positive=small.pooled(1), base_negative=small.pooled(2))
    else:
        inputs |= dict(direction=small.direction())
    expected = small.sample(reference(small, plain, Projected(file, weights_from(1), w=2.0, base=(1, 2))))
    model = spread(apply(plain, **inputs)) if order == "guidance first" else apply(spread(plain), **inputs)
    if spread is moved_back:
        assert model.load_device == DEVICES[0] and model.model is not plain.model
    for _ in range(2):
        with networks_that_run() as ran:
            torch.testing.assert_close(small.sample(model), expected, **TOLERANCE)
        assert len(ran) == len({*map(frozenset, ran.values())}) == devices, "each device has a network and a thread of its own"
    torch.testing.assert_close(small.sample(apply(plain, **inputs)), expected, **TOLERANCE)


def test_each_device_reads_a_direction_once(projections):
    model = load(ANIMA)
    made = split(apply(model, ANIMA.direction(), projection=projections["B"][0]))
    runs = []
    hook = register_module_forward_pre_hook(lambda module, args: runs.append(module) if type(module).__name__ == "LLMAdapter" else None)
    try:
        ANIMA.sample(made, steps=4)
    finally:
        hook.remove()
    assert sorted(map(runs.count, {*runs})) == [2, 4], "on the first device the user's two prompts too"


@pytest.mark.parametrize("order", ["guidance first", "guidance last"])
@pytest.mark.parametrize("small", [MOCHI, SD35_MEDIUM], ids=lambda small: small.name)
def test_guidance_without_a_projection_is_right_on_both_devices(small, order):
    """Mochi keeps what it makes of a direction."""
    model = load(small)
    expected = small.sample(text_reference(small, model, default_term(small, rows="opposed")), steps=4)
    guide = partial(apply, direction=small.direction(), cfg_rows="opposed")
    made = split(guide(model)) if order == "guidance first" else guide(split(model))
    for _ in range(3):
        torch.testing.assert_close(small.sample(made, steps=4), expected, **TOLERANCE)


@pytest.mark.parametrize("order", ["guidance first", "guidance last"])
@pytest.mark.parametrize("small", [SD35_MEDIUM, ANIMA], ids=lambda small: small.name)
def test_a_learned_direction_is_right_on_both_devices(small, order):
    model = load(small)
    delta = shifts(small.depth, width(small, model))
    expected = small.sample(learned_reference(small, model, from_layer(small, 1, shifts=delta, w=2.0, rows="opposed")), steps=4)
    guide = partial(apply, direction=learned(delta, family(small)), w=2.0, cfg_rows="opposed", schedule=schedule(1))
    made = split(guide(model)) if order == "guidance first" else guide(split(model))
    for _ in range(3):
        torch.testing.assert_close(small.sample(made, steps=4), expected, **TOLERANCE)
    assert (expected - small.sample(model, steps=4)).abs().max() > 5e-3


def test_directions_are_inspected_on_a_model_that_is_split(projections):
    model = load(ANIMA)
    inspect = partial(node, "InspectGuidance", directions={"direction0": ANIMA.direction()}, projection=projections["B with FiLM"][0])
    assert inspect(model=split(model))[1] == inspect(model=model)[1]


@needs_distilling
def test_distilling_takes_a_model_on_another_device_and_refuses_one_that_is_split(projections):
    plain, encoder = load(COSMOS), TextOf(COSMOS)
    distilled = partial(distillation.distill, clip=encoder, prompts=PROMPTS, settings=settings(COSMOS, steps=2))
    assert distilled(moved(plain)).losses == distilled(plain).losses
    with pytest.raises(ValueError, match="spread over several devices .MultiGPU CFG Split.* Connect it from before that node"):
        distilled(split(plain))

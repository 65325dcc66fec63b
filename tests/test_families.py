"""Which models are a family's, and the settings that are known for it."""

import importlib
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path

import comfy.ldm.lumina.model
import comfy.model_base
import comfy.ops
import comfy.supported_models
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.mmdit import _block_mixing
from support.distilling import PACK
from support.families import FAMILIES, NEWBIE, VARIANTS, newbie
from support.flux import apply, controlnet, direction, flux, node
from support.matrix import FLUX
from support.text_blind import ANIMA, COSMOS, form_a, form_b, loaded, own, write
from support.text_blind_families import FAMILIES as BLIND
from support.text_blind_families import LUMINA2, QWEN_IMAGE, VACE, WAN
from support.text_blind_families import VARIANTS as BLIND_VARIANTS
from support.time_shift import network
from test_matrix import sd3_controlnet

RESULT, families, family_of = (
    getattr(importlib.import_module(f"{PACK}.model_patches.families"), name) for name in ("RESULT", "FAMILIES", "family_of")
)
HostModel = importlib.import_module(f"{PACK}.model_patches.host_model").HostModel
known_w = importlib.import_module(f"{PACK}.model_patches.guidance").known_w

# (loader, direction) by family.
MODELS = {"FLUX.1": (flux, direction)} | {small.name: (small.load, small.direction) for small in (*FAMILIES, *BLIND, ANIMA, COSMOS, VACE)}


SMALL = (*FAMILIES, *VARIANTS, ANIMA, COSMOS, *BLIND, *BLIND_VARIANTS, FLUX)


@pytest.mark.parametrize("small", SMALL, ids=lambda small: small.name)
def test_arguments_stand_where_a_family_says(small):
    """The host passes most of them by position, so that a wrong name would go unnoticed."""
    model = small.load()
    family = family_of(HostModel.of(model))
    model = model.model.diffusion_model
    inputs = [input for injection in family.injections.values() for input in (*injection.blocks(model), *_head(injection, model))]
    if family.text_tokens is not None:
        inputs += [*family.text_tokens.joint(model), *family.text_tokens.mixed(model)]
    for input in inputs:
        if input.name != RESULT:
            taken = signature(input.module.forward)
            if [*taken.parameters] == ["args", "kwargs"]:  # SD3's block, which hands it on by name
                assert input.name in signature(_block_mixing).parameters
            else:
                assert [*taken.parameters].index(input.name) == input.position, f"{type(input.module).__name__}.forward{taken}"


def _head(injection, model):
    return [] if injection.head is None else [injection.head(model)]


@pytest.mark.parametrize("small", SMALL, ids=lambda small: small.name)
def test_a_family_says_where_its_text_tokens_are(small):
    """Left out, Scale Text Variance would refuse the model, and nothing else would notice."""
    family, model = family_of(HostModel.of(small.load())), small.load().model.diffusion_model
    said = family.text_tokens
    found = [] if said is None else [(block, input) for group in (said.joint, said.mixed) for block, input, *_ in group(model)]
    wanted = [(block, argument) for name, argument, _ in small.joint for block in model.get_submodule(name)]
    assert [name for _, name in found] == [name for _, name in wanted] and len(found) == len(wanted)


@pytest.mark.parametrize("small", SMALL, ids=lambda small: small.name)
def test_no_weight_of_a_small_model_is_left_to_chance(small, uninitialised_memory_is_nan):
    model = small.load().model
    assert [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if not tensor.isfinite().all()] == []


@pytest.mark.parametrize("make", [sd3_controlnet, controlnet], ids=["SD3", "FLUX.1"])
def test_no_weight_of_a_controlnet_is_left_to_chance(make, uninitialised_memory_is_nan):
    model = make().control_model
    assert [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if not tensor.isfinite().all()] == []


@pytest.fixture
def uninitialised_memory_is_nan():
    """As torch does while it is to be deterministic."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=MODELS)
def subject(request):
    load, aim = MODELS[request.param]
    return load(), aim()


def recognised(model, aim):
    """A text-blind model is asked for a projection."""
    try:
        apply(model, aim)
    except ValueError as error:
        assert "is text-blind" in str(error)


def refused(model, aim):
    """By both of its names."""
    base_model = model.model
    names = rf"This model is a {type(base_model).__name__} \(class {type(base_model.diffusion_model).__name__}\), which is not among them"
    with pytest.raises(ValueError, match=names):
        apply(model, aim)
    with pytest.raises(ValueError, match=names):
        node("ScaleTextVariance", model=model)


def made_kin(model, **members):
    """Of a class derived from the model's own."""
    cls = type(model.model.diffusion_model)
    model.model.diffusion_model.__class__ = type(f"Younger{cls.__name__}", (cls,), members)
    return model


def named(model, name, module):
    """What the host has around the model is of a class derived from its own."""
    cls = type(model.model)
    model.model.__class__ = type(name, (cls,), {"__module__": module})
    return model


def test_a_subclass_with_a_forward_of_its_own_is_another_model(subject):
    model, aim = subject
    refused(made_kin(model, forward=lambda self, *args, **kwargs: None), aim)


def test_a_subclass_with_another_part_of_the_forward_is_too(subject):
    model, aim = subject
    hosts = [base for base in type(model.model.diffusion_model).__mro__ if base.__module__.startswith("comfy.")]
    parts = [name for base in hosts for name in vars(base) if not name.startswith("__") and name not in ("forward", "_abc_impl")]
    part = parts[0] if parts else "forward"  # Ernie-Image's class has no other
    refused(made_kin(model, **{part: lambda self, *args, **kwargs: None}), aim)


def test_a_subclass_that_leaves_the_forward_alone_is_the_same_model(subject):
    model, aim = subject
    recognised(made_kin(model, __init__=lambda self: None, of_its_own=lambda self: None, load_state_dict=lambda self, state: None), aim)


def test_a_younger_host_s_model_that_runs_on_the_same_class_is_another(subject):
    """As Ming-Image runs on Z-Image's."""
    model, aim = subject
    refused(named(model, "MingImage", "comfy.model_base"), aim)


def test_a_pack_s_loader_brings_the_same_model(subject):
    model, aim = subject
    recognised(named(model, "QuantisedModel", "custom_nodes.some_pack"), aim)


def test_a_host_s_class_derived_from_a_family_s_is_not_of_it():
    """NextDiTPixelSpace, with the pooled text of NewBie: it has no head that takes y."""
    dims = newbie.DIMS | dict(decoder_hidden_size=32, decoder_num_res_blocks=1, decoder_max_freqs=2)
    pixels = replace(
        NEWBIE,
        model=partial(comfy.ldm.lumina.model.NextDiTPixelSpace, **dims, operations=comfy.ops.disable_weight_init),
        config=lambda: comfy.supported_models.ZImagePixelSpace(dims),
        output="dec_net.final_layer.linear.weight",
    )
    refused(pixels.load(), NEWBIE.direction())


def test_a_subclass_known_by_name():
    """Nunchaku's: the same model in another precision."""
    model = QWEN_IMAGE.load()
    cls = type(model.model.diffusion_model)
    members = {"_forward": lambda self, *args, **kwargs: None}
    model.model.diffusion_model.__class__ = type("NunchakuQwenImageTransformer2DModel", (cls,), members)
    recognised(model, QWEN_IMAGE.direction())


@pytest.mark.skipif(not hasattr(comfy.model_base, "WAN21_SCAIL2"), reason="this host lacks some")
def test_the_names_of_the_host_s_models_are_the_host_s():
    assert [name for family in families for name in family.host_models if not hasattr(comfy.model_base, name)] == []


# w.

# method.md's sources: the reference implementation (github.com/quickjkee/modulation-guidance), Anima's peers.
W = {"FLUX.1": 3.0, "SD3": 2.0, "HiDream-I1": 3.0, "HunyuanVideo": 3.5, "Cosmos-Predict2": 3.0, "Cosmos 1": 3.0, "Anima": 3.0}


def test_w_is_known_where_there_is_a_reference():
    assert {family.name: family.w for family in families} == {family.name: W.get(family.name) for family in families}
    assert known_w(flux()) == 3.0
    assert known_w(NEWBIE.load()) is None


@pytest.mark.parametrize(
    "small, content, w",
    [
        (ANIMA, (form_a(),), 3.0),
        (ANIMA, (form_b(),), 3.0),
        (COSMOS, (form_a(),), 3.0),
        (WAN, own(network(WAN), "clip", "time embedding"), None),
        (WAN, own(network(WAN), "max", "time embedding"), 3.0),
    ],
    ids=["Anima, form A", "Anima, form B", "Cosmos-Predict2, form A", "Wan, own of CLIP", "Wan, own of the context"],
)
def test_w_with_a_projection(tmp_path, small, content, w):
    assert known_w(small.load(), loaded(write(tmp_path / "file.safetensors", *content))) == w


def test_w_of_a_text_blind_model_needs_its_projection():
    with pytest.raises(ValueError, match="Lumina 2 / Z-Image is text-blind"):
        known_w(LUMINA2.load())


def test_the_docs_say_the_settings_of_every_family():
    """Every cell is filled."""
    text = (Path(__file__).parent.parent / "docs/models.md").read_text(encoding="utf-8")
    lines = [line.split("|") for line in text.splitlines()]
    rows = {cells[1].strip(): [cell.strip() for cell in cells[1:-1]] for cells in lines if len(cells) > 2}
    for family in families:
        cells = rows[family.name]
        assert all(cells), cells
        assert (f"{family.w:g}" if family.w else "no reference") in cells, cells

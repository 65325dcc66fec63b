"""In fp32 every family guided by a learned direction equals the equation: y + w g_i delta_i at layer i, the head left alone."""

import json
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from functools import partial
from inspect import signature

import comfy.sd
import pytest
import torch
from support import families, flux, text_blind, text_blind_families, time_shift
from support.families.small import term as small_term
from support.flux import apply, node, schedule
from support.learned import Learned, learned, shifts
from support.text_blind import ANIMA, COSMOS, Projected, form_a, loaded, own, weights_from, write
from test_anima_lineage import PLACES, deep

from benchmarks.in_process import of_pack

TOLERANCE = dict(rtol=0, atol=1e-5)
NAMES = ("FLUX.1", "SD3", "HiDream-I1", "HunyuanVideo", "Kandinsky 5", "NewBie", "Mochi", "Hunyuan-DiT")


class Flux:
    """FLUX.1, as the small models of other families are written."""

    name, depth, start_layer, cfg_rows, width = "FLUX.1", 8, 5, "both", flux.HIDDEN
    load, direction = staticmethod(flux.flux), staticmethod(flux.direction)

    @staticmethod
    def sample(model, cfg=2.5, **options):
        return flux.sample(model, cfg=cfg, **options)


READING = (Flux, *families.FAMILIES)
BLIND = (ANIMA, COSMOS, *text_blind_families.FAMILIES, *text_blind_families.VARIANTS)


def reference(small, model, *terms):
    if small is Flux:
        return flux.reference(model, *terms)
    if isinstance(small, text_blind_families.TimeShifted):
        return time_shift.reference(small, model, *terms)
    return (text_blind if isinstance(small, text_blind.Blind) else families.small).reference(small, model, *terms)


def family(small):
    return next((name for name in NAMES if small.name.startswith(name)), small.name) if small in READING else small.name


def width(small, model):
    """Of y, seen where the first layer gets it, or that of the model's time embedding."""
    if isinstance(small, text_blind.Blind) or small is Flux:
        return getattr(small, "width", text_blind.WIDTH)
    module, argument = small.inputs_of(model.model.diffusion_model)[0]
    seen = []

    def look(module, args, kwargs):
        y = kwargs[argument] if argument in kwargs else args[list(signature(module.forward).parameters).index(argument)]
        seen.append(y.shape[-1])

    handle = module.register_forward_pre_hook(look, with_kwargs=True)
    try:
        small.sample(model, steps=1)
    finally:
        handle.remove()
    return seen[0]


def from_layer(small, start, **options):
    return Learned(weights=weights_from(start, depth=small.depth), **options)


def assert_equal(small, model, guided, *terms, **sampling):
    expected = small.sample(reference(small, model, *terms), **sampling)
    actual = small.sample(guided, **sampling)
    assert (expected - small.sample(model, **sampling)).abs().max() > 2e-3, "the reference itself must move the picture"
    torch.testing.assert_close(actual, expected, **TOLERANCE)


@pytest.fixture(scope="module", params=(*READING, *BLIND), ids=lambda small: small.name)
def small(request):
    return request.param


@pytest.fixture(scope="module")
def delta(small, model):
    return shifts(small.depth, width(small, model))


@pytest.fixture(scope="module")
def direction(small, delta):
    return learned(delta, family(small))


@pytest.mark.parametrize("cfg, batch", [(1.0, 1), (2.5, 2)], ids=["no CFG", "CFG and a batch"])
def test_default_settings_are_the_family_s_and_leave_the_head_alone(small, model, delta, direction, cfg, batch):
    term = from_layer(small, small.start_layer, shifts=delta, rows=small.cfg_rows)
    assert_equal(small, model, apply(model, direction), term, cfg=cfg, batch=batch)


@pytest.mark.parametrize("rows", ["cond", "opposed"])
def test_rows_weights_of_layers_and_a_negative_w(small, model, delta, direction, rows):
    layers = node("GuidanceLayerScheduleText", layers="1-2: 0.5, 3: -1", final_layer=0.0)[0]
    term = Learned(delta, [0, 0.5, 0.5, -1, *[0] * (small.depth - 3)], w=-2.0, rows=rows)
    assert_equal(small, model, apply(model, direction, w=-2.0, cfg_rows=rows, schedule=layers), term, batch=2)


def test_window_and_keep_norm(small, model, delta, direction):
    window = tuple(model.get_model_object("model_sampling").percent_to_sigma(percent) for percent in (0.2, 0.7))
    guided = apply(model, direction, w=1.0, start_percent=0.2, end_percent=0.7, keep_norm=True, cfg_rows="both", schedule=schedule(0))
    assert_equal(small, model, guided, from_layer(small, 0, shifts=delta, w=1.0, window=window, keep_norm=True), steps=4)


def test_two_applied_and_two_combined_add_up(small, model, delta, direction):
    other = shifts(*delta.shape, seed=81)
    second = learned(other, family(small))
    apply_to_all = partial(apply, cfg_rows="both", schedule=schedule(1))
    terms = from_layer(small, 1, shifts=delta, w=2.0), from_layer(small, 1, shifts=other, w=-1.0)
    assert_equal(small, model, apply_to_all(apply_to_all(model, direction, w=2.0), second, w=-1.0), *terms)
    both = node("CombineGuidanceDirections", directions={"direction0": direction, "direction1": second}, weights="1, -0.5")[0]
    assert_equal(small, model, apply_to_all(model, both, w=2.0), *terms)


def test_w_0_is_bit_identical(small, model, direction):
    assert torch.equal(small.sample(apply(model, direction, w=0.0)), small.sample(model))


def test_a_sweep_and_an_inspection(small, model, delta, direction):
    guided, labels = node(
        "SweepModulationGuidance", model=model, direction=direction, w_values="0, 2", start_layers="1, 2", cfg_rows="both"
    )
    assert labels == ["plain", "w 2, start 1", "w 2, start 2"]
    for one, start in zip(guided[1:], (1, 2), strict=True):
        assert_equal(small, model, one, from_layer(small, start, shifts=delta, w=2.0))
    second = learned(-delta, family(small))
    _, report = node(
        "InspectGuidance", model=model, directions={"direction0": direction, "direction1": second}, labels="", w=2.0, schedule=schedule(1)
    )
    report = json.loads(report)
    assert report["cosines"]["pooled"] is None and report["cosines"]["modulation"][0][1] == pytest.approx(-1, abs=1e-5)
    lengths = delta[1:].norm(dim=-1)
    for strength in report["strength"]:
        assert strength["layers"][0] == strength["head"] == 0
        assert torch.tensor(strength["layers"][1:]) / strength["layers"][1] == pytest.approx(lengths / lengths[0], rel=1e-3)


def test_refused_on_another_family_depth_or_width(small, model, delta):
    name, other = family(small), "Wan" if family(small) != "Wan" else "FLUX.1"
    for direction, words in (
        (learned(delta, other), f"learned from 'highly detailed' and 'very simple' was learned on {other}, but the model is a {name}"),
        (learned(delta[:-1], name), f"is for {small.depth - 1} layers, but this {name} model has {small.depth}"),
        (learned(delta[:, 1:], name), f"is {delta.shape[1] - 1} wide, but the modulation of this {name} model is {delta.shape[1]} wide"),
    ):
        with pytest.raises(ValueError) as error:
            apply(model, direction)
        assert words in str(error.value)


def test_a_schedule_that_names_the_head_is_refused(model, direction):
    with pytest.raises(ValueError, match="final_layer is 0.5, but this direction adds nothing at the final output layer"):
        apply(model, direction, schedule=schedule(1, final_layer=0.5))


# Beside text.


@pytest.mark.parametrize("small", READING, ids=lambda small: small.name)
def test_learned_and_encoded_in_one_where_the_model_reads_pooled_text(small):
    model = small.load()
    delta = shifts(small.depth, width(small, model))
    both = node(
        "CombineGuidanceDirections",
        directions={"direction0": small.direction(), "direction1": learned(delta, family(small))},
        weights="1, 0.5",
    )[0]
    layers = schedule(1, final_layer=0.7)
    text = flux.terms_of(start=1, head=0.7) if small is Flux else small_term(small, start=1, head=0.7)
    guided = apply(model, both, cfg_rows="both", schedule=layers)
    assert_equal(small, model, guided, text, from_layer(small, 1, shifts=delta, w=1.5))


@pytest.mark.parametrize("small", text_blind_families.FAMILIES, ids=lambda small: small.name)
def test_learned_and_projected_add_up(small, tmp_path):
    """In one direction, and applied one after the other."""
    model, delta, tensors = small.load(), shifts(small.depth, small.width), time_shift.network(small, film=True)
    projection = loaded(write(tmp_path / "max.safetensors", *own(tensors, "max", "time embedding", small.name)))
    direction = learned(delta, small.name)
    both = node("CombineGuidanceDirections", directions={"direction0": small.direction(), "direction1": direction})[0]
    layers = schedule(1, final_layer=0.5)
    text = time_shift.Term(tensors, weights_from(1, head=0.5, depth=small.depth))
    guided = apply(model, both, projection=projection, cfg_rows="both", schedule=layers)
    assert_equal(small, model, guided, text, from_layer(small, 1, shifts=delta), batch=2)
    guided = apply(apply(model, small.direction(), projection=projection, cfg_rows="both", schedule=layers), direction, cfg_rows="both")
    assert_equal(small, model, guided, text, from_layer(small, 0, shifts=delta))
    # Of a learned direction alone, the projection's base still goes in.
    guided = apply(model, direction, projection=projection, cfg_rows="both", schedule=schedule(1))
    base = time_shift.Term(tensors, [0.0] * (small.depth + 1))
    assert_equal(small, model, guided, base, from_layer(small, 1, shifts=delta))


@pytest.mark.parametrize("keep_norm", [False, True])
def test_learned_at_the_time_embedding_beside_scales_at_the_adaln_lora(tmp_path, keep_norm):
    model, delta, file = ANIMA.load(), shifts(ANIMA.depth, text_blind.WIDTH), form_a()
    both = node("CombineGuidanceDirections", directions={"direction0": ANIMA.pooled_direction(), "direction1": learned(delta, "Anima")})[0]
    projection = loaded(write(tmp_path / "a.pt", file))
    guided = apply(model, both, projection=projection, schedule=schedule(2), keep_norm=keep_norm)
    terms = Projected(file, weights_from(2), keep_norm=keep_norm), from_layer(ANIMA, 2, shifts=delta, keep_norm=keep_norm)
    assert_equal(ANIMA, model, guided, *terms, batch=2)


@pytest.mark.parametrize("small", BLIND, ids=lambda small: small.name)
def test_text_without_a_projection_is_still_refused(small):
    model = small.load()
    both = node(
        "CombineGuidanceDirections",
        directions={"direction0": small.direction(), "direction1": learned(shifts(small.depth, width(small, model)), small.name)},
    )[0]
    with pytest.raises(ValueError, match="is text-blind.*a learned direction alone"):
        apply(model, both)


MODULATION = {  # what makes the modulation of several blocks of y
    text_blind_families.CHROMA: ("distilled_guidance_layer.layers.0",),
    text_blind_families.WAN: ("time_projection.1",),
    text_blind_families.VACE: ("time_projection.1",),
    text_blind_families.FLUX2: ("double_stream_modulation_img.lin", "double_stream_modulation_txt.lin", "single_stream_modulation.lin"),
    text_blind_families.LTXV: ("adaln_single.linear",),
    text_blind_families.ERNIE_IMAGE: ("adaLN_modulation.1",),
    text_blind_families.PIXART: ("t_block.1",),
}


@contextmanager
def counting(model, name):
    """How often that layer runs."""
    runs = []
    hook = model.model.diffusion_model.get_submodule(name).register_forward_pre_hook(lambda module, args: runs.append(module))
    try:
        yield runs
    finally:
        hook.remove()


@pytest.mark.parametrize("keep_norm", [False, True])
@pytest.mark.parametrize("small", MODULATION, ids=lambda small: f"{small.name} {'VACE' * (small is text_blind_families.VACE)}".strip())
def test_what_makes_the_modulation_of_several_blocks_runs_once_for_all(small, keep_norm):
    """Beside the model's own run, and once for the plain rows."""
    model = small.load()
    layers = node("GuidanceLayerScheduleText", layers="0: 1, 1-3: 0.5, 4: -1", final_layer=0.0)[0]
    guided = apply(model, learned(shifts(small.depth, small.width), small.name), schedule=layers, keep_norm=keep_norm)
    for name in MODULATION[small]:
        with counting(model, name) as runs:
            small.sample(model, steps=3)
            of_the_model = len(runs)
            small.sample(guided, steps=3)
        assert of_the_model == 3 and len(runs) - of_the_model == 9


def bytes_of(value):
    """Of the tensors in a structure, {memory: its bytes}."""
    if isinstance(value, torch.Tensor):
        return {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()}
    parts = value if isinstance(value, tuple) else vars(value).values() if is_dataclass(value) else ()
    return {memory: size for part in parts for memory, size in bytes_of(part).items()}


def test_where_each_token_has_a_time_of_its_own_no_layer_holds_a_row_for_each(monkeypatch):
    """A frame kept, as for image to video: two times. A row for each token would be gigabytes in a real model."""
    small = replace(text_blind_families.LTXV, latent=(128, 5, 8, 8))
    calls, held = of_pack("model_patches.calls"), []
    run_edited = calls.run_edited

    def counting(diffusion_model, edits, *args):
        held.append(sum(bytes_of(tuple(edit.tensors for edit in edits)).values()))
        return run_edited(diffusion_model, edits, *args)

    monkeypatch.setattr(calls, "run_edited", counting)
    guided = apply(small.load(), learned(shifts(small.depth, small.width), small.name), w=1.0, schedule=schedule(0))
    mask = torch.ones(1, 1, 5, 8, 8).index_fill(2, torch.tensor([0]), 0.0)
    small.sample(guided, steps=1, noise_mask=mask)
    a_layer_of_tokens = 2 * 5 * 8 * 8 * 6 * small.width * 4
    assert 0 < max(held) < a_layer_of_tokens


def test_of_many_rows_it_runs_on_some_layers_at_a_time(monkeypatch):
    """So many that what it makes of all at once would take more memory than its weights."""
    small = text_blind_families.WAN
    model, delta = small.load(), shifts(small.depth, small.width)
    monkeypatch.setattr(of_pack("model_patches.shifts"), "ROWS_AT_ONCE", 2 * 2)  # those of two layers, of the two rows of CFG
    guided, term = apply(model, learned(delta, "Wan"), schedule=schedule(0)), from_layer(small, 0, shifts=delta)
    with counting(model, "time_projection.1") as runs:
        small.sample(guided, cfg=2.5, steps=1)
    assert len(runs) == 1 + 1 + 3, "5 layers"
    assert_equal(small, model, guided, term, cfg=2.5)


def test_a_layer_that_is_not_guided_is_exactly_plain():
    """Where it is made beside guided ones; in bf16 a sum of another order would show."""
    small = text_blind_families.WAN
    model, seen = small.load(torch.bfloat16), []
    guided = apply(model, learned(shifts(small.depth, small.width), "Wan"), schedule=schedule(4))
    block = model.model.diffusion_model.blocks[2]
    hook = block.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["e"].clone()), with_kwargs=True)
    try:
        small.sample(model, steps=1)
        small.sample(guided, steps=1)
    finally:
        hook.remove()
    plain, unguided = seen
    assert torch.equal(plain, unguided)


def test_beside_a_lora():
    model, delta = flux.flux(), shifts(8, flux.HIDDEN)
    draw = torch.Generator().manual_seed(7)
    lora = {
        "diffusion_model.single_blocks.3.modulation.lin.lora_up.weight": 0.1 * torch.randn(3 * flux.HIDDEN, 4, generator=draw),
        "diffusion_model.single_blocks.3.modulation.lin.lora_down.weight": 0.1 * torch.randn(4, flux.HIDDEN, generator=draw),
    }
    changed, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    term = from_layer(Flux, 1, shifts=delta)
    assert_equal(Flux, changed, apply(changed, learned(delta, "FLUX.1"), schedule=schedule(1)), term)
    after, _ = comfy.sd.load_lora_for_models(apply(model, learned(delta, "FLUX.1"), schedule=schedule(1)), None, lora, 1.0, 0.0)
    assert_equal(Flux, changed, after, term)


# Anima's deeper kin.


@pytest.mark.parametrize("depth, of", [(40, 28), (52, 28), (40, 40)])
def test_anima_s_directions_act_on_its_own_blocks_in_its_deeper_kin(depth, of):
    small = deep(depth)
    model, delta = small.load(), shifts(of, text_blind.WIDTH, size=0.05)
    placed = torch.zeros(depth, text_blind.WIDTH)
    placed[list(PLACES[depth] if of == 28 else range(depth))] = delta
    assert_equal(small, model, apply(model, learned(delta, "Anima"), w=2.0), from_layer(small, 0, shifts=placed, w=2.0))


@pytest.mark.parametrize("depth, of", [(28, 40), (30, 28)])
def test_other_depths_of_anima_are_refused(depth, of):
    with pytest.raises(ValueError, match=f"is for {of} layers, but this Anima model has {depth}"):
        apply(deep(depth).load(), learned(shifts(of, text_blind.WIDTH), "Anima"))

"""Anima's deeper kin, 2.9B of 40 blocks and 3.8B of 52: the scales of Anima's projection act on its own blocks, none on those inserted."""

from dataclasses import replace

import comfy.supported_models
import pytest
import torch
from comfy.ldm.anima.model import Anima
from comfy.ldm.cosmos.predict2 import MiniTrainDIT
from support.distilling import needs_distilling, run, text_encoder
from support.flux import apply, node, schedule
from support.text_blind import ANIMA, COSMOS, DIMS, OPERATIONS, Projected, form_a, form_b, loaded, own, weights_from, write
from test_projections_composition import with_lora
from test_projections_parity import assert_equals_equations, base

# Where Anima's 28 blocks stand, by depth; written out by hand from the published lists of those inserted.
PLACES = {
    28: range(28),
    40: (0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16, 18, 19, 20, 22, 23, 25, 26, 28, 29, 31, 32, 34, 35, 37, 38, 39),
    52: (0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 26, 29, 30, 33, 34, 37, 38, 41, 42, 45, 46, 49, 50, 51),
}
# Blocks 8 to 26 of 28, by depth.
PROFILES = {28: (8, 26), 40: (12, 38), 52: (16, 50)}
LORA = ("blocks.2.adaln_modulation_mlp.2", "blocks.12.cross_attn.q_proj", "t_embedder.1.linear_1", "final_layer.linear")


def deep(depth, small=ANIMA, model=Anima, config="Anima", image_model="anima"):
    dims = DIMS | {"num_blocks": depth}
    return replace(
        small,
        model=lambda: model(**dims, **OPERATIONS),
        config=lambda: getattr(comfy.supported_models, config)(dims | {"image_model": image_model}),
        depth=depth,
    )


@pytest.fixture(scope="module", params=PLACES)
def small(request):
    return deep(request.param)


@pytest.fixture(scope="module")
def projections(tmp_path_factory):
    """Made for Anima."""
    folder = tmp_path_factory.mktemp("pooled_projections")
    files = {"A": ("a.pt", form_a(depth=28)), "B": ("b.safetensors", form_b(film=True))}
    return {form: (loaded(write(folder / name, tensors)), tensors) for form, (name, tensors) in files.items()}


FORMS = pytest.mark.parametrize("form", ["A", "B"])


def guided(small, projections, form, model, **inputs):
    projection, _ = projections[form]
    if form == "B":
        return apply(model, small.direction(), projection=projection, **inputs)
    return apply(model, small.pooled_direction(), projection=projection, **base(small), **inputs)


def term(small, projections, form, weights, **options):
    """The equation's, with form A's scales at Anima's blocks and zeros between."""
    file = projections[form][1]
    if form == "A":
        scales = torch.zeros(small.depth, file["scales"].shape[1])
        scales[list(PLACES[small.depth])] = file["scales"]
        file = file | {"scales": scales}
    return Projected(file, weights, base=(1, 2), **options)


def of(small, start, end=None):
    return weights_from(start, end, depth=small.depth)


@FORMS
@pytest.mark.parametrize("cfg, batch", [(1.0, 1), (2.5, 2)], ids=["no CFG", "CFG and a batch"])
def test_default_settings(small, model, projections, form, cfg, batch):
    weights = of(small, 0) if form == "A" else of(small, *PROFILES[small.depth])
    made = guided(small, projections, form, model)
    assert_equals_equations(small, model, made, term(small, projections, form, weights), cfg=cfg, batch=batch)


@FORMS
def test_layers_of_a_schedule_are_those_of_the_model_at_hand(small, model, projections, form):
    layers = node("GuidanceLayerScheduleText", layers=f"2-5: 0.5, 11: 2, {small.depth - 1}: -1", final_layer=0.0)[0]
    weights = [0.0] * (small.depth + 1)
    weights[2:6], weights[11], weights[small.depth - 1] = [0.5] * 4, 2.0, -1.0
    assert_equals_equations(small, model, guided(small, projections, form, model, schedule=layers), term(small, projections, form, weights))


@FORMS
def test_window_keep_norm_and_rows(small, model, projections, form):
    window = tuple(model.get_model_object("model_sampling").percent_to_sigma(percent) for percent in (0.2, 0.8))
    made = guided(
        small, projections, form, model, w=1.0, start_percent=0.2, end_percent=0.8, keep_norm=True, cfg_rows="opposed", schedule=schedule(4)
    )
    expected = term(small, projections, form, of(small, 4), w=1.0, window=window, keep_norm=True, rows="opposed")
    assert_equals_equations(small, model, made, expected, steps=4)


@FORMS
def test_beside_a_lora(small, model, projections, form):
    """Of the model's own blocks, one that was inserted among them."""
    changed = with_lora(small, model, LORA)
    expected = term(small, projections, form, of(small, 6))
    assert_equals_equations(small, changed, guided(small, projections, form, changed, schedule=schedule(6)), expected)
    after = with_lora(small, guided(small, projections, form, model, schedule=schedule(6)), LORA)
    assert_equals_equations(small, changed, after, expected)


def test_inserted_blocks_alone_get_nothing(projections):
    small = deep(40)
    model = small.load()
    inserted = node("GuidanceLayerScheduleText", layers="2: 1, 5: 1, 36: 1", final_layer=0.0)[0]
    assert torch.equal(small.sample(guided(small, projections, "A", model, schedule=inserted)), small.sample(model))


def test_scales_of_40_blocks_on_52(tmp_path):
    """As 3.8B was made of 2.9B."""
    small, file = deep(52), form_a(depth=40)
    model, projection = small.load(), loaded(write(tmp_path / "a.pt", file))
    scales = torch.zeros(52, file["scales"].shape[1])
    scales[[block for block in range(52) if block not in range(3, 48, 4)]] = file["scales"]
    made = apply(model, small.pooled_direction(), projection=projection)
    assert_equals_equations(small, model, made, Projected(file | {"scales": scales}, of(small, 0)))


@pytest.mark.parametrize("depth, file", [(45, 28), (30, 28), (40, 30), (28, 40)])
def test_other_depths_are_refused_by_number(projections, tmp_path, depth, file):
    small = deep(depth)
    projection = loaded(write(tmp_path / "a.pt", form_a(depth=file)))
    with pytest.raises(ValueError, match=f"scales are for {file} layers, but this Anima model has {depth}. Load a projection made"):
        apply(small.load(), small.pooled_direction(), projection=projection)


def test_no_other_family_is_of_this_lineage(projections):
    small = deep(40, COSMOS, MiniTrainDIT, "CosmosT2IPredict2", "cosmos_predict2")
    with pytest.raises(ValueError, match="scales are for 28 layers, but this Cosmos-Predict2 model has 40"):
        apply(small.load(), small.pooled_direction(), projection=projections["A"][0])


def test_max_pool_on_a_depth_that_is_not_known_takes_its_layers_in_proportion(projections):
    small = deep(20)
    model = small.load()
    made = apply(model, small.direction(), projection=projections["B"][0])
    assert_equals_equations(small, model, made, Projected(projections["B"][1], of(small, 6, 18)))


@needs_distilling
def test_distilling_goes_on_from_scales_of_28_blocks(tmp_path):
    """They are learned where they act, and stay 28."""
    small, file = deep(40), form_a(depth=28, clip=16)
    wide = torch.zeros(40, file["scales"].shape[1])
    wide[list(PLACES[40])] = file["scales"]
    runs = []
    for name, tensors in (("28", file), ("40", file | {"scales": wide})):
        given = loaded(write(tmp_path / f"{name}.safetensors", *own(tensors, "clip", "adaln lora", "Anima")))
        runs.append(run(small, projection=given, pooled_clip=text_encoder(), steps=1))
    one, other = runs
    assert one.losses == pytest.approx(other.losses, rel=1e-5)
    scales = one.projection.weights["scales"]
    assert scales.shape == file["scales"].shape and bool((scales != file["scales"]).any(dim=1).all())
    torch.testing.assert_close(scales, other.projection.weights["scales"][list(PLACES[40])], rtol=1e-4, atol=1e-5)

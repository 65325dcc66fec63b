"""In fp32 a text-blind model guided through a projection file equals method.md's equations, computed independently."""

from dataclasses import replace

import pytest
import torch
from support.families.small import assert_close
from support.flux import apply, node, schedule
from support.text_blind import ANIMA, COSMOS, DEPTH, Projected, form_a, form_b, loaded, own, reference, weights_from, write

TOLERANCE = dict(rtol=0, atol=1e-5)

# Form B's profile, blocks 8 to 26 of 28, on six blocks.
PROFILE_B = weights_from(2, DEPTH - 2)


@pytest.fixture(scope="module", params=[COSMOS, ANIMA], ids=lambda small: small.name)
def small(request):
    return request.param


@pytest.fixture(scope="module")
def projections(tmp_path_factory):
    """The published files, loaded, and their tensors."""
    folder = tmp_path_factory.mktemp("pooled_projections")
    files = {"A": ("cosmos.pt", form_a()), "B": ("anima.safetensors", form_b()), "B with FiLM": ("film.safetensors", form_b(film=True))}
    return {form: (loaded(write(folder / name, tensors)), tensors) for form, (name, tensors) in files.items()}


def guided(small, model, projection, seed=10, **inputs):
    clip = projection.pooling == "clip"
    return apply(model, small.pooled_direction(seed) if clip else small.direction(seed), projection=projection, **inputs)


def assert_equals_equations(small, model, guided, *terms, **sampling):
    expected = small.sample(reference(small, model, *terms), **sampling)
    actual = small.sample(guided, **sampling)
    plain = small.sample(model, **sampling)
    assert 0.3 < expected.std() < 3, "an absolute tolerance means something"
    assert (expected - plain).abs().max() > 1e-2, "the reference itself must move the picture"
    assert_close(small, actual, expected)


def base(small, positive=1, negative=2):
    return {"base_positive": small.pooled(positive), "base_negative": small.pooled(negative)}


@pytest.mark.parametrize("cfg, batch", [(1.0, 1), (2.5, 2)], ids=["no CFG", "CFG and a batch"])
def test_default_settings_of_form_a(small, model, projections, cfg, batch):
    projection, file = projections["A"]
    rows = {"Cosmos-Predict2": "cond", "Anima": "both"}[small.name]
    term = Projected(file, weights_from(0), rows=rows, base=(1, 2))
    assert_equals_equations(small, model, guided(small, model, projection, **base(small)), term, cfg=cfg, batch=batch)


@pytest.mark.parametrize("form", ["B", "B with FiLM"])
@pytest.mark.parametrize("cfg, batch", [(1.0, 1), (2.5, 2)], ids=["no CFG", "CFG and a batch"])
def test_default_settings_of_form_b(small, model, projections, form, cfg, batch):
    projection, file = projections[form]
    assert_equals_equations(small, model, guided(small, model, projection), Projected(file, PROFILE_B), cfg=cfg, batch=batch)


@pytest.mark.parametrize("sides", [("base_positive",), ("base_negative",), ()], ids=["positive", "negative", "none"])
def test_form_a_adds_no_base_to_rows_whose_prompt_is_not_connected(small, model, projections, sides):
    projection, file = projections["A"]
    connected = {name: prompt for name, prompt in base(small).items() if name in sides}
    seeds = tuple(seed if name in sides else None for name, seed in (("base_positive", 1), ("base_negative", 2)))
    term = Projected(file, weights_from(1), base=seeds)
    assert_equals_equations(small, model, guided(small, model, projection, cfg_rows="both", schedule=schedule(1), **connected), term)


@pytest.mark.parametrize("form", ["A", "B", "B with FiLM"])
@pytest.mark.parametrize("rows", ["both", "cond", "opposed"])
def test_cfg_rows_are_of_the_delta_alone(small, model, projections, form, rows):
    projection, file = projections[form]
    inputs = base(small) if form == "A" else {}
    term = Projected(file, weights_from(1), rows=rows, base=(1, 2))
    assert_equals_equations(small, model, guided(small, model, projection, cfg_rows=rows, schedule=schedule(1), **inputs), term, batch=2)


@pytest.mark.parametrize("form", ["B", "B with FiLM"])
def test_head_weight_is_its_own(small, model, projections, form):
    projection, file = projections[form]
    term = Projected(file, weights_from(2, 3, head=0.7))
    assert_equals_equations(small, model, guided(small, model, projection, schedule=schedule(2, end_layer=3, final_layer=0.7)), term)


@pytest.mark.parametrize("form", ["A", "B"])
def test_weights_of_a_schedule_multiply_the_delta_alone(small, model, projections, form):
    projection, file = projections[form]
    layers = node("GuidanceLayerScheduleText", layers="1-2: 0.5, 4: -1", final_layer=0.0)[0]
    inputs = base(small) if form == "A" else {}
    term = Projected(file, [0, 0.5, 0.5, 0, -1, 0, 0], base=(1, 2))
    assert_equals_equations(small, model, guided(small, model, projection, schedule=layers, cfg_rows="both", **inputs), term)


@pytest.mark.parametrize("form", ["A", "B", "B with FiLM"])
def test_the_base_is_in_at_every_step_and_the_delta_in_its_window(small, model, projections, form):
    projection, file = projections[form]
    window = tuple(model.get_model_object("model_sampling").percent_to_sigma(percent) for percent in (0.3, 0.7))
    inputs = base(small) if form == "A" else {}
    term = Projected(file, weights_from(1), base=(1, 2), window=window)
    made = guided(small, model, projection, schedule=schedule(1), cfg_rows="both", start_percent=0.3, end_percent=0.7, **inputs)
    assert_equals_equations(small, model, made, term, steps=6)


@pytest.mark.parametrize("form", ["A", "B", "B with FiLM"])
def test_the_base_is_in_at_w_0(small, model, projections, form):
    projection, file = projections[form]
    inputs = base(small) if form == "A" else {}
    weights = weights_from(small.start_layer) if form == "A" else PROFILE_B
    assert_equals_equations(small, model, guided(small, model, projection, w=0.0, **inputs), Projected(file, weights, w=0.0, base=(1, 2)))


def test_form_a_without_base_at_w_0_is_bit_identical(small, model, projections):
    assert torch.equal(small.sample(guided(small, model, projections["A"][0], w=0.0)), small.sample(model))


@pytest.mark.parametrize("form", ["A", "B", "B with FiLM"])
def test_keep_norm_is_of_the_tensor_that_is_added_to(small, model, projections, form):
    projection, file = projections[form]
    inputs = base(small) if form == "A" else {}
    term = Projected(file, weights_from(1), base=(1, 2), keep_norm=True)
    made = guided(small, model, projection, keep_norm=True, cfg_rows="both", schedule=schedule(1), **inputs)
    assert_equals_equations(small, model, made, term, batch=2)


def test_two_guidances_with_different_projections_add_up(small, model, projections):
    (a, file_a), (b, file_b), (c, file_c) = projections.values()
    made = guided(small, model, a, schedule=schedule(3), cfg_rows="opposed", **base(small))
    made = guided(small, made, b, seed=20, w=-1.5)
    made = guided(small, made, c, seed=30, w=1.0, schedule=schedule(4, final_layer=1.0))
    assert_equals_equations(
        small,
        model,
        made,
        Projected(file_a, weights_from(3), rows="opposed", base=(1, 2)),
        Projected(file_b, PROFILE_B, seed=20, w=-1.5),
        Projected(file_c, weights_from(4, head=1.0), seed=30, w=1.0),
    )


def test_one_projection_with_two_directions(small, model, projections):
    projection, file = projections["A"]
    both = {"direction0": small.pooled_direction(10), "direction1": small.pooled_direction(20)}
    combined = node("CombineGuidanceDirections", directions=both, weights="1, -0.5")[0]
    made = apply(model, combined, projection=projection, cfg_rows="both", schedule=schedule(0))
    assert_equals_equations(small, model, made, Projected(file, weights_from(0)), Projected(file, weights_from(0), seed=20, w=-1.5))


def test_each_region_has_its_own_base(small, model, projections):
    """By masks, so that three prompts stand in one batch."""
    projection, file = projections["B with FiLM"]
    halves = [torch.zeros(8, 8), torch.zeros(8, 8)]
    halves[0][:, :4] = halves[1][:, 4:] = 1
    positive = [
        *node("ConditioningSetMask", conditioning=small.conditioning(1), mask=halves[0], set_cond_area="default", strength=1.0)[0],
        *node("ConditioningSetMask", conditioning=small.conditioning(3), mask=halves[1], set_cond_area="default", strength=0.8)[0],
    ]
    assert_equals_equations(small, model, guided(small, model, projection), Projected(file, PROFILE_B), positive=positive)
    term = Projected(file, PROFILE_B, rows="cond")
    assert_equals_equations(small, model, guided(small, model, projection, cfg_rows="cond"), term, positive=positive)


@pytest.mark.parametrize("form", ["A", "B", "B with FiLM"])
def test_frames_with_a_time_of_their_own(projections, form):
    """A video whose first frame is given: it stands at time 0."""
    small = COSMOS
    video = replace(small, latent=(16, 3, 8, 8))
    model = video.load()
    projection, file = projections[form]
    given = torch.ones(1, 1, 3, 8, 8)
    given[:, :, 0] = 0
    inputs = base(small) if form == "A" else {}
    made = guided(small, model, projection, schedule=schedule(1), cfg_rows="both", **inputs)
    assert_equals_equations(video, model, made, Projected(file, weights_from(1), base=(1, 2)), noise_mask=given)


def test_rows_with_times_of_their_own(projections):
    """A batch of two videos; of the second one the first frame is given."""
    video = replace(COSMOS, latent=(16, 3, 8, 8))
    model = video.load()
    projection, file = projections["B with FiLM"]
    given = torch.ones(2, 1, 3, 8, 8)
    given[1, :, 0] = 0
    made = guided(video, model, projection, schedule=schedule(1), cfg_rows="opposed")
    assert_equals_equations(video, model, made, Projected(file, weights_from(1), rows="opposed"), noise_mask=given, batch=2)


@pytest.mark.parametrize("batch", [1, 2])
def test_guidances_that_share_a_projection_run_each_of_its_layers_once_a_step(small, model, projections, batch):
    """base, p+ and p- of both are rows of one batch, and FiLM, which reads the time alone, sees it once."""
    projection, file = projections["B with FiLM"]
    made = guided(small, model, projection)
    made = guided(small, made, projection, seed=20, w=-1.5, cfg_rows="cond", schedule=schedule(1, final_layer=1.0))
    terms = Projected(file, PROFILE_B), Projected(file, weights_from(1, head=1.0), seed=20, w=-1.5, rows="cond")
    rows = {}
    hooks = [
        layer.register_forward_hook(lambda layer, args, result, name=name: rows.setdefault(name, []).append(len(args[0])))
        for name, layer in projection.patcher.model.named_children()
    ]
    small.sample(made, steps=3, batch=batch)
    for hook in hooks:
        hook.remove()
    own = 2 * batch  # of the batch, with CFG
    # linear_1 reads the four prompts once, at the first step.
    assert rows == {"linear_1": [own, 1, 1, 1, 1, own, own], "film": 3 * [1], "linear_2": 3 * [own + 4]}
    assert_equals_equations(small, model, made, *terms, batch=batch)


def test_half_precision_file_is_cast_once_and_not_at_every_step(tmp_path, small, model):
    file = {name: tensor.bfloat16() for name, tensor in form_b(film=True).items()}
    projection = loaded(write(tmp_path / "half.safetensors", file))
    made = guided(small, model, projection)
    assert {tensor.dtype for tensor in projection.patcher.model.parameters()} == {torch.float32}
    assert_equals_equations(small, model, made, Projected({name: tensor.float() for name, tensor in file.items()}, PROFILE_B))


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_own_file_that_pools_the_context(tmp_path, small, model, pooling):
    file = form_b(film=True)
    projection = loaded(write(tmp_path / f"{pooling}.safetensors", *own(file, pooling, "time embedding", small.name)))
    assert_equals_equations(small, model, guided(small, model, projection), Projected(file, PROFILE_B, pooling=pooling))


def test_own_file_of_a_pooled_output_has_form_a_s_base(tmp_path, small, model):
    file = form_a()
    projection = loaded(write(tmp_path / "clip.safetensors", *own(file, "clip", "adaln lora", small.name)))
    term = Projected(file, weights_from(small.start_layer), rows=small.cfg_rows, base=(1, 2))
    assert_equals_equations(small, model, guided(small, model, projection, **base(small)), term)


def test_wrong_equations_would_be_noticed(small, model, projections):
    for form, right in (("A", dict(base=(1, 2))), ("B with FiLM", {})):
        projection, file = projections[form]
        inputs = base(small) if form == "A" else {}
        actual = small.sample(guided(small, model, projection, cfg_rows="both", schedule=schedule(2, end_layer=4), **inputs))
        right = dict(file=file, weights=weights_from(2, 4), **right)
        torch.testing.assert_close(actual, small.sample(reference(small, model, Projected(**right))), **TOLERANCE)
        mistakes = [{"w": 3.1}, {"weights": weights_from(1, 4)}, {"weights": weights_from(2)}, {"seed": 11}, {"rows": "cond"}]
        mistakes += [{"base": (2, 1)}, {"base": (1, None)}] if form == "A" else [{"pooling": "mean"}, {"file": form_b()}]
        for mistake in mistakes:
            wrong = small.sample(reference(small, model, Projected(**right | mistake)))
            assert (actual - wrong).abs().max() > 100 * TOLERANCE["atol"], mistake


def test_the_equations_without_terms_are_the_plain_model(small, model):
    torch.testing.assert_close(small.sample(reference(small, model)), small.sample(model), **TOLERANCE)


@pytest.mark.parametrize("form", ["A", "B", "B with FiLM"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite_and_close(small, model, projections, form, dtype):
    projection, _ = projections[form]
    inputs = base(small) if form == "A" else {}
    half = small.load(dtype)
    assert half.model.get_dtype() == dtype
    expected, actual = (small.sample(guided(small, loaded_as, projection, w=1.0, **inputs)) for loaded_as in (model, half))
    assert actual.isfinite().all()
    assert (actual - expected).norm() / expected.norm() < 0.1

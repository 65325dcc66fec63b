"""In fp32 every text-blind family, guided through a projection of ours, equals its own forward with the time embedding shifted."""

import pytest
import torch
from support.families.small import assert_close, assert_fair
from support.flux import apply, node, schedule
from support.text_blind import loaded, own, weights_from, write
from support.text_blind_families import FAMILIES, VARIANTS
from support.time_shift import CONTEXT, Term, network, reference


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda small: small.name)
def small(request):
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pooled_projections")


def projection(small, folder, pooling="max", film=False):
    tensors = network(small, film=film)
    return loaded(write(folder / f"{pooling}{film}.safetensors", *own(tensors, pooling, "time embedding", small.name)))


def guided(small, model, projection, seed=10, **inputs):
    direction = small.pooled_direction(seed, CONTEXT) if projection.pooling == "clip" else small.direction(seed)
    return apply(model, direction, projection=projection, **inputs)


def assert_equal(small, model, guided, *terms, **sampling):
    expected = small.sample(reference(small, model, *terms), **sampling)
    actual = small.sample(guided, **sampling)
    plain = small.sample(model, **sampling)
    assert_fair(small, expected, plain)
    assert_close(small, actual, expected)


def weights(start=0, head=0.0):
    return weights_from(start, head=head, depth=5)


@pytest.mark.parametrize("cfg, batch", [(1.0, 1), (2.5, 2)], ids=["no CFG", "CFG and a batch"])
def test_default_settings_with_the_context_pooled(small, model, folder, cfg, batch):
    """Anima's profile on five layers: 1 to 3."""
    made = guided(small, model, projection(small, folder))
    assert_equal(small, model, made, Term(network(small), [0, 1, 1, 1, 0, 0]), cfg=cfg, batch=batch)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda small: f"{small.name}: {small.model().__class__.__name__}")
def test_variants(variant, folder):
    model = variant.load()
    made = guided(variant, model, projection(variant, folder), schedule=schedule(1, final_layer=0.5))
    assert_equal(variant, model, made, Term(network(variant), weights(1, 0.5)), batch=2)


def test_default_settings_of_a_pooled_output(small, model, folder):
    base = {"base_positive": small.pooled(1, CONTEXT), "base_negative": small.pooled(2, CONTEXT)}
    made = guided(small, model, projection(small, folder, "clip"), **base)
    term = Term(network(small), weights(small.start_layer), "clip", rows=small.cfg_rows, base=(1, 2))
    assert_equal(small, model, made, term, batch=2)


@pytest.mark.parametrize("rows", ["cond", "opposed"])
def test_cfg_rows_and_weights_of_layers(small, model, folder, rows):
    layers = node("GuidanceLayerScheduleText", layers="1-2: 0.5, 4: -1", final_layer=0.7)[0]
    made = guided(small, model, projection(small, folder, "mean"), cfg_rows=rows, schedule=layers)
    assert_equal(small, model, made, Term(network(small), [0, 0.5, 0.5, 0, -1, 0.7], "mean", rows=rows), batch=2)


def test_keep_norm(small, model, folder):
    made = guided(small, model, projection(small, folder), keep_norm=True, schedule=schedule(1))
    assert_equal(small, model, made, Term(network(small), weights(1), keep_norm=True))


def test_film_at_the_time_of_the_step(small, model, folder):
    made = guided(small, model, projection(small, folder, film=True), schedule=schedule(1, final_layer=0.5))
    assert_equal(small, model, made, Term(network(small, film=True), weights(1, 0.5)), batch=2)


def test_percent_window(small, model, folder):
    window = tuple(model.get_model_object("model_sampling").percent_to_sigma(percent) for percent in (0.3, 0.7))
    made = guided(small, model, projection(small, folder), start_percent=0.3, end_percent=0.7, schedule=schedule(0))
    assert_equal(small, model, made, Term(network(small), weights(), window=window), steps=4)


def test_two_guidances_add_up(small, model, folder):
    made = guided(small, model, projection(small, folder), schedule=schedule(0))
    made = guided(small, made, projection(small, folder, "clip"), seed=20, w=-1.5, cfg_rows="opposed", schedule=schedule(2))
    second = Term(network(small), weights(2), "clip", seed=20, w=-1.5, rows="opposed")
    assert_equal(small, model, made, Term(network(small), weights()), second)


def test_nothing_is_left_behind(small, model, folder):
    before = small.sample(model)  # the host itself leaves something when it first loads a model
    attributes = {name: set(module.__dict__) for name, module in model.model.named_modules()}
    small.sample(guided(small, model, projection(small, folder)))
    assert torch.equal(small.sample(model), before)
    assert {name: set(module.__dict__) for name, module in model.model.named_modules()} == attributes


def test_bf16_is_finite_and_close(small, model, folder):
    half = small.load(torch.bfloat16)
    expected, actual = (small.sample(guided(small, each, projection(small, folder), w=1.0)) for each in (model, half))
    assert actual.isfinite().all()
    assert (actual - expected).norm() / expected.norm() < 0.1

"""Guiders that run a model of its own for the negative prompt, or that call their conditionings otherwise than the host's do."""

from functools import partial

import comfy.hooks
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from support.flux import CONTEXT, apply, conditioning, direction, flux, reference, schedule, terms_of
from support.text_blind import COSMOS, Projected, form_a, form_b, loaded, weights_from, write
from support.text_blind import reference as blind_reference
from support.text_encoders import encode, flux_clip
from support.text_variance import FluxSmall, joint_alphas, scale
from support.text_variance import equation as scaled_equation

import nodes
from benchmarks.in_process import node

TOLERANCE = dict(rtol=0, atol=1e-5)
DUAL = pytest.mark.skipif("DualModelGuider" not in nodes.NODE_CLASS_MAPPINGS, reason="DualModelGuider came with ComfyUI 0.24")


def sampled(guider, latent=(16, 8, 8), sigma=1.0):
    noise = torch.randn(1, *latent, generator=torch.Generator().manual_seed(1))
    sigmas = torch.linspace(sigma, 0, 4)
    return guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True)


def by_two_models(model, model_negative, positive=None, negative=None, **options):
    guider = node(
        "DualModelGuider",
        model=model,
        model_negative=model_negative,
        positive=positive or conditioning(1),
        negative=negative or conditioning(2),
        cfg=2.0,
    )[0]
    return sampled(guider, **options)


def guided(model, seed, w=2.0, **inputs):
    return apply(model, direction(seed), w=w, schedule=schedule(1), **inputs)


def equation(model, seed, w=2.0):
    """Of one sign for all rows: every call of the model has rows of one side."""
    depth = len(model.model.diffusion_model.double_blocks) + len(model.model.diffusion_model.single_blocks)
    return reference(model, terms_of(seed, w=w, layers=depth, start=1))


@pytest.fixture(scope="module")
def model():
    return flux()


@pytest.fixture(scope="module", params=["another model", "a clone"])
def negative_model(request, model):
    """One of another depth; or of the same weights, which the host then runs as one model."""
    return model.clone() if request.param == "a clone" else flux(double=2, single=3, seed=1)


def assert_equal_and_moved(actual, expected, *others):
    assert all((expected - other).abs().max() > 1e-2 for other in others)
    torch.testing.assert_close(actual, expected, **TOLERANCE)


@DUAL
@pytest.mark.parametrize("rows, sign", [("both", 1), ("cond", 0), ("opposed", -1)])
def test_each_of_two_models_has_its_own_guidance(model, negative_model, rows, sign):
    plain = by_two_models(model, negative_model)
    first, second = guided(model, 10, cfg_rows=rows), guided(negative_model, 20, w=-1.5, cfg_rows=rows)
    by_first, by_second = equation(model, 10), equation(negative_model, 20, w=-1.5 * sign)
    # reference() without terms: a second load, so that the equation on one model reaches that one alone.
    first_alone = by_two_models(by_first, reference(negative_model))
    second_alone = by_two_models(reference(model), by_second)
    assert_equal_and_moved(by_two_models(first, negative_model), first_alone, plain)
    assert_equal_and_moved(by_two_models(model, second), second_alone, first_alone, *([plain] if sign else []))
    assert_equal_and_moved(by_two_models(first, second), by_two_models(by_first, by_second), plain, *([first_alone] if sign else []))
    torch.testing.assert_close(by_two_models(model, negative_model), plain, rtol=0, atol=0)


@DUAL
def test_a_guided_negative_model_keeps_the_hooks_of_its_conditioning(model, negative_model):
    def model_wrapper(executor, *args, **kwargs):
        return 0.9 * executor(*args, **kwargs)

    hook = comfy.hooks.TransformerOptionsHook(
        {"wrappers": {WrappersMP.APPLY_MODEL: {"pack": [model_wrapper]}}}, hook_scope=comfy.hooks.EnumHookScope.HookedOnly
    )
    group = comfy.hooks.HookGroup()
    group.add(hook)
    hooked = dict(negative=comfy.hooks.set_hooks_for_conditioning(conditioning(2), group))
    expected = by_two_models(reference(model), equation(negative_model, 20), **hooked)
    assert_equal_and_moved(
        by_two_models(model, guided(negative_model, 20), **hooked),
        expected,
        by_two_models(model, negative_model, **hooked),
        by_two_models(reference(model), equation(negative_model, 20)),
    )


@DUAL
def test_each_of_two_models_scales_its_own_text(model, negative_model):
    def by_formula(patcher):
        return scaled_equation(FluxSmall, patcher, joint_alphas(FluxSmall, patcher, 1.5))

    plain = by_two_models(model, negative_model)
    for first, second, *expected in (
        (scale(model), negative_model, by_formula(model), reference(negative_model)),
        (model, scale(negative_model), reference(model), by_formula(negative_model)),
        (scale(model), guided(negative_model, 20), by_formula(model), equation(negative_model, 20)),
        (guided(model, 10), scale(negative_model), equation(model, 10), by_formula(negative_model)),
    ):
        assert_equal_and_moved(by_two_models(first, second), by_two_models(*expected), plain)


@DUAL
def test_each_of_two_text_blind_models_has_its_own_projection(tmp_path):
    projection = loaded(write(tmp_path / "b.safetensors", form_b()))
    models = COSMOS.load(), COSMOS.load(seed=1)
    run = partial(by_two_models, positive=COSMOS.conditioning(1), negative=COSMOS.conditioning(2), latent=COSMOS.latent, sigma=4.0)
    plain = run(*models)
    for which in (0, 1):
        mine, expected = list(models), [blind_reference(COSMOS, model) for model in models]
        mine[which] = apply(models[which], COSMOS.direction(), w=2.0, schedule=schedule(1), projection=projection)
        expected[which] = blind_reference(COSMOS, models[which], Projected(form_b(), weights_from(1), w=2.0))
        assert_equal_and_moved(run(*mine), run(*expected), plain)


class TwoModels(comfy.samplers.CFGGuider):
    """As a guider of another pack, that runs the negative on a model of its own with the options of the first."""

    def __init__(self, model, model_negative):
        super().__init__(model)
        self.second = model_negative
        self.set_cfg(2.0)
        self.set_conds(conditioning(1), conditioning(2))

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        self.second.pre_run()
        sides = ((self.inner_model, "positive"), (self.second.model, "negative"))
        positive, negative = (
            comfy.samplers.calc_cond_batch(model, [self.conds[name]], x, timestep, model_options)[0] for model, name in sides
        )
        return negative + self.cfg * (positive - negative)


@pytest.mark.parametrize("patch", [partial(guided, seed=10), scale], ids=["guidance", "text variance"])
def test_a_guider_that_runs_a_second_model_with_the_options_of_the_first(model, patch):
    shallow = flux(double=1, single=2)
    with pytest.raises(ValueError, match="model of 8 layers and now runs on one of 3.*a guider that runs a second model.*as many layers"):
        sampled(TwoModels(patch(model), shallow))


class Renamed(comfy.samplers.CFGGuider):
    """As a guider of another pack, with a name of its own for a side."""

    def __init__(self, model, names=("positive", "uncond"), prompts=None):
        super().__init__(model)
        self.names = names
        self.set_cfg(2.0)
        self.inner_set_conds(dict(zip(names, prompts or (conditioning(1), conditioning(2)))))

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        positive, negative = (self.conds[name] for name in self.names)
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, negative, positive, self.cfg, model_options=model_options, seed=seed
        )


def test_rows_of_unknown_names_are_guided_where_all_are_guided_alike(model):
    expected = sampled(Renamed(equation(model, 10)))
    assert_equal_and_moved(sampled(Renamed(guided(model, 10, cfg_rows="both"))), expected, sampled(Renamed(model)))


@pytest.mark.parametrize("names", [("positive", "uncond"), ("wanted", "negative")], ids=" and ".join)
@pytest.mark.parametrize("rows", ["cond", "opposed"])
def test_rows_of_unknown_names_are_refused_where_they_are_guided_differently(model, rows, names):
    with pytest.raises(ValueError, match=f"names that no guider of the host.* cfg_rows {rows} needs that: set cfg_rows to both"):
        sampled(Renamed(guided(model, 10, cfg_rows=rows), names))


def test_the_tokens_of_unknown_names_are_counted_by_what_they_hold(model):
    clip, texts = flux_clip(CONTEXT), ("a lake", "blurred and dark")
    prompts = [encode(clip, text) for text in texts]
    counts = [len(clip.tokenizer.t5xxl.tokenizer(text)["input_ids"]) for text in texts]

    def of_rows(kwargs):
        side = [next(i for i in (0, 1) if torch.equal(row, prompts[i][0][0][0])) for row in kwargs["context"]]
        return torch.stack([torch.arange(256) < counts[i] for i in side])

    expected = sampled(Renamed(scaled_equation(FluxSmall, model, joint_alphas(FluxSmall, model, 1.5), of_rows), prompts=prompts))
    counted = scale(model, clip=clip, prompt=texts[1], negative_prompt=texts[0])
    assert_equal_and_moved(sampled(Renamed(counted, prompts=prompts)), expected, sampled(Renamed(model, prompts=prompts)))


def test_what_else_differs_between_the_sides_is_refused_for_unknown_names(tmp_path):
    small = COSMOS.load()
    with_base = apply(
        small,
        COSMOS.pooled_direction(),
        w=2.0,
        cfg_rows="both",
        projection=loaded(write(tmp_path / "a.pt", form_a())),
        base_positive=COSMOS.pooled(1),
        base_negative=COSMOS.pooled(2),
    )
    with pytest.raises(ValueError, match="names that no guider of the host.* base_negative need that: disconnect both"):
        sampled(Renamed(with_base, prompts=(COSMOS.conditioning(1), COSMOS.conditioning(2))), COSMOS.latent, 4.0)

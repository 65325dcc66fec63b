"""In fp32 every guided family equals the equation, computed independently, whatever the settings."""

import comfy.sd
import pytest
import torch
from support.families import FAMILIES, REPLACE_EMBEDDED_GUIDANCE, SD35_LARGE, VARIANTS
from support.families.hunyuan_dit import HUNYUAN_DIT_11
from support.families.mochi import MOCHI
from support.families.small import Term, assert_close, assert_fair, default_term, reference, term
from support.flux import apply, node, schedule

TOLERANCE = dict(rtol=0, atol=1e-5)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda small: small.name)
def small(request):
    return request.param


def assert_equals_equation(small, model, guided, *terms, **sampling):
    expected = small.sample(reference(small, model, *terms), **sampling)
    actual = small.sample(guided, **sampling)
    plain = small.sample(model, **sampling)
    assert_fair(small, expected, plain)
    assert_close(small, actual, expected)


@pytest.mark.parametrize("cfg, batch", [(1.0, 1), (2.5, 2)], ids=["no CFG", "CFG and a batch"])
def test_default_settings_are_the_reference_implementations(small, model, cfg, batch):
    assert_equals_equation(small, model, apply(model, small.direction()), default_term(small), cfg=cfg, batch=batch)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda small: small.name)
def test_variants_of_the_families(variant):
    model = variant.load()
    # With token replacement and embedded guidance, the host itself takes one row only.
    sampling = dict(cfg=1.0) if variant is REPLACE_EMBEDDED_GUIDANCE else dict(batch=2)
    assert_equals_equation(variant, model, apply(model, variant.direction()), default_term(variant), **sampling)


def test_constant_schedule(small, model):
    guided = apply(model, small.direction(), schedule=schedule(0))
    assert_equals_equation(small, model, guided, term(small, rows=small.cfg_rows))


def test_start_layer(small, model):
    guided = apply(model, small.direction(), w=-2.0, schedule=schedule(3))
    assert_equals_equation(small, model, guided, term(small, start=3, w=-2.0, rows=small.cfg_rows))


@pytest.mark.parametrize("rows", ["both", "cond", "opposed"])
def test_cfg_rows(small, model, rows):
    guided = apply(model, small.direction(), cfg_rows=rows, schedule=schedule(1))
    assert_equals_equation(small, model, guided, term(small, start=1, rows=rows), batch=2)


def test_head_weight(small, model):
    guided = apply(model, small.direction(), cfg_rows="both", schedule=schedule(2, final_layer=0.7))
    assert_equals_equation(small, model, guided, term(small, start=2, head=0.7))


def test_text_schedule(small, model):
    layers = node("GuidanceLayerScheduleText", layers="1-2: 0.5, 3: -1", final_layer=0.0)[0]
    weights = [0.0, 0.5, 0.5, -1.0] + [0.0] * (small.depth - 4) + [0.0]
    assert_equals_equation(small, model, apply(model, small.direction(), schedule=layers), Term(weights, rows=small.cfg_rows))


@pytest.mark.parametrize("head", [0.0, 1.0])
def test_keep_norm(small, model, head):
    guided = apply(model, small.direction(), keep_norm=True, schedule=schedule(1, final_layer=head))
    assert_equals_equation(small, model, guided, term(small, start=1, head=head, rows=small.cfg_rows, keep_norm=True), batch=2)


def test_percent_window(small, model):
    window = tuple(model.get_model_object("model_sampling").percent_to_sigma(percent) for percent in (0.3, 0.7))
    guided = apply(model, small.direction(), start_percent=0.3, end_percent=0.7)
    assert_equals_equation(small, model, guided, default_term(small, window=window), steps=6)


def test_two_guidances_add_up(small, model):
    guided = apply(apply(model, small.direction(10), w=2.0), small.direction(20), w=-1.5, cfg_rows="both", schedule=schedule(1))
    assert_equals_equation(small, model, guided, default_term(small, w=2.0), term(small, start=1, seed=20, w=-1.5))


def test_guidances_that_keep_the_norm_keep_it_together(small, model):
    guided = apply(apply(model, small.direction(10), keep_norm=True), small.direction(20), w=2.0, keep_norm=True)
    assert_equals_equation(small, model, guided, default_term(small, keep_norm=True), default_term(small, seed=20, w=2.0, keep_norm=True))


def test_each_picture_of_a_batch_can_have_a_direction_of_its_own(small, model):
    def batched(*seeds):
        prompts = [small.encoded(seed)[0] for seed in seeds]
        extras = {name: torch.cat([prompt[1][name] for prompt in prompts]) for name in prompts[0][1]}
        return [[torch.cat([tokens for tokens, _ in prompts]), extras]]

    both = node("GuidanceDirectionFromConditioning", positive=batched(10, 20), negative=batched(11, 21))[0]
    actual = small.sample(apply(model, both), batch=2)
    for picture, seed in enumerate((10, 20)):
        expected = small.sample(reference(small, model, default_term(small, seed=seed)), batch=2)
        torch.testing.assert_close(actual[picture], expected[picture], **TOLERANCE)


def test_wrong_equations_would_be_noticed(small, model):
    actual = small.sample(apply(model, small.direction(), cfg_rows="both", schedule=schedule(2)))
    right = dict(start=2, head=0.0, rows="both")
    torch.testing.assert_close(actual, small.sample(reference(small, model, term(small, **right))), **TOLERANCE)
    for mistake in (
        {"w": -3.0},
        {"w": 3.1},
        {"start": 1},
        {"start": 3},
        {"head": 1.0},
        {"seed": 11},
        {"rows": "cond"},
        {"keep_norm": True},
        {"window": (0.5, 0.0)},
    ):
        wrong = small.sample(reference(small, model, term(small, **right | mistake)))
        assert (actual - wrong).abs().max() > 100 * TOLERANCE["atol"], mistake


def test_the_equation_without_guidance_is_the_plain_model(small, model):
    torch.testing.assert_close(small.sample(reference(small, model)), small.sample(model), **TOLERANCE)


def test_zero_w_is_bit_identical(small, model):
    assert torch.equal(small.sample(apply(model, small.direction(), w=0.0)), small.sample(model))


def test_unpatched_model_is_bit_identical_after_guided_runs(small):
    model = small.load()
    before = small.sample(model)
    weights = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    attributes = {name: set(module.__dict__) for name, module in model.model.named_modules()}
    small.sample(apply(model, small.direction(), keep_norm=True))
    assert torch.equal(small.sample(model), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.model.state_dict().items())
    assert {name: set(module.__dict__) for name, module in model.model.named_modules()} == attributes


def test_bf16_is_finite_and_close(small, model):
    half = small.load(torch.bfloat16)
    assert half.model.get_dtype() == torch.bfloat16
    expected, actual = (small.sample(apply(loaded, small.direction(), w=1.0)) for loaded in (model, half))
    assert actual.isfinite().all()
    assert (actual - expected).norm() / expected.norm() < 0.1


def test_lora_on_the_pooled_text_path():
    """As few-step LoRAs for SD3.5 may have."""
    small = SD35_LARGE
    model = small.load()
    lora = {
        "diffusion_model.y_embedder.mlp.0.lora_up.weight": torch.full((256, 1), 0.2),
        "diffusion_model.y_embedder.mlp.0.lora_down.weight": torch.full((1, 32), 0.2),
        "diffusion_model.joint_blocks.3.x_block.adaLN_modulation.1.lora_up.weight": torch.full((1536, 1), 0.05),
        "diffusion_model.joint_blocks.3.x_block.adaLN_modulation.1.lora_down.weight": torch.full((1, 256), 0.05),
    }
    with_lora, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    assert (small.sample(with_lora) - small.sample(model)).abs().max() > 1e-2
    assert_equals_equation(small, with_lora, apply(with_lora, small.direction()), default_term(small))


def runs_of(model, layer, sample):
    """How often `sample` runs that layer of the model."""
    runs = []
    handle = model.model.diffusion_model.get_submodule(layer).register_forward_hook(lambda *args: runs.append(1))
    try:
        sample()
    finally:
        handle.remove()
    return len(runs)


@pytest.mark.parametrize(
    "small, pooling, key",
    [(MOCHI, "t5_y_embedder", "t5_y_embedder.to_q"), (HUNYUAN_DIT_11, "pooler", "pooler.q_proj")],
    ids=lambda value: getattr(value, "name", ""),
)
def test_models_that_pool_tokens_themselves_pool_a_direction_s_once(small, pooling, key):
    model = small.load()
    guided = apply(model, small.direction())
    plain_runs = runs_of(model, pooling, lambda: small.sample(model, steps=4))
    assert runs_of(model, pooling, lambda: small.sample(guided, steps=4)) == plain_runs + 2
    before = small.sample(guided)

    rows, columns = model.model.diffusion_model.get_parameter(f"{key}.weight").shape
    lora = {
        f"diffusion_model.{key}.lora_up.weight": torch.full((rows, 1), 0.3),
        f"diffusion_model.{key}.lora_down.weight": torch.linspace(-1, 1, columns)[None],
    }
    with_lora, _ = comfy.sd.load_lora_for_models(guided, None, lora, 1.0, 0.0)
    other, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    expected = small.sample(reference(small, other, default_term(small)))
    torch.testing.assert_close(small.sample(with_lora), expected, **TOLERANCE)
    assert (expected - before).abs().max() > 1e-3, "the LoRA must be felt"
    assert torch.equal(small.sample(guided), before)

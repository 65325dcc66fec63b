"""In fp32 the guided FLUX.1 equals the equation, computed independently, whatever the settings."""

import pytest
import torch
from support.families.small import assert_close
from support.flux import apply, conditioning, direction, flux, node, reference, sample, schedule, terms_of
from support.text_variance import FluxSmall

TOLERANCE = dict(rtol=0, atol=1e-5)


def assert_equals_equation(model, guided, *terms, **sampling):
    expected = sample(reference(model, *terms), **sampling)
    actual = sample(guided, **sampling)
    plain = sample(model, **sampling)
    assert not torch.allclose(expected, plain, atol=1e-3), "the reference itself must move the picture"
    assert_close(FluxSmall, actual, expected)


@pytest.fixture(scope="module")
def schnell():
    return flux()


@pytest.mark.parametrize("dev", [False, True], ids=["schnell", "dev"])
@pytest.mark.parametrize("cfg", [1.0, 3.0], ids=["no CFG", "CFG"])
@pytest.mark.parametrize("batch", [1, 2])
def test_default_settings_start_at_layer_5_and_guide_every_row(dev, cfg, batch):
    model = flux(dev=dev)
    assert_equals_equation(model, apply(model, direction()), terms_of(start=5), cfg=cfg, batch=batch)


def test_constant_schedule(schnell):
    guided = apply(schnell, direction(), schedule=schedule(0))
    assert_equals_equation(schnell, guided, terms_of())


@pytest.mark.parametrize("w", [-2.0, 0.5, 6.0])
def test_guidance_scale(schnell, w):
    assert_equals_equation(schnell, apply(schnell, direction(), w=w), terms_of(w=w, start=5))


@pytest.mark.parametrize("rows", ["both", "cond", "opposed"])
def test_cfg_rows(schnell, rows):
    guided = apply(schnell, direction(), cfg_rows=rows)
    assert_equals_equation(schnell, guided, terms_of(start=5, rows=rows), cfg=2.5, batch=2)


def test_head_weight_and_taper(schnell):
    guided = apply(schnell, direction(), schedule=schedule(2, end_layer=6, taper_layers=2, final_layer=0.7))
    assert_equals_equation(schnell, guided, terms_of(weights=[0, 0, 1, 1, 1, 0.25, 0.25, 0, 0.7]))


def test_text_schedule(schnell):
    layers = node("GuidanceLayerScheduleText", layers="1-3: 0.5, 7: -1", final_layer=0.0)[0]
    assert_equals_equation(schnell, apply(schnell, direction(), schedule=layers), terms_of(weights=[0, 0.5, 0.5, 0.5, 0, 0, 0, -1, 0]))


def test_curve_schedule(schnell):
    curve = {"points": [(0.0, 0.0), (1.0, 1.0)], "interpolation": "linear"}
    layers = node("GuidanceLayerScheduleCurve", curve=curve, final_layer=0.0)[0]
    assert_equals_equation(schnell, apply(schnell, direction(), schedule=layers), terms_of(weights=[i / 7 for i in range(8)] + [0]))


@pytest.mark.parametrize("head", [0.0, 1.0])
def test_keep_norm(schnell, head):
    guided = apply(schnell, direction(), keep_norm=True, schedule=schedule(3, final_layer=head))
    assert_equals_equation(schnell, guided, terms_of(start=3, head=head, keep_norm=True), cfg=2.0, batch=2)


def test_stacked_guidances_that_keep_the_norm_keep_it_together(schnell):
    guided = apply(apply(schnell, direction(10), keep_norm=True), direction(20), w=2.0, keep_norm=True)
    assert_equals_equation(schnell, guided, terms_of(10, start=5, keep_norm=True), terms_of(20, w=2.0, start=5, keep_norm=True))


@pytest.mark.parametrize("first", [True, False])
def test_a_guidance_that_keeps_the_norm_and_one_that_does_not(schnell, first):
    guided = apply(apply(schnell, direction(10), keep_norm=first), direction(20), w=2.0, keep_norm=not first)
    assert_equals_equation(schnell, guided, terms_of(10, start=5, keep_norm=first), terms_of(20, w=2.0, start=5, keep_norm=not first))


# On 10 steps, 0.2 and 0.6 lie right on a step, which belongs to the window.
@pytest.mark.parametrize("start, end, steps", [(0.3, 0.7, 6), (0.2, 0.6, 10)])
def test_percent_window(schnell, start, end, steps):
    model_sampling = schnell.get_model_object("model_sampling")
    window = tuple(model_sampling.percent_to_sigma(p) for p in (start, end))
    guided = apply(schnell, direction(), start_percent=start, end_percent=end)
    assert_equals_equation(schnell, guided, terms_of(start=5, window=window), steps=steps)


def test_a_step_on_the_edge_belongs_to_the_window(schnell):
    guided = apply(schnell, direction(), start_percent=0.2, end_percent=0.2)
    assert (sample(guided, steps=10) - sample(schnell, steps=10)).abs().max() > 1e-3


def test_two_guidances_add_up(schnell):
    guided = apply(apply(schnell, direction(10), w=2.0), direction(20), w=-1.5, cfg_rows="opposed", schedule=schedule(1))
    assert_equals_equation(schnell, guided, terms_of(10, w=2.0, start=5), terms_of(20, w=-1.5, start=1, rows="opposed"), cfg=2.0)


def test_combined_directions(schnell):
    both = node("CombineGuidanceDirections", directions={"direction0": direction(10), "direction1": direction(20)}, weights="1, -0.5")[0]
    assert_equals_equation(schnell, apply(schnell, both), terms_of(10, start=5), terms_of(20, w=-1.5, start=5))


def test_kontext_reference_latents(schnell):
    edited = conditioning(1, reference_latents=[torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(3))])
    assert_equals_equation(schnell, apply(schnell, direction()), terms_of(start=5), positive=edited)


def test_fill_takes_the_masked_image():
    fill = flux(in_channels=96, dev=True)
    hole = conditioning(1, concat_latent_image=torch.randn(1, 16, 8, 8), concat_mask=torch.ones(1, 1, 64, 64))
    assert_equals_equation(fill, apply(fill, direction()), terms_of(start=5), positive=hole)


@pytest.mark.parametrize("double, single", [(2, 8), (8, 0), (1, 1)], ids=["pruned", "no single blocks", "toy"])
def test_other_depths(double, single):
    model = flux(double, single)
    start = 5 if double + single > 5 else 0
    assert_equals_equation(model, apply(model, direction()), terms_of(layers=double + single, start=start))


def test_wider_pooled_output_is_cut_as_the_host_cuts_it(schnell):
    positive, negative = conditioning(10), conditioning(11)
    for side in (positive, negative):
        side[0][1]["pooled_output"] = torch.cat((side[0][1]["pooled_output"], torch.ones(1, 9)), dim=1)
    wide = node("GuidanceDirectionFromConditioning", positive=positive, negative=negative)[0]
    assert_equals_equation(schnell, apply(schnell, wide), terms_of(start=5))


def test_zero_w_is_bit_identical(schnell):
    assert torch.equal(sample(apply(schnell, direction(), w=0.0), cfg=2.0), sample(schnell, cfg=2.0))


def test_outside_the_percent_window_is_bit_identical(schnell):
    late = apply(schnell, direction(), start_percent=0.999)
    assert torch.equal(sample(late, steps=2), sample(schnell, steps=2))


def test_unpatched_model_is_bit_identical_after_guided_runs(schnell):
    weights = {name: tensor.clone() for name, tensor in schnell.model.state_dict().items()}
    attributes = {name: set(module.__dict__) for name, module in schnell.model.named_modules()}
    before = sample(schnell)
    sample(apply(schnell, direction(), keep_norm=True))
    assert torch.equal(sample(schnell), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in schnell.model.state_dict().items())
    assert {name: set(module.__dict__) for name, module in schnell.model.named_modules()} == attributes


def test_nothing_is_left_behind_when_sampling_fails(schnell):
    guided = apply(schnell, direction())

    def failing_block(args, extra):
        raise RuntimeError("a block of another pack fails")

    guided.set_model_patch_replace(failing_block, "dit", "single_block", 2)
    before = sample(schnell)
    with pytest.raises(RuntimeError, match="another pack"):
        sample(guided)
    assert "forward" not in schnell.model.diffusion_model.double_blocks[0].__dict__
    assert torch.equal(sample(schnell), before)


def test_same_seed_same_picture(schnell):
    guided = apply(schnell, direction())
    assert torch.equal(sample(guided), sample(guided))


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.1), (torch.float16, 0.02)], ids=["bf16", "fp16"])
def test_half_precision_is_finite_and_close(dtype, tolerance):
    exact, half = flux(), flux(dtype=dtype)
    assert half.model.get_dtype() == dtype
    for options in ({}, {"keep_norm": True}):
        expected = sample(apply(exact, direction(), **options))
        actual = sample(apply(half, direction(), **options))
        assert actual.isfinite().all()
        assert (actual - expected).norm() / expected.norm() < tolerance


def test_fp8_weights_equal_the_equation_on_the_same_weights():
    model = flux(weight_dtype=torch.float8_e4m3fn)
    assert model.model.get_dtype() == torch.float8_e4m3fn
    expected = sample(reference(model, terms_of(start=5)))
    actual = sample(apply(model, direction()))
    # The host computes in fp32 on a CPU, in half precision on a GPU.
    tolerance = 1e-6 if model.model.get_dtype_inference() == torch.float32 else 0.05
    assert (actual - expected).norm() / expected.norm() < tolerance
    assert (sample(model) - expected).norm() / expected.norm() > 0.1


def test_offloaded_weights(schnell):
    """As on a GPU too small for the model: weights are cast to the device as each module runs."""
    expected = sample(apply(schnell, direction()))
    model = flux()
    guided = apply(model, direction())
    guided.load(guided.load_device, lowvram_model_memory=1000)
    assert guided.model.lowvram_patch_counter >= 0 and guided.model.model_lowvram
    torch.testing.assert_close(sample(guided), expected, **TOLERANCE)


def test_turning_a_knob_reloads_no_weights(schnell):
    import comfy.model_management as management

    sample(apply(schnell, direction(), w=1.0))
    loaded = {id(m.real_model()) for m in management.current_loaded_models}
    pointers = [p.data_ptr() for p in schnell.model.diffusion_model.parameters()]
    uuid = schnell.model.current_weight_patches_uuid
    sample(apply(schnell, direction(20), w=2.0, schedule=schedule(1)))
    assert {id(m.real_model()) for m in management.current_loaded_models} == loaded
    assert [p.data_ptr() for p in schnell.model.diffusion_model.parameters()] == pointers
    assert schnell.model.current_weight_patches_uuid == uuid

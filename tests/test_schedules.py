"""Layer schedules resolve to the weights their inputs say, and refuse what cannot be meant."""

import time

import pytest
from support.flux import apply, direction, flux, node, schedule


def test_range_is_inclusive_and_minus_one_is_the_last():
    assert schedule(2, end_layer=4).resolve(6) == (0, 0, 1, 1, 1, 0)
    assert schedule(2).resolve(5) == (0, 0, 1, 1, 1)


def test_taper_scales_the_last_scheduled_layers():
    assert schedule(1, taper_layers=2, taper_scale=0.25).resolve(5) == (0, 1, 1, 0.25, 0.25)
    assert schedule(1, end_layer=2, taper_layers=1, taper_scale=0.5).resolve(5) == (0, 1, 0.5, 0, 0)
    assert schedule(3, taper_layers=9, taper_scale=0.5).resolve(5) == (0, 0, 0, 0.5, 0.5)


def test_text_gives_named_layers_their_weight_and_others_none():
    text = node("GuidanceLayerScheduleText", layers="0: 2, 2-3: -0.5,\n5:1e-1", final_layer=0.5)[0]
    assert text.resolve(6) == (2, 0, -0.5, -0.5, 0, 0.1)
    assert text.final_layer == 0.5


def test_curve_is_read_at_the_relative_depth():
    points = {"points": [(0, 1), (0.5, 0), (1, 2)], "interpolation": "linear"}
    curve = node("GuidanceLayerScheduleCurve", curve=points, final_layer=0.0)[0]
    assert curve.resolve(5) == pytest.approx((1, 0.5, 0, 1, 2))
    assert curve.resolve(1) == (1,)


def test_curve_is_the_one_the_editor_draws():
    from comfy_api.input import CurveInput

    points = {"points": [(0, 0), (0.2, 0.9), (1, 1)], "interpolation": "monotone_cubic"}
    curve = node("GuidanceLayerScheduleCurve", curve=points, final_layer=0.0)[0]
    assert curve.resolve(57) == pytest.approx([CurveInput.from_raw(points).interp(i / 56) for i in range(57)])


@pytest.mark.parametrize(
    "text, part",
    [
        ("5-18 1", "'5-18 1'"),
        ("5-18: 1, x: 2", "'x: 2'"),
        ("5: nan", "'5: nan'"),
        ("5: inf", "'5: inf'"),
        ("-3: 1", "'-3: 1'"),
        ("8-2: 1", "runs backwards"),
        ("0-5: 1, 4: 0", "layer 4"),
        ("3: 1, 0-1000: 1", "layer 3"),
        ("0-99999: 1", "'0-99999: 1' names layers beyond 1000, and no model has as many"),
        ("1001: 1", "layers beyond 1000"),
        ("9" * 5000 + ": 1", "layers beyond 1000"),
        ("5: 100.1", "the weight in '5: 100.1' is 100.1; it must be a finite number from -100 to 100"),
        ("5: -1e300", "a finite number from -100 to 100"),
        (" ", "empty"),
    ],
    ids=lambda value: value[:40],
)
def test_text_that_cannot_be_read_names_the_part(text, part):
    import nodes

    with pytest.raises(ValueError, match=part):
        node("GuidanceLayerScheduleText", layers=text, final_layer=0.0)
    assert part in nodes.NODE_CLASS_MAPPINGS["GuidanceLayerScheduleText"].validate_inputs(layers=text)


@pytest.mark.parametrize(
    "text",
    [", ".join(f"{layer}: 1" for layer in range(24_000)), "x" * 1_000_000, "9" * 99_000 + ": 1", "0: " + "1" * 99_000, "1" + " " * 99_000],
    ids=lambda text: text[:9],
)
def test_a_text_of_any_length_is_answered_at_once_and_shortly(text):
    import nodes

    started = time.perf_counter()
    answer = nodes.NODE_CLASS_MAPPINGS["GuidanceLayerScheduleText"].validate_inputs(layers=text)
    assert time.perf_counter() - started < 5
    assert answer.startswith("Layer schedule: ") and len(answer) < 500


def test_the_most_layers_are_named_one_by_one():
    text = "\n".join(f"{layer}: {layer % 7 / 7:.17f}" for layer in range(1001))
    weights = node("GuidanceLayerScheduleText", layers=text, final_layer=0.0)[0].resolve(1001)
    assert weights == pytest.approx([layer % 7 / 7 for layer in range(1001)])


@pytest.mark.parametrize(
    "start, end, words",
    [
        (7, 3, "start_layer 7 is past end_layer 3"),
        (-2, -1, "start_layer is -2"),
        (0, -5, "end_layer -5"),
        (10**9, -1, "go up to 1000, but start_layer is 1000000000"),
    ],
)
def test_range_that_cannot_be_meant(start, end, words):
    with pytest.raises(ValueError, match=words):
        schedule(start, end_layer=end)


@pytest.mark.parametrize(
    "layers",
    [
        pytest.param(lambda: schedule(8), id="start"),
        pytest.param(lambda: schedule(0, end_layer=8), id="end"),
        pytest.param(lambda: node("GuidanceLayerScheduleText", layers="0-8: 1", final_layer=0.0)[0], id="text"),
    ],
)
def test_layer_beyond_the_model_names_both_numbers(layers):
    with pytest.raises(ValueError, match="layer 8 is beyond this model, which has 8 layers"):
        apply(flux(3, 5), direction(), schedule=layers())


def test_taper_counts_layers():
    with pytest.raises(ValueError, match="taper_layers is -1"):
        schedule(0, taper_layers=-1)


def test_curve_without_points():
    with pytest.raises(ValueError, match="no points"):
        node("GuidanceLayerScheduleCurve", curve={"points": []}, final_layer=0.0)

"""What cannot work is refused when the node runs, with a sentence that says what and what to do."""

import math
import re

import pytest
from support.flux import apply, conditioning, direction, flux, node, sample, schedule
from torch import nn


@pytest.fixture(scope="module")
def model():
    return flux()


def test_unet_is_named():
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher
    from comfy.supported_models import SD15

    config = SD15(
        dict(
            image_size=32,
            in_channels=4,
            out_channels=4,
            model_channels=32,
            num_res_blocks=[1, 1],
            channel_mult=(1, 2),
            num_heads=1,
            transformer_depth=[0, 0],
            transformer_depth_output=[0, 0, 0, 0],
            transformer_depth_middle=0,
            use_spatial_transformer=True,
            context_dim=32,
            use_temporal_attention=False,
            legacy=False,
            adm_in_channels=None,
        )
    )
    unet = ModelPatcher(BaseModel(config), "cpu", "cpu")
    assert isinstance(unet.model.diffusion_model, UNetModel)
    with pytest.raises(ValueError, match=r"diffusion transformers.*FLUX\.1, SD3.*This model is a BaseModel \(class UNetModel\)"):
        apply(unet, direction())


class LibraryModel(nn.Module):
    """Another library's transformer: what would be its blocks is one module, compiled."""

    def __init__(self):
        super().__init__()
        self.embedder, self.blocks, self.head = nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)]), nn.Linear(2, 2)


class Wrapper(nn.Module):
    """As packs put such a transformer in the place of the host's diffusion model."""

    def __init__(self):
        super().__init__()
        self.model = LibraryModel()


def test_a_wrapper_around_another_librarys_model_is_called_that():
    wrapped, own = flux(), flux()
    wrapped.model.diffusion_model, own.model.diffusion_model = Wrapper(), LibraryModel()
    words = "This model is a Flux, but its class Wrapper is not the host's: it wraps another library's LibraryModel.*safetensors.*GGUF"
    with pytest.raises(ValueError, match=words):
        apply(wrapped, direction())
    with pytest.raises(ValueError, match=words):
        node("ScaleTextVariance", model=wrapped, scale=1.5)
    with pytest.raises(ValueError, match=r"This model is a Flux \(class LibraryModel\), which is not among them"):
        apply(own, direction())


def test_pooled_output_missing_says_which_encoder(model):
    sides = conditioning(1), conditioning(2)
    del sides[1][0][1]["pooled_output"]
    lacking = node("GuidanceDirectionFromConditioning", positive=sides[0], negative=sides[1])[0]
    with pytest.raises(ValueError, match="no pooled output.*CLIP-L.*DualCLIPLoader"):
        apply(model, lacking)


def test_pooled_outputs_of_zeros_are_an_encoder_without_its_clip(model):
    sides = conditioning(1), conditioning(2)
    zeroed = [node("ConditioningZeroOut", conditioning=side)[0] for side in sides]
    nowhere = node("GuidanceDirectionFromConditioning", positive=zeroed[0], negative=zeroed[1])[0]
    with pytest.raises(ValueError, match="all zeros.*CLIP-L.*DualCLIPLoader"):
        apply(model, nowhere)
    apply(model, node("GuidanceDirectionFromConditioning", positive=sides[0], negative=zeroed[1])[0])


def test_pooled_output_too_narrow_names_both_widths(model):
    with pytest.raises(ValueError, match="20 wide.*reads 32"):
        apply(model, direction(pooled=20))


def test_batches_of_prompts_must_be_of_one_size(model):
    sides = conditioning(1), conditioning(2)
    for count, side in zip((2, 3), sides):
        side[0][1]["pooled_output"] = side[0][1]["pooled_output"].repeat(count, 1)
    unequal = node("GuidanceDirectionFromConditioning", positive=sides[0], negative=sides[1])[0]
    with pytest.raises(ValueError, match="batches of 2 and 3 prompts"):
        apply(model, unequal)


@pytest.mark.parametrize("layers", [{"taper_layers": 1, "taper_scale": math.nan}, {"final_layer": math.inf}])
def test_schedule_weights_must_be_finite(model, layers):
    with pytest.raises(ValueError, match="must be a finite number from -100 to 100"):
        apply(model, direction(), schedule=schedule(0, **layers))


@pytest.mark.parametrize("w, weights, layers", [(3.0, "1e30", 1.0), (50.0, "-201", 1.0), (50.0, "3", 100.0)])
def test_strengths_whose_pictures_are_nan_are_refused(model, w, weights, layers):
    strong = node("CombineGuidanceDirections", directions={"direction0": direction()}, weights=weights)[0]
    late = node("GuidanceLayerScheduleText", layers=f"5: {layers}", final_layer=0.0)[0]
    words = r"w \S+ times the schedule's largest weight, \S+, times the direction's weights, together \S+, is beyond 10000"
    with pytest.raises(ValueError, match=words):
        apply(model, strong, w=w, schedule=late)
    with pytest.raises(ValueError, match=words):
        node("InspectGuidance", model=model, directions={"direction0": strong}, w=w, schedule=late)


@pytest.mark.parametrize("w", [50.1, -60, 1e30, math.inf, math.nan])
def test_w_that_came_over_a_link_is_bounded_as_the_widget_is(model, w):
    words = re.escape(f"Modulation guidance: w is {w:g}; it goes from -50 to 50.")
    with pytest.raises(ValueError, match=words):
        apply(model, direction(), w=w)
    with pytest.raises(ValueError, match=words):
        node("InspectGuidance", model=model, directions={"direction0": direction()}, w=w)


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("side", ["positive", "negative"])
def test_prompts_of_a_broken_encoder_are_refused_before_they_are_a_picture(side, number):
    sides = {"positive": conditioning(1), "negative": conditioning(2)}
    sides[side][0][1]["pooled_output"][0, 3] = number
    with pytest.raises(ValueError, match=f"^Guidance Direction from Conditioning: {side}: the text encoder made NaN or infinity of it"):
        node("GuidanceDirectionFromConditioning", **sides)


def test_the_largest_strength_still_gives_numbers(model):
    strong = node("CombineGuidanceDirections", directions={"direction0": direction()}, weights="2")[0]
    everywhere = node("GuidanceLayerScheduleText", layers="0-7: 100", final_layer=100.0)[0]
    assert sample(apply(model, strong, w=50.0, schedule=everywhere)).isfinite().all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedule(0, taper_scale=1e30),
        lambda: schedule(0, final_layer=-1e30),
        lambda: node("GuidanceLayerScheduleText", layers="0: 1", final_layer=math.nan),
        lambda: node("GuidanceLayerScheduleCurve", curve={"points": [[0, 0], [1, 1]]}, final_layer=1e30),
    ],
)
def test_schedules_hold_no_weights_beyond_the_sensible(make):
    with pytest.raises(ValueError, match="must be a finite number from -100 to 100"):
        make()


def test_direction_takes_one_prompt_per_side():
    with pytest.raises(ValueError, match="negative holds 2 prompts"):
        node("GuidanceDirectionFromConditioning", positive=conditioning(1), negative=conditioning(2) + conditioning(3))


@pytest.mark.parametrize("w", [math.nan, math.inf])
def test_w_must_be_finite(model, w):
    with pytest.raises(ValueError, match=f"w is {w}"):
        apply(model, direction(), w=w)


@pytest.mark.parametrize(
    "start, end, words",
    [(0.8, 0.2, "start_percent 0.8 is past end_percent 0.2"), (-0.5, 1.0, "start_percent is -0.5"), (0.0, 1.5, "end_percent is 1.5")],
)
def test_percents(model, start, end, words):
    with pytest.raises(ValueError, match=words):
        apply(model, direction(), start_percent=start, end_percent=end)


def test_cfg_rows_must_be_known(model):
    with pytest.raises(ValueError, match="'uncond'; choose auto, both, cond, opposed"):
        apply(model, direction(), cfg_rows="uncond")


@pytest.mark.parametrize(
    "weights, words", [("1, 2, 3", "3 weights .* for 2 directions"), ("1, x", "'x' is not a number"), ("1, nan", "'nan'")]
)
def test_weights_of_combined_directions(weights, words):
    with pytest.raises(ValueError, match=words):
        node("CombineGuidanceDirections", directions={"direction0": direction(1), "direction1": direction(3)}, weights=weights)


def test_encode_without_an_encoder():
    with pytest.raises(ValueError, match="no text encoder on the clip input"):
        node("EncodeGuidanceDirection", clip=None, positive="a", negative="b")


@pytest.mark.parametrize("preset", ["counting", "color", "position"])
def test_presets_with_a_slot_need_a_subject(preset):
    with pytest.raises(ValueError, match=f"'{preset}' needs a subject"):
        node("GuidancePreset", preset=preset, subject=" ")

"""Modulation Guidance, the one node, gives bit for bit what the same settings give through the separate nodes."""

import json
import math

import folder_paths
import pytest
import torch
from support import flux
from support.distilling import text_encoder
from support.families.kandinsky5 import KANDINSKY5_VIDEO
from support.families.sd3 import SD3
from support.flux import apply
from support.text_blind import ANIMA, form_a, form_b, loaded, own, write
from support.text_blind_families import WAN
from support.time_shift import network
from test_anima_lineage import deep

import nodes as host_nodes
from benchmarks.in_process import node

WORDS = {
    "complexity": ("Extremely complex, the highest quality", "Very simple, no details at all"),
    "aesthetics": ("Ultra-detailed, photorealistic, cinematic", "Low-res, flat, cartoonish"),
    "hands": ("A boy with natural and realistic hands", "Unnatural hands"),
    "counting": ("A boy", "Very simple, no details at all"),
    "color": ("A boy", "Very simple, no details at all"),
    "position": ("A boy", "Very simple, no details at all"),
    "video": ("Ultra-detailed, photorealistic, cinematic", "Low-res, bad quality, blurred"),
    "booru quality": ("absurdres, masterpiece, score_9", "worst quality, low quality, score_1"),
    "booru quality (long)": (
        "absurdres, highres, masterpiece, best quality, score_7, score_8, score_9",
        "worst quality, low quality, score_1, score_2, score_3",
    ),
    "booru quality (safe)": ("absurdres, masterpiece, score_9", "worst quality, low quality, score_1"),
}
FLUX_PRESETS = ["complexity", "aesthetics", "hands", "counting", "color", "position"]


@pytest.fixture(scope="module")
def clip():
    """A text encoder whose pooled output is wide enough for all the small models."""
    return text_encoder(32)


@pytest.fixture(scope="module")
def narrow_clip():
    """One whose tokens are as wide as the small text-blind models' own text."""
    return text_encoder(16)


@pytest.fixture(scope="module")
def flux_model():
    return flux.flux()


@pytest.fixture(scope="module")
def projection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pooled_projections")

    def projection(name, content, metadata=None):
        return loaded(write(folder / name, content, metadata))

    return projection


def one(model, clip, preset="complexity", subject="A boy", **inputs):
    return node("ModulationGuidance", model=model, clip=clip, preset=preset, subject=subject, **inputs)[0]


def several(model, clip, positive, negative, w=3.0, layers=None, projection=None):
    """Through Encode, Layer Schedule (Text) and Apply."""
    direction = node("EncodeGuidanceDirection", clip=clip, positive=positive, negative=negative)[0]
    schedule = layers and node("GuidanceLayerScheduleText", layers=layers, final_layer=0.0)[0]
    return apply(model, direction, w, schedule=schedule, projection=projection)


def assert_same(sample, made, expected, plain):
    pictures = [sample(model) for model in (made, expected, plain)]
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])


def test_every_preset_is_tried():
    assert [*WORDS, "custom"] == host_nodes.NODE_CLASS_MAPPINGS["ModulationGuidance"].GET_SCHEMA().inputs[2].options


@pytest.mark.parametrize("preset", WORDS)
def test_on_flux_a_preset_has_its_own_layers_or_those_of_flux(flux_model, clip, preset):
    # 13, 31 and 46 of 57 layers are 1.8, 4.4 and 6.5 of 8.
    layers = "2-3: 1, 4-5: 0.3333" if preset == "hands" else None
    assert_same(flux.sample, one(flux_model, clip, preset), several(flux_model, clip, *WORDS[preset], layers=layers), flux_model)


@pytest.mark.parametrize("preset", WORDS)
def test_on_sd3_every_preset_has_the_settings_of_sd3(clip, preset):
    model = SD3.load()
    assert_same(SD3.sample, one(model, clip, preset), several(model, clip, *WORDS[preset], w=2.0), model)


@pytest.mark.parametrize("film", [False, True])
@pytest.mark.parametrize(
    "preset, layers",
    [
        *((preset, None) for preset in WORDS if "booru" not in preset),
        ("booru quality", "2-5: 1"),
        ("booru quality (long)", "2-5: 1"),
        ("booru quality (safe)", "3-5: 1"),
    ],
)
def test_on_anima_with_a_max_pool_projection(narrow_clip, projection, preset, layers, film):
    model, given = ANIMA.load(), projection(f"b{film}.safetensors", form_b(film=film))
    expected = several(model, narrow_clip, *WORDS[preset], layers=layers, projection=given)
    assert_same(ANIMA.sample, one(model, narrow_clip, preset, projection=given), expected, model)


@pytest.mark.parametrize(
    "preset, layers", [("complexity", None), ("hands", None), ("booru quality", "2-5: 1"), ("booru quality (safe)", "3-5: 1")]
)
def test_on_anima_with_clip_and_scales(clip, projection, preset, layers):
    model, given = ANIMA.load(), projection("a.pt", form_a())
    expected = several(model, clip, *WORDS[preset], layers=layers, projection=given)
    assert_same(ANIMA.sample, one(model, clip, preset, projection=given), expected, model)


@pytest.mark.parametrize("pooling, width", [("max", 16), ("mean", 16), ("clip", 24)])
def test_on_wan(clip, narrow_clip, projection, pooling, width):
    model, encoder = WAN.load(), clip if pooling == "clip" else narrow_clip
    given = projection(f"wan_{pooling}.safetensors", *own(network(WAN, width), pooling, "time embedding", "Wan"))
    expected = several(model, encoder, *WORDS["aesthetics"], projection=given)
    assert_same(WAN.sample, one(model, encoder, "aesthetics", projection=given), expected, model)


def test_where_no_w_is_known_the_preset_s_is_taken():
    model, encoder = KANDINSKY5_VIDEO.load(), text_encoder(768)
    for preset, words, w in (("video", WORDS["video"], 3.5), ("custom", ("a", "b"), 3.0)):
        made = one(model, encoder, preset, positive=words[0], negative=words[1])
        assert_same(KANDINSKY5_VIDEO.sample, made, several(model, encoder, *words, w=w), model)


@pytest.mark.parametrize("depth, layers", [(28, "8-26: 1"), (40, "12-38: 1"), (52, "16-50: 1")])
def test_booru_layers_follow_anima_s_own_blocks_into_its_deeper_kin(narrow_clip, projection, depth, layers):
    small = deep(depth)
    model, given = small.load(), projection("kin.safetensors", form_b())
    expected = several(model, narrow_clip, *WORDS["booru quality"], layers=layers, projection=given)
    assert_same(small.sample, one(model, narrow_clip, "booru quality", projection=given), expected, model)
    positive, negative, w, _, schedule = node("GuidancePreset", preset="booru quality", subject="")
    direction = node("EncodeGuidanceDirection", clip=narrow_clip, positive=positive, negative=negative)[0]
    assert_same(small.sample, apply(model, direction, w, schedule=schedule, projection=given), expected, model)


def test_inserted_blocks_go_with_the_named_ones_on_both_sides_alone(narrow_clip, projection, presets_file):
    presets_file({"three": {"positive": "a", "negative": "b", "w": 1, "start_layer": 0, "layers": "1: 1, 2: 2, 4: 3", "depth": 28}})
    small = deep(40)  # 1, 2, 3 and 4 stand at 1, 3, 4 and 6; 2 and 5 are inserted
    model, given = small.load(), projection("kin.safetensors", form_b())
    expected = several(model, narrow_clip, "a", "b", layers="1-2: 1, 3: 2, 6: 3", projection=given)
    assert_same(small.sample, one(model, narrow_clip, "three", projection=given), expected, model)


@pytest.mark.parametrize("strength, w", [(0.5, 1.5), (-1.0, -3.0), (2.0, 6.0), (10.0, 30.0)])
def test_strength_multiplies_w(flux_model, clip, strength, w):
    expected = several(flux_model, clip, *WORDS["aesthetics"], w=w)
    assert_same(flux.sample, one(flux_model, clip, "aesthetics", strength=strength), expected, flux_model)


def test_strength_0_is_the_plain_model(flux_model, clip):
    assert torch.equal(flux.sample(one(flux_model, clip, strength=0.0)), flux.sample(flux_model))


@pytest.mark.parametrize(
    "written, words",
    [
        ({"positive": "oil on canvas"}, ("oil on canvas", "Low-res, flat, cartoonish")),
        ({"negative": "a photograph"}, ("Ultra-detailed, photorealistic, cinematic", "a photograph")),
        ({"positive": " oil ", "negative": "\n"}, (" oil ", "Low-res, flat, cartoonish")),
    ],
)
def test_what_is_written_replaces_the_words_of_the_preset(flux_model, clip, written, words):
    assert_same(flux.sample, one(flux_model, clip, "aesthetics", **written), several(flux_model, clip, *words), flux_model)


def test_custom_is_ones_own_words_with_the_settings_of_the_model(flux_model, clip):
    made = one(flux_model, clip, "custom", positive="oil on canvas", negative="a photograph")
    assert_same(flux.sample, made, several(flux_model, clip, "oil on canvas", "a photograph"), flux_model)


def test_written_words_need_no_subject(flux_model, clip):
    made = one(flux_model, clip, "counting", subject="", positive="three apples")
    assert_same(flux.sample, made, several(flux_model, clip, "three apples", "Very simple, no details at all"), flux_model)


def test_a_model_too_shallow_for_the_preset_has_the_default_of_the_model(clip):
    model = flux.flux(double=2, single=2)
    assert_same(flux.sample, one(model, clip), several(model, clip, *WORDS["complexity"], layers="0-3: 1"), model)


@pytest.fixture
def presets_file(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    return lambda presets: (tmp_path / "modulation_guidance_presets.json").write_text(json.dumps(presets), encoding="utf-8")


MINE = {"positive": "a", "negative": "b", "w": 2, "start_layer": 3}


@pytest.mark.parametrize(
    "preset, w, layers",
    [
        (MINE, 3.0, None),
        (MINE | {"family": "FLUX.1"}, 2.0, "3-7: 1"),
        (MINE | {"family": "SD3"}, 3.0, None),
        (MINE | {"layers": "0-1: 0.5", "depth": 4}, 3.0, "0-3: 0.5"),
        (MINE | {"layers": "0-1: 0.5", "depth": 4, "family": "FLUX.1"}, 2.0, "0-3: 0.5"),
        (MINE | {"layers": "0-1: 0.5", "depth": 4, "family": "HunyuanVideo"}, 3.0, None),
    ],
    ids=["any", "ours", "another's", "layers, any", "layers, ours", "layers, another's"],
)
def test_a_preset_s_own_w_and_layers_are_for_the_family_it_names(flux_model, clip, presets_file, preset, w, layers):
    presets_file({"mine": preset})
    assert_same(flux.sample, one(flux_model, clip, "mine"), several(flux_model, clip, "a", "b", w, layers), flux_model)


def test_a_changed_file_makes_the_node_run_again(presets_file):
    fingerprint = host_nodes.NODE_CLASS_MAPPINGS["ModulationGuidance"].fingerprint_inputs
    presets_file({"mine": MINE})
    before = fingerprint(preset="mine", strength=1.0)
    presets_file({"mine": MINE | {"w": 5}})
    assert fingerprint(preset="mine", strength=1.0) != before


REFUSED = [
    (dict(preset="custom", positive="a"), "custom needs both positive and negative, and negative is empty"),
    (dict(preset="custom", negative="a", positive=" "), "custom needs both positive and negative, and positive is empty"),
    (dict(preset="nonesuch"), "there is no preset 'nonesuch'; choose one of .*'booru quality \\(safe\\)', 'custom'"),
    (dict(preset="counting", subject=""), "'counting' needs a subject, e.g. 'three apples'"),
]
TOO_STRONG = [
    (dict(strength=math.nan), "strength is nan; it goes from -10 to 10"),
    (dict(strength=10.5), "strength is 10.5; it goes from -10 to 10"),
    (dict(strength=-math.inf), "strength is -inf"),
]


@pytest.mark.parametrize("inputs, sentence", [*REFUSED, *TOO_STRONG])
def test_what_cannot_be_is_refused_when_it_runs(flux_model, clip, inputs, sentence):
    given = {"preset": "complexity", "subject": "", "positive": "", "negative": "", "strength": 1.0} | inputs
    with pytest.raises(ValueError, match=f"^Modulation Guidance: .*{sentence}"):
        node("ModulationGuidance", model=flux_model, clip=clip, **given)


@pytest.mark.parametrize("inputs, sentence", REFUSED)
def test_words_that_cannot_be_are_refused_before_a_model_is_loaded(inputs, sentence):
    given = {"preset": "complexity", "subject": "", "positive": "", "negative": "", "model": None, "clip": None} | inputs
    with pytest.raises(ValueError, match=sentence):
        host_nodes.NODE_CLASS_MAPPINGS["ModulationGuidance"].check_lazy_status(**given)


def test_a_text_blind_model_without_a_projection_and_missing_encoders_are_refused(flux_model, clip):
    with pytest.raises(ValueError, match="Anima is text-blind.*Load Pooled Projection"):
        one(ANIMA.load(), clip)
    with pytest.raises(ValueError, match="^Modulation Guidance: there is no text encoder on the clip input"):
        one(flux_model, None)
    with pytest.raises(ValueError, match="^Modulation Guidance: clip is 'x', which is no CLIP"):
        one(flux_model, "x")
    with pytest.raises(ValueError, match="^Modulation Guidance: model is 3, which is no MODEL"):
        one(3, clip)
    with pytest.raises(ValueError, match="^Modulation Guidance: projection is 3, which is no POOLED_PROJECTION"):
        one(flux_model, clip, projection=3)

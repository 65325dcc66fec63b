"""What users wire and save: ids, inputs, defaults and outputs, and what the small nodes give."""

import asyncio
import importlib
from inspect import Parameter, signature

import comfyui_version
import pytest
import torch
from support.flux import direction, node

import nodes as host_nodes
from benchmarks.in_process import of_pack

OURS = {
    "EncodeGuidanceDirection": (["clip", "positive", "negative"], ["direction"]),
    "GuidanceDirectionFromConditioning": (["positive", "negative"], ["direction"]),
    "CombineGuidanceDirections": (["directions", "weights"], ["direction"]),
    "GuidancePreset": (["preset", "subject"], ["positive", "negative", "w", "start_layer", "schedule"]),
    "GuidanceLayerSchedule": (["start_layer", "end_layer", "taper_layers", "taper_scale", "final_layer"], ["schedule"]),
    "GuidanceLayerScheduleCurve": (["curve", "final_layer"], ["schedule"]),
    "GuidanceLayerScheduleText": (["layers", "final_layer"], ["schedule"]),
    "ApplyModulationGuidance": (
        [
            "model",
            "direction",
            "w",
            "start_percent",
            "end_percent",
            "cfg_rows",
            "keep_norm",
            "schedule",
            "projection",
            "base_positive",
            "base_negative",
        ],
        ["model"],
    ),
    "ModulationGuidance": (["model", "clip", "preset", "strength", "subject", "positive", "negative", "projection"], ["model"]),
    "LoadGuidanceDirection": (["direction_name"], ["direction"]),
    "SaveGuidanceDirection": (["direction", "filename_prefix"], []),
    "LoadPooledProjection": (["projection_name"], ["projection"]),
    "SavePooledProjection": (["projection", "filename_prefix"], []),
    "DistillGuidanceDirection": (
        [
            "model",
            "clip",
            "prompts",
            "positive",
            "negative",
            "steps",
            "batch_size",
            "learning_rate",
            "width",
            "height",
            "seed",
            "direction",
            "prompts_file",
            "accumulation",
            "checkpointing",
            "frames",
            "data",
            "samples_per_prompt",
            "sample_steps",
            "cfg",
            "pairs",
            "cache",
            "precision",
        ],
        ["direction", "loss_map", "steps"],
    ),
    "ScaleTextVariance": (
        ["model", "scale", "start_percent", "end_percent", "schedule", "tokens", "clip", "prompt", "negative_prompt", "prompts"],
        ["model"],
    ),
    "InspectGuidance": (["model", "directions", "labels", "w", "schedule", "projection"], ["image", "report"]),
    "SweepModulationGuidance": (
        [
            "model",
            "direction",
            "w_values",
            "start_layers",
            "start_percent",
            "end_percent",
            "cfg_rows",
            "keep_norm",
            "schedule",
            "projection",
            "base_positive",
            "base_negative",
        ],
        ["models", "labels"],
    ),
    "GuidanceGrid": (["images", "labels", "title"], ["image"]),
    "LoadPictureScorer": (["scorer_name"], ["scorer"]),
    "ScorePictures": (["images", "labels", "prompt", "scorer"], ["scores", "report"]),
    "ChooseGuidance": (["images", "labels", "wanted", "kept", "tolerance"], ["image", "label", "w", "start_layer", "diagram"]),
}


@pytest.mark.parametrize("node_id", OURS)
def test_a_default_stands_once(node_id):
    """In the schema; in execute where a prompt may leave the input out, and then the same."""
    cls = host_nodes.NODE_CLASS_MAPPINGS[node_id]
    taken = signature(cls.execute).parameters
    for given in cls.GET_SCHEMA().inputs:
        said = getattr(given, "default", None)
        if given.id not in taken:  # among the settings that are handed on as they come
            if given.optional and said is not None:
                unit = 1024**3 if given.id == "cache" else 1  # GB in the node
                assert unit * said == getattr(of_pack("training.settings").Settings, given.id), given.id
            continue
        default = taken[given.id].default
        if not given.optional:
            assert default is Parameter.empty, f"{given.id} = {default} in execute"
        elif said is not None:
            assert default == ((said,) if cls.GET_SCHEMA().is_input_list else said), given.id


@pytest.mark.parametrize("node_id", OURS)
def test_interface(node_id):
    schema = host_nodes.NODE_CLASS_MAPPINGS[node_id].GET_SCHEMA()
    inputs, outputs = OURS[node_id]
    assert [i.id for i in schema.inputs] == inputs
    assert [o.id for o in schema.outputs] == outputs
    assert schema.category == "modulation guidance"
    assert schema.description and schema.search_aliases
    assert all(part.tooltip for part in [*schema.inputs, *schema.outputs])


@pytest.mark.parametrize(
    "word, node_id",
    [
        ("guidance", "ApplyModulationGuidance"),
        ("detail", "ApplyModulationGuidance"),
        ("encode prompt", "EncodeGuidanceDirection"),
        ("detail", "GuidancePreset"),
        ("rare concepts", "ScaleTextVariance"),
        ("anima", "LoadPooledProjection"),
    ],
)
def test_a_search_for_what_is_wanted_finds_the_node(word, node_id):
    assert word in host_nodes.NODE_CLASS_MAPPINGS[node_id].GET_SCHEMA().search_aliases


def test_types():
    def types(node_id):
        schema = host_nodes.NODE_CLASS_MAPPINGS[node_id].GET_SCHEMA()
        return [part.get_io_type() for part in (*schema.inputs, *schema.outputs)]

    assert types("EncodeGuidanceDirection") == ["CLIP", "STRING", "STRING", "GUIDANCE_DIRECTION"]
    assert types("GuidanceDirectionFromConditioning") == ["CONDITIONING", "CONDITIONING", "GUIDANCE_DIRECTION"]
    assert types("GuidancePreset") == ["COMBO", "STRING", "STRING", "STRING", "FLOAT", "INT", "LAYER_SCHEDULE"]
    assert types("GuidanceLayerSchedule") == ["INT", "INT", "INT", "FLOAT", "FLOAT", "LAYER_SCHEDULE"]
    assert types("GuidanceLayerScheduleCurve") == ["CURVE", "FLOAT", "LAYER_SCHEDULE"]
    assert types("GuidanceLayerScheduleText") == ["STRING", "FLOAT", "LAYER_SCHEDULE"]
    assert types("LoadPictureScorer") == ["COMBO", "PICTURE_SCORER"]
    assert types("ScorePictures") == ["IMAGE", "STRING", "STRING", "PICTURE_SCORER", "FLOAT", "STRING"]
    assert types("ChooseGuidance") == ["IMAGE", "STRING", "FLOAT", "FLOAT", "FLOAT", "IMAGE", "STRING", "FLOAT", "INT", "IMAGE"]
    assert types("ApplyModulationGuidance") == [
        "MODEL",
        "GUIDANCE_DIRECTION",
        "FLOAT",
        "FLOAT",
        "FLOAT",
        "COMBO",
        "BOOLEAN",
        "LAYER_SCHEDULE",
        "POOLED_PROJECTION",
        "CONDITIONING",
        "CONDITIONING",
        "MODEL",
    ]
    assert types("ModulationGuidance") == ["MODEL", "CLIP", "COMBO", "FLOAT", "STRING", "STRING", "STRING", "POOLED_PROJECTION", "MODEL"]
    assert types("ScaleTextVariance") == [
        "MODEL",
        "FLOAT",
        "FLOAT",
        "FLOAT",
        "LAYER_SCHEDULE",
        "COMBO",
        "CLIP",
        "STRING",
        "STRING",
        "COMFY_AUTOGROW_V3",
        "MODEL",
    ]
    assert types("GuidanceGrid") == ["IMAGE", "STRING", "STRING", "IMAGE"]
    assert types("LoadPooledProjection") == ["COMBO", "POOLED_PROJECTION"]
    assert types("LoadGuidanceDirection") == ["COMBO", "GUIDANCE_DIRECTION"]
    assert types("SaveGuidanceDirection") == ["GUIDANCE_DIRECTION", "STRING"]
    assert types("SavePooledProjection") == ["POOLED_PROJECTION", "STRING"]
    assert types("DistillGuidanceDirection") == [
        "MODEL",
        "CLIP",
        "STRING",
        "STRING",
        "STRING",
        "INT",
        "INT",
        "FLOAT",
        "INT",
        "INT",
        "INT",
        "GUIDANCE_DIRECTION",
        "STRING",
        "INT",
        "BOOLEAN",
        "INT",
        "COMBO",
        "INT",
        "INT",
        "FLOAT",
        "INT",
        "FLOAT",
        "COMBO",
        "GUIDANCE_DIRECTION",
        "LOSS_MAP",
        "INT",
    ]


def test_ranges_and_choices():
    inputs = {i.id: i for i in host_nodes.NODE_CLASS_MAPPINGS["ApplyModulationGuidance"].GET_SCHEMA().inputs}
    assert (inputs["w"].min, inputs["w"].max) == (-50, 50)
    inputs_of_one = {i.id: i for i in host_nodes.NODE_CLASS_MAPPINGS["ModulationGuidance"].GET_SCHEMA().inputs}
    assert (inputs_of_one["strength"].min, inputs_of_one["strength"].max) == (-10, 10)
    assert inputs_of_one["projection"].optional and inputs_of_one["preset"].options[-1] == "custom"
    assert inputs["cfg_rows"].options == ["auto", "both", "cond", "opposed"]
    assert inputs["schedule"].optional and not inputs["direction"].optional
    prompts = host_nodes.NODE_CLASS_MAPPINGS["ScaleTextVariance"].GET_SCHEMA().inputs[-1]
    assert prompts.optional and (prompts.template.prefix, prompts.template.min, prompts.template.max) == ("prompt", 0, 16)
    directions, _ = host_nodes.NODE_CLASS_MAPPINGS["CombineGuidanceDirections"].GET_SCHEMA().inputs
    assert (directions.template.prefix, directions.template.min, directions.template.max) == ("direction", 1, 16)


def test_defaults():
    def defaults(node_id):
        return {
            i.id: i.default for i in host_nodes.NODE_CLASS_MAPPINGS[node_id].GET_SCHEMA().inputs if getattr(i, "default", None) is not None
        }

    assert defaults("GuidanceLayerSchedule") == dict(start_layer=5, end_layer=-1, taper_layers=0, taper_scale=0.25, final_layer=0.0)
    assert defaults("ApplyModulationGuidance") == dict(w=3.0, start_percent=0.0, end_percent=1.0, cfg_rows="auto", keep_norm=False)
    assert defaults("CombineGuidanceDirections") == dict(weights="")
    assert defaults("ModulationGuidance") == dict(preset="complexity", strength=1.0, subject="", positive="", negative="")
    assert defaults("ScaleTextVariance") == dict(scale=1.5, start_percent=0.0, end_percent=1.0, tokens="prompt")
    assert defaults("ScorePictures") == dict(prompt="") and defaults("ChooseGuidance") == dict(tolerance=0.02)
    assert defaults("SweepModulationGuidance") == dict(
        w_values="0, 1.5, 3, 6", start_layers="0, 5, 10", start_percent=0.0, end_percent=1.0, cfg_rows="auto", keep_norm=False
    )


def test_combine_weighs_each_direction_in_order():
    first, second = direction(1), direction(3)
    combined = node("CombineGuidanceDirections", directions={"direction1": second, "direction0": first}, weights="")[0]
    assert [pair.positive for pair in combined.pairs] == [first.pairs[0].positive, second.pairs[0].positive]
    nested = node("CombineGuidanceDirections", directions={"direction0": combined, "direction1": first}, weights="2, -0.5")[0]
    assert [pair.weight for pair in nested.pairs] == [2, 2, -0.5]


@pytest.mark.parametrize(
    "preset, subject, expected",
    [
        ("complexity", "", ("Extremely complex, the highest quality", "Very simple, no details at all", 3.0, 5)),
        ("aesthetics", "ignored", ("Ultra-detailed, photorealistic, cinematic", "Low-res, flat, cartoonish", 3.0, 5)),
        ("hands", "", ("Natural and realistic hands", "Unnatural hands", 3.0, 5)),
        ("hands", "A boy", ("A boy with natural and realistic hands", "Unnatural hands", 3.0, 5)),
        ("counting", "three apples", ("three apples", "Very simple, no details at all", 3.0, 5)),
        ("color", "a purple apple", ("a purple apple", "Very simple, no details at all", 3.0, 5)),
        ("position", "a dog above a bench", ("a dog above a bench", "Very simple, no details at all", 3.0, 5)),
        ("video", "", ("Ultra-detailed, photorealistic, cinematic", "Low-res, bad quality, blurred", 3.5, 5)),
        ("booru quality", "", ("absurdres, masterpiece, score_9", "worst quality, low quality, score_1", 3.0, 8)),
        (
            "booru quality (long)",
            "",
            (
                "absurdres, highres, masterpiece, best quality, score_7, score_8, score_9",
                "worst quality, low quality, score_1, score_2, score_3",
                3.0,
                8,
            ),
        ),
        ("booru quality (safe)", "", ("absurdres, masterpiece, score_9", "worst quality, low quality, score_1", 3.0, 14)),
    ],
)
def test_presets(preset, subject, expected):
    assert tuple(node("GuidancePreset", preset=preset, subject=subject))[:4] == expected


def test_lists_go_in_and_come_out_where_a_sweep_needs_it():
    sweep, grid = (host_nodes.NODE_CLASS_MAPPINGS[node_id].GET_SCHEMA() for node_id in ("SweepModulationGuidance", "GuidanceGrid"))
    assert [output.is_output_list for output in sweep.outputs] == [True, True] and not sweep.is_input_list
    score, choose = (host_nodes.NODE_CLASS_MAPPINGS[node_id].GET_SCHEMA() for node_id in ("ScorePictures", "ChooseGuidance"))
    assert score.is_input_list and [output.is_output_list for output in score.outputs] == [True, False]
    assert choose.is_input_list and not any(output.is_output_list for output in choose.outputs)
    assert grid.is_input_list and not grid.outputs[0].is_output_list


def test_preset_list_is_the_interface():
    presets, _ = host_nodes.NODE_CLASS_MAPPINGS["GuidancePreset"].GET_SCHEMA().inputs
    assert presets.options == [
        "complexity",
        "aesthetics",
        "hands",
        "counting",
        "color",
        "position",
        "video",
        "booru quality",
        "booru quality (long)",
        "booru quality (safe)",
    ]


def test_encode_keeps_pooled_tokens_and_extras(clip_l):
    encoded = node("EncodeGuidanceDirection", clip=clip_l, positive="a red circle", negative="a blue square")[0]
    (pair,) = encoded.pairs
    ((tokens, extras),) = node("CLIPTextEncode", clip=clip_l, text="a red circle")[0]
    assert torch.equal(pair.positive.tokens, tokens)
    assert torch.equal(pair.positive.pooled, extras["pooled_output"])
    assert not torch.equal(pair.positive.pooled, pair.negative.pooled)
    assert pair.positive.extras == {name: value for name, value in extras.items() if name != "pooled_output"}
    assert pair.weight == 1


@pytest.fixture(scope="module")
def clip_l(text_encoder):
    import comfy.sd

    return comfy.sd.load_clip([str(text_encoder)])


@pytest.mark.parametrize(
    "version, fits", [("0.20.1", False), ("0.23.9", False), ("0.24.0", True), ("0.24.1rc1", True), ("0.30.0", True), ("1.0.0", True)]
)
def test_a_host_that_is_too_old_is_named_when_the_pack_loads(version, fits, monkeypatch, caplog):
    package = importlib.import_module(host_nodes.NODE_CLASS_MAPPINGS["ApplyModulationGuidance"].__module__.rpartition(".")[0])
    monkeypatch.setattr(comfyui_version, "__version__", version)
    asyncio.run(package.comfy_entrypoint())
    assert (f"needs ComfyUI 0.24.0 or newer, and this is {version}" in caplog.text) == (not fits)

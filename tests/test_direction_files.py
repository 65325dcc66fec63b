"""Directions saved and loaded: tensors bit for bit, the same guidance, and what is none is refused by name."""

import json
from pathlib import Path

import folder_paths
import pytest
import torch
from safetensors import safe_open
from support import flux
from support.flux import apply, node
from support.learned import file_of, learned, loaded_direction, registered, saved_direction, saving_to, shifts
from support.text_blind import ANIMA, write

import nodes as host_nodes


def combined(*directions, weights=""):
    return node("CombineGuidanceDirections", directions={f"direction{i}": one for i, one in enumerate(directions)}, weights=weights)[0]


def contents(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def assert_same(some, other):
    assert some.dtype == other.dtype and torch.equal(some.view(torch.uint8), other.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_learned_one_comes_back_as_it_was(tmp_path, dtype):
    tensor, record = shifts(8, flux.HIDDEN).to(dtype), {"runs": [{"steps": 400, "of": 400}], "w 1": 0.9}
    path = saved_direction(learned(tensor, "FLUX.1", positive="a \u6f22", negative="", record=record, weight=-0.5), tmp_path)
    assert path.name == "saved_00001_.safetensors"
    tensors, metadata = contents(path)
    assert list(tensors) == ["learned.0"] and metadata["kind"] == "learned" and metadata["format"] == "modulation guidance direction"
    assert_same(tensors["learned.0"], tensor)
    assert json.loads(metadata["learned"]) == [
        {"family": "FLUX.1", "layers": 8, "width": flux.HIDDEN, "positive": "a \u6f22", "negative": "", "weight": -0.5, "record": record}
    ]
    again = loaded_direction(path)
    (one,) = again.learned
    assert_same(one.shifts, tensor)
    assert (one.family, one.positive, one.negative, one.weight, one.record) == ("FLUX.1", "a \u6f22", "", -0.5, record)
    assert again.pairs == ()
    assert saved_direction(again, tmp_path).read_bytes() == path.read_bytes()


def test_an_encoded_one_comes_back_with_all_its_tensors(tmp_path):
    """A text encoder's mask of -infinity and token ids among them."""
    sides = {
        side: flux.conditioning(seed, attention_mask=torch.tensor([[0.0, -torch.inf]]), ids=torch.arange(8), guidance=3.5, hooks=object())
        for side, seed in (("positive", 10), ("negative", 11))
    }
    encoded = node("GuidanceDirectionFromConditioning", **sides)[0]
    path = saved_direction(combined(encoded, flux.direction(20), weights="1, -2"), tmp_path)
    assert contents(path)[1]["kind"] == "encoded"
    pairs = loaded_direction(path).pairs
    assert [pair.weight for pair in pairs] == [1, -2]
    for side in ("positive", "negative"):
        before, after = getattr(encoded.pairs[0], side), getattr(pairs[0], side)
        assert_same(before.pooled, after.pooled)
        assert_same(before.tokens, after.tokens)
        assert after.extras.keys() == {"attention_mask", "ids"}
        for name, tensor in after.extras.items():
            assert_same(tensor, before.extras[name])


def test_a_side_without_a_pooled_output(tmp_path):
    (pair,) = loaded_direction(saved_direction(ANIMA.direction(), tmp_path)).pairs
    assert pair.positive.pooled is None and pair.positive.extras.keys() == {"t5xxl_ids", "t5xxl_weights"}


def test_tokens_of_several_prompts_with_one_pooled_output_come_back(tmp_path):
    sides = [[[tokens.repeat(2, 1, 1), extras]] for [[tokens, extras]] in (flux.conditioning(1), flux.conditioning(2))]
    one = node("GuidanceDirectionFromConditioning", positive=sides[0], negative=sides[1])[0]
    (pair,) = loaded_direction(saved_direction(one, tmp_path)).pairs
    assert len(pair.positive.tokens) == 2 and len(pair.positive.pooled) == 1


def test_a_weight_that_is_no_number_is_refused_when_it_is_saved(tmp_path):
    far = combined(combined(flux.direction(), weights="1e200"), weights="1e200")
    with pytest.raises(ValueError, match="^The guidance direction has a weight of inf. Combine directions with smaller weights"):
        saved_direction(far, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_loaded_guides_as_before_bit_for_bit(tmp_path):
    model = flux.flux()
    both = combined(flux.direction(10), learned(shifts(8, flux.HIDDEN), "FLUX.1"), weights="1, 0.5")
    path = saved_direction(both, tmp_path)
    assert contents(path)[1]["kind"] == "learned and encoded"
    before, after = (flux.sample(apply(model, one)) for one in (both, loaded_direction(path)))
    assert torch.equal(before, after) and not torch.equal(before, flux.sample(model))


def entry(**changes):
    return json.dumps([{"family": "FLUX.1", "positive": "", "negative": "", "weight": 1.0, "record": {}} | changes])


@pytest.mark.parametrize(
    "tensors, metadata, words",
    [
        (
            {"scales": torch.ones(2, 3)},
            {"format": "another"},
            "is not a guidance direction: it holds scales. Load a file that Save Guidance Direction",
        ),
        ({}, {"format_version": "2"}, "is of format version 2, and this pack reads version 1. Update the pack."),
        (
            {"learned.1": torch.ones(2, 3)},
            {},
            "holds learned.0, learned.1, which are not the tensors of 1 learned and 0 encoded directions",
        ),
        ({}, {"learned": "[]"}, "holds no direction"),
        ({}, {"learned": "[1]"}, r"does not say what is learned in it: \[1\]"),
        ({}, {"learned": "nonsense"}, "has metadata that is not JSON: learned"),
        ({}, {"learned": entry(family=None)}, "says its family is None; it must be a name"),
        ({}, {"learned": entry(weight="x")}, "has a weight of x; it must be a number"),
        ({}, {"learned": entry(weight=1e400)}, "has a weight of inf; it must be a number"),
        ({}, {"learned": entry(positive=3)}, "says it was learned from .*; these must be words"),
        ({}, {"learned": entry(record={"runs": 3})}, "has a record of its training that is none"),
        (
            {"learned.0": torch.ones(8)},
            {},
            r"holds learned.0 as torch.float32 of \(8,\); it must be floating-point numbers in 2 dimensions",
        ),
        ({"learned.0": torch.ones(8, 3, dtype=torch.int32)}, {}, "holds learned.0 as torch.int32"),
        ({"learned.0": torch.full((8, 3), torch.nan)}, {}, "holds NaN or infinite numbers in learned.0"),
        ({}, {"encoded": "[{}]"}, "holds learned.0, which are not the tensors of 1 learned and 1 encoded directions"),
    ],
)
def test_what_is_no_direction_is_refused_by_name(tmp_path, tensors, metadata, words):
    good, said = file_of(shifts(8, 4), "FLUX.1")
    path = write(tmp_path / "bad.safetensors", good | tensors if metadata.get("format") != "another" else tensors, said | metadata)
    with pytest.raises(ValueError, match=f"^The direction file bad.safetensors {words}"):
        loaded_direction(path)


def test_a_saved_one_never_has_the_name_of_another_that_is_listed(tmp_path):
    """Of two files of one name only one is loaded."""
    output, models = tmp_path / "output", tmp_path / "models"
    (models / "sub").mkdir(parents=True)
    one = learned(shifts(8, 4), "FLUX.1")
    with registered(models, "guidance_directions"), saving_to(output):
        (models / "sub" / "mine_00001_.safetensors").touch()
        for _ in range(2):
            node("SaveGuidanceDirection", direction=one, filename_prefix="guidance_directions/sub/mine")
        node("SaveGuidanceDirection", direction=one, filename_prefix="sub/mine")
    names = sorted(path.relative_to(output).as_posix() for path in output.rglob("*.safetensors"))
    assert names == [
        "guidance_directions/sub/mine_00002_.safetensors",
        "guidance_directions/sub/mine_00003_.safetensors",
        "sub/mine_00001_.safetensors",
    ]


def test_what_is_saved_is_listed_where_it_lies():
    """The host's own way with checkpoints and LoRAs."""
    for folder in ("guidance_directions", "pooled_projections"):
        *_, last = folder_paths.get_folder_paths(folder)
        assert Path(last) == Path(folder_paths.get_output_directory(), folder)


def test_what_cannot_be_loaded_is_not_saved(tmp_path):
    broken = combined(learned(shifts(8, 4), "FLUX.1"))
    broken.learned[0].shifts[3, 1] = torch.inf
    with pytest.raises(ValueError, match="^The guidance direction holds NaN or infinite numbers in learned.0"):
        saved_direction(broken, tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_file_that_is_not_listed_and_a_prefix_that_leads_out(tmp_path):
    load, save = (host_nodes.NODE_CLASS_MAPPINGS[name] for name in ("LoadGuidanceDirection", "SaveGuidanceDirection"))
    with registered(tmp_path, "guidance_directions"):
        assert "Load Guidance Direction: there is no file 'gone' in models/guidance_directions" in load.validate_inputs(
            direction_name="gone"
        )
    assert "Save Guidance Direction: filename_prefix '../mine' leads out" in save.validate_inputs(filename_prefix="../mine")

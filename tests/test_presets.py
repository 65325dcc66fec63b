"""The user's own presets, in a file in the host's user folder, win over ours."""

import json

import folder_paths
import nodes as host_nodes
import pytest
from benchmarks.in_process import node

MINE = {"positive": "oil on canvas", "negative": "photograph", "w": 2, "start_layer": 7, "source": "my own trials"}


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))

    def write(content):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "modulation_guidance_presets.json").write_text(text, encoding="utf-8")

    return write


def combo():
    return host_nodes.NODE_CLASS_MAPPINGS["GuidancePreset"].GET_SCHEMA().inputs[0]


def preset(name, subject=""):
    return tuple(node("GuidancePreset", preset=name, subject=subject))


def test_a_new_one_is_offered_with_where_it_comes_from(write):
    write({"painting": MINE})
    assert combo().options[-1] == "painting" and "aesthetics" in combo().options
    assert "painting: my own trials" in combo().tooltip
    assert "aesthetics: Starodubcev et al., ICLR 2026, direction 2 (FLUX)" in combo().tooltip
    assert preset("painting") == ("oil on canvas", "photograph", 2.0, 7)


def test_one_of_our_name_wins(write):
    write({"hands": {"positive_with_subject": "{subject} waving", "negative": "no hands", "w": 4.5, "start_layer": 0}})
    assert preset("hands", "A {girl}") == ("A {girl} waving", "no hands", 4.5, 0)
    with pytest.raises(ValueError, match="hands needs a subject.$"):
        preset("hands")


def test_a_changed_file_makes_the_node_run_again(write):
    fingerprint = host_nodes.NODE_CLASS_MAPPINGS["GuidancePreset"].fingerprint_inputs
    write({"painting": MINE})
    before = fingerprint(preset="painting")
    assert fingerprint(preset="painting") == before
    write({"painting": MINE | {"w": 5}})
    assert fingerprint(preset="painting") != before


def test_every_preset_of_ours_says_where_it_comes_from():
    assert all(f"\n{name}: " in combo().tooltip for name in combo().options)


@pytest.mark.parametrize("content, sentence", [
    ("{broken", "cannot be read as JSON"),
    ([1, 2], "holds no presets by name"),
    ({"a": 3}, "'a' in .* is 3"),
    ({"a": {"negative": "x", "w": 1, "start_layer": 0}}, "'a' in .* has neither positive nor positive_with_subject"),
    ({"a": {"positive": "x", "negative": "x", "w": 1}}, "'a' in .* has no start_layer"),
    ({"a": MINE | {"w": "3"}}, "'a' in .* has w '3', which is no number"),
    ({"a": MINE | {"start_layer": 2.5}}, "'a' in .* has start_layer 2.5; it is a whole number from 0 on"),
    ({"a": MINE | {"negative": None}}, "'a' in .* has negative None, which is no text"),
    ({"a": MINE | {"positive_with_subject": "{0.__class__}"}}, "braces stand only around subject"),
    ({"a": MINE | {"negativ": "x"}}, "'a' in .* has negativ, which is not known"),
])
def test_a_file_that_is_wrong_is_named_and_ours_go_on_being_offered(write, content, sentence):
    write(content)
    assert combo().options[0] == "complexity" and "a" not in combo().options
    with pytest.raises(ValueError, match=f"Guidance Preset: .*{sentence}.*Write {{\"my preset\""):
        preset("aesthetics")

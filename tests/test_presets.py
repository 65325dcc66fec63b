"""The user's own presets, in a file in the host's user folder, win over ours."""

import json
import math
import os
import random
import re
import threading

import folder_paths
import pytest

import nodes as host_nodes
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
    return tuple(node("GuidancePreset", preset=name, subject=subject))[:4]


def layers(name, depth, subject=""):
    return node("GuidancePreset", preset=name, subject=subject)[4].resolve(depth)


def test_a_new_one_is_offered_with_where_it_comes_from(write):
    write({"painting": MINE})
    assert combo().options[-1] == "painting" and "aesthetics" in combo().options
    assert "painting: my own trials" in combo().tooltip
    assert "aesthetics: Starodubcev et al., ICLR 2026, direction 2 (FLUX)" in combo().tooltip
    assert preset("painting") == ("oil on canvas", "photograph", 2.0, 7)


def test_one_of_our_name_wins(write):
    write({"hands": {"positive_with_subject": "{subject} waving", "negative": "no hands", "w": 4.5, "start_layer": 0}})
    assert preset("hands", "A {girl}") == ("A {girl} waving", "no hands", 4.5, 0)
    with pytest.raises(ValueError, match="'hands' needs a subject.$"):
        preset("hands")


@pytest.mark.parametrize(
    "name, depth, expected",
    [
        ("hands", 57, [0] * 13 + [1] * 18 + [0.3333] * 15 + [0] * 11),  # the paper's strategy 4, on the model it is for
        ("hands", 38, [0] * 9 + [1] * 12 + [0.3333] * 10 + [0] * 7),  # 13, 31 and 46 of 57 are 8.7, 20.7 and 30.7 of 38
        ("hands", 3, [0, 1, 0.3333]),
        ("booru quality", 28, [0] * 8 + [1] * 19 + [0]),
        ("booru quality (long)", 28, [0] * 8 + [1] * 19 + [0]),
        ("booru quality (safe)", 28, [0] * 14 + [1] * 14),
        ("booru quality (safe)", 40, [0] * 20 + [1] * 20),
        ("aesthetics", 57, [0] * 5 + [1] * 52),
        ("aesthetics", 38, [0] * 5 + [1] * 33),
    ],
)
def test_the_layers_of_a_preset_are_carried_over_in_proportion(name, depth, expected):
    assert layers(name, depth) == tuple(expected)


def test_a_preset_of_the_users_can_have_layers(write):
    write({"painting": MINE | {"layers": "0: 2, 7-9: -0.5", "depth": 10}, "plain": MINE})
    assert layers("painting", 10) == (2, 0, 0, 0, 0, 0, 0, -0.5, -0.5, -0.5)
    assert layers("painting", 20) == (2, 2, *[0] * 12, *[-0.5] * 6)
    assert layers("painting", 2) == (2, -0.5)
    assert layers("plain", 10) == (*[0] * 7, *[1] * 3)


@pytest.mark.parametrize("depth", range(1, 120))
def test_no_range_is_lost_on_the_way_to_another_depth(depth):
    found = layers("hands", depth)
    assert found.count(1) >= 1 and (depth == 1 or found.count(0.3333) >= 1)
    if depth >= 4:
        assert abs(found.index(1) - 13 * depth / 57) <= 0.5 and abs(found.count(1) - 18 * depth / 57) <= 1


def test_a_changed_file_makes_the_node_run_again(write):
    fingerprint = host_nodes.NODE_CLASS_MAPPINGS["GuidancePreset"].fingerprint_inputs
    write({"painting": MINE})
    before = fingerprint(preset="painting")
    assert fingerprint(preset="painting") == before
    linked = fingerprint(preset=None)  # as the host gives one that comes over a link
    write({"painting": MINE | {"w": 5}})
    assert fingerprint(preset="painting") != before
    assert fingerprint(preset=None) != linked


def test_every_preset_of_ours_says_where_it_comes_from():
    assert all(f"\n{name}: " in combo().tooltip for name in combo().options)


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("{broken", "cannot be read as JSON"),
        ([1, 2], "holds no presets by name"),
        ({"a": 3}, "'a' in .* is 3"),
        ({"a": {"negative": "x", "w": 1, "start_layer": 0}}, "'a' in .* has neither positive nor positive_with_subject"),
        ({"a": {"positive": "x", "negative": "x", "w": 1}}, "'a' in .* has no start_layer"),
        ({"a": MINE | {"w": "3"}}, "'a' in .* has w '3', which is no number from -50 to 50"),
        ({"a": MINE | {"start_layer": 2.5}}, "'a' in .* has start_layer 2.5; it is a whole number from 0 to 1000"),
        ({"a": MINE | {"negative": None}}, "'a' in .* has negative None, which is no text"),
        ({"a": MINE | {"positive_with_subject": "{0.__class__}"}}, "braces stand only around subject"),
        ({"a": MINE | {"w": 10**400}}, "'a' in .* has w 1000*\\.\\.\\.0*, which is no number from -50 to 50"),
        ({"a": MINE | {"start_layer": 10**400}}, "'a' in .* has start_layer 1000*\\.\\.\\.0*; it is a whole number from 0 to 1000"),
        ({"a": MINE | {"w": "1" * 900_000}}, "'a' in .* has w '111*\\.\\.\\.1*', which is no number"),
        ({"a": [[[["x" * 900_000]]]]}, "'a' in .* is "),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "cannot be read as JSON .*recursion"),
        ('{"a": ' + "[" * 900 + "]" * 900 + "}", "'a' in .* is "),
        ('{"a": ' + "1" * 10_000 + "}", "cannot be read as JSON"),
        ({"a": MINE | {"layers": "0-5: 1"}}, "'a' in .* has one of layers and depth"),
        ({"a": MINE | {"depth": 28}}, "'a' in .* has one of layers and depth"),
        ({"a": MINE | {"layers": 5, "depth": 28}}, "'a' in .* has layers 5, which is no text"),
        ({"a": MINE | {"layers": "0-5: 1", "depth": 28.5}}, "'a' in .* has depth 28.5, which is no whole number"),
        ({"a": MINE | {"layers": "5-0: 1", "depth": 28}}, "'a' in .* has layers that cannot be used .*runs backwards"),
        ({"a": MINE | {"layers": "0-28: 1", "depth": 28}}, "'a' in .* has layers that cannot be used .*depth is 29 at least"),
        ({"a": MINE | {"layers": "0-5: 1", "depth": 10**400}}, "'a' in .* has layers that cannot be used .*1001 at most"),
        ({"a": MINE | {"layers": "0: 1" + "0" * 400, "depth": 28}}, "'a' in .* has layers that cannot be used"),
        ({"a": MINE | {"layers": "x" * 900_000, "depth": 28}}, "'a' in .* has layers that cannot be used"),
        ({"a": MINE | {"family": "FLUX"}}, "'a' in .* has family 'FLUX'; choose one of FLUX.1, SD3, "),
        ({"a": MINE | {"family": ["FLUX.1"]}}, "'a' in .* has family \\['FLUX.1'\\]; choose one of"),
        ({"custom": MINE}, "'custom' in .* has a name that Modulation Guidance gives to words of one's own"),
        ({"a": MINE | {"negativ": "x"}}, "'a' in .* has 'negativ', which is not known"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_file_that_is_wrong_is_named_and_ours_go_on_being_offered(write, caplog, content, sentence):
    write(content)
    assert combo().options[0] == "complexity" and "a" not in combo().options
    assert re.search(f"Guidance Preset: .*{sentence}.*there are the pack's own presets, without yours", caplog.text)
    with pytest.raises(ValueError, match=f'Guidance Preset: .*{sentence}.*Write {{"my preset"') as refused:
        preset("aesthetics")
    assert len(str(refused.value)) < 1000


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes of that kind")
def test_a_pipe_of_that_name_is_not_waited_for(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    os.mkfifo(tmp_path / "modulation_guidance_presets.json")
    offered = []
    waiting = threading.Thread(target=lambda: offered.extend(combo().options), daemon=True)
    waiting.start()
    waiting.join(10)
    assert offered[0] == "complexity" and "is no file, but a folder, a pipe" in caplog.text


def test_a_folder_of_that_name_is_said_so(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    (tmp_path / "modulation_guidance_presets.json").mkdir()
    assert combo().options[0] == "complexity"
    with pytest.raises(ValueError, match="is no file"):
        preset("aesthetics")


def test_a_byte_order_mark_is_read_over(write):
    write("\ufeff" + json.dumps({"painting": MINE}))
    assert preset("painting") == ("oil on canvas", "photograph", 2.0, 7)


def odd_value(draw, depth=0):
    """A piece of JSON as it may come out of any program."""
    kinds = ["text", "number", "other", "preset", "preset"] + ["list", "object"] * (depth < 4)
    match draw.choice(kinds):
        case "text":
            return draw.choice(["", "a", "{", "{subject}", "{0}", "\ud800", "\0", "x" * 5000, "{subject", "NaN"])
        case "number":
            return draw.choice([0, -1, 1, 2.5, 1e308, -1e-308, 10**30, 10**400, math.nan, math.inf, -0.0])
        case "other":
            return draw.choice([None, True, False])
        case "list":
            return [odd_value(draw, depth + 1) for _ in range(draw.randrange(4))]
        case "object":
            return {str(odd_value(draw, 4)): odd_value(draw, depth + 1) for _ in range(draw.randrange(4))}
    preset = dict(MINE)
    if draw.randrange(2):
        preset |= {"layers": "0-3: 1", "depth": 8}
    for key in draw.sample([*preset, "positive_with_subject", "example"], draw.randrange(3)):
        preset[key] = odd_value(draw, depth + 1)
    return preset


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_file_holds_ours_are_offered(write, tmp_path, seed):
    draw = random.Random(seed)
    for _ in range(20):
        content = json.dumps({draw.choice(["a", "hands", "", "\ud800"]): odd_value(draw) for _ in range(2)}).encode()
        for _ in range(draw.choice([0, 0, 1, 5])):
            place = draw.randrange(len(content))
            content = content[:place] + bytes([draw.randrange(256)]) + content[place + draw.randrange(2) :]
        (tmp_path / "modulation_guidance_presets.json").write_bytes(content)
        assert {"complexity", "hands"} <= set(combo().options)
        try:
            preset(draw.choice(combo().options), "a subject")
        except ValueError as error:
            assert str(error).startswith("Guidance Preset: ") and len(str(error)) < 1000

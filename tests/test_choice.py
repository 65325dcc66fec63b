"""The setting with the most of what is wanted, of those that keep enough; the plain one where none is better."""

import importlib
import math

import numpy as np
import pytest
import torch

import nodes as host_nodes
from benchmarks.in_process import node

PACK = host_nodes.NODE_CLASS_MAPPINGS["ChooseGuidance"].__module__.rpartition(".nodes")[0]
choice = importlib.import_module(PACK + ".scoring.choice")
drawing = importlib.import_module(PACK + ".nodes.choice_diagram")
labels_node = importlib.import_module(PACK + ".nodes.labels")
NAN = math.nan

LABELS = ["plain", "w 1.5, start 0", "w 1.5, start 5", "w 3, start 0", "w 3, start 5"]


def image(number, batch=1):
    return torch.full((batch, 8, 8, 3), number / 100)


def chosen(labels, wanted, kept, tolerance=0.02, images=None):
    """(label, w, start layer) and the image's number."""
    images = [image(i) for i in range(len(labels))] if images is None else images
    made, label, w, start, diagram = node("ChooseGuidance", images=images, labels=labels, wanted=wanted, kept=kept, tolerance=[tolerance])
    assert diagram.shape[0] == 1 and diagram.shape[2] == 1280 and diagram.shape[3] == 3
    return (label, w, start), round(made.flatten()[0].item() * 100)


def decided(labels, wanted, kept, tolerance=0.02):
    return choice.choose(labels_node.settings_of("Test", labels), wanted, kept, tolerance)


def test_the_most_wanted_of_those_that_keep_enough():
    setting, picture = chosen(LABELS, [5, 6, 5.5, 9, 7], [30, 29.5, 30, 28, 29.4])
    assert setting == ("w 3, start 5", 3.0, 5) and picture == 4


@pytest.mark.parametrize(
    "tolerance, label", [(0.0, "w 1.5, start 5"), (0.0199, "w 1.5, start 0"), (0.02, "w 3, start 5"), (0.07, "w 3, start 0")]
)
def test_the_tolerance_is_a_share_of_what_the_plain_image_keeps(tolerance, label):
    assert chosen(LABELS, [5, 6, 5.5, 9, 7], [30, 29.5, 30, 28, 29.4], tolerance)[0][0] == label


@pytest.mark.parametrize("plain", [2.7, 4.9, 5.4, 1.1, 61, 0.3, 1e-3])
def test_just_the_tolerance_may_be_lost(plain):
    for kept, label in ((0.98, "w 1, start 0"), (0.97999, "plain")):
        assert chosen(["plain", "w 1, start 0"], [0, 1], [plain, plain * kept])[0][0] == label


@pytest.mark.parametrize("kept, label", [([-2, -2.03, -2, -3, -3], "w 1.5, start 0"), ([0, -0.01, 0, 0, -1], "w 3, start 0")])
def test_what_is_kept_may_be_negative_or_zero(kept, label):
    assert chosen(LABELS, [5, 6, 5.5, 5.6, 7], kept)[0][0] == label


@pytest.mark.parametrize(
    "wanted, kept, why",
    [
        ([5, 4, 4.9, 3, 1], [30] * 5, "plain: no setting has more of what is wanted than its 5.000"),
        ([5] * 5, [30] * 5, "plain: no setting has more of what is wanted than its 5.000"),
        (
            [5, 9, 8, 7, 4],
            [30, 20, 28, 21, 35],
            "plain: 3 settings have more of what is wanted, but none keeps 29.40, the least allowed; w 1.5, start 5 comes nearest, with 28.00",
        ),
    ],
    ids=["all worse", "all the same", "all lose too much"],
)
def test_the_plain_image_where_none_is_better(wanted, kept, why):
    assert chosen(LABELS, wanted, kept) == (("plain", 0.0, 0), 0)
    assert decided(LABELS, wanted, kept).why.startswith(why)


def test_the_plain_image_alone():
    assert chosen(["plain"], [5], [30]) == (("plain", 0.0, 0), 0)
    assert decided(["plain"], [5], [30]).why == "plain: there is no other setting to choose."


def test_of_two_settings_the_one_that_is_better():
    assert chosen(["w 2, start 3", "plain"], [6, 5], [30, 30]) == (("w 2, start 3", 2.0, 3), 0)


@pytest.mark.parametrize(
    "labels, first",
    [
        (["plain", "w 3, start 5", "w 1.5, start 0", "w 1.5, start 5"], "w 1.5, start 5"),
        (["plain", "w -2, start 0", "w 3, start 9"], "w -2, start 0"),
    ],
)
def test_of_ties_the_gentler_one_and_it_is_said(labels, first):
    scores = [5] + [6] * (len(labels) - 1)
    assert chosen(labels, scores, [30] * len(labels))[0][0] == first
    (note,) = decided(labels, scores, [30] * len(labels)).notes
    assert note.startswith("As good: ") and note.endswith("The gentler one was taken.") and first not in note
    assert all(label in note for label in labels[1:] if label != first)


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("column", ["wanted", "kept"])
def test_what_has_no_scores_is_left_out_and_it_is_said(value, column):
    scores = {"wanted": [5, 6, 5.5, 9, 7], "kept": [30] * 5}
    scores[column] = [*scores[column][:3], value, scores[column][4]]
    assert chosen(LABELS, **scores)[0][0] == "w 3, start 5"
    assert decided(LABELS, **scores).notes == ("Left out, as their scores are not numbers: w 3, start 0.",)


def test_all_but_plain_without_scores():
    assert chosen(LABELS, [5, NAN, NAN, NAN, NAN], [30] * 5)[0][0] == "plain"


def test_settings_are_means_over_prompts_and_seeds_paired_with_their_own_plain_image():
    labels = ["plain", "plain", "w 2, start 0", "w 2, start 0", "w 3, start 0", "w 3, start 0"]
    wanted, kept = [1, 9, 2, 10, 8, 3], [10, 50, 10, 50, 10, 50]
    made = decided(labels, wanted, kept)
    assert [(one.setting.label, one.wanted, one.kept, one.better, one.pictures) for one in made.settings] == [
        ("plain", 5, 30, 0, 2),
        ("w 2, start 0", 6, 30, 2, 2),
        ("w 3, start 0", 5.5, 30, 1, 2),
    ]
    assert made.why.startswith("w 2, start 0: the most of what is wanted, 6.000 (+1.000 from plain, more in 2 of 2 images)")
    assert chosen(labels, wanted, kept)[0] == ("w 2, start 0", 2.0, 0)
    # Two seeds as a batch of each setting, in any order of settings.
    images = [image(0, 2), image(1, 2), image(2, 2)]
    assert chosen(["w 3, start 0", "plain", "w 2, start 0"], [8, 3, 1, 9, 2, 10], [10, 50] * 3, images=images) == (
        ("w 2, start 0", 2.0, 0),
        2,
    )


def test_a_plain_image_without_scores_takes_its_pair_out_everywhere():
    labels = ["plain", "plain", "w 2, start 0", "w 2, start 0"]
    made = decided(labels, [NAN, 5, 100, 4], [30] * 4)
    assert made.chosen is made.plain and made.plain.pictures == 1
    assert made.notes == ("1 image of 2 left out, in all settings: the plain one's scores are not numbers.",)


@pytest.mark.parametrize(
    "labels, wanted, kept, sentence",
    [
        (["w 2, start 0"], [1], [1], "none of the images is plain, .*Put 0 among the w_values of the sweep"),
        (["plain", "w 2, start 0", "w 2, start 0"], [1, 2, 3], [1, 2, 3], "w 2, start 0 has 2 images, and plain 1. Every setting"),
        (["plain", "w 2, start 0"], [NAN, 1], [1, 1], "plain has no scores that are numbers"),
        (["plain", "a cat"], [1, 2], [1, 2], "the label 'a cat' names no setting. Connect the labels of Sweep"),
        (["plain", "w x, start 0"], [1, 2], [1, 2], "the label 'w x, start 0' names no setting"),
        (["plain", "w nan, start 0"], [1, 2], [1, 2], "the label 'w nan, start 0' names no setting"),
        (["plain", "w 2, start 0"], [1], [1, 2], "wanted has 1 scores for 2 images. Connect Score Pictures"),
        (["plain", "w 2, start 0"], [1, 2], [1, 2, 3], "kept has 3 scores for 2 images"),
    ],
)
def test_what_cannot_be_chosen_from_is_said(labels, wanted, kept, sentence):
    with pytest.raises(ValueError, match=f"Choose Guidance: {sentence}"):
        chosen(labels, wanted, kept)


def test_with_a_projection_w_0_is_the_plain_image():
    assert chosen(["w 0", "w 2, start 3"], [1, 2], [1, 1])[0] == ("w 2, start 3", 2.0, 3)
    assert chosen(["w 0, start 0", "w 0, start 5", "w 2, start 5"], [3, 1, 2], [1, 1, 1])[0] == ("w 0, start 0", 0.0, 0)


def test_the_sweeps_own_labels_are_read_back():
    for w in (1.5, 1.0000001, 3e-07, -2.0, 50.0):
        for start in (0, 57):
            (setting,) = labels_node.settings_of("Test", [labels_node.label_of(w, start)])
            assert (setting.w, setting.start_layer) == (w, start)


def ink(picture, color):
    return int((np.asarray(picture) == color).all(axis=-1).sum())


@pytest.mark.parametrize("count", [1, 2, 13, 400])
def test_the_diagram_marks_the_chosen_setting_and_stays_readable(count):
    labels = ["plain", *(f"w {w}, start {start}" for w in range(1, 50) for start in range(0, 60, 5))][:count]
    made = decided(labels, [5 + i % 7 for i in range(count)], [30 - i % 3 for i in range(count)], 0.05)
    picture = drawing.choice_picture(made, 0.05)
    assert picture.width == 1280 and picture.height < 3000
    assert ink(picture, drawing.ALARM) > 100


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9])
def test_scores_of_any_size_are_drawn(scale):
    made = decided(LABELS, [scale * part for part in (5, 6, 5.5, 9, 7)], [scale * part for part in (30, 29.5, 30, 28, 29.4)])
    assert drawing.choice_picture(made, 0.02).width == 1280

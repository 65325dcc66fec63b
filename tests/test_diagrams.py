"""The diagrams of Inspect and Choose Guidance, read back from their pixels: places, sizes and words stand for the numbers they show."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks.in_process import of_pack

choice, labels_node, pictures = of_pack("scoring.choice"), of_pack("nodes.labels"), of_pack("nodes.pictures")
choosing, inspecting = of_pack("nodes.choice_diagram"), of_pack("nodes.diagrams")
Inspection = of_pack("model_patches.inspection").Inspection
BURNING = of_pack("model_patches.telling").BURNING
INK, PAPER, ALARM, FAINT, COLORS = pictures.INK, pictures.PAPER, pictures.ALARM, pictures.FAINT, pictures.COLORS


def where(pixels, color):
    return (pixels == np.array(color)).all(axis=-1)


def bounds(mask):
    """(left, top, right, bottom), the last ones included."""
    rows, columns = np.nonzero(mask)
    return columns.min(), rows.min(), columns.max(), rows.max()


def center(mask):
    left, top, right, bottom = bounds(mask)
    return (left + right) / 2, (top + bottom) / 2


def line(numbers, places):
    """number -> place, by the first and the last of them, which the others must stand on."""
    slope = (places[-1] - places[0]) / (numbers[-1] - numbers[0])

    def at(number):
        return places[0] + slope * (number - numbers[0])

    assert places == pytest.approx([at(number) for number in numbers], abs=1)
    return at


def reads(pixels, x, y, candidates, letters, anchor):
    """Which of the texts stands there, to a pixel: the one that differs least from what does."""

    boxes = [letters.getbbox(text, anchor=anchor) for text in candidates]
    left, top = (round(at + side) - 2 for at, side in zip((x, y), np.min(boxes, axis=0)[:2], strict=True))
    right, bottom = (round(at + side) + 2 for at, side in zip((x, y), np.max(boxes, axis=0)[2:], strict=True))
    there = pixels[top:bottom, left:right]

    def difference(text, across, down):
        picture = Image.new("RGB", there.shape[1::-1], PAPER)
        ImageDraw.Draw(picture).text((x - left + across, y - top + down), text, INK, letters, anchor=anchor)
        return np.abs(np.asarray(picture).astype(int) - there).sum()

    near = np.arange(-1, 1.25, 0.25)
    return min(candidates, key=lambda text: min(difference(text, across, down) for across in near for down in near))


# Choose Guidance: kept to the right, wanted up. Each start layer has a color, and here one setting.

SCORES = {"plain": (4.0, 30.0), "w 2, start 0": (5.0, 28.0), "w 3, start 5": (7.0, 29.0), "w 4, start 9": (9.0, 26.0)}
FLOOR = 28.5  # with a tolerance of 5 %


@pytest.fixture(scope="module")
def chosen():
    settings = labels_node.settings_of("Test", list(SCORES))
    made = choice.choose(settings, *zip(*SCORES.values(), strict=True), 0.05)
    assert made.chosen.setting.label == "w 3, start 5" and made.floor == pytest.approx(FLOOR)
    return np.asarray(choosing.choice_picture(made, 0.05)).astype(int)


@pytest.fixture(scope="module")
def plot(chosen):
    """(left, top, right, bottom) of the part where too much is lost."""
    lost = where(chosen, choosing.LOST)
    return bounds(lost & (lost.sum(axis=1) > 100)[:, None])


@pytest.fixture(scope="module")
def axes(chosen, plot):
    """(kept -> x, wanted -> y), by the marks' centers."""
    marks = [bounds(where(chosen[: plot[3] + 1], color)) for color in COLORS[:3]]
    assert {(right - left, bottom - top) for left, top, right, bottom in marks} == {(14, 14)}
    places = [((left + right) / 2, (top + bottom) / 2) for left, top, right, bottom in marks]
    wanted, kept = zip(*list(SCORES.values())[1:], strict=True)
    order = sorted(range(3), key=lambda i: kept[i])
    return line([kept[i] for i in order], [places[i][0] for i in order]), line(wanted, [y for _, y in places])


def test_marks_stand_where_their_scores_are(axes):
    x, y = axes
    assert x(30) > x(26) + 400 and y(4) > y(9) + 300, "more is right, and up"


def test_what_loses_too_much_lies_left_of_the_floor(chosen, plot, axes):
    x, y = axes
    left, top, right, bottom = plot
    assert x(FLOOR) - 2 <= right <= x(FLOOR) + 1
    assert left < x(26) < right and top < y(9) and y(4) < bottom
    column = where(chosen[top : bottom + 1, round(x(FLOOR)) - 1 : round(x(FLOOR)) + 2], ALARM).any(axis=1)
    assert column.mean() > 0.95, "a line from top to bottom"


def test_the_chosen_one_is_ringed_and_the_plain_one_a_diamond_on_its_line(chosen, plot, axes):
    x, y = axes
    ring = where(chosen, ALARM)
    ring[:, : plot[2] + 4] = ring[plot[3] :] = ring[: plot[1]] = False
    assert center(ring) == pytest.approx((x(29), y(7)), abs=1)
    assert bounds(ring)[2] - bounds(ring)[0] == pytest.approx(34, abs=2)
    across, down = round(x(30)), round(y(4))
    diamond = where(chosen[down - 14 : down + 15, across - 11 : across + 12], INK)
    assert [np.ptp(np.nonzero(diamond[row])[0]) for row in (4, 9, 14, 19, 24)] == pytest.approx([2, 12, 22, 12, 2], abs=2)
    dashes = where(chosen[down - 1 : down + 2, plot[0] : across - 12], INK).any(axis=0)
    assert 0.4 < dashes.mean() < 0.7, "dashes from the left to it"


def test_numbers_stand_at_their_grid_lines(chosen, plot, axes):
    x, y = axes
    left, top, right, bottom = plot
    kept, wanted = [str(number) for number in range(26, 31)], [str(number) for number in range(3, 11)]
    for number in kept:
        across = round(x(int(number)))
        assert where(chosen[top:bottom, across - 1 : across + 2], FAINT).any(axis=1).mean() > 0.7, f"a line at {number}"
        assert reads(chosen, x(int(number)), bottom + 6, kept, choosing.SMALL, "ma") == number
    for number in ("4", "6", "8"):
        down = round(y(int(number)))
        if number != "4":  # where the dashes are
            assert where(chosen[down - 1 : down + 2, left:], FAINT).any(axis=0).mean() > 0.8, f"a line at {number}"
        assert reads(chosen, left - 8, y(int(number)), wanted, choosing.SMALL, "rm") == number


def test_the_legend_names_each_color(chosen, plot):
    below = chosen[plot[3] + 60 :]
    names = [f"start layer {start}" for start in (0, 5, 9)]
    for color, name in zip(COLORS[:3], names, strict=True):
        x, y = center(where(below, color))
        assert reads(below, x + 18, y - 11, names, choosing.SMALL, "la") == name


def test_the_table_has_each_score_in_the_row_of_its_setting(chosen):
    """The most wanted first."""
    rows = [
        ("w 4, start 9", "9.000", "+5.000", "26.00", "-4.00", "loses too much"),
        ("w 3, start 5", "7.000", "+3.000", "29.00", "-1.00", "chosen"),
        ("w 2, start 0", "5.000", "+1.000", "28.00", "-2.00", "loses too much"),
        ("plain", "4.000", "", "30.00", "", ""),
    ]
    step = round(1.3 * pictures.line_height(choosing.SMALL))
    expected = Image.new("RGB", (choosing.WIDTH, 5 * step), PAPER)
    draw = ImageDraw.Draw(expected)
    lefts = [32 + left for left in (0, 300, 470, 640, 810, 980)]
    for i, row in enumerate([("setting", "wanted", "from plain", "kept", "from plain", ""), *rows]):
        for left, text in zip(lefts, row, strict=True):
            draw.text((left, i * step), text, ALARM if "chosen" in row else INK, choosing.SMALL)
    draw.line((32, step - 4, choosing.WIDTH - 32, step - 4), INK)
    top = len(chosen) - 5 * step - 32
    assert (chosen[top : top + 5 * step] == np.asarray(expected)).all()


# Inspect Guidance.


def inspected(strengths, modulation=((1.0,),), pooled=None, labels=("one",)):
    inspection = Inspection("FLUX.1", len(strengths[0]) - 1, (0.5,), pooled, [list(row) for row in modulation], strengths, ())
    return np.asarray(inspecting.inspection_picture(inspection, list(labels), 3.0)).astype(int)


STRENGTHS = [0.0, 0.2, 0.8, 0.4, 0.1]  # of four layers and the head


@pytest.fixture(scope="module")
def bars():
    return inspected([STRENGTHS])


def columns_of(pixels):
    """[(left, top, right, bottom)] of the bars, the legend's square left out."""
    mask = where(pixels, COLORS[0])
    mask[mask.sum(axis=1) < 40] = False
    edges = np.flatnonzero(np.diff(np.pad(mask.any(axis=0), 1).astype(int)))
    return [bounds(mask & ((np.arange(mask.shape[1]) >= a) & (np.arange(mask.shape[1]) < b))) for a, b in edges.reshape(-1, 2)]


def test_bars_are_as_high_as_the_strengths_and_stand_over_their_numbers(bars):
    drawn = columns_of(bars)
    assert len(drawn) == 4, "none for a layer without"
    (base,) = {bottom for *_, bottom in drawn}
    at = line([0.1, 0.2, 0.4, 0.8], sorted((top for _, top, _, _ in drawn), reverse=True))
    assert [top for _, top, _, _ in drawn] == pytest.approx([at(value) for value in STRENGTHS if value], abs=1)
    assert at(0) == pytest.approx(base, abs=1.5)
    middles = [(left + right) / 2 for left, _, right, _ in drawn]
    step = middles[1] - middles[0]
    assert middles[2] - middles[1] == pytest.approx(step, abs=1) and middles[3] - middles[2] == pytest.approx(1.5 * step, abs=1)
    assert {round((right - left) / step, 1) for left, _, right, _ in drawn} == {0.8}
    assert middles[0] - 1.5 * step == pytest.approx(bounds(where(bars, FAINT))[0], abs=1), "the first layer, where the axis begins"
    names = ["0", "1", "2", "3", "4", "output"]
    for x, name in zip([middles[0] - step, *middles], ["0", "1", "2", "3", "output"], strict=True):
        assert reads(bars, x, base + 6, names, inspecting.SMALL, "ma") == name


def test_the_axis_and_the_line_where_pictures_burn_stand_at_their_strengths(bars):
    drawn = columns_of(bars)
    base = drawn[0][3]
    at = line([0, 0.8], [base, min(top for _, top, _, _ in drawn)])
    red = where(bars, ALARM)
    red[red.sum(axis=1) < 400] = False
    assert center(red)[1] == pytest.approx(at(BURNING), abs=1.5)
    marks = ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    for mark in marks[:-1]:
        assert reads(bars, 32 + 64 - 8, at(float(mark)), marks, inspecting.SMALL, "rm") == mark


def test_no_line_where_nothing_burns():
    assert where(inspected([[0.1, 0.3, 0.2]]), ALARM).sum() == 0


def test_lines_of_several_directions_go_through_their_strengths():
    several = [[0.2, 0.4, 0.6, 0.8, 0.0], [0.8, 0.6, 0.4, 0.2, float("nan")]]
    modulation = [[1.0, -0.9], [-0.9, 1.0]]
    pixels = inspected(several, modulation, labels=("one", "two"))
    alone = inspected([STRENGTHS])
    chart = len(pixels) - len(alone)  # the matrices are above it
    bars = columns_of(alone)
    at = line([0, 0.8], [bars[0][3] + chart, min(top for _, top, _, _ in bars) + chart])
    middle = [(left + right) / 2 for left, _, right, _ in bars]
    layers = [2 * middle[0] - middle[1], *middle[:3], middle[3]]
    for strengths, color in zip(several, COLORS, strict=False):
        for x, value in zip(layers, strengths, strict=True):
            if value == value:
                near = pixels[round(at(value)) - 2 : round(at(value)) + 3, round(x) - 2 : round(x) + 3]
                assert where(near, color).any(), (value, color)
    head = pixels[chart + 100 :, round(layers[4]) - 12 : round(layers[4]) + 13]
    assert not where(head[:-120], COLORS[1]).any(), "nothing at a head that takes no shift"


def test_lines_of_equal_strengths_do_not_hide_each_other():
    pixels = inspected([[0.4] * 5] * 3, [[1.0] * 3] * 3, labels=("one", "two", "three"))
    chart = pixels[len(pixels) - len(inspected([STRENGTHS])) :]
    for color in COLORS[:3]:
        assert (where(chart, color).sum(axis=1) > 300).any(), "a line of it"


COSINES = [[1.0, 0.25, -0.5], [0.25, 1.0, -0.75], [-0.5, -0.75, 1.0]]


def test_cells_of_the_matrices_are_tinted_and_numbered_by_their_cosines():
    """Two matrices side by side: pooled outputs left, shifts right."""
    pooled = [[1.0, 0.6, 0.1], [0.6, 1.0, -0.3], [0.1, -0.3, 1.0]]
    pixels = inspected([[0.1, 0.2]] * 3, COSINES, pooled, ("one", "two", "six"))
    side = (1280 - 3 * 32) // 2
    cell, top = (side - side // 4) / 3, 32 + 48 + pictures.line_height(inspecting.TEXT) + side // 4
    for matrix, left in ((pooled, 32 + side // 4), (COSINES, 32 + side + 32 + side // 4)):
        for i, row in enumerate(matrix):
            for j, cosine in enumerate(row):
                x, y = left + j * cell, top + i * cell
                tint = COLORS[0] if cosine > 0 else COLORS[1]
                expected = [255 + (part - 255) * abs(cosine) for part in tint]
                inner = pixels[round(y) + 4 : round(y + cell) - 6, round(x) + 4 : round(x + cell) - 6]
                assert inner[0] == pytest.approx(np.tile(np.round(expected), (inner.shape[1], 1)), abs=1), (i, j)
                gap = pixels[round(y + cell) - 1, round(x) + 20 : round(x + cell) - 20]
                assert (gap == PAPER).all(), "apart from the next"
                assert number_in(pixels, x, y, cell, expected, abs(cosine) > 0.6) == f"{cosine:.2f}", (i, j)


def number_in(pixels, left, top, cell, tint, bright):
    """Which of the numbers from -1.00 to 1.00 stands in the middle of a cell."""
    x, y = round(left + cell / 2), round(top + cell / 2)
    there = pixels[y - 16 : y + 17, x - 40 : x + 41]

    def difference(text, across):
        picture = Image.new("RGB", there.shape[1::-1], tuple(round(part) for part in tint))
        letters = pictures.fitted(text, min(26, cell * 0.4), cell * 0.9)
        ImageDraw.Draw(picture).text((40 + across, 16), text, PAPER if bright else INK, letters, anchor="mm")
        return np.abs(np.asarray(picture).astype(int) - there).sum()

    texts = {f"{number / 100:.2f}" for number in range(-100, 101, 5)} | {"-0.00"}
    return min(texts, key=lambda text: min(difference(text, across) for across in np.arange(-1, 1.25, 0.25)))


def test_no_number_is_minus_nothing():
    nearly, none = (inspected([[0.1, 0.2]] * 2, [[1.0, off], [off, 1.0]], labels=("one", "two")) for off in (-0.0001, 0.0001))
    assert (nearly == none).mean() > 0.9999


@pytest.mark.parametrize("count", [2, 12])
def test_nothing_runs_over_the_edge(count):
    """Long names in the legend, and long warnings."""
    names = [f"a direction that has a long name {i}" for i in range(count)]
    inspection = Inspection("FLUX.1", 1, (0.5,), None, np.eye(count).tolist(), [[0.1, 0.2]] * count, ("a warning " * 40,))
    settings = labels_node.settings_of("Test", ["plain", *(f"w 2, start {7 * i}" for i in range(count))])
    made = choice.choose(settings, [4.0, *range(5, 5 + count)], [30.0] * (count + 1), 0.05)
    for picture in (inspecting.inspection_picture(inspection, names, 3.0), choosing.choice_picture(made, 0.05)):
        pixels = np.asarray(picture)
        assert (pixels[:, :16] == PAPER).all() and (pixels[:, -16:] == PAPER).all()


@pytest.mark.parametrize("which", range(3))
def test_names_stand_beside_their_row_and_over_their_column(which):
    names = ["one", "two", "six"]
    other = [*names[:which], "mad", *names[which + 1 :]]
    pixels, renamed = (inspected([[0.1, 0.2]] * 3, COSINES, COSINES, labels) for labels in (names, other))
    side = (1280 - 3 * 32) // 2
    cell, top = (side - side // 4) / 3, 32 + 48 + pictures.line_height(inspecting.TEXT)
    differs = (pixels != renamed).any(axis=-1)
    for left in (32, 32 + side + 32):
        matrix = differs[top : top + side, left : left + side]
        beside, over = matrix[:, : side // 4], matrix[: side // 4]
        assert center(beside)[1] == pytest.approx(side // 4 + (which + 0.5) * cell, abs=6)
        assert bounds(beside)[2] == pytest.approx(side // 4 - 8, abs=3)
        assert center(over)[0] == pytest.approx(side // 4 + (which + 0.5) * cell, abs=6)
        assert bounds(over)[3] == pytest.approx(side // 4 - 8, abs=3)
        assert not matrix[side // 4 :, side // 4 :].any()

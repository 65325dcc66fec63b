"""A sweep is so many guided models and nothing else; a grid shows each picture where its label says."""

import importlib
import re
import threading
import time

import comfy.model_management
import comfy.sd
import psutil
import pytest
import torch
from support import flux

import nodes as host_nodes
from benchmarks.in_process import node

drawing = importlib.import_module(host_nodes.NODE_CLASS_MAPPINGS["GuidanceGrid"].__module__.rpartition(".")[0] + ".pictures")


@pytest.fixture(scope="module")
def schnell():
    return flux.flux()


def sweep(model, **inputs):
    return node(
        "SweepModulationGuidance", **{"model": model, "direction": flux.direction(), "w_values": "0, 2", "start_layers": "0, 5"} | inputs
    )


def grid(images, labels, title=None):
    return node("GuidanceGrid", images=images, labels=labels, **({} if title is None else {"title": [title]}))[0]


def plain(color, width=320, height=240, batch=1):
    return torch.tensor(color).expand(batch, height, width, 3).clone()


def test_one_model_for_each_w_and_start_layer_and_one_unguided(schnell):
    models, labels = sweep(schnell, w_values="0, 1.5, 3, 6", start_layers="0, 5, 7")
    assert labels == ["plain", *(f"w {w}, start {start}" for w in ("1.5", "3", "6") for start in (0, 5, 7))]
    assert len(models) == len(labels) == 10


def test_each_model_is_what_apply_makes_of_it(schnell):
    models, labels = sweep(schnell, w_values="0, -1, 2", cfg_rows="opposed", keep_norm=True, start_percent=0.1)
    expected = {"plain": schnell} | {
        f"w {w}, start {start}": flux.apply(
            schnell, flux.direction(), w=float(w), schedule=flux.schedule(start), cfg_rows="opposed", keep_norm=True, start_percent=0.1
        )
        for w in (-1, 2)
        for start in (0, 5)
    }
    assert labels == list(expected)
    pictures = [flux.sample(model, cfg=2.0, steps=2) for model in models]
    for picture, model in zip(pictures, expected.values(), strict=True):
        assert torch.equal(picture, flux.sample(model, cfg=2.0, steps=2))
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(pictures) for b in pictures[:i])


@pytest.mark.parametrize(
    "schedule, alike",
    [
        (
            lambda: flux.schedule(3, end_layer=6, taper_layers=1, final_layer=0.5),
            lambda: flux.schedule(1, end_layer=6, taper_layers=1, final_layer=0.5),
        ),
        (
            lambda: node("GuidanceLayerScheduleText", layers="0-2: 0.5, 6: 2", final_layer=0.3)[0],
            lambda: node("GuidanceLayerScheduleText", layers="1-2: 0.5, 6: 2", final_layer=0.3)[0],
        ),
    ],
    ids=["a range moves", "a text loses what is before"],
)
def test_start_layers_in_a_schedule(schnell, schedule, alike):
    (model,), _ = sweep(schnell, w_values="2", start_layers="1", schedule=schedule())
    assert torch.equal(flux.sample(model), flux.sample(flux.apply(schnell, flux.direction(), w=2.0, schedule=alike())))


def test_nothing_is_loaded_again(schnell):
    """N samplings and nothing else: the same weights, patched once, in one loaded model."""
    lora = {
        "diffusion_model.vector_in.in_layer.lora_up.weight": torch.full((flux.HIDDEN, 1), 0.1),
        "diffusion_model.vector_in.in_layer.lora_down.weight": torch.full((1, flux.POOLED), 0.1),
    }
    patched, _ = comfy.sd.load_lora_for_models(schnell, None, lora, 1.0, 0.0)
    models, _ = sweep(patched, w_values="0, 1, 2")
    assert all(model.is_clone(schnell) for model in models)
    flux.sample(models[0], steps=1)
    uuid = schnell.model.current_weight_patches_uuid
    pointers = [parameter.data_ptr() for parameter in schnell.model.parameters()]
    loads = []
    load = type(schnell).load

    def counted(self, *args, **kwargs):
        loads.append(self)
        return load(self, *args, **kwargs)

    type(schnell).load = counted
    try:
        for model in models[1:]:
            flux.sample(model, steps=1)
    finally:
        type(schnell).load = load
    assert not loads
    assert schnell.model.current_weight_patches_uuid == uuid
    assert [parameter.data_ptr() for parameter in schnell.model.parameters()] == pointers
    assert sum(loaded.real_model() is schnell.model for loaded in comfy.model_management.current_loaded_models) == 1


@pytest.mark.parametrize(
    "inputs, sentence",
    [
        ({"w_values": "0, x"}, r"Sweep Modulation Guidance: 'x' in w_values is not a number. Write e.g. 0, 1.5, 3, 6"),
        ({"w_values": ""}, "'' in w_values is not a number"),
        ({"w_values": "1, inf"}, "'inf' in w_values is not a number"),
        ({"w_values": "60"}, "w_values holds 60; w goes from -50 to 50"),
        ({"start_layers": "0, 2.5"}, "'2.5' in start_layers is not a whole number"),
        ({"start_layers": "-1"}, "start_layers holds -1; layers count from 0 and go up to 1000"),
        ({"start_layers": "1" + "0" * 400}, r"start_layers holds 1000*\.\.\.0*; layers count from 0 and go up to 1000"),
        ({"w_values": ", ".join(map(str, range(2000)))}, r"w_values holds more than 1000 numbers: '0, 1, 2.*\.\.\..*1999'. Sweep in parts"),
        ({"w_values": "0..10:0.001"}, "w_values holds more than 1000 numbers: '0..10:0.001'"),
        ({"start_layers": "0..1" + "0" * 400}, "start_layers holds more than 1000 numbers"),
        ({"start_layers": "0..x"}, "'x' in start_layers is not a whole number"),
        ({"start_layers": "0..6:1.5"}, "'1.5' in start_layers is not a whole number"),
        ({"w_values": "0..6:-1"}, "the step of '0..6:-1' in w_values is not above 0"),
        (
            {"w_values": ", ".join(f"{w / 20}" for w in range(900)), "start_layers": "0, 1"},
            "900 numbers in w_values and 2 in start_layers make 1800 models to sample; 1000 is the most",
        ),
        ({"start_layers": "0, 8"}, r"layer 8 is beyond this model, which has 8 layers \(0 to 7\)"),
        ({"start_percent": 0.5, "end_percent": 0.1}, "start_percent 0.5 is past end_percent 0.1"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_bad_lists_are_refused(schnell, inputs, sentence):
    with pytest.raises(ValueError, match=sentence):
        sweep(schnell, **inputs)


@pytest.mark.parametrize(
    "w_values, scales",
    [
        ("0; 1.5;3", ["plain", "w 1.5", "w 3"]),
        ("0 1.5\n 3,", ["plain", "w 1.5", "w 3"]),
        ("0..3:1.5", ["plain", "w 1.5", "w 3"]),
        ("0.1 .. 0.3 : 0.1, 0.2", ["w 0.1", "w 0.2", "w 0.3"]),
        ("1..-1:0.5", ["w 1", "w 0.5", "plain", "w -0.5", "w -1"]),
        ("0..2", ["plain", "w 1", "w 2"]),
        ("2..2", ["w 2"]),
        ("0..1:0.3", ["plain", "w 0.3", "w 0.6", "w 0.9"]),
    ],
)
def test_lists_are_separated_as_people_do_and_may_be_ranges(schnell, w_values, scales):
    assert sweep(schnell, w_values=w_values, start_layers="5")[1] == [
        scale if scale == "plain" else f"{scale}, start 5" for scale in scales
    ]
    assert sweep(schnell, w_values="1", start_layers="0..6:3")[1] == ["w 1, start 0", "w 1, start 3", "w 1, start 6"]


def test_a_number_named_twice_counts_once(schnell):
    assert sweep(schnell, w_values="2, 2.0, 0, -0", start_layers="5, 5")[1] == ["w 2, start 5", "plain"]


RED, GREEN, BLUE, GREY = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.5, 0.5)


def test_numbers_that_differ_in_a_late_digit_are_told_apart(schnell):
    models, labels = sweep(schnell, w_values="1.0000001, 1.0000002, 3e-7, 1.5", start_layers="5")
    assert labels == ["w 1.0000001, start 5", "w 1.0000002, start 5", "w 3e-07, start 5", "w 1.5, start 5"] and len(models) == 4
    columns = grid([plain(GREY), plain(RED), plain(GREEN), plain(BLUE)], labels)
    assert len(centers(columns, RED, 320, 240)) == len(centers(columns, GREEN, 320, 240)) == 1


def centers(image, color, width, height):
    """Where pictures of this color are, (left to right, top to bottom) of their centers, found by their pixels."""
    hit = ((image[0] - torch.tensor(color)).abs().amax(dim=-1) < 0.02).int()
    sums = torch.nn.functional.pad(hit.cumsum(0).cumsum(1), (1, 0, 1, 0))
    squares = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width] == width * height
    return [(x + width // 2, y + height // 2) for y, x in squares.nonzero().tolist()]


def changed(image, other):
    """(left, top, right, bottom) of the pixels in which two pictures differ."""
    rows, columns = (image != other).any(dim=-1)[0].nonzero().unbind(dim=1)
    return columns.min().item(), rows.min().item(), columns.max().item(), rows.max().item()


COLORS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 0.0), (0.0, 1.0, 1.0), (1.0, 0.0, 1.0))


@pytest.fixture(scope="module")
def six():
    """(a label for each, pictures, where their centers are) of a grid of three w and two start layers."""
    labels = [f"w {w}, start {start}" for start in (1, 4) for w in (2, 3, 5)]
    pictures = [plain(color) for color in COLORS]
    image = grid(pictures, labels)
    return labels, pictures, [center for color in COLORS for center in centers(image, color, 320, 240)]


@pytest.mark.parametrize("column, w", [*enumerate((2, 3, 5))])
def test_a_label_stands_over_its_own_column(six, column, w):
    labels, pictures, places = six
    longer = [label.replace(f"w {w},", "w 8888888,") for label in labels]
    left, top, right, bottom = changed(grid(pictures, labels), grid(pictures, longer))
    x, y = places[column]
    assert (left + right) / 2 == pytest.approx(x, abs=4), "in the middle over the column"
    assert y - 120 - 40 < top < bottom < y - 120, "directly over its first picture"


@pytest.mark.parametrize("row, start", [*enumerate((1, 4))])
def test_a_start_layer_stands_beside_its_own_row(six, row, start):
    labels, pictures, places = six
    left, top, right, bottom = changed(
        grid(pictures, labels), grid(pictures, [label.replace(f"start {start}", "start 8") for label in labels])
    )
    x, y = places[3 * row]
    assert x - 160 - 40 < left < right < x - 160, "left of its first picture"
    assert y - 20 < top < bottom < y + 20, "in the middle beside the row"


@pytest.mark.parametrize("which", range(4))
def test_a_caption_stands_below_its_own_picture(which):
    captions, pictures = ["one", "two", "six", "ten"], [plain(color) for color in COLORS[:4]]
    image = grid(pictures, captions)
    [(x, y)] = centers(image, COLORS[which], 320, 240)
    other = grid(pictures, [*captions[:which], "new", *captions[which + 1 :]])
    left, top, right, bottom = changed(image, other)
    assert x - 40 < left < right < x + 40, "in the middle below the picture"
    assert y + 120 <= top < bottom < y + 120 + 40, "directly below the picture"


def test_w_goes_across_and_start_layers_down():
    image = grid([plain(GREY), plain(RED), plain(GREEN), plain(BLUE)], ["w 0", "w 2, start 0", "w 2, start 5", "w 4, start 5"], "A wolf")
    grey, red, green, blue = (centers(image, color, 320, 240) for color in (GREY, RED, GREEN, BLUE))
    assert len(grey) == 2 and len(red) == len(green) == len(blue) == 1, "the unguided picture stands in both rows"
    (red,), (green,), (blue,) = red, green, blue
    assert grey[0][0] == grey[1][0] < red[0] == green[0] < blue[0]
    assert grey[0][1] == red[1] < grey[1][1] == green[1] == blue[1]


def test_the_plain_picture_stands_in_every_row_under_its_name():
    labels = ["plain", "w 2, start 0", "w 2, start 5"]
    pictures = [plain(GREY), plain(RED), plain(GREEN)]
    image, numbered = grid(pictures, labels), grid(pictures, ["w 0", *labels[1:]])
    assert centers(image, GREY, 320, 240) == centers(numbered, GREY, 320, 240) and len(centers(image, GREY, 320, 240)) == 2
    assert (image != numbered).any(dim=-1).nonzero()[:, 1].max() < min(center[0] for center in centers(image, RED, 320, 240)), (
        "its column alone"
    )


def test_other_labels_stand_below_their_pictures():
    image = grid([plain(RED), plain(GREEN), plain(BLUE)], ["one", "two", "a third one with a long label that takes more than one line"])
    below = [center for color in (RED, GREEN, BLUE) for center in centers(image, color, 320, 240)]
    assert len(below) == 3
    for x, y in below:
        caption = image[0, y + 120 : y + 120 + 24, x - 160 : x + 160].amin(dim=-1)
        assert (caption < 0.5).sum() > 20, "ink below the picture"


@pytest.mark.parametrize("width, height", [(16, 16), (64, 96), (1024, 576), (300, 2000)])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_text_grows_with_the_pictures(width, height, count):
    labels = [f"w {i}, start 0" for i in range(count)]
    image = grid([plain(GREY, width, height)] * count, labels, "a prompt " * 40)
    assert image.dtype == torch.float32 and image.shape[0] == 1 and image.shape[3] == 3
    ink = (image[0].amax(dim=-1) < 0.2).float()
    rows = ink.sum(dim=1).nonzero().flatten()
    shown = max(width, 224)
    assert image.shape[2] >= count * shown
    line = next(i for i in range(1, len(rows)) if rows[i] > rows[i - 1] + 1) if (rows.diff() > 1).any() else len(rows)
    assert shown / 30 <= line <= shown / 6, "a line of the title is a fair part of a picture's width"


def test_pictures_of_different_sizes_and_batches_fit():
    image = grid([plain(RED, 100, 300), plain(GREEN, 300, 100), plain(BLUE, 200, 200, batch=4)], ["a", "b", "c"])
    assert centers(image, RED, 90, 290) and centers(image, GREEN, 290, 90) and centers(image, BLUE, 380, 380)


def test_a_batch_counts_as_a_list():
    batch = torch.cat([plain(RED), plain(GREEN)])
    assert torch.equal(grid([batch], ["w 0", "w 2, start 5"]), grid([plain(RED), plain(GREEN)], ["w 0", "w 2, start 5"]))


SLIVERS = [(1, 4000), (4000, 1), (1, 1), (3, 500)]


@pytest.mark.parametrize("sizes", [*([size] * 2 for size in SLIVERS), SLIVERS * 10], ids=lambda sizes: f"{len(sizes)} {sizes[0]}")
@pytest.mark.parametrize("label", ["{}", "w {}, start 0"])
def test_slivers_are_not_enlarged_to_towers(sizes, label):
    pictures = [drawing.from_image(plain(RED, *size)) for size in sizes]
    made, wanted = peak(lambda: drawing.grid(pictures, [label.format(i) for i in range(len(sizes))]))
    assert max(made.size) <= 8192
    if len(sizes) == 2:
        assert made.width >= sizes[0][0] and made.height >= sizes[0][1]
    assert wanted < 1e9, "bytes"


def peak(make):
    """What is made, and by how many bytes the process grew at most."""
    process, most, done = psutil.Process(), [], threading.Event()
    before = process.memory_info().rss

    def watch():
        while not done.wait(0.005):
            most.append(process.memory_info().rss - before)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        return make(), max(most, default=0)
    finally:
        done.set()
        watching.join()


@pytest.mark.parametrize(
    "shape", [(0, 8, 8, 3), (1, 0, 8, 3), (1, 8, 0, 3), (1, 8, 8, 0), (1, 8, 8, 2), (1, 1, 8, 8, 3), (8, 8, 3), (8,)], ids=str
)
def test_odd_pictures_are_refused_by_their_shape(shape):
    words = rf"Guidance Grid: image 2 is of shape {re.escape(str(shape))}; images are of shape \(count, height, width, channels\)"
    with pytest.raises(ValueError, match=words):
        grid([plain(RED), torch.zeros(shape)], ["a", "b"])


def test_no_pictures_are_refused():
    with pytest.raises(ValueError, match="Guidance Grid: 0 images for 0 labels"):
        grid([], [])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.bool], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_of_other_kinds_of_numbers_are_drawn(dtype, channels):
    image = grid([torch.ones(1, 240, 320, channels, dtype=dtype)], ["a"])
    assert centers(image, (1.0, 1.0, 1.0), 320, 240)


@pytest.mark.parametrize(
    "text",
    ["\u6c49\u5b57" * 50_000, "a" * 3_000_000, "a " * 1_500_000, "\n" * 1_000_000 + "a", "w " + "5" * 1_000_000 + ", start 0"],
    ids=lambda text: text[:3],
)
def test_titles_and_labels_of_any_length_are_drawn_at_once(text):
    started = time.perf_counter()
    image = grid([plain(RED), plain(BLUE)], [text, text[:-1] + "9"], text)
    assert time.perf_counter() - started < 10
    assert len(centers(image, RED, 320, 240)) == len(centers(image, BLUE, 320, 240)) == 1
    assert max(image.shape) < 2000


def test_words_longer_than_a_line_fill_their_lines():
    letters = drawing.font(20)
    text = "".join(chr(0x61 + i % 26) for i in range(60)) + " and words"
    lines = drawing.wrapped(text, letters, 200)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(letters.getlength(line) <= 200 for line in lines)
    assert all(letters.getlength(line + after[0]) > 200 for line, after in zip(lines, lines[1:]) if " " not in line + after)


def test_many_large_pictures_stay_of_a_size_that_can_be_posted():
    image = grid([plain(GREY, 1500, 100)] * 9, [f"w {w}, start 0" for w in range(9)])
    assert max(image.shape) == 8192


def test_another_count_of_labels_is_an_error():
    with pytest.raises(ValueError, match="Guidance Grid: 2 images for 3 labels"):
        grid([plain(RED), plain(GREEN)], ["a", "b", "c"])

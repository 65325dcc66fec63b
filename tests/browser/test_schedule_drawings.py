"""A schedule's shape on its node: the weights a run would use, drawn anew as knobs turn, in both renderings of the editor."""

import io
import random
import time

import pytest
from PIL import Image, ImageChops

from benchmarks.in_process import node as run_node

playwright = pytest.importorskip("playwright.sync_api")

MODULE = "/extensions/ComfyUI-Modulation-Guidance/schedule_weights.js"
BARS = ".modulation-guidance-bars"
CURVE = {"points": [[0, 0], [0.1, 1], [1, 1]], "interpolation": "monotone_cubic"}


def random_ranges(seed):
    draw = random.Random(seed)
    depth, start = draw.randint(8, 60), draw.randint(0, 7)
    inputs = {
        "start_layer": start,
        "end_layer": draw.choice([-1, draw.randint(start, depth - 1)]),
        "taper_layers": draw.randint(0, 9),
        "taper_scale": round(draw.uniform(-1, 2), 2),
        "final_layer": 0.5,
    }
    return "GuidanceLayerSchedule", inputs, depth


def random_text(seed):
    draw = random.Random(seed)
    first, text = 0, []
    for _ in range(5):
        first += draw.randint(1, 3)
        last = first + draw.randint(0, 6)
        text.append(f"{first}-{last}: {draw.uniform(-2, 2):.3g}" if last > first else f"{first}:{draw.uniform(-2, 2):.2e}")
        first = last
    inputs = {"layers": draw.choice([", ", "\n", " ;"]).join(text), "final_layer": -1}
    return "GuidanceLayerScheduleText", inputs, first + 9


def random_curve(seed):
    draw = random.Random(seed)
    points = [[round(draw.random(), 3), round(draw.random(), 3)] for _ in range(draw.randint(1, 8))]
    curve = {"points": points, "interpolation": draw.choice(["linear", "monotone_cubic"])}
    return "GuidanceLayerScheduleCurve", {"curve": curve, "final_layer": 0.25}, draw.randint(1, 60)


@pytest.mark.parametrize("make", [random_ranges, random_text, random_curve])
def test_the_weights_drawn_are_those_of_a_run(editor, make):
    cases = [make(seed) for seed in range(50)]
    drawn = editor.page.evaluate(
        "async ([module, cases]) => { const { weightsOf } = await import(module); return cases.map((each) => weightsOf(...each)) }",
        [MODULE, cases],
    )
    for (node_id, inputs, depth), weights in zip(cases, drawn, strict=True):
        schedule = run_node(node_id, **inputs)[0]
        assert weights == pytest.approx([*schedule.resolve(depth), schedule.final_layer], abs=1e-9)


@pytest.mark.parametrize(
    "layers",
    [
        "",
        "5-x: 1",
        "9-5: 1",
        "1-3: 1, 3: 2",
        "4: nan",
        "4: 1e999",
        "4",
        "4: 100.5",
        "1001: 1",
        "0-99999: 1",
        "0-99999999: 1",
        "9" * 400 + ": 1",
        "4: 1" + " " * 100_000,
        "0: " + "1" * 90_000 + "x",
        ", ".join(f"{layer}: 1" for layer in range(9_000)),
    ],
    ids=lambda layers: layers[:12],
)
def test_what_a_run_refuses_is_not_drawn(editor, layers):
    with pytest.raises(ValueError):
        run_node("GuidanceLayerScheduleText", layers=layers)
    refused = editor.page.evaluate(
        "async ([module, layers]) => { const { weightsOf, ScheduleError } = await import(module);"
        "try { weightsOf('GuidanceLayerScheduleText', { layers, final_layer: 0 }, 57) } catch (e) { return e instanceof ScheduleError } }",
        [MODULE, layers],
    )
    assert refused


RANGE = {"start_layer": 5, "end_layer": -1, "taper_layers": 0, "taper_scale": 0.25}
HUGE = {
    "text, many": ("GuidanceLayerScheduleText", {"layers": "0-99999: 1"}, {}, "layers go up to 1000"),
    "text, far more": ("GuidanceLayerScheduleText", {"layers": "0-99999999: 1"}, {}, "layers go up to 1000"),
    "text, at a known depth": ("GuidanceLayerScheduleText", {"layers": "0-99999999: 1"}, {"model_depth": 57}, "layers go up to 1000"),
    "text, too long": ("GuidanceLayerScheduleText", {"layers": "0: 1, " * 200_000}, {}, "the text is longer than 100000 characters"),
    "text, one long part": ("GuidanceLayerScheduleText", {"layers": "x" * 90_000}, {}, "cannot read “xxx"),
    "range": ("GuidanceLayerSchedule", RANGE | {"start_layer": 10**8}, {}, "layers go up to 1000"),
    "weight": ("GuidanceLayerSchedule", RANGE | {"taper_layers": 1, "taper_scale": 1e300}, {}, "weights go from -100 to 100"),
    "saved depth": ("GuidanceLayerSchedule", RANGE, {"model_depth": 10**8}, "52 of 57 layers guided"),
    "saved depth, no number": ("GuidanceLayerSchedule", RANGE, {"model_depth": "many"}, "52 of 57 layers guided"),
    "saved depth, negative": ("GuidanceLayerScheduleCurve", {"curve": CURVE}, {"model_depth": -1}, "of 57 layers guided"),
    "the most": ("GuidanceLayerScheduleText", {"layers": "0-1000: 1"}, {}, "1001 of 1001 layers guided"),
}


@pytest.mark.parametrize("case", HUGE)
def test_a_saved_workflow_with_huge_numbers_opens_at_once_and_says_so(editor, case):
    node_type, inputs, properties, words = HUGE[case]
    node = editor.add(node_type, **inputs)
    saved = editor.page.evaluate(
        "([id, properties]) => { Object.assign(app.graph.getNodeById(id).properties, properties); return app.graph.serialize() }",
        [node, properties],
    )
    editor.clear()
    started = time.perf_counter()
    editor.load(saved)
    editor.page.locator(BARS).get_by_text(words).wait_for(timeout=20_000)
    assert time.perf_counter() - started < 20
    assert len(editor.page.locator(BARS).inner_text()) < 200


def picture(editor):
    """What is on the screen where the bars are."""
    editor.settle()
    return Image.open(io.BytesIO(editor.page.locator(BARS).screenshot())).convert("RGB")


def same(one, other):
    return one.size == other.size and ImageChops.difference(one, other).getbbox() is None


def drawn(editor, words, before):
    """The picture once the node says these words and is drawn otherwise than before."""
    editor.page.locator(BARS).get_by_text(words).wait_for()
    return redrawn(editor, before)


def redrawn(editor, before):
    """The picture once it is another than before."""
    for _ in range(100):
        after = picture(editor)
        if not same(before, after):
            return after
        editor.page.wait_for_timeout(100)
    raise AssertionError("the drawing stayed as it was")


def click_on_canvas(editor, node, x_from_right, widget):
    """A click at a widget as the old rendering paints it."""
    x, y = editor.page.evaluate(
        """([id, right, name]) => {
            const node = app.graph.getNodeById(id)
            const widget = node.widgets.find((each) => each.name === name)
            const { scale, offset } = app.canvas.ds
            const box = app.canvas.canvas.getBoundingClientRect()
            return [box.x + (node.pos[0] + node.size[0] - right + offset[0]) * scale, box.y + (node.pos[1] + widget.y + 10 + offset[1]) * scale]
        }""",
        [node, x_from_right, widget],
    )
    editor.page.mouse.click(x, y)


def test_the_drawing_follows_a_knob_that_is_clicked(editor, rendering):
    node = editor.add("GuidanceLayerSchedule", start_layer=5)
    before = picture(editor)
    assert "52 of 57 layers guided" in editor.page.locator(BARS).inner_text()
    if rendering == "old":
        click_on_canvas(editor, node, 22, "start_layer")
    else:
        editor.page.get_by_test_id("increment").first.click()
    drawn(editor, "51 of 57 layers guided", before)


def test_the_drawing_follows_the_text_as_it_is_written(editor, rendering):
    editor.add("GuidanceLayerScheduleText")
    before = picture(editor)
    # On the node itself: a panel of properties, where it is open, shows the text of a selected node too.
    text = editor.page.locator("[data-testid=dom-widget-textarea], [data-node-id] textarea")
    text.fill("0-9: 1, 20-29: -0.5")
    after = drawn(editor, "20 of 57 layers guided", before)
    text.fill("0-9: 1, 20-x: -0.5")
    drawn(editor, "cannot read “20-x: -0.5”", after)


def test_the_drawing_follows_a_dragged_point_of_the_curve(editor):
    editor.render_nodes(True)
    editor.add("GuidanceLayerScheduleCurve")
    before = picture(editor)
    point = editor.page.locator("[data-node-id] svg circle").nth(2).bounding_box()
    editor.page.mouse.move(point["x"] + 4, point["y"] + 4)
    editor.page.mouse.down()
    editor.page.mouse.move(point["x"], point["y"] + 100, steps=3)
    editor.page.mouse.up()
    redrawn(editor, before)


def test_a_curve_is_drawn_in_the_old_rendering_too(editor):
    editor.render_nodes(False)
    editor.add("GuidanceLayerScheduleCurve", curve=CURVE)
    colors = {color for _, color in picture(editor).getcolors(1 << 16)}
    assert (59, 158, 255) in colors  # a bar


def test_the_drawing_is_saved_nowhere(editor, rendering):
    nodes = {name: editor.add(name) for name in ("GuidanceLayerSchedule", "GuidanceLayerScheduleText", "GuidanceLayerScheduleCurve")}
    values = editor.page.evaluate("app.graph.serialize().nodes.map((node) => node.widgets_values)")
    assert [len(each) for each in values] == [5, 2, 2]
    prompt = editor.prompt()
    assert [list(prompt[str(node)]["inputs"]) for node in nodes.values()] == [
        ["start_layer", "end_layer", "taper_layers", "taper_scale", "final_layer"],
        ["layers", "final_layer"],
        ["curve", "final_layer"],
    ]


def test_the_side_panel_leaves_the_drawing_to_the_node(editor, rendering):
    if editor.version < (1, 47):
        pytest.skip("Nothing can be kept out of the side panel of this editor.")
    node = editor.add("GuidanceLayerSchedule", (100, 50))
    panel = editor.page.get_by_test_id("properties-panel")
    if not panel.is_visible():
        editor.page.get_by_label("Toggle properties panel").first.click()
    for _ in range(10):  # what the editor still does as it opens can take the selection away again
        editor.page.evaluate("id => { app.canvas.deselectAll(); app.canvas.selectNode(app.graph.getNodeById(id)) }", node)
        try:
            panel.get_by_text("start_layer").first.wait_for(timeout=3000)
            break
        except playwright.TimeoutError:
            continue
    editor.settle()
    assert panel.get_by_text("shape", exact=True).count() == 0
    for width in (320, 260):
        editor.page.evaluate(
            "([id, width]) => { const node = app.graph.getNodeById(id); node.setSize([width, node.size[1]]); app.canvas.setDirty(true, true) }",
            [node, width],
        )
        editor.page.wait_for_function(
            "([bars, width]) => Math.abs(document.querySelector(bars).offsetWidth + 20 - width) <= 20", arg=[BARS, width]
        )

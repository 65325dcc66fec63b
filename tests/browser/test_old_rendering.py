"""The old rendering of nodes shows as much as the new one: few inputs until asked for more, names of text boxes, what to do about a curve."""

import io
import re

import pytest
from PIL import Image
from test_editing import wire

pytest.importorskip("playwright.sync_api")

ROWS = """id => {
    const node = app.graph.getNodeById(id)
    const shows = (node.isWidgetRowVisible ?? node.isWidgetVisible).bind(node)
    const shown = node.widgets.filter(shows)
    return { names: shown.map(({ name }) => name), ys: shown.map(({ y }) => y), height: node.size[1] }
}"""
LINK = """([source, output, target, name]) => {
    const node = app.graph.getNodeById(target)
    app.graph.getNodeById(source).connect(output, node, node.inputs.findIndex((slot) => slot.name === name))
}"""
ADVANCED = ["start_percent", "end_percent", "cfg_rows", "keep_norm"]
SOCKETS = ["model", "direction", "schedule", "projection"]
ADVANCED_SOCKETS = ["base_positive", "base_negative"]


def rows(editor, node):
    editor.settle()
    return editor.page.evaluate(ROWS, node)


def test_a_newcomer_sees_few_inputs_until_asking_for_more_in_the_old_rendering_too(editor):
    editor.render_nodes(False)
    node = editor.add("ApplyModulationGuidance")
    folded = rows(editor, node)
    assert folded["names"] == ["w"] and folded["height"] < folded["ys"][0] + 50
    editor.page.evaluate("id => app.graph.getNodeById(id).toggleAdvanced()", node)
    unfolded = rows(editor, node)
    assert unfolded["names"] == ["w", *ADVANCED]
    saved = editor.page.evaluate("app.graph.serialize()")
    editor.page.evaluate("id => app.graph.getNodeById(id).toggleAdvanced()", node)
    assert rows(editor, node) == folded
    editor.clear()
    editor.load(saved)
    assert rows(editor, node) == unfolded


def test_a_linked_advanced_input_is_seen_and_the_others_leave_no_gap(editor):
    editor.render_nodes(False)
    node, number = editor.add("ApplyModulationGuidance", (400, 0)), editor.add("PrimitiveFloat")
    before = editor.page.evaluate("app.graph.serialize().nodes[0].widgets_values")
    editor.page.evaluate(LINK, [number, 0, node, "end_percent"])
    seen = rows(editor, node)
    assert seen["names"] == ["w", "end_percent"] and seen["ys"][1] - seen["ys"][0] < 30 < seen["height"] - seen["ys"][1] + 10
    saved = editor.page.evaluate("app.graph.serialize()")
    assert saved["nodes"][0]["widgets_values"] == before
    editor.clear()
    editor.load(saved)
    assert rows(editor, node) == seen
    assert editor.prompt()[str(node)]["inputs"] == {
        "w": 3,
        "start_percent": 0,
        "end_percent": [str(number), 0],
        "cfg_rows": "auto",
        "keep_norm": False,
    }


def test_all_are_seen_where_the_editor_is_set_to_show_them_always(editor):
    editor.render_nodes(False)
    setting = "value => app.extensionManager.setting.set('Comfy.Node.AlwaysShowAdvancedWidgets', value)"
    editor.page.evaluate(setting, True)
    try:
        assert rows(editor, editor.add("ApplyModulationGuidance"))["names"] == ["w", *ADVANCED]
    finally:
        editor.page.evaluate(setting, False)


def sockets(editor, rendering, node):
    """The names of a node's sockets that are seen, and where they are in the order of the node."""
    editor.settle()
    if rendering == "new":
        labels = editor.page.locator(f'[data-node-id="{node}"] .lg-slot--input').filter(has_text=re.compile(".+"), visible=True)
        return [label.strip() for label in labels.all_inner_texts()]
    return editor.page.evaluate(
        """(id) => {
            const node = app.graph.getNodeById(id)
            const inside = ([x, y, width, height]) => x > node.pos[0] - 20 && y > node.pos[1] - 20 && y + height < node.pos[1] + node.size[1]
            return node.inputs.filter((input) => !input.widget && inside(input.boundingRect)).map(({ name }) => name)
        }""",
        node,
    )


@pytest.mark.parametrize("node_type", ["ApplyModulationGuidance", "SweepModulationGuidance"])
def test_advanced_sockets_are_folded_with_the_advanced_inputs(editor, rendering, node_type):
    node, prompt = editor.add(node_type, (400, 0)), editor.add("CLIPTextEncode", (0, 400))
    assert sockets(editor, rendering, node) == SOCKETS
    toggle = "id => { const node = app.graph.getNodeById(id); LiteGraph.vueNodesMode ? node.showAdvanced = !node.showAdvanced : node.toggleAdvanced() }"
    editor.page.evaluate(toggle, node)
    assert sockets(editor, rendering, node) == [*SOCKETS, *ADVANCED_SOCKETS]
    editor.page.evaluate(toggle, node)
    folded = rows(editor, node)
    assert sockets(editor, rendering, node) == SOCKETS

    editor.page.evaluate(LINK, [prompt, 0, node, "base_negative"])
    assert sockets(editor, rendering, node) == [*SOCKETS, "base_negative"]
    if rendering == "old":
        assert rows(editor, node)["height"] == pytest.approx(folded["height"] + 20)
    saved = editor.page.evaluate("app.graph.serialize()")
    places = [given.get("pos") for each in saved["nodes"] for given in each["inputs"] if given["name"] in ADVANCED_SOCKETS]
    assert not any(places), "where a folded socket is goes into no file"
    editor.clear()
    editor.load(saved)
    assert sockets(editor, rendering, node) == [*SOCKETS, "base_negative"]
    assert editor.prompt()[str(node)]["inputs"]["base_negative"] == [str(prompt), 0]
    editor.page.evaluate(
        "id => { const node = app.graph.getNodeById(id); node.disconnectInput(node.inputs.findIndex(({ name }) => name === 'base_negative')) }",
        node,
    )
    assert sockets(editor, rendering, node) == SOCKETS


def test_a_link_can_be_dragged_to_an_advanced_socket_that_is_shown(editor):
    editor.render_nodes(False)
    node, prompt = editor.add("ApplyModulationGuidance", (600, 0)), editor.add("CLIPTextEncode", (0, 300))
    editor.page.evaluate("id => app.graph.getNodeById(id).toggleAdvanced()", node)
    editor.settle()
    wire(editor, prompt, "CONDITIONING", node, "base_positive")


def above_box(editor, node, name):
    """The colors on the screen in the margin above a text box of the old rendering."""
    editor.settle()
    x, y = editor.page.evaluate(
        """([id, name]) => {
            const node = app.graph.getNodeById(id)
            const { scale, offset } = app.canvas.ds
            const box = app.canvas.canvas.getBoundingClientRect()
            const at = node.widgets.find((widget) => widget.name === name).y
            return [box.x + (node.pos[0] + 22 + offset[0]) * scale, box.y + (node.pos[1] + at + offset[1]) * scale]
        }""",
        [node, name],
    )
    picture = Image.open(io.BytesIO(editor.page.screenshot(clip={"x": x, "y": y, "width": 150, "height": 9})))
    return {color for _, color in picture.convert("RGB").getcolors(1 << 12)}


@pytest.mark.parametrize(
    "node_type, names",
    [
        ("EncodeGuidanceDirection", ["positive", "negative"]),
        ("ModulationGuidance", ["positive", "negative"]),
        ("GuidanceLayerScheduleText", ["layers"]),
    ],
)
def test_text_boxes_are_named_in_the_old_rendering(editor, node_type, names):
    editor.render_nodes(False)
    node = editor.add(node_type, (300, 100))
    assert all(len(above_box(editor, node, name)) > 4 for name in names), "letters have soft edges"


def test_a_linked_box_shows_where_its_text_comes_from_and_not_the_one_it_had(editor):
    editor.render_nodes(True)
    preset, node = editor.add("GuidancePreset"), editor.add("EncodeGuidanceDirection", (500, 0))
    boxes = editor.page.locator(f'[data-node-id="{node}"] textarea')
    box = boxes.first
    look = "box => [getComputedStyle(box).color, getComputedStyle(box.parentElement, '::after').content]"
    box.wait_for()
    plain = box.evaluate(look)
    editor.page.evaluate(LINK, [preset, 0, node, "positive"])
    editor.settle()
    linked = ["rgba(0, 0, 0, 0)", '"← Guidance Preset: positive"']

    def is_shown_as_linked():
        if boxes.count() == 1:  # newer editors have none for a linked one
            return (box.evaluate(look), box.input_value()) == (plain, "Low-res, flat, cartoonish")
        return box.evaluate(look) == linked != plain

    assert is_shown_as_linked()
    saved = editor.page.evaluate("app.graph.serialize()")
    editor.clear()
    editor.load(saved)
    box.wait_for()
    editor.settle()
    assert is_shown_as_linked()
    editor.page.evaluate(
        "id => app.graph.getNodeById(id).disconnectInput(app.graph.getNodeById(id).inputs.findIndex(({ name }) => name === 'positive'))",
        node,
    )
    editor.settle()
    assert box.evaluate(look) == plain and box.input_value() == "Ultra-detailed, photorealistic, cinematic"


def test_the_curve_says_what_to_do_where_it_cannot_be_edited(editor, rendering):
    editor.add("GuidanceLayerScheduleCurve")
    advice = editor.page.get_by_text("To edit the curve, switch Nodes 2.0 on, or use Layer Schedule (Text) instead.")
    advice.wait_for(state="visible" if rendering == "old" else "attached")
    editor.settle()
    assert advice.is_visible() == (rendering == "old")
    inside = """() => { const box = document.querySelector('.modulation-guidance-bars'); return box.scrollHeight <= box.clientHeight }"""
    assert editor.page.evaluate(inside)

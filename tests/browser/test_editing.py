"""What a person does: find nodes by search, put them down, wire them, run, and look."""

import json
import re
import time

import pytest

from tools.templates import graph_of

playwright = pytest.importorskip("playwright.sync_api")
FIRST_STEPS = json.loads(graph_of("first_steps_small_world").read_text(encoding="utf-8"))
BARS = ".modulation-guidance-bars"


def open_search(editor):
    """The field of the search that a double click on an empty place opens."""
    search = editor.page.get_by_placeholder("Add a node...")
    for _ in range(10):  # on a busy machine the two clicks can come too far apart for the editor
        editor.page.mouse.dblclick(900, 700)
        try:
            search.wait_for(timeout=3000)
            break
        except playwright.TimeoutError:
            continue
    return search


def add_by_search(editor, words, name):
    """Opens the search by a double click on an empty place, types, and drops the node found of that name there."""
    before = editor.page.evaluate("app.graph.nodes.length")
    open_search(editor).fill(words)
    title = re.compile(rf"^\s*{re.escape(name)}(?! \()")  # descriptions, which stand there too, name other nodes
    editor.page.get_by_test_id("result-item").filter(has_text=title).first.click()
    editor.page.wait_for_function("before => app.graph.nodes.length === before + 1", arg=before)
    editor.page.locator("[role=dialog]").wait_for(state="hidden")  # it takes clicks as long as it fades
    for _ in range(3):
        editor.page.wait_for_timeout(400)
        if editor.page.evaluate("app.canvas.state.ghostNodeId") is None:
            break
        editor.page.mouse.move(905, 705)
        editor.page.mouse.click(900, 700)
    return editor.page.evaluate("app.graph.nodes.at(-1).id")


@pytest.mark.parametrize(
    "words, name, node_type",
    [
        ("modulation guidance", "Apply Modulation Guidance", "ApplyModulationGuidance"),
        ("quality direction", "Encode Guidance Direction", "EncodeGuidanceDirection"),
        ("block weights", "Layer Schedule", "GuidanceLayerSchedule"),
    ],
)
def test_a_node_is_found_by_what_it_is_and_by_what_it_is_for(editor, words, name, node_type):
    editor.render_nodes(False)
    node = add_by_search(editor, words, name)
    assert editor.page.evaluate("id => app.graph.getNodeById(id).type", node) == node_type


@pytest.mark.parametrize(
    "words, name",
    [
        ("guidance", "Guidance Preset"),
        ("modulation guidance", "Modulation Guidance"),
        ("detail", "Modulation Guidance"),
        ("sharpness", "Modulation Guidance"),
        ("flux quality", "Modulation Guidance"),
        ("anima", "Modulation Guidance (Anima)"),
        ("rare", "Scale Text Variance"),
        ("train direction", "Distill Guidance Direction"),
    ],
)
def test_it_is_among_the_first_that_a_search_lists(editor, words, name):
    """The editor ranks by names alone: for "guidance" those that begin with it come first, and FluxGuidance before ours that end with it."""
    editor.render_nodes(False)
    open_search(editor).fill(words)
    editor.settle()
    found = editor.page.get_by_test_id("result-item")
    found.filter(has_text=re.compile(rf"^\s*{re.escape(name)}(?! \()")).first.wait_for()
    titles = [text.strip().split("\n")[0] for text in found.all_inner_texts()]
    assert name in titles[:10], titles[:20]
    editor.page.keyboard.press("Escape")
    editor.page.locator("[role=dialog]").wait_for(state="hidden")


def test_one_wrong_input_is_one_error_in_the_editor(editor):
    editor.render_nodes(True)
    editor.load(json.loads(graph_of("sweep_and_grid").read_text(encoding="utf-8")))
    sweep = node_of(editor, "SweepModulationGuidance")
    editor.page.evaluate(
        "id => { app.graph.getNodeById(id).widgets.find(({ name }) => name === 'w_values').value = '0, x'; app.queuePrompt(0) }", sweep
    )
    editor.page.wait_for_function("app.lastNodeErrors && Object.keys(app.lastNodeErrors).length")
    errors = editor.page.evaluate("app.lastNodeErrors")
    assert [error["extra_info"]["input_name"] for error in errors.pop(str(sweep))["errors"]] == ["w_values"] and not errors


def test_directions_are_called_as_their_inputs_are(editor, client):
    editor.render_nodes(True)
    editor.load(json.loads(graph_of("inspect_guidance").read_text(encoding="utf-8")))
    node = node_of(editor, "InspectGuidance")
    editor.page.evaluate("id => { app.graph.getNodeById(id).widgets.find(({ name }) => name === 'labels').value = '' }", node)
    seen = editor.page.locator(f'[data-node-id="{node}"] .lg-slot--input').filter(has_text="direction").all_inner_texts()
    (report,) = run(editor, client)[str(node_of(editor, "PreviewAny"))]["text"]
    assert json.loads(report)["labels"] == [name.strip() for name in seen[:3]] == ["direction0", "direction1", "direction2"]


def slot_on_screen(editor, node, name, is_input):
    return editor.page.evaluate(
        """([id, name, isInput]) => {
            const node = app.graph.getNodeById(id)
            const index = (isInput ? node.inputs : node.outputs).findIndex((slot) => slot.name === name)
            const [x, y] = isInput ? node.getInputPos(index) : node.getOutputPos(index)
            const { scale, offset } = app.canvas.ds
            const box = app.canvas.canvas.getBoundingClientRect()
            return [box.x + (x + offset[0]) * scale, box.y + (y + offset[1]) * scale]
        }""",
        [node, name, is_input],
    )


def wire(editor, source, output, target, input_name):
    """Drags a link from an output to an input with the mouse."""
    linked = "([id, name]) => app.graph.getNodeById(id).inputs.find((slot) => slot.name === name).link != null"
    for _ in range(3):  # a busy machine's editor can miss where the mouse went
        editor.page.mouse.move(*slot_on_screen(editor, source, output, False), steps=3)
        editor.page.mouse.down()
        editor.page.mouse.move(*slot_on_screen(editor, target, input_name, True), steps=8)
        editor.settle()
        editor.page.mouse.up()
        try:
            return editor.page.wait_for_function(linked, arg=[target, input_name], timeout=5000)
        except playwright.TimeoutError:
            editor.page.keyboard.press("Escape")
    raise AssertionError(f"{output} was not linked to {input_name}")


def node_of(editor, kind, title=None):
    return editor.page.evaluate(
        "([type, title]) => app.graph.nodes.find((node) => node.type === type && (!title || node.title === title)).id", [kind, title]
    )


def run(editor, client):
    """Presses Run and returns the outputs of the run, {node id: output}."""
    before = client.get("/history").keys()
    editor.page.get_by_test_id("queue-button").click()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        new = [entry for key, entry in client.get("/history").items() if key not in before]
        if new:
            assert new[0]["status"]["status_str"] == "success", new[0]["status"]
            return new[0]["outputs"]
        time.sleep(0.2)
    raise AssertionError("the run did not end")


def small_run(editor):
    """The first steps, with two sampling steps, without our node and without the depth that a run has told."""
    editor.load(FIRST_STEPS)
    editor.page.evaluate("app.graph.nodes.forEach((node) => delete node.properties.model_depth)")
    editor.page.evaluate(
        """() => {
            for (const node of app.graph.nodes) if (node.type === 'KSampler') node.widgets.find(({ name }) => name === 'steps').value = 2
            const { pos } = app.graph.nodes.find(({ type }) => type === 'ApplyModulationGuidance')
            app.graph.remove(app.graph.nodes.find(({ type }) => type === 'ApplyModulationGuidance'))
        }"""
    )


def test_nodes_found_dropped_wired_and_run_make_a_guided_picture(editor, client):
    editor.render_nodes(False)
    small_run(editor)
    left, top, *_ = editor.bounds()
    editor.look_at((left - 150, top - 150), 0.55)
    node = add_by_search(editor, "modulation guidance", "Apply Modulation Guidance")
    editor.page.evaluate("id => { app.graph.getNodeById(id).pos = [2000, 600]; app.canvas.setDirty(true, true) }", node)
    editor.settle()
    wire(editor, node_of(editor, "UNETLoader"), "MODEL", node, "model")
    wire(editor, node_of(editor, "EncodeGuidanceDirection"), "direction", node, "direction")
    wire(editor, node_of(editor, "GuidanceLayerSchedule"), "schedule", node, "schedule")
    wire(editor, node, "model", node_of(editor, "KSampler", "Sample guided"), "model")
    assert "layer count assumed until the first run" in editor.page.locator(BARS).inner_text()
    outputs = run(editor, client)
    plain, guided = (
        client.request(
            "/view?" + "&".join(f"{key}={value}" for key, value in outputs[str(node_of(editor, "SaveImage", name))]["images"][0].items())
        )
        for name in ("Plain", "Guided")
    )
    assert plain[:4] == guided[:4] == b"\x89PNG" and plain != guided

    editor.page.wait_for_function(f"document.querySelector('{BARS}').innerText.includes('10 of 12 layers guided')")
    assert "assumed" not in editor.page.locator(BARS).inner_text()
    saved = editor.page.evaluate("app.graph.serialize()")
    editor.clear()
    editor.load(saved)
    assert "10 of 12 layers guided" in editor.page.locator(BARS).inner_text(), "a saved workflow knows the depth"


def test_a_value_that_comes_over_a_link_is_drawn_after_the_run(editor, client):
    editor.render_nodes(True)
    editor.load(FIRST_STEPS)
    start = editor.add("PrimitiveInt", (0, 1300), value=7)
    editor.page.evaluate(
        """([start, schedule]) => {
            for (const node of app.graph.nodes) if (node.type === 'KSampler') node.widgets.find(({ name }) => name === 'steps').value = 2
            const target = app.graph.getNodeById(schedule)
            app.graph.getNodeById(start).connect(0, target, target.inputs.findIndex(({ name }) => name === 'start_layer'))
        }""",
        [start, node_of(editor, "GuidanceLayerSchedule")],
    )
    editor.page.wait_for_function(f"document.querySelector('{BARS}').innerText.includes('start_layer: value comes from a link')")
    run(editor, client)
    editor.page.wait_for_function(f"document.querySelector('{BARS}').innerText.includes('5 of 12 layers guided')")


def test_a_newcomer_sees_few_inputs_until_asking_for_more(editor):
    editor.render_nodes(True)
    editor.add("ApplyModulationGuidance")
    shown = editor.page.get_by_test_id("node-widget")
    editor.page.wait_for_function("document.querySelectorAll('[data-testid=node-widget]').length > 0")
    assert shown.count() == 1 and "w" in shown.inner_text()
    editor.page.get_by_text("Show advanced inputs").click()
    editor.page.wait_for_function("document.querySelectorAll('[data-testid=node-widget]').length === 5")

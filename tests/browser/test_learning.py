"""A newcomer's way with a direction of their own: learn it, save it, load it and guide with it, in the editor."""

import io
import json
import time
from urllib.parse import urlencode

from PIL import Image
from support.distilling import needs_distilling
from test_editing import add_by_search, node_of, run
from test_schedule_drawings import click_on_canvas

from tools.templates import graph_of

LEARN = graph_of("learn_a_direction")
TEXT = "$$node-text-preview"  # the editor's widget for a text that a node sends
FEW_STEPS = """([settings, prefix]) => {
    const set = (node, name, value) => { node.widgets.find((widget) => widget.name === name).value = value }
    for (const node of app.graph.nodes) {
        if (node.type === 'KSampler') set(node, 'steps', 3)
        if (node.type === 'SaveGuidanceDirection') set(node, 'filename_prefix', prefix)
        if (node.type === 'DistillGuidanceDirection') for (const [name, value] of Object.entries(settings)) set(node, name, value)
    }
}"""


def shown(editor, kind, *parts):
    """Waits until the node of that kind shows a text with these parts, and returns it."""
    text = """([kind, name, parts]) => {
        const text = app.graph.nodes.find(({ type }) => type === kind)?.widgets.find((widget) => widget.name === name)?.value
        return parts.every((part) => text?.includes(part)) && text
    }"""
    text = editor.page.wait_for_function(text, arg=[kind, TEXT, list(parts)], timeout=60_000).json_value()
    editor.page.evaluate("kind => app.canvas.centerOnNode(app.graph.nodes.find(({ type }) => type === kind))", kind)
    seen = editor.page.get_by_text(parts[-1]).first
    seen.wait_for()
    assert seen.bounding_box()["height"] > 10
    return text


def choose_file(editor, rendering, node, name):
    """With the mouse."""
    if rendering == "old":
        click_on_canvas(editor, node, 120, "direction_name")
        editor.page.locator(".litecontextmenu .litemenu-entry").get_by_text(name, exact=True).click()
    else:
        editor.page.locator(f'[data-node-id="{node}"]').get_by_role("combobox").click()
        editor.page.get_by_role("option", name=name, exact=True).click()


def pictures(editor, client, outputs):
    """The plain and the guided one, without what their files say of the workflow."""
    files = (outputs[str(node_of(editor, "SaveImage", name))]["images"][0] for name in ("Plain", "Guided"))
    return [Image.open(io.BytesIO(client.request("/view?" + urlencode(file)))).tobytes() for file in files]


@needs_distilling
def test_a_newcomer_learns_saves_loads_and_uses_a_direction(editor, client, rendering):
    """With few steps. With the template's own it takes some minutes."""
    started = time.monotonic()
    editor.load(json.loads(LEARN.read_text(encoding="utf-8")))
    # A seed of its own for each rendering: what the host has kept it does not learn again.
    settings = dict(steps=4, batch_size=2, sample_steps=1, samples_per_prompt=1, seed={"old": 1, "new": 2}[rendering])
    settings["prompts"] = "a red circle\ntwo blue squares\na green cross"
    editor.page.evaluate(FEW_STEPS, [settings, f"guidance_directions/{rendering}/mine"])
    outputs = run(editor, client)
    text = shown(editor, "DistillGuidanceDirection", "Step 4 of 4, loss ", "times as strong as the words, on 3 prompts")
    assert "w 1 is " in text
    assert outputs[str(node_of(editor, "LossGraphNode"))]["images"], "the loss is drawn"
    plain, learned = pictures(editor, client, outputs)
    assert plain != learned

    # The file is offered where it was saved, once the editor looks again.
    editor.page.evaluate("app.graph.remove(app.graph.nodes.find(({ type }) => type === 'DistillGuidanceDirection'))")
    editor.page.evaluate(
        "app.graph.nodes.filter(({ type }) => ['SaveGuidanceDirection', 'LossGraphNode'].includes(type)).forEach((node) => app.graph.remove(node))"
    )
    left, top, *_ = editor.bounds()
    editor.look_at((left - 150, top - 150), 0.6)
    editor.page.mouse.click(1200, 900)
    editor.page.keyboard.press("r")
    name = f"{rendering}/mine_00001_.safetensors"
    editor.page.wait_for_function(
        """async (name) => {
            const node = (await (await fetch('/object_info/LoadGuidanceDirection')).json()).LoadGuidanceDirection
            return node.input.required.direction_name[1].options.includes(name)
        }""",
        arg=name,
    )
    node = add_by_search(editor, "learned direction", "Load Guidance Direction")
    x, y = editor.page.evaluate("app.graph.nodes.find(({ type }) => type === 'ApplyModulationGuidance').pos")
    editor.page.evaluate("([id, x, y]) => { app.graph.getNodeById(id).pos = [x - 400, y]; app.canvas.setDirty(true, true) }", [node, x, y])
    editor.look_at((x - 500, y - 200), 1)
    editor.settle()
    choose_file(editor, rendering, node, name)
    assert editor.prompt()[str(node)]["inputs"] == {"direction_name": name}
    editor.page.evaluate(
        """(id) => {
            const apply = app.graph.nodes.find(({ type }) => type === 'ApplyModulationGuidance')
            app.graph.getNodeById(id).connect(0, apply, apply.inputs.findIndex(({ name }) => name === 'direction'))
        }""",
        node,
    )
    outputs = run(editor, client)
    assert pictures(editor, client, outputs) == [plain, learned]
    shown(editor, "ApplyModulationGuidance", "Wan, layers 0-6 of 7, w 1, cfg_rows both, 3 of 3 steps")
    assert time.monotonic() - started < 600

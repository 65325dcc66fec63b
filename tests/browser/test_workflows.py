"""The shared workflows as the editor sees them: whole, explained, with a picture, and the same as their API form."""

import base64
import itertools
import json
import re
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image

from tools.templates import api_form, graph_of, graphs

CHECKOUT = Path(__file__).parent.parent.parent
PACK = "ComfyUI-Modulation-Guidance"
DETAILS = re.compile("View details|Show missing models|See Errors")  # of what a workflow lacks, as the editor's versions have it
GRAPHS = graphs()


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.stem)
def test_a_workflow_opens_whole_and_converts_to_its_api_form(editor, client, path):
    editor.load(read(path))
    missing = editor.page.evaluate("app.graph.nodes.filter((node) => !LiteGraph.registered_node_types[node.type]).map((node) => node.type)")
    assert not missing
    made, wanted = editor.prompt(), read(api_form(path))
    assert list(made) == list(wanted)
    titled = {str(node["id"]) for node in read(path)["nodes"] if node.get("title")}
    for number, node in made.items():
        if number not in titled:  # the editor's own name for this kind of node, which its versions change
            node["_meta"] = wanted[number]["_meta"]
        offered = client.get(f"/object_info/{node['class_type']}")[node["class_type"]]
        if offered["python_module"] != f"custom_nodes.{PACK}":
            # An older host's nodes have fewer inputs, and an older editor sends what it shows on them too.
            known = {name for kind in ("required", "optional") for name in offered["input"].get(kind, {})}
            inputs = wanted[number]["inputs"]
            wanted[number]["inputs"] = {name: value for name, value in inputs.items() if name in known | node["inputs"].keys()}
            node["inputs"] = {name: value for name, value in node["inputs"].items() if name in known | inputs.keys()}
    assert made == wanted


SMALLEST_ZOOM = 8 / 14  # below it, the old rendering draws no text
GROUP_TITLE = 34  # the height of a group's title
LAYOUT = """() => {
    const boxes = app.graph.nodes.map((node) => {
        const drawn = document.querySelector(`[data-node-id="${node.id}"]`)
        const [left, top, width, height] = node.boundingRect
        return { name: node.title, note: node.type === 'MarkdownNote', left, top, right: left + width,
                 bottom: drawn ? top + drawn.offsetHeight : top + height }
    })
    const titles = app.graph.groups.map(({ title, pos, size }) => ({ name: title, left: pos[0], top: pos[1], right: pos[0] + size[0], bottom: pos[1] + size[1] }))
    return { boxes, titles, zoom: app.canvas.ds.scale, unreadable: app.canvas.low_quality }
}"""


def overlap(one, other):
    return one["left"] < other["right"] and other["left"] < one["right"] and one["top"] < other["bottom"] and other["top"] < one["bottom"]


def test_workflows_open_readable_with_the_note_first_and_nothing_over_another(editor, rendering):
    if rendering == "new" and editor.version < (1, 47):
        pytest.skip("This editor draws nodes higher than those that the workflows are laid out for.")
    for path in GRAPHS:
        editor.page.evaluate("workflow => app.loadGraphData(workflow, true, true, null, { openSource: 'template' })", read(path))
        editor.settle()
        layout = editor.page.evaluate(LAYOUT)
        boxes, groups = layout["boxes"], layout["titles"]
        assert layout["zoom"] > SMALLEST_ZOOM and not layout["unreadable"], (path.stem, layout["zoom"])
        assert not [(path.stem, one["name"], other["name"]) for one, other in itertools.combinations(boxes, 2) if overlap(one, other)]
        assert not [(path.stem, one["name"], other["name"]) for one, other in itertools.combinations(groups, 2) if overlap(one, other)]
        titles = [group | {"bottom": group["top"] + GROUP_TITLE} for group in groups]
        assert not [(path.stem, box["name"], title["name"]) for box in boxes for title in titles if overlap(box, title)]
        (note,) = [box for box in boxes if box["note"]]
        assert note["left"] == min(box["left"] for box in boxes) and note["top"] == min(box["top"] for box in boxes), path.stem


@pytest.mark.parametrize(
    "name, depth",
    [("first_steps_small_world", 12), ("inspect_guidance", 12), ("distill_a_projection", 7), ("flux_dev_complexity_schedule", 57)],
)
def test_a_schedule_is_drawn_for_the_depth_of_its_workflows_model(editor, name, depth):
    editor.load(read(graph_of(name)))
    bars = editor.page.locator(".modulation-guidance-bars")
    bars.get_by_text(f" of {depth} layers guided").wait_for()
    assert "assumed" not in bars.inner_text()


def test_every_api_form_has_its_workflow():
    assert {path.name for path in (CHECKOUT / "workflows" / "api").glob("*.json")} == {api_form(path).name for path in GRAPHS}


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.stem)
def test_a_workflow_says_what_to_look_at_and_has_a_preview(client, path):
    notes = [node["widgets_values"][0] for node in read(path)["nodes"] if node["type"] in ("MarkdownNote", "Note")]
    assert any(len(note) > 100 for note in notes)
    assert path.stem in client.get("/workflow_templates")[PACK]
    preview = client.request(f"/api/workflow_templates/{PACK}/{quote(path.stem)}.jpg")
    assert preview[:3] == b"\xff\xd8\xff" and len(preview) < 120_000


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.stem)
def test_the_editor_offers_to_download_the_models_that_are_missing(editor, path):
    if editor.version < (1, 45):
        pytest.skip("This editor offers them in a dialog of its own.")
    page, workflow = editor.page, read(path)
    models = {model["name"]: model for node in workflow["nodes"] for model in node.get("properties", {}).get("models", [])}
    editor.load(workflow)
    if not models:  # the small world's, which are there
        editor.settle()
        assert not page.get_by_text(DETAILS).is_visible()
        return
    page.get_by_text(DETAILS).click()
    downloads = page.get_by_test_id("missing-model-download")
    downloads.first.wait_for()
    labels = downloads.evaluate_all("buttons => buttons.map((button) => button.ariaLabel)")
    assert sorted(labels) == sorted(f"Download {name}" for name in models)
    for name, model in models.items():
        wanted = "GET", model["url"]
        # A tab that opens later would cover the editor, which then draws nothing and is waited for in vain.
        with (
            page.context.expect_page() as tab,
            page.context.expect_event("request", lambda request: (request.method, request.url) == wanted),
        ):
            page.get_by_label(f"Download {name}").click()
        tab.value.close()
    page.bring_to_front()


def test_a_workflow_opens_from_the_template_browser(editor):
    page = editor.page
    page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text("ComfyUI-Modulatio", exact=False).first.click()
    cards = page.locator("[data-testid^=template-workflow-]")
    cards.first.wait_for()
    shown = [name.removeprefix("template-workflow-") for name in cards.evaluate_all("cards => cards.map((card) => card.dataset.testid)")]
    assert shown[:2] == ["First steps (small world)", "Modulation Guidance (one node)"], "what to begin with comes first"
    assert shown[8:] == sorted(shown[8:], key=str.lower) and not any("_" in name for name in shown)
    card = page.get_by_test_id("template-workflow-First steps (small world)")
    card.scroll_into_view_if_needed()  # pictures are shown in view only
    card.locator("img").first.wait_for()
    assert card.locator("img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 300
    card.click()
    page.wait_for_function("app.graph.nodes.some(({ type }) => type === 'ApplyModulationGuidance')")


def test_a_picture_dropped_into_the_editor_brings_its_workflow(editor):
    (path,) = (CHECKOUT / "workflows").glob("*.png")
    made_by = json.loads(Image.open(path).info["prompt"])
    editor.page.evaluate(
        """(content) => {
            const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0))
            const dataTransfer = new DataTransfer()
            dataTransfer.items.add(new File([bytes], 'guided.png', { type: 'image/png' }))
            app.canvas.canvas.dispatchEvent(new DragEvent('drop', { bubbles: true, cancelable: true, dataTransfer }))
        }""",
        base64.b64encode(path.read_bytes()).decode(),
    )
    editor.page.wait_for_function("app.graph.nodes.some(({ type }) => type === 'ModulationGuidance')")
    editor.settle()
    dropped = editor.prompt()
    assert {number: node["inputs"] for number, node in dropped.items()} == {number: node["inputs"] for number, node in made_by.items()}
    assert dropped == read(api_form(path))

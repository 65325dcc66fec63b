"""A newcomer's way: find the one node by what it is for, see its words, choose others; and the blueprints of whole families."""

import json
import sys
from pathlib import Path
from urllib.parse import urlencode

import pytest

sys.path.insert(1, str(Path(__file__).parent.parent))

from support.blueprints import BLUEPRINTS, prompt_of, read
from test_editing import add_by_search, node_of, run, small_run
from test_old_rendering import LINK
from test_schedule_drawings import click_on_canvas

from tools.small_models import TEXT_ENCODER
from tools.templates import graph_of

ONE_NODE = json.loads(graph_of("modulation_guidance_one_node").read_text(encoding="utf-8"))
BOXES = "[...document.querySelectorAll('textarea')].filter((box) => box.checkVisibility()).map(({ placeholder }) => placeholder)"


def see(editor, *words):
    """Waits until the two text boxes show these words in gray."""
    editor.page.wait_for_function(
        f"words => {{ const seen = {BOXES}; return seen.length === 2 && seen.every((each, box) => each.endsWith(words[box])) }}", arg=words
    )


def seen(editor, words):
    """Waits until the first box of gray words shows these."""
    editor.page.wait_for_function(f"words => {BOXES}.some((each) => each.endsWith(words))", arg=words)


def choose(editor, rendering, node, preset):
    """Chooses a preset with the mouse."""
    if rendering == "old":
        click_on_canvas(editor, node, 120, "preset")
        editor.page.locator(".litecontextmenu .litemenu-entry").get_by_text(preset, exact=True).click()
    else:
        editor.page.locator(f'[data-node-id="{node}"]').get_by_role("combobox").click()
        editor.page.get_by_role("option", name=preset, exact=True).click()


def test_a_newcomer_finds_the_node_sees_its_words_and_chooses_others(editor, rendering):
    node = add_by_search(editor, "detail", "Modulation Guidance")
    assert editor.page.evaluate("id => app.graph.getNodeById(id).type", node) == "ModulationGuidance"
    editor.page.evaluate("id => { app.graph.getNodeById(id).pos = [300, 100]; app.canvas.setDirty(true, true) }", node)
    editor.settle()
    see(editor, "Extremely complex, the highest quality", "Very simple, no details at all")
    choose(editor, rendering, node, "aesthetics")
    see(editor, "Ultra-detailed, photorealistic, cinematic", "Low-res, flat, cartoonish")
    choose(editor, rendering, node, "counting")
    see(editor, "needs a subject, e.g. three apples", "Very simple, no details at all")
    choose(editor, rendering, node, "custom")
    see(editor, "what you want, in a few words", "what you do not want, worded the same way")
    inputs = editor.prompt()[str(node)]["inputs"]
    assert inputs == {"preset": "custom", "strength": 1, "subject": "", "positive": "", "negative": ""}


@pytest.mark.parametrize(
    "words",
    ["guidance", "detail", "details", "sharpness", "quality", "flux quality", "anima", "aesthetics", "hands", "modulation guidance"],
)
def test_what_a_newcomer_looks_for_leads_to_it(editor, words):
    node = add_by_search(editor, words, "Modulation Guidance")
    assert editor.page.evaluate("id => app.graph.getNodeById(id).type", node) == "ModulationGuidance"


def test_the_words_follow_the_subject_and_are_there_again_in_a_saved_workflow(editor, rendering):
    editor.add("ModulationGuidance", (100, 0), preset="hands", subject="A {girl}")
    saved = editor.page.evaluate("app.graph.serialize()")
    editor.clear()
    editor.load(saved)
    see(editor, "A {girl} with natural and realistic hands", "Unnatural hands")


def test_the_words_stay_in_their_box_where_the_other_is_linked(editor, rendering):
    preset, node = editor.add("GuidancePreset"), editor.add("ModulationGuidance", (500, 0))
    editor.page.evaluate(LINK, [preset, 0, node, "positive"])
    editor.settle()
    choose(editor, rendering, node, "aesthetics")
    editor.page.wait_for_function(f"{BOXES}.at(-1).endsWith('Low-res, flat, cartoonish')")


def test_a_subject_that_comes_over_a_link_is_seen_after_a_run(editor, client, rendering):
    editor.load(ONE_NODE)
    node = node_of(editor, "ModulationGuidance")
    subject = editor.add("PrimitiveString", (0, 1300), value="three apples")
    editor.page.evaluate(
        """id => {
            for (const node of app.graph.nodes) if (node.type === 'KSampler') node.widgets.find(({ name }) => name === 'steps').value = 2
            const preset = app.graph.getNodeById(id).widgets.find(({ name }) => name === 'preset')
            preset.value = 'counting'
            preset.callback('counting')
        }""",
        node,
    )
    editor.page.evaluate(LINK, [subject, 0, node, "subject"])
    unknown = "subject: value comes from a link, shown after a run"
    seen(editor, unknown)
    run(editor, client)
    seen(editor, "three apples")
    editor.page.evaluate("id => app.graph.getNodeById(id).disconnectInput(app.graph.getNodeById(id).findInputSlot('subject'))", node)
    seen(editor, "needs a subject, e.g. three apples")


def test_the_words_come_back_with_the_node(editor):
    editor.render_nodes(True)
    node = editor.add("ModulationGuidance", (100, 0))
    see(editor, "Extremely complex, the highest quality", "Very simple, no details at all")
    for collapsed in (1, 0):
        editor.page.evaluate("id => app.graph.getNodeById(id).collapse()", node)
        editor.page.wait_for_function(f"document.querySelectorAll('[data-node-id] textarea').length === {2 - 2 * collapsed}")
    see(editor, "Extremely complex, the highest quality", "Very simple, no details at all")


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_a_blueprint_is_found_put_down_and_is_what_it_says(editor, path):
    node = add_by_search(editor, path.stem, path.stem)
    placed, _ = read(path)
    widgets = editor.page.evaluate("id => app.graph.getNodeById(id).widgets.map(({ name }) => name)", node)
    assert widgets == [given["name"] for given in placed["inputs"] if "widget" in given]
    wanted, guided = prompt_of(path, None, f"{node}:")
    wanted[guided[0]]["inputs"].pop("model")
    made = {number: {"class_type": each["class_type"], "inputs": each["inputs"]} for number, each in editor.prompt().items()}
    assert made == {number: {"class_type": each["class_type"], "inputs": each["inputs"]} for number, each in wanted.items()}


def test_a_blueprint_between_the_loader_and_the_sampler_runs(editor, client):
    editor.render_nodes(False)
    small_run(editor)
    left, top, *_ = editor.bounds()
    editor.look_at((left - 150, top - 150), 0.55)
    node = add_by_search(editor, "Modulation Guidance (FLUX.1)", "Modulation Guidance (FLUX.1)")
    editor.page.evaluate(
        """([blueprint, loader, sampler, encoder]) => {
            const [one, from, to] = [blueprint, loader, sampler].map((id) => app.graph.getNodeById(id))
            from.connect(0, one, 0)
            one.connect(0, to, 0)
            one.widgets.find(({ name }) => name === 'clip_name').value = encoder
        }""",
        [node, node_of(editor, "UNETLoader"), node_of(editor, "KSampler", "Sample guided"), TEXT_ENCODER],
    )
    outputs = run(editor, client)
    plain, guided = (
        client.request("/view?" + urlencode(outputs[str(node_of(editor, "SaveImage", name))]["images"][0])) for name in ("Plain", "Guided")
    )
    assert plain[:4] == guided[:4] == b"\x89PNG" and plain != guided

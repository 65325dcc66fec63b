"""After a run the node itself says what was done, in both renderings of the editor."""

import itertools
import json

from support.distilling import needs_distilling
from test_workflows import LAYOUT, overlap

from tools.templates import graph_of

FIRST_STEPS = graph_of("first_steps_small_world")
DONE = "FLUX.1, layers 2-11 of 12, w {w}, cfg_rows both, 3 of 3 steps, longest shift 0."
TEXT = "$$node-text-preview"  # the editor's widget for a text that a node sends


def has_told(editor, node_type, part):
    """Waits until a node of that type says it."""
    editor.page.wait_for_function(
        "([type, name, part]) => app.graph.nodes.find((node) => node.type === type).widgets.find((each) => each.name === name)?.value?.includes(part)",
        arg=[node_type, TEXT, part],
        timeout=180_000,
    )


def run(editor, w):
    """Runs the first-steps workflow on three steps, guided by w."""
    editor.page.evaluate(
        """(w) => {
            for (const { type, widgets } of app.graph.nodes) {
                const set = (name, value) => { widgets.find((widget) => widget.name === name).value = value }
                if (type === 'KSampler') set('steps', 3)
                if (type === 'ApplyModulationGuidance') set('w', w)
            }
            app.queuePrompt(0)
        }""",
        w,
    )


def test_the_node_says_what_was_done_after_a_run(editor, rendering):
    workflow = json.loads(FIRST_STEPS.read_text(encoding="utf-8"))
    editor.load(workflow)
    values = "app.graph.serialize().nodes.find(({ type }) => type === 'ApplyModulationGuidance').widgets_values"
    saved = editor.page.evaluate(values)
    # Numbers of its own for each rendering: what the host has kept it does not sample again.
    guided = {"old": 0.8, "new": 0.9}[rendering]
    for w, part in ((guided, DONE.format(w=guided)), (0, "⚠ Nothing was guided: w is 0.")):
        run(editor, w)
        has_told(editor, "ApplyModulationGuidance", part)
        editor.page.wait_for_timeout(1500)  # newer editors take it away as the run ends
        has_told(editor, "ApplyModulationGuidance", part)
        editor.page.evaluate("app.canvas.centerOnNode(app.graph.nodes.find(({ type }) => type === 'ApplyModulationGuidance'))")
        boxes = editor.page.evaluate(LAYOUT)["boxes"]
        over = [(one["name"], other["name"]) for one, other in itertools.combinations(boxes, 2) if overlap(one, other)]
        if rendering == "old" or editor.version >= (1, 47):  # which the workflows are laid out for
            assert not over, "what came with the run has its place"
        shown = editor.page.get_by_text(part).first
        shown.wait_for()
        assert shown.bounding_box()["height"] > 10
    assert editor.page.evaluate(values)[0] == 0 and len(editor.page.evaluate(values)) == len(saved), "the text is saved nowhere"
    assert TEXT not in json.dumps(editor.prompt()) + json.dumps(editor.page.evaluate("app.graph.serialize()"))


@needs_distilling
def test_distilling_says_that_prompts_are_encoded_and_what_an_interrupt_leaves(editor, client):
    editor.render_nodes(True)
    editor.load(json.loads(graph_of("distill_a_projection").read_text(encoding="utf-8")))
    editor.page.evaluate(
        """() => {
            const { widgets } = app.graph.nodes.find(({ type }) => type === 'DistillPooledProjection')
            widgets.find(({ name }) => name === 'prompts').value = Array.from({ length: 5000 }, (_, number) => `circle ${number}`).join('\\n')
            app.queuePrompt(0)
        }"""
    )
    has_told(editor, "DistillPooledProjection", "Encoding prompts: ")
    client.interrupt()
    has_told(editor, "DistillPooledProjection", "Interrupted before the first step: nothing was learned.")

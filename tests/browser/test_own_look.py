"""What the pack draws in its own way: the colors of its sockets, and the tables of its help."""

import io

import pytest
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api")

OWN = ("GUIDANCE_DIRECTION", "LAYER_SCHEDULE", "POOLED_PROJECTION")
THEME = {"id": "own", "name": "Own", "colors": {"node_slot": {"LAYER_SCHEDULE": "#123456"}, "litegraph_base": {}, "comfy_base": {}}}


def wired(editor):
    """One link of each of our types."""
    editor.page.evaluate(
        """async () => {
            const add = (type, pos) => { const node = LiteGraph.createNode(type); node.pos = pos; app.graph.add(node); return node }
            const target = add('ApplyModulationGuidance', [700, 0])
            const sources = [['EncodeGuidanceDirection', 'direction'], ['GuidanceLayerSchedule', 'schedule'], ['LoadPooledProjection', 'projection']]
            sources.forEach(([type, name], index) => add(type, [0, 300 * index]).connect(0, target, target.inputs.findIndex((slot) => slot.name === name)))
        }"""
    )


def colors_on_screen(editor):
    editor.settle()
    picture = Image.open(io.BytesIO(editor.page.screenshot())).convert("RGB")
    return {"#{:02x}{:02x}{:02x}".format(*color) for _, color in picture.getcolors(1 << 22)}


def colors_of(editor):
    """The color of each of our types: on the canvas for sockets and for links, and in the new rendering."""
    return editor.page.evaluate(
        """(types) => types.map((type) => [
            app.canvas.default_connection_color_byType[type], LGraphCanvas.link_type_colors[type],
            getComputedStyle(document.documentElement).getPropertyValue(`--color-datatype-${type}`).trim(),
        ])""",
        OWN,
    )


def test_our_sockets_and_links_have_a_color_each(editor, rendering):
    wired(editor)
    ours = [set(colors) for colors in colors_of(editor)]
    assert all(len(colors) == 1 for colors in ours) and len(set.union(*ours)) == len(OWN), ours
    assert set.union(*ours) <= colors_on_screen(editor)


def test_a_theme_that_names_a_color_is_heeded(editor):
    before = colors_of(editor)
    setting = "([name, value]) => app.extensionManager.setting.set(name, value)"
    editor.page.evaluate(setting, ["Comfy.CustomColorPalettes", {"own": THEME}])
    try:
        editor.open()
        editor.page.evaluate(setting, ["Comfy.ColorPalette", "own"])
        editor.page.wait_for_function("LGraphCanvas.link_type_colors.LAYER_SCHEDULE === '#123456'")
        assert colors_of(editor) == [before[0], ["#123456"] * 3, before[2]]
        editor.page.evaluate(setting, ["Comfy.ColorPalette", "dark"])
        editor.page.wait_for_function("LGraphCanvas.link_type_colors.LAYER_SCHEDULE !== '#123456'")
        assert colors_of(editor) == before
    finally:
        editor.page.evaluate(setting, ["Comfy.ColorPalette", "dark"])
        editor.page.evaluate(setting, ["Comfy.CustomColorPalettes", {}])
        editor.open()


@pytest.mark.parametrize("node_type", ["ApplyModulationGuidance", "DistillPooledProjection", "EncodeGuidanceDirection", "InspectGuidance"])
def test_the_tables_of_the_help_fit_into_the_side_panel(editor, node_type):
    editor.add(node_type)
    editor.open_help()
    editor.page.locator(".node-help-content table").first.wait_for()
    editor.settle()
    fits = editor.page.evaluate(
        """() => {
            const page = document.querySelector('.node-help-content')
            const right = page.getBoundingClientRect().right + 1
            return [page.clientWidth, [...page.querySelectorAll('table, td, th')].every((part) =>
                part.scrollWidth <= part.clientWidth + 1 && part.getBoundingClientRect().right <= right)]
        }"""
    )
    editor.problems[:] = [problem for problem in editor.problems if "/en.md" not in problem]  # the editor asks for that first
    assert fits[0] < 400 and fits[1], fits

"""Names, tooltips and help of every node in every language, as the server gives them to the editor."""

import re
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api")

LANGUAGES = ["en", "zh", "ja", "ko", "fr", "es"]
PACK = "ComfyUI-Modulation-Guidance"
DOCS = Path(__file__).parent.parent.parent / "web" / "docs"


@pytest.fixture(scope="module")
def nodes(client):
    """Our nodes in /object_info: {id: definition}."""
    found = {name: node for name, node in client.get("/object_info").items() if node["python_module"] == f"custom_nodes.{PACK}"}
    assert "ApplyModulationGuidance" in found
    return found


@pytest.fixture(scope="module")
def translations(client):
    return client.get("/i18n")


def inputs(node):
    return {name: spec for kind in ("required", "optional") for name, spec in node["input"].get(kind, {}).items()}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_input_and_output_is_named_and_explained_and_nothing_else(nodes, translations, language):
    ours = {name: entry for name, entry in translations[language]["nodeDefs"].items() if name in nodes}
    assert ours.keys() == translations[language]["nodeDefs"].keys() == nodes.keys()
    for name, node in nodes.items():
        entry = ours[name]
        assert entry["display_name"] and entry["description"]
        assert entry.get("inputs", {}).keys() == inputs(node).keys()
        assert list(entry.get("outputs", {})) == [str(index) for index in range(len(node["output_name"]))]
        for part in (*entry.get("inputs", {}).values(), *entry.get("outputs", {}).values()):
            assert part["name"] and part["tooltip"]


def test_the_english_texts_are_those_of_the_nodes(nodes, translations):
    for name, entry in translations["en"]["nodeDefs"].items():
        node = nodes[name]
        assert (entry["display_name"], entry["description"]) == (node["display_name"], node["description"])
        assert {key: part["tooltip"] for key, part in entry.get("inputs", {}).items()} == {
            key: spec[1]["tooltip"] for key, spec in inputs(node).items()
        }
        assert [part["tooltip"] for part in entry.get("outputs", {}).values()] == (node["output_tooltips"] or [])


@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "en"])
def test_translations_are_translations(translations, language):
    for name, entry in translations[language]["nodeDefs"].items():
        english = translations["en"]["nodeDefs"][name]
        assert entry["display_name"] != english["display_name"] and entry["description"] != english["description"]


@pytest.mark.parametrize(
    "language, projection",
    [("en", "projection"), ("zh", "投影"), ("ja", "投影"), ("ko", "투영"), ("fr", "projection"), ("es", "proyección")],
)
def test_it_is_said_that_w_0_is_not_plain_with_a_projection(translations, language, projection):
    for name, key in (("ApplyModulationGuidance", "w"), ("SweepModulationGuidance", "w_values"), ("ModulationGuidance", "strength")):
        assert projection in translations[language]["nodeDefs"][name]["inputs"][key]["tooltip"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_words_drawn_on_nodes_have_the_same_places_in_every_language(translations, language):
    def places(texts):
        return {key: sorted(re.findall(r"\{\w+\}", text)) for key, text in texts.items()}

    assert places(translations[language]["modulationGuidance"]) == places(translations["en"]["modulationGuidance"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_a_help_page_that_names_its_inputs_and_shows_it(client, nodes, language):
    for name, node in nodes.items():
        page = client.request(f"/extensions/{PACK}/docs/{name}{'' if language == 'en' else f'/{language}'}.md").decode()
        assert page.startswith("# ")
        assert not [key for key in inputs(node) if f"`{key}`" not in page and name != "SweepModulationGuidance"]
        for picture in re.findall(r"!\[.*?\]\((.+?)\)", page):
            assert client.request(f"/extensions/{PACK}/docs/{picture}")[:4] == b"\x89PNG"


def test_every_help_page_is_of_a_node(nodes):
    assert {path.name.split(".")[0] for path in DOCS.iterdir() if path.name != "assets"} == nodes.keys()


def test_names_and_help_are_shown_in_the_language_of_the_editor(client, editor):
    client.post("/settings/Comfy.Locale", "ja")
    try:
        editor.open()
        editor.page.wait_for_function(
            "LiteGraph.registered_node_types.ApplyModulationGuidance.title === 'モジュレーションガイダンスを適用'"
        )
        editor.clear()
        editor.add("GuidanceLayerSchedule")
        editor.page.wait_for_function(
            "document.querySelector('.modulation-guidance-bars').innerText.includes('57 レイヤー中 52 レイヤーをガイド')"
        )
        assert editor.page.evaluate("LiteGraph.registered_node_types.ApplyModulationGuidance.category") == "モジュレーションガイダンス"
        editor.page.evaluate(
            """start => {
                const target = app.graph.nodes.find((node) => node.type === 'GuidanceLayerSchedule')
                app.graph.getNodeById(start).connect(0, target, target.inputs.findIndex(({ name }) => name === 'start_layer'))
            }""",
            editor.add("PrimitiveInt", (0, 600), value=7),
        )
        editor.page.wait_for_function(
            "document.querySelector('.modulation-guidance-bars').innerText.includes('開始レイヤー：接続先の値です')"
        )
        editor.open_help()
        editor.page.get_by_text("使う場面").wait_for()
    finally:
        client.post("/settings/Comfy.Locale", "en")
        editor.open()

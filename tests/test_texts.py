"""What users read in the editor: every language says what the English says, of the nodes as they are, in one word for one thing."""

import ast
import json
import re
from collections import Counter
from pathlib import Path

import pytest

import nodes as host_nodes

CHECKOUT = Path(__file__).parent.parent
DOCS = CHECKOUT / "web" / "docs"
OTHERS = ["zh", "ja", "ko", "fr", "es"]
COLUMNS = 140
# That another language counts with, or writes a fraction with, where English has a word.
COUNTERS = {"1", "2", "3", "4", "10", "100"}

# What must not be read any more, as another word is used for the thing: a regular expression.
AVOIDED = {
    "en": r"\b[Uu]nconnected: |\bthe head\b|output head|\breference code|text-blind|\bpictures?\b|\d %",
    "zh": r"正向|负向|标记|烧坏|输出头|引导强度|条件行|CFG 行|基底|层调度|潜变量|图片|\d %",
    "ja": r"誘導|層|射影|プール出力|出力ヘッド|条件付きの行|無条件|基底|走査|主体|欲しい|焼け|\d %",
    "ko": r"변조|유도|층|그림|컨디셔닝|무조건|출력 헤드|자신의 프롬프트|낱말|이름표|격자|훑기|빈 글|마다의|프로젝션|\d %",
    "fr": r"Pas d'|\bpas d'échantillonnage|[Pp]lan des couches|lignes? (CFG|conditionnelle)"
    r"|tête de sortie|affaibli|maître|[Rr]eli[eé]|ce qui est voulu",
    "es": r"[Ff]uerza de (la )?guía|filas? (CFG|condicional)|cabeza de salida|debilit"
    r"|[Pp]lan de capas|[Rr]ótul|[Bb]arrer|que guiar|[Ss]e quiere|maestro",
}


# The same of errors, of what nodes tell and of the notes in workflows; scorers and their nodes are called so.
AVOIDED_ELSEWHERE = r"(?<!Score )(?<!Load )\b[Pp]ictures?\b(?! scorer)|output head|\bthe head\b|both rows|conditional rows"


def flat(texts, prefix=""):
    """{"a.b.c": text} of nested ones."""
    found = {}
    for key, value in texts.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def locale(language, name):
    return flat(json.loads((CHECKOUT / "locales" / language / f"{name}.json").read_text(encoding="utf-8")))


def page(node, language):
    return (DOCS / f"{node}.md" if language == "en" else DOCS / node / f"{language}.md").read_text(encoding="utf-8")


def names_of(language):
    """{node: its name}"""
    return {key.split(".")[0]: text for key, text in locale(language, "nodeDefs").items() if key.endswith(".display_name")}


NODES = sorted(names_of("en"))


def numbers(text):
    """The set of numbers in a text, in one way of writing them."""
    text = re.sub(r"\d+ ?[月월]|July|juillet|julio", "", text)
    text = re.sub(r"(\d+) ?(?:万|만)", lambda match: f"{match[1]}0000", text)
    text = re.sub(r"(\d+) (?:million|millions|millones)\b", lambda match: f"{match[1]}000000", text)
    text = re.sub(r"\b([1-9]\d*),(\d{3})\b", r"\1\2", text)
    text = re.sub(r"(?<=\d),(?=\d)", ".", text)
    return {re.sub(r"\.0+$", "", number) for number in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", text)}


def named(text, names):
    """The nodes that a text names; the longest of names that begin alike."""
    known = {name: node for node, name in names.items()}
    return {known[name] for name in re.findall("|".join(map(re.escape, sorted(known, key=len, reverse=True))), text)}


def code_in(text):
    """What a page sets as code within its lines, but for w, which some languages need more often."""
    return set(re.findall(r"`([^`]+)`", text.replace("\n", " "))) - {"w"}


def told_apart(english, other):
    """The numbers that only one of two texts has, the counters of a language aside."""
    return (numbers(english) ^ numbers(other)) - COUNTERS


@pytest.mark.parametrize("language", OTHERS)
@pytest.mark.parametrize("name", ["main", "nodeDefs"])
def test_every_language_has_the_same_texts_in_the_same_order(language, name):
    assert list(locale(language, name)) == list(locale("en", name))


def test_the_english_names_are_those_of_the_nodes():
    texts = locale("en", "nodeDefs")
    for node in NODES:
        schema = host_nodes.NODE_CLASS_MAPPINGS[node].GET_SCHEMA()
        assert (texts[f"{node}.display_name"], texts[f"{node}.description"]) == (schema.display_name, schema.description)
        inputs = [(f"inputs.{each.id}", each) for each in schema.inputs]
        for key, part in [*inputs, *((f"outputs.{index}", each) for index, each in enumerate(schema.outputs))]:
            assert (texts[f"{node}.{key}.name"], texts[f"{node}.{key}.tooltip"]) == (part.id, part.tooltip)


@pytest.mark.parametrize("language", OTHERS)
def test_translations_hold_the_numbers_and_name_the_nodes_of_the_english(language):
    english, texts = locale("en", "nodeDefs"), locale(language, "nodeDefs")
    assert not {key: found for key, text in english.items() if (found := told_apart(text, texts[key]))}
    names = names_of("en"), names_of(language)
    lacking = {key: named(text, names[0]) - named(texts[key], names[1]) for key, text in english.items()}
    assert not {key: found for key, found in lacking.items() if found}


@pytest.mark.parametrize("language", ["en", *OTHERS])
def test_one_word_for_one_thing(language):
    avoided = re.compile(AVOIDED[language])
    texts = locale(language, "main") | locale(language, "nodeDefs")
    texts |= {f"{node} (help)": page(node, language) for node in NODES}
    assert not {key: found for key, text in texts.items() if (found := avoided.findall(text))}


@pytest.mark.parametrize("language", OTHERS)
def test_an_input_has_the_same_name_wherever_it_stands(language):
    shared = {}
    for key, text in locale(language, "nodeDefs").items():
        node, *kind, last = key.split(".")
        if last == "name" and kind[0] == "inputs" and kind[1] not in ("positive", "negative", "start_layers"):  # texts, or conditionings
            shared.setdefault(kind[1], set()).add(text)
    several = {name: texts for name, texts in shared.items() if len(texts) > 1}
    assert several.keys() <= {"prompts"}, several  # those of Scale Text Variance are further ones


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("language", OTHERS)
def test_a_translated_page_is_the_english_one_in_another_language(node, language):
    english, other = page(node, "en"), page(node, language)
    assert other.splitlines()[0] == f"# {names_of(language)[node]}"
    for pattern in (r"^#+ ", r"^\| --- .*$", r"^- ", r"^    \S"):
        assert len(re.findall(pattern, other, re.M)) == len(re.findall(pattern, english, re.M)), pattern
    assert Counter(re.findall(r"\]\((.+?)\)", other)) == Counter(re.findall(r"\]\((.+?)\)", english))
    assert [line.count("|") for line in other.splitlines() if line.startswith("|")] == [
        line.count("|") for line in english.splitlines() if line.startswith("|")
    ]
    assert code_in(other) == code_in(english)
    assert not told_apart(english, other)
    bold = r"\*\*(.+?)\*\*"
    ours = [{name: node for node, name in names_of(each).items()} for each in ("en", language)]
    wanted, found = (
        Counter(names[name] for name in re.findall(bold, text.replace("\n", " ")) if name in names)
        for names, text in zip(ours, (english, other), strict=True)
    )
    assert wanted.keys() == found.keys()


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("language", OTHERS)
def test_help_calls_an_input_what_the_node_shows(node, language):
    texts, rows = locale(language, "nodeDefs"), {}
    for line in page(node, language).splitlines():
        if line.startswith("|"):
            cell = line.split(" | ")[0].removeprefix("| ")
            rows |= {match[2]: match[1] for match in re.finditer(r"(?:^|, |、)([^`]*?) \(`(\w+)`\)", cell)}
    inputs = {key.split(".")[2]: text for key, text in texts.items() if key.startswith(f"{node}.inputs.") and key.endswith(".name")}
    if node == "SweepModulationGuidance":  # those of Apply Modulation Guidance are on its page
        inputs = {name: inputs[name] for name in ("w_values", "start_layers")}
    assert rows == inputs


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("language", ["en", *OTHERS])
def test_pictures_say_what_they_show_and_prose_is_wrapped(node, language):
    text = page(node, language)
    assert re.findall(r"!\[(.*?)\]", text) and all(names_of(language)[node] in told for told in re.findall(r"!\[(.*?)\]", text))
    if language not in ("zh", "ja"):  # a line's end is a space there, where none belongs
        assert not [line for line in text.splitlines() if len(line) > COLUMNS and not line.startswith("|")]


def messages(path):
    """(line, text) of the strings of a module that are sentences, without docstrings."""
    for node in (tree := list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""
    return [
        (node.lineno, node.value) for node in tree if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value
    ]


def test_errors_and_what_nodes_tell_use_the_same_words():
    modules = [
        path for folder in ("nodes", "model_patches", "pooled_proj", "training", "scoring") for path in (CHECKOUT / folder).rglob("*.py")
    ]
    found = [f"{path.name}:{line}: {text}" for path in modules for line, text in messages(path) if re.search(AVOIDED_ELSEWHERE, text)]
    assert len(modules) > 60 and found == []


@pytest.mark.parametrize("path", sorted((CHECKOUT / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_workflows_use_the_same_words(path):
    shown = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    texts = [text for node in shown for text in (node.get("title", ""), node["widgets_values"][0] if "Note" in node["type"] else "")]
    assert any(texts) and [text for text in texts if re.search(AVOIDED_ELSEWHERE, text)] == []

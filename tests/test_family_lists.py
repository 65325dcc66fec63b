"""Where families are listed by hand, none is missing."""

import importlib
import json
import re
from pathlib import Path

import pytest
from support.distilling import PACK

import nodes

CHECKOUT = Path(__file__).parent.parent
FAMILIES = importlib.import_module(f"{PACK}.model_patches.families").FAMILIES
SHORT = {"HiDream-I1": "HiDream"}  # as it is called where it is clear which one is meant


def pages(name):
    """The help of a node, in each language."""
    return [CHECKOUT / "web" / "docs" / f"{name}.md", *sorted((CHECKOUT / "web" / "docs" / name).glob("*.md"))]


def missing(text, families):
    return [family.name for family in families if SHORT.get(family.name, family.name) not in text]


def test_the_docs_have_a_row_for_each():
    page = (CHECKOUT / "docs/models.md").read_text(encoding="utf-8")
    rows = ", ".join(re.findall(r"^\| (.+?) \|", page, re.M))
    assert missing(rows, FAMILIES) == []


def test_the_readme_names_each_in_its_first_table():
    table = (CHECKOUT / "README.md").read_text(encoding="utf-8").partition("| your model |")[2].partition("\n\n")[0]
    names = [name for family in FAMILIES for name in SHORT.get(family.name, family.name).split(" / ")]
    assert [name for name in names if name not in table] == []


@pytest.mark.parametrize("page", pages("ScaleTextVariance"), ids=lambda page: f"{page.parent.name} {page.stem}")
def test_the_help_names_the_families_whose_text_tokens_can_be_scaled(page):
    assert missing(page.read_text(encoding="utf-8"), [family for family in FAMILIES if family.text_tokens]) == []


@pytest.mark.parametrize("language", ["", "en", "es", "fr", "ja", "ko", "zh"])
def test_the_description_does_too(language):
    families = [family for family in FAMILIES if family.text_tokens and family.name != "HunyuanVideo 1.5"]
    said = nodes.NODE_CLASS_MAPPINGS["ScaleTextVariance"].GET_SCHEMA().description
    if language:
        texts = json.loads((CHECKOUT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
        said = texts["ScaleTextVariance"]["description"]
    assert missing(said, families) == []


@pytest.mark.parametrize("page", pages("LoadPooledProjection"), ids=lambda page: f"{page.parent.name} {page.stem}")
def test_the_help_names_the_families_that_need_no_projection(page):
    assert missing(page.read_text(encoding="utf-8"), [family for family in FAMILIES if family.text]) == []


@pytest.mark.parametrize("page", pages("LoadPooledProjection"), ids=lambda page: f"{page.parent.name} {page.stem}")
def test_and_those_that_do(page):
    first = page.read_text(encoding="utf-8").split("\n\n")[1].replace("\n", " ")
    assert missing(first, [family for family in FAMILIES if not family.text and not family.name.startswith("Cosmos")]) == []
    assert "Cosmos" in first

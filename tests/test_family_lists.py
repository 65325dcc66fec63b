"""Where families are listed by hand, none is missing."""

import importlib
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


@pytest.mark.parametrize("page", pages("ScaleTextVariance"), ids=lambda page: f"{page.parent.name} {page.stem}")
def test_the_help_names_the_families_whose_text_tokens_can_be_scaled(page):
    assert missing(page.read_text(encoding="utf-8"), [family for family in FAMILIES if family.text_tokens]) == []


def test_the_description_does_too():
    families = [family for family in FAMILIES if family.text_tokens and family.name != "HunyuanVideo 1.5"]
    assert missing(nodes.NODE_CLASS_MAPPINGS["ScaleTextVariance"].GET_SCHEMA().description, families) == []


@pytest.mark.parametrize("page", pages("LoadPooledProjection"), ids=lambda page: f"{page.parent.name} {page.stem}")
def test_the_help_names_the_families_that_need_no_projection(page):
    assert missing(page.read_text(encoding="utf-8"), [family for family in FAMILIES if family.text]) == []

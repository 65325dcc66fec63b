"""The workflows: each a graph, named as the editor's template browser shows it, beside its preview, and an API form that programs name."""

import re
from pathlib import Path

WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"


def graphs() -> list[Path]:
    return sorted(WORKFLOWS.glob("*.json"))


def api_form(graph: Path) -> Path:
    """workflows/FLUX dev (complexity, schedule).json -> workflows/api/flux_dev_complexity_schedule.json"""
    return WORKFLOWS / "api" / (re.sub(r"[^a-z0-9]+", "_", graph.stem.lower().replace(".", "")).strip("_") + ".json")


def graph_of(name: str) -> Path:
    """The graph whose API form has this name, e.g. flux_dev_complexity_schedule."""
    (graph,) = (path for path in graphs() if api_form(path).stem == name)
    return graph

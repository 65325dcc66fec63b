"""effect.py --variance: Scale Text Variance on combinations that training never showed, and on ones it did."""

import random

from tools.small_world.captions import subject
from tools.small_world.checkers import Expectation
from tools.small_world.dataset import HELD_OUT
from tools.small_world.scenes import sample_scene

from .conditions import PLAIN, Condition
from .prompts import APART, LAYOUTS, PROMPTS, Prompt, _layout
from .report import DIGITS, _signed, markdown
from .results import Results
from .run import Job

SCALES = (1.2, 1.5, 2.0, 3.0)
COUNT = 32  # prompts in each set by default
SETS = {"rare": True, "common": False}
CONDITIONS = (PLAIN, *(Condition(variance=scale) for scale in SCALES))
SCORES = ("exact", "count", "color", "change")


def prompts(name: str, count: int) -> list[Prompt]:
    """Captions of held-out scenes; in the rare ones the first thing is of a kind that was never drawn for training."""
    first = HELD_OUT + APART * (len(PROMPTS) + list(SETS).index(name))
    found, seed = [], first
    while len(found) < count:
        scene = sample_scene(seed, rare=SETS[name])
        text = subject(scene, random.Random(seed)) if _layout(scene) == LAYOUTS[len(found) % len(LAYOUTS)] else None
        if text and text not in {prompt.text for prompt in found}:
            found.append(Prompt(text, Expectation(scene.groups, scene.relation), seed))
        seed += 1
    return found


def jobs_of(count: int | None) -> list[Job]:
    """All there is to do, prompt by prompt, plain first."""
    return [
        Job(name, index, prompt, condition)
        for name in SETS
        for index, prompt in enumerate(prompts(name, count or COUNT))
        for condition in CONDITIONS
    ]


def table(results: Results, about: dict) -> str:
    """The report in markdown. about: what was run, in words."""
    parts = [
        "# Scale Text Variance, measured on the small world",
        "\n".join(f"- {name}: {value}" for name, value in about.items()),
        "Means with 95 % intervals (bootstrap over prompts); differences are to scale 1 on the same prompts and seeds, in bold where their "
        "interval leaves out zero. *Exact*: every object as asked and nothing else; *count*, *color* likewise; all in percent of the pictures. "
        "*Change*: mean difference to the picture at scale 1, 8-bit steps. The tokens of the prompt are counted and padding is left alone.",
    ]
    for name, what in (("rare", "Kinds that training never showed"), ("common", "Kinds that it did")):
        rows = []
        for condition in CONDITIONS:
            cells = [results.mean(name, condition, score) for score in SCORES]
            rows.append(
                [
                    f"{condition.variance:g}",
                    *(
                        f"{cell.mean:.{DIGITS.get(score, 1)}f}"
                        + ("" if condition == PLAIN or score == "change" else f", {_signed(results.gain(name, condition, score))}")
                        for score, cell in zip(SCORES, cells)
                    ),
                ]
            )
        parts += [f"## {what}", markdown(["scale", *SCORES], rows)]
    return "\n\n".join(parts) + "\n"

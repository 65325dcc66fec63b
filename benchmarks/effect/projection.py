"""effect.py --projection: the distilled projection on the small world's text-blind model."""

from .conditions import IN_WORDS, PLAIN, SHARPNESS, Condition, complexity
from .prompts import PROMPTS, prompt_set
from .report import SCORE, _gain, _mean, markdown
from .results import Results
from .run import Job

POOLED = Condition(preset="complexity", base=True)  # w 0: the prompt's pooled text, and no direction
WEIGHTS = (1.0, 2.0, 3.0, 6.0)
START_LAYERS = (0, 2)
SETS = ("general", "counting", "color", "position")


def conditions(name: str) -> list[Condition]:
    """What is measured on a set of prompts, plain first."""
    if name == "general":
        return [
            PLAIN,
            IN_WORDS,
            POOLED,
            *(complexity(w, start, base=True) for start in START_LAYERS for w in WEIGHTS),
            *(complexity(w) for w in WEIGHTS),
            *(complexity(w, rows="cond") for w in (1.0, 2.0, 4.0)),
            complexity(-2.0, base=True),
            *(Condition(sides=SHARPNESS, w=w, base=True) for w in (1.0, 3.0)),
        ]
    return [PLAIN, POOLED, *(Condition(preset=name, w=w, base=True) for w in (1.0, 3.0))]


def jobs_of(count: int | None) -> list[Job]:
    """All there is to do, prompt by prompt, plain first."""
    return [
        Job(name, index, prompt, condition)
        for name in SETS
        for index, prompt in enumerate(prompt_set(name, count or PROMPTS[name]))
        for condition in conditions(name)
    ]


def table(results: Results, about: dict) -> str:
    """The report in markdown. about: what was run, in words."""
    scores = ("detail", "exact", "gradient", "sharpness")
    general = [["plain", *(_mean(results, PLAIN, score) for score in scores), ""]] + [
        [
            condition.name,
            *(_gain(results, condition, score) for score in scores),
            f"{results.of('general', condition, 'change').mean():.1f}",
        ]
        for condition in conditions("general")[1:]
    ]
    attributes = []
    for name in SETS[1:]:
        right = SCORE[name]
        attributes.append([name, "plain", _mean(results, PLAIN, right, name)])
        attributes += [
            [
                name,
                condition.name,
                _mean(results, condition, right, name),
                _gain(results, condition, right, name),
                _gain(results, condition, "exact", name),
            ]
            for condition in conditions(name)[1:]
        ]
    return (
        "\n\n".join(
            (
                "# A distilled projection, measured on the small world's text-blind model",
                "\n".join(f"- {name}: {value}" for name, value in about.items()),
                "Without a projection this model cannot be guided. Means with 95 % intervals (bootstrap over prompts); differences are to plain on "
                "the same prompts and seeds, in bold where their interval leaves out zero. *Pooled text alone*: the projection with the prompt's "
                "pooled text on the conditional and the empty prompt's on the unconditional rows, and no direction; *pooled text too*: both. The "
                "scores are those of `table.md`.",
                "## Detail",
                "First row the means, then differences to plain.",
                markdown(["condition", "detail, %", "exact, %", "gradient", "sharpness, %", "change"], general),
                "## Counting, color, position",
                markdown(["prompts", "condition", "right, %", "difference", "exact, difference"], attributes),
            )
        )
        + "\n"
    )

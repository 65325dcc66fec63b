"""effect.py --learned: directions learned from words, beside the words themselves and text guidance."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tools.small_world.attributes import ATTRIBUTES, prompts

from .effect_conditions import IN_WORDS, PLAIN, Condition, complexity
from .effect_plots import pyplot, with_line, write_figure
from .effect_prompts import Prompt, prompt_set
from .effect_report import SCORE, _gain, _mean, _signed, markdown
from .effect_results import Results
from .effect_run import Job
from .effect_statistics import Estimate, at_strength, estimate, resampled_means

PROMPTS = {"general": 16, "counting": 16, "color": 16, "position": 16}
MEASURED = {"detail": "detail", "sharpness": "sharpness", "light": "ground"}  # the score of each attribute
LOST = 5  # points of adherence, at most, where strengths are compared

WEIGHTS = {"flux": (0.5, 1.0, 1.5, 2.0, 2.5), "wan": (1.0, 2.0, 3.0, 4.0)}
START_LAYERS = {"flux": (0, 2), "wan": (0, 1)}
TEXT_GUIDED = [complexity(w, 2) for w in (1.0, 3.0, 6.0)]  # with the start layer that is best in table.md


def learned(attribute: str, w: float, start_layer: int = 0) -> Condition:
    return Condition(learned=attribute, w=w, start_layer=start_layer)


def in_words(words: str) -> Condition:
    return replace(PLAIN, words=words)


def curve(model: str, start_layer: int) -> list[Condition]:
    """Of the direction for detail, by growing w."""
    return [learned("detail", w, start_layer) for w in WEIGHTS[model]]


def opposite_ways(model: str, attribute: str) -> list[Condition]:
    """What turns an attribute up and down: the words, what was learned of them, and on FLUX text guidance by them."""
    sides = ATTRIBUTES[attribute]
    largest = WEIGHTS[model][-2]
    by_text = [Condition(sides=sides, w=w, start_layer=2) for w in (3.0, -3.0)] if model == "flux" else []
    return [*(in_words(words) for words in sides), *(learned(attribute, w) for w in (1.0, largest, -1.0, -largest)), *by_text]


def guided(model: str) -> list[Condition]:
    """Text guidance where the model can be guided by text, and the lines of the learned direction for detail."""
    return [*(TEXT_GUIDED if model == "flux" else ()), *(each for start in START_LAYERS[model] for each in curve(model, start))]


def conditions(model: str, name: str) -> list[Condition]:
    """What is measured on a set of prompts, plain first."""
    if name != "general":
        return [PLAIN, IN_WORDS, *(learned("detail", w) for w in (1.0, WEIGHTS[model][-2]))]
    return list(dict.fromkeys((
        PLAIN, IN_WORDS, *guided(model), *(each for attribute in ATTRIBUTES for each in opposite_ways(model, attribute)),
    )))


def held_out(name: str, count: int) -> list[Prompt]:
    """The set's prompts but for those that directions were learned on, however these count to one."""
    known = {_counted(text) for text in prompts()}
    return [prompt for prompt in prompt_set(name, 2 * count) if _counted(prompt.text) not in known][:count]


def _counted(text: str) -> str:
    return text.replace("a single ", "a ").replace("one ", "a ")


def jobs_of(model: str, count: int | None) -> list[Job]:
    """All there is to do, prompt by prompt, plain first."""
    return [
        Job(name, index, prompt, condition)
        for name in PROMPTS for index, prompt in enumerate(held_out(name, count or PROMPTS[name])) for condition in conditions(model, name)
    ]


def strongest(results: Results, candidates: Sequence[Condition]) -> Condition | None:
    """With the most detail of those that lose LOST points of adherence at most."""
    kept = [each for each in candidates if results.gain("general", each, "exact").mean >= -LOST]
    return max(kept, key=lambda each: results.gain("general", each, "detail").mean, default=None)


def times(results: Results, first: Condition, second: Condition) -> Estimate:
    """How many times as much detail the first adds as the second."""
    gains = [results.of("general", each, "detail") - results.of("general", PLAIN, "detail") for each in (first, second)]
    return estimate(gains[0].mean() / gains[1].mean(), np.divide(*(resampled_means(gain) for gain in gains)))


def at_detail_of(results: Results, wanted: Condition, line: Sequence[Condition]) -> tuple[Estimate, float]:
    """Adherence on the line from plain through the conditions where it has the detail of `wanted`, less that of `wanted`; and the share of
    resamples in which it reaches that detail (the interval is of those)."""
    def compared(average):
        detail, exact = ([average(results.of("general", each, score)) for each in (wanted, PLAIN, *line)] for score in ("detail", "exact"))
        detail, exact = np.stack(detail, -1), np.stack(exact, -1)
        return at_strength(detail[:, 1:], exact[:, 1:], detail[:, :1]) - exact[:, 0]

    drawn = compared(resampled_means)
    return estimate(compared(lambda scores: scores.mean(keepdims=True)[0])[0], drawn), float(np.isfinite(drawn).mean())


def table(model: str, results: Results, about: dict) -> str:
    """The report in markdown. about: what was run, in words."""
    return "\n\n".join((
        f"# Directions learned from words, measured on the small world's {'FLUX' if model == 'flux' else 'Wan'}-shaped model",
        "\n".join(f"- {name}: {value}" for name, value in about.items()),
        "Means with 95 % intervals (bootstrap over prompts); differences are to plain on the same prompts and seeds, in bold where their "
        "interval leaves out zero. No prompt here was learned on. The scores are those of `table.md`; *light*: luma of the ground, percent. "
        "Conditions are picked and reported on the same prompts, so a little flattering.",
        "## The aims", "\n".join(f"- {line}" for line in _aims(model, results)),
        "## Detail", "First row the means, then differences to plain.", _detail(model, results),
        *(part for attribute in ATTRIBUTES for part in (f"## {attribute.capitalize()}, both ways", _both_ways(model, results, attribute))),
        "## Counting, color, position", _sets(model, results),
    )) + "\n"


def _aims(model: str, results: Results) -> list[str]:
    lines = [each for start in START_LAYERS[model] for each in curve(model, start)]
    best = strongest(results, lines)
    if best is None:
        return [f"every learned setting loses more than {LOST} points of adherence"]
    said = [f"most detail at no more than {LOST} points of adherence lost: {_told(results, best)}"]
    if model == "flux":
        text = strongest(results, TEXT_GUIDED)
        if text:
            ratio = times(results, best, text)
            compared = f"{ratio.mean:.1f} times ({ratio.low:.1f} to {ratio.high:.1f})"
            said.append(f"text guidance there: {_told(results, text)}; learned over text: {compared}")
    for start in START_LAYERS[model]:
        difference, reached = at_detail_of(results, IN_WORDS, curve(model, start))
        if reached:
            share = "" if reached > 0.995 else f", in {reached:.0%} of resamples"
            said.append(f"at the words' detail, start {start}: adherence {_signed(difference)} against the words{share}")
    return [*said, f"the words: {_told(results, IN_WORDS)}"]


def _told(results: Results, condition: Condition) -> str:
    return f"{condition.name}: detail {_gain(results, condition, 'detail')}, adherence {_gain(results, condition, 'exact')}"


def _detail(model: str, results: Results) -> str:
    scores = ("detail", "exact", "gradient", "sharpness", "ground")
    rows = [["plain", *(_mean(results, PLAIN, score) for score in scores)]]
    rows += [[each.name, *(_gain(results, each, score) for score in scores)] for each in (IN_WORDS, *guided(model))]
    return markdown(["condition", "detail, %", "exact, %", "gradient", "sharpness, %", "light, %"], rows)


def _both_ways(model: str, results: Results, attribute: str) -> str:
    score = MEASURED[attribute]
    rows = [["plain", _mean(results, PLAIN, score), _mean(results, PLAIN, "exact")]]
    rows += [[each.name, _gain(results, each, score), _gain(results, each, "exact")] for each in opposite_ways(model, attribute)]
    return markdown(["condition", f"{attribute}, %", "exact, %"], rows)


def _sets(model: str, results: Results) -> str:
    rows = []
    for name in list(PROMPTS)[1:]:
        right = SCORE[name]
        rows.append([name, "plain", _mean(results, PLAIN, right, name)])
        rows += [
            [name, each.name, _mean(results, each, right, name), *(_gain(results, each, score, name) for score in (right, "exact", "detail"))]
            for each in conditions(model, name)[1:]
        ]
    return markdown(["prompts", "condition", "right, %", "difference", "exact, difference", "detail, difference"], rows)


def plot(model: str, results: Results, path: Path) -> None:
    """Adherence against detail as differences to plain: the words, text guidance and what was learned of the words."""
    figure, axes = pyplot.subplots(figsize=(9, 6))
    if model == "flux":
        with_line(axes, results, TEXT_GUIDED, "text guidance, start 2", labelled=2)
    for start in START_LAYERS[model]:
        with_line(axes, results, curve(model, start), f"learned from the words, start {start}", labelled=len(WEIGHTS[model]))
    with_line(axes, results, [IN_WORDS], f"\"{IN_WORDS.words}\" in the prompt", linestyle="none", origin=False)
    axes.axhline(-LOST, color="grey", linewidth=0.5, linestyle="--")
    write_figure(figure, axes, results, f"{'FLUX' if model == 'flux' else 'Wan'}-shaped model: what detail costs in adherence", path)

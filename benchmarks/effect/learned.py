"""effect.py --learned: directions learned from words, beside the words themselves and text guidance."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tools.small_world.attributes import ATTRIBUTES, prompts

from .conditions import IN_WORDS, PLAIN, Condition, complexity
from .plots import pyplot, with_line, write_figure
from .prompts import Prompt, prompt_set
from .report import _gain, _mean, _signed, markdown
from .results import Results
from .run import Job, digest
from .settings import LEARNED_SETS
from .statistics import Estimate, at_strength, difference, estimate, mean, resampled_means

PROMPTS = 16
SCORES = ("detail", "sharpness", "exact", "count", "color", "shape")
LOST = 5  # points of adherence, at most, where strengths are compared

LINES = {  # of the direction for detail: its weights by start layer
    "flux": {0: (1.0, 1.5), 2: (1.0, 1.5, 2.0)},
    "wan": {0: (1.0, 1.5, 2.0), 1: (1.5, 2.0)},
}
BOTH_WAYS = (-2.0, -1.0, 1.0, 2.0)  # weights of the direction for lightness
TEXT_GUIDED = [complexity(6.0, 2)]  # what is best in table.md


def learned(attribute: str, w: float, start_layer: int = 0) -> Condition:
    return Condition(learned=attribute, w=w, start_layer=start_layer)


SHOWN = {  # in the gallery: the strongest settings that lose little
    "flux": {"plain": PLAIN, "text\nguidance\nw 6": complexity(6.0, 2), "learned\nw 1.5": learned("detail", 1.5, 2)},
    "wan": {"plain": PLAIN, "learned\nw 2": learned("detail", 2.0)},
}


def in_words(words: str) -> Condition:
    return replace(PLAIN, words=words)


def line(model: str, start_layer: int) -> list[Condition]:
    """Of the direction for detail, by growing w."""
    return [learned("detail", w, start_layer) for w in LINES[model][start_layer]]


def guided(model: str) -> list[Condition]:
    """Text guidance where the model can be guided by text, and the lines of the learned direction for detail."""
    return [*(TEXT_GUIDED if model == "flux" else ()), *(each for start in LINES[model] for each in line(model, start))]


def turned() -> list[Condition]:
    """The other way: less detail, and less sharpness, of which plain pictures have nearly as much as there is."""
    return [learned("detail", -1.0), learned("sharpness", -1.0), in_words(ATTRIBUTES["sharpness"][1])]


def both_ways() -> list[Condition]:
    """A darker and a lighter background: plain pictures have room for both."""
    lighter, darker = ATTRIBUTES["lightness"]
    return [in_words(darker), *(learned("lightness", w) for w in BOTH_WAYS), in_words(lighter)]


def conditions(model: str, name: str) -> list[Condition]:
    """What is measured on a set of prompts, plain first."""
    return [PLAIN, *{"general": [IN_WORDS, *guided(model)], "turned": turned(), "both_ways": both_ways()}[name]]


def held_out(count: int) -> list[Prompt]:
    """General prompts but for those that directions were learned on, however these count to one."""
    known = {_counted(text) for text in prompts()}
    return [prompt for prompt in prompt_set("general", 2 * count) if _counted(prompt.text) not in known][:count]


def _counted(text: str) -> str:
    return text.replace("a single ", "a ").replace("one ", "a ")


def jobs_of(model: str, directions: Mapping[str, Path], count: int | None, sets: Sequence[str]) -> list[Job]:
    """All there is to do in these sets, prompt by prompt, plain first. directions: the files by attribute."""
    known = {"": "", **{attribute: digest(file) for attribute, file in directions.items()}}
    return [
        Job(name, index, prompt, condition, known[condition.learned])
        for name in sets
        for index, prompt in enumerate(held_out(-(-(count or PROMPTS) // LEARNED_SETS[name])))
        for condition in conditions(model, name)
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
    """Adherence on the line from plain through the conditions where it has the detail of `wanted`, less that of `wanted`, nan where it
    does not reach it; and the share of resamples in which it does (the interval is of those)."""

    def compared(average):
        detail, exact = ([average(results.of("general", each, score)) for each in (wanted, PLAIN, *line)] for score in ("detail", "exact"))
        detail, exact = np.stack(detail, -1), np.stack(exact, -1)
        return at_strength(detail[:, 1:], exact[:, 1:], detail[:, :1]) - exact[:, 0]

    drawn = compared(resampled_means)
    return estimate(compared(lambda scores: scores.mean(keepdims=True)[0])[0], drawn), float(np.isfinite(drawn).mean())


def table(model: str, results: Results, about: dict) -> str:
    """The report in markdown, of the sets that were drawn. about: what was run, in words."""
    sections = {
        "general": (
            "## The aims",
            lambda: "\n".join(f"- {line}" for line in _aims(model, results)),
            "## Detail",
            "First row the means, then differences to plain.",
            lambda: _rows(results, (IN_WORDS, *guided(model))),
        ),
        "turned": (
            "## The other way, and sharpness",
            "On half of the prompts. Plain pictures have next to no detail to lose, and are nearly as sharp as they get.",
            lambda: _rows(results, turned(), "turned"),
        ),
        "both_ways": (
            "## Both ways: the background",
            "*Ground*: luma outside the objects, percent. Plain pictures have room for both.",
            lambda: _rows(results, both_ways(), "both_ways", ("ground", *SCORES)),
        ),
    }
    return (
        "\n\n".join(
            (
                f"# Directions learned from words, measured on the small world's {'FLUX' if model == 'flux' else 'Wan'}-shaped model",
                "\n".join(f"- {name}: {value}" for name, value in about.items()),
                "Means with 95 % intervals (bootstrap over prompts); differences are to plain on the same prompts and seeds, in bold where their "
                "interval leaves out zero. No prompt here was learned on. The scores are those of `table.md`. "
                "Conditions are picked and reported on the same prompts, so a little flattering.",
                *(part() if callable(part) else part for name in results.scores for part in sections[name]),
            )
        )
        + "\n"
    )


def _aims(model: str, results: Results) -> list[str]:
    best = strongest(results, [each for start in LINES[model] for each in line(model, start)])
    if best is None:
        return [f"every learned setting loses more than {LOST} points of adherence"]
    said = [f"most detail at no more than {LOST} points of adherence lost: {_told(results, best)}"]
    if model == "flux":
        text = strongest(results, TEXT_GUIDED)
        if text:
            ratio = times(results, best, text)
            compared = f"{ratio.mean:.1f} times ({ratio.low:.1f} to {ratio.high:.1f})"
            said.append(f"text guidance there: {_told(results, text)}; learned over text: {compared}")
    for start in LINES[model]:
        difference, reached = at_detail_of(results, IN_WORDS, line(model, start))
        if np.isfinite(difference.mean):
            share = "" if reached > 0.995 else f", in {reached:.0%} of resamples"
            said.append(f"at the words' detail, start {start}: adherence {_signed(difference)} against the words{share}")
    return [*said, f"the words: {_told(results, IN_WORDS)}"]


def _told(results: Results, condition: Condition) -> str:
    return f"{condition.name}: detail {_gain(results, condition, 'detail')}, adherence {_gain(results, condition, 'exact')}"


def _rows(results: Results, wanted: Sequence[Condition], name: str = "general", scores: Sequence[str] = SCORES) -> str:
    rows = [["plain", *(_mean(results, PLAIN, score, name) for score in scores), *_position(results, PLAIN, name)]]
    rows += [[each.name, *(_gain(results, each, score, name) for score in scores), *_position(results, each, name)] for each in wanted]
    return markdown(["condition", *(f"{score}, %" for score in scores), *["position, %"] * bool(_position(results, PLAIN, name))], rows)


def _position(results: Results, condition: Condition, name: str) -> list[str]:
    """Of the prompts that ask for one; nothing where they are fewer than four."""
    right, plain = (results.of(name, each, "position") for each in (condition, PLAIN))
    asked = ~np.isnan(plain).any(1)
    if asked.sum() < 4:
        return []
    told = mean(right[asked]) if condition == PLAIN else difference(right[asked], plain[asked])
    return [f"{told.mean:.1f} ({told.low:.1f} to {told.high:.1f})" if condition == PLAIN else _signed(told)]


def plot(model: str, results: Results, path: Path) -> None:
    """Adherence against detail as differences to plain: the words, text guidance and what was learned of the words."""
    figure, axes = pyplot.subplots(figsize=(9, 6))
    if model == "flux":
        with_line(axes, results, TEXT_GUIDED, "text guidance, start 2", labelled=1)
    for start in LINES[model]:
        with_line(axes, results, line(model, start), f"learned from the words, start {start}", labelled=len(LINES[model][start]))
    with_line(axes, results, [IN_WORDS], f'"{IN_WORDS.words}" in the prompt', linestyle="none", origin=False)
    axes.axhline(-LOST, color="grey", linewidth=0.5, linestyle="--")
    write_figure(figure, axes, results, f"{'FLUX' if model == 'flux' else 'Wan'}-shaped model: what detail costs in adherence", path)

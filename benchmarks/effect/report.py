"""effect.py's table.md: question by question, the numbers and what they say."""

from collections.abc import Iterable

import numpy as np

from .conditions import (
    EMPTY,
    IN_WORDS,
    NORM_KEPT_WEIGHTS,
    PLAIN,
    SCHEDULES,
    SHARPNESS,
    START_LAYERS,
    WEIGHTS,
    ZEROED,
    Condition,
    complexity,
    of_set,
)
from .results import SHARES, Results
from .statistics import Estimate

PAPER = {"counting": (56, 65), "color": (79, 86), "position": (25, 30)}  # GenEval, FLUX schnell, percent: plain, guided
DIGITS = {"detail": 2, "gradient": 2}  # decimals, where not 1
SCORE = {"counting": "count", "color": "color", "position": "position", "general": "exact", "long": "exact"}


def table(results: Results, about: dict) -> str:
    """The whole report in markdown. about: what was run, in words."""
    parts = [
        _head(results, about),
        _pooled(results),
        _attributes(results),
        _detail(results),
        _start_layers(results),
        _norm(results),
        _schedules(results),
        _other(results),
        _best(results),
    ]
    return "\n\n".join(parts) + "\n"


def _head(results: Results, about: dict) -> str:
    return (
        "# The effect of modulation guidance, measured on the small world\n\n"
        + "\n".join(f"- {name}: {value}" for name, value in about.items())
        + "\n\nMeans with 95 % intervals (bootstrap over prompts); differences are to plain on the same prompts and seeds, in bold where "
        "their interval leaves out zero. With this many comparisons about one in twenty does so by chance.\n\n"
        "Right in percent: *exact*, every object as asked and nothing else (adherence); *count*, *color*, *position* likewise. *Detail*: "
        "texture contrast inside the objects, standard deviation over mean of luma, percent (blotches count like texture: see `grid.png`). "
        "*Gradient*: mean luma gradient, 8-bit steps a pixel. *Sharpness*: steepness of the objects' edges, percent. *Change*: mean "
        "difference to the plain picture of the same seed, 8-bit steps."
    )


def _pooled(results: Results) -> str:
    rows, answers = [], []
    for name in results.scores:
        right = SCORE[name]
        for condition in (condition for condition in of_set(name) if condition in (PLAIN, ZEROED, EMPTY)):
            differences = (
                []
                if condition == PLAIN
                else [
                    _gain(results, condition, right, name),
                    _gain(results, condition, "detail", name),
                    f"{results.of(name, condition, 'change').mean():.1f}",
                ]
            )
            rows.append([name, condition.name, _mean(results, condition, right, name), *differences])
        answers.append(
            f"- {name}: zeroing it {_verb(results.gain(name, ZEROED, right))} {right} ({_gain(results, ZEROED, right, name)} points); the "
            f"picture changes by {results.of(name, ZEROED, 'change').mean():.1f} steps{_other_seed(results, name)}."
        )
    return "\n\n".join(
        (
            "## Is pooled text, as a plain condition, nearly inactive?",
            markdown(["prompts", "condition", "right, %", "difference", "detail, difference", "change"], rows),
            "\n".join(answers),
            "This model was trained with its pooled vector taken away in half of the rows (so that attention can't lean on it), which makes "
            "it dispensable by training: the finding is of this model, not a test of the paper's claim about large ones.",
        )
    )


def _other_seed(results: Results, name: str) -> str:
    apart = results.of(name, PLAIN, "between_seeds").mean()
    return "" if np.isnan(apart) else f", where another seed changes it by {apart:.1f}"


def _attributes(results: Results) -> str:
    rows, answers = [], []
    for name, (before, after) in PAPER.items():
        right, guided = SCORE[name], [condition for condition in of_set(name) if condition.guided]
        rows.append([name, "plain", _mean(results, PLAIN, right, name), "", "", f"{before} to {after}"])
        rows += [
            [
                name,
                condition.name,
                _mean(results, condition, right, name),
                _gain(results, condition, right, name),
                _gain(results, condition, "exact", name),
            ]
            for condition in (ZEROED, *guided)
        ]
        gains = {condition: results.gain(name, condition, right) for condition in guided}
        top = max(gains, key=lambda condition: gains[condition].mean)
        answers.append(
            f"- {name}: {_outcome(gains.values())}; the largest difference is {_gain(results, top, right, name)} points "
            f"(w {top.w:g}, start {top.start_layer}), the paper's {after - before:+d}."
        )
    return "\n\n".join(
        (
            "## Does guidance raise counting, color, position?",
            'p+ is the prompt\'s own words ("three red circles"), p- "Very simple, no details at all". The paper\'s figures are GenEval\'s on '
            "FLUX schnell: other tasks under the same names, so only directions compare.",
            markdown(["prompts", "condition", "right, %", "difference", "exact, difference", "paper"], rows),
            "\n".join(answers),
        )
    )


def _detail(results: Results) -> str:
    scores = ("detail", "exact", "gradient", "sharpness")
    rows = [["plain", *(_mean(results, PLAIN, score) for score in scores)]]
    rows += [[c.name, *(_gain(results, c, score) for score in scores)] for c in of_set("general") if c.guided or c == IN_WORDS]
    grid = [complexity(w, start) for start in START_LAYERS for w in WEIGHTS]
    gains = {condition: results.gain("general", condition, "detail") for condition in grid}
    top = max(gains, key=lambda condition: gains[condition].mean)
    away = complexity(-2.0)
    return "\n\n".join(
        (
            "## Does the complexity direction raise detail, and what does it cost?",
            "First row the means, then differences to plain.",
            markdown(["condition", "detail, %", "exact, %", "gradient", "sharpness, %"], rows),
            f"- Detail: {_outcome(gains.values())} of w and start layer; adherence: "
            f"{_outcome([results.gain('general', condition, 'exact') for condition in grid])}.\n"
            f"- Most detail: w {top.w:g}, start {top.start_layer}: {_gain(results, top, 'detail')} on {_mean(results, PLAIN, 'detail')}, "
            f"adherence {_gain(results, top, 'exact')} points.\n"
            f"- w -2 {_verb(results.gain('general', away, 'detail'))} detail ({_gain(results, away, 'detail')}).",
        )
    )


def _start_layers(results: Results) -> str:
    rows, answers = [], []
    for start in START_LAYERS:
        top = max((complexity(w, start) for w in WEIGHTS), key=lambda condition: results.of("general", condition, "detail").mean())
        most = f"most detail at w {top.w:g}: {_gain(results, top, 'detail')}, adherence there {_gain(results, top, 'exact')}"
        if start == 0:
            answers.append(f"- start 0, constant: {most}.")
            continue
        compared = results.at_equal_detail(start)
        for share, equal in compared.items():
            reached = "" if equal.reached > 0.995 else f" (in {equal.reached:.0%} of resamples)"
            rows.append(
                [
                    f"start {start}",
                    f"{share:.0%}",
                    f"{equal.strength:.2f}{reached}",
                    f"{equal.first:.1f}",
                    f"{equal.second:.1f}",
                    _signed(equal.difference),
                ]
            )
        words = ("adherence higher", "adherence lower", "adherence not clearly different")
        outcome = _outcome([equal.difference for equal in compared.values()], *words) if compared else "no common gain to compare at"
        answers.append(f"- start {start}: at equal detail {outcome}; {most}.")
    return "\n\n".join(
        (
            "## Does a start layer beat constant guidance at equal detail?",
            "Between the measured points of w each curve (`pareto.png`) is read off straight lines, at "
            f"{', '.join(f'{share:.0%}' for share in SHARES)} of the gain in detail that both reach "
            "(where not all resamples do, the interval is of those that do).",
            markdown(["", "of the gain", "detail, %", "exact, %", "constant, exact, %", "difference"], rows),
            "\n".join(answers),
        )
    )


def _norm(results: Results) -> str:
    pairs = [(complexity(w, keep_norm=True), complexity(w)) for w in NORM_KEPT_WEIGHTS]
    words = ("higher", "lower", "not clearly different")
    answers = [
        f"- w {kept.w:g}: detail {_verb(results.gain('general', kept, 'detail', over=other), *words)}, adherence "
        f"{_verb(results.gain('general', kept, 'exact', over=other), *words)}."
        for kept, other in pairs
    ]
    return "\n\n".join(
        (
            "## Does keeping the norm help?",
            "Paired differences to the same w without it, start 0.",
            _against(results, pairs),
            "\n".join(answers),
        )
    )


def _schedules(results: Results) -> str:
    pairs = [(complexity(3.0, schedule=schedule), complexity(3.0)) for schedule in SCHEDULES]
    return "## Schedules\n\nPaired differences to all 12 layers at full weight, w 3.\n\n" + _against(results, pairs)


def _against(results: Results, pairs: list[tuple[Condition, Condition]]) -> str:
    """Rows of the first condition of each pair minus the second."""
    scores = ("detail", "exact", "sharpness", "change")
    rows = [
        [first.name, *(_signed(results.gain("general", first, score, over=second), DIGITS.get(score, 1)) for score in scores)]
        for first, second in pairs
    ]
    return markdown(["condition", *scores], rows)


def _other(results: Results) -> str:
    directions = (("detail", {"preset": "aesthetics"}), ("sharpness", {"sides": SHARPNESS}))
    lines = [
        f"- {condition.name}: {_verb(results.gain('general', condition, score))} {score} ({_gain(results, condition, score)} on "
        f"{_mean(results, PLAIN, score)}), adherence {_gain(results, condition, 'exact')} points."
        for score, direction in directions
        for condition in (Condition(w=w, **direction) for w in (1.0, 3.0))
    ]
    words = (
        f'- For comparison, "{IN_WORDS.words}" in the prompt itself: detail {_gain(results, IN_WORDS, "detail")}, adherence '
        f"{_gain(results, IN_WORDS, 'exact')} points."
    )
    return "## Other directions\n\n" + "\n".join((*lines, words))


def _best(results: Results) -> str:
    scores = ("detail", "exact", "sharpness")
    rows = [[condition.name, *(_gain(results, condition, score) for score in scores)] for condition in results.best()]
    return "\n\n".join(
        (
            "## Which w and start layer are best here?",
            "The rule, fixed before the run: the most detail among the complexity conditions with w > 0 whose adherence is not significantly "
            "below plain's (its paired interval reaches up to zero). Picked and reported on the same prompts, so a little flattering.",
            f"**{rows[0][0]}**, and what follows it:" if rows else "None: each lowers adherence.",
            markdown(["condition", "detail, %", "exact, %", "sharpness, %"], rows[:5]),
        )
    )


# ---- words and cells -----------------------------------------------------------------------------------------------


def _mean(results: Results, condition: Condition, score: str, set_name: str = "general") -> str:
    estimate, digits = results.mean(set_name, condition, score), DIGITS.get(score, 1)
    return f"{estimate.mean:.{digits}f} ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})"


def _gain(results: Results, condition: Condition, score: str, set_name: str = "general") -> str:
    """The paired difference to plain."""
    return _signed(results.gain(set_name, condition, score), DIGITS.get(score, 1))


def _signed(estimate: Estimate, digits: int = 1) -> str:
    text = f"{estimate.mean:+.{digits}f} ({estimate.low:+.{digits}f} to {estimate.high:+.{digits}f})"
    return f"**{text}**" if estimate.sign else text


def _verb(estimate: Estimate, up: str = "raises", down: str = "lowers", unclear: str = "does not clearly change") -> str:
    return {1: up, -1: down, 0: unclear}[estimate.sign]


def _outcome(estimates: Iterable[Estimate], up: str = "raised", down: str = "lowered", unclear: str = "not clearly changed") -> str:
    """In how many of several settings something went up or down."""
    signs = [estimate.sign for estimate in estimates]
    parts = [f"{word} in {signs.count(sign)} of {len(signs)} settings" for word, sign in ((up, 1), (down, -1)) if sign in signs]
    return " and ".join(parts) or f"{unclear} in any of {len(signs)} settings"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table; short rows are filled up."""
    lines = (header, ["---"] * len(header), *([*row, *[""] * (len(header) - len(row))] for row in rows))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

"""effect.py's table.md: question by question, the numbers and what they say."""

import numpy as np

from .effect_conditions import (
    EMPTY, NORM_KEPT_WEIGHTS, PLAIN, SCHEDULES, SHARPNESS, START_LAYERS, WEIGHTS, ZEROED, Condition, complexity, of_set,
)
from .effect_results import SHARES, Results
from .effect_statistics import Estimate

PAPER = {"counting": (56, 65), "color": (79, 86), "position": (25, 30)}  # GenEval, FLUX schnell, percent: plain, guided
SCORE = {"counting": "count", "color": "color", "position": "position", "general": "exact", "long": "exact"}


def table(results: Results, about: dict) -> str:
    """The whole report in markdown. about: what was run, in words."""
    parts = [
        _head(results, about), _pooled(results), _attributes(results), _detail(results), _start_layers(results),
        _norm(results), _schedules(results), _other(results), _best(results),
    ]
    return "\n\n".join(parts) + "\n"


def _head(results: Results, about: dict) -> str:
    return (
        "# The effect of modulation guidance, measured on the small world\n\n"
        + "\n".join(f"- {name}: {value}" for name, value in about.items())
        + "\n\nMeans with 95 % intervals (bootstrap over prompts); differences are to plain on the same prompts and seeds, in bold where "
        "their interval leaves out zero. With this many comparisons about one in twenty does so by chance.\n\n"
        "Right in percent: *exact*, every object as asked and nothing else (adherence); *count*, *color*, *position* likewise. *Detail*: "
        "texture contrast inside the objects, standard deviation over mean of luma, percent. *Gradient*: mean luma gradient, 8-bit steps "
        "a pixel. *Sharpness*: steepness of the objects' edges, percent. *Change*: mean difference to the plain picture of the same "
        "seed, 8-bit steps."
    )


def _pooled(results: Results) -> str:
    rows = [
        [name, condition.name, _mean(results.mean(name, condition, SCORE[name])), *(
            ["", "", ""] if condition == PLAIN else [
                _gain(results.gain(name, condition, SCORE[name])), _gain(results.gain(name, condition, "detail")),
                f"{results.mean(name, condition, 'change').mean:.1f}",
            ]
        )]
        for name in results.scores for condition in of_set(name) if condition in (PLAIN, ZEROED, EMPTY)
    ]
    answers = [
        f"- {name}: zeroing it {_verb(results.gain(name, ZEROED, SCORE[name]))} {SCORE[name]} "
        f"({_gain(results.gain(name, ZEROED, SCORE[name]))} points); the picture changes by {results.of(name, ZEROED, 'change').mean():.1f} steps"
        f"{_other_seed(results, name)}."
        for name in results.scores
    ]
    return (
        "## Is pooled text, as a plain condition, nearly inactive?\n\n" + markdown(
            ["prompts", "condition", "right, %", "difference", "detail, difference", "change"], rows) + "\n\n" + "\n".join(answers)
        + "\n\nThis model was trained with its pooled vector taken away in half of the rows (so that attention can't lean on it), "
        "which makes it dispensable by training: the finding is of this model, not a test of the paper's claim about large ones."
    )


def _other_seed(results: Results, name: str) -> str:
    apart = results.of(name, PLAIN, "between_seeds").mean()
    return "" if np.isnan(apart) else f", where another seed changes it by {apart:.1f}"


def _attributes(results: Results) -> str:
    rows, answers = [], []
    for name, (before, after) in PAPER.items():
        guided = [condition for condition in of_set(name) if condition.guided]
        for condition in (PLAIN, ZEROED, *guided):
            rows.append([
                name, condition.name, _mean(results.mean(name, condition, SCORE[name])),
                "" if condition == PLAIN else _gain(results.gain(name, condition, SCORE[name])),
                "" if condition == PLAIN else _gain(results.gain(name, condition, "exact")),
                f"{before} to {after}" if condition == PLAIN else "",
            ])
        gains = {condition: results.gain(name, condition, SCORE[name]) for condition in guided}
        top = max(gains, key=lambda condition: gains[condition].mean)
        answers.append(
            f"- {name}: {_outcome(gains.values())}; the largest difference is {_gain(gains[top])} points (w {top.w:g}, start "
            f"{top.start_layer}), the paper's {after - before:+d}."
        )
    return (
        "## Does guidance raise counting, color, position?\n\np+ is the prompt's own words (\"three red circles\"), p- \"Very simple, no "
        "details at all\". The paper's figures are GenEval's on FLUX schnell: other tasks under the same names, so only directions compare.\n\n"
        + markdown(["prompts", "condition", "right, %", "difference", "exact, difference", "paper"], rows) + "\n\n" + "\n".join(answers)
    )


def _detail(results: Results) -> str:
    conditions = [condition for condition in of_set("general") if condition.guided]
    rows = [["plain", *(_mean(results.mean("general", PLAIN, score)) for score in ("detail", "exact", "gradient", "sharpness"))]]
    rows += [
        [condition.name, *(_gain(results.gain("general", condition, score)) for score in ("detail", "exact", "gradient", "sharpness"))]
        for condition in conditions
    ]
    grid = [complexity(w, start) for start in START_LAYERS for w in WEIGHTS]
    gains = {condition: results.gain("general", condition, "detail") for condition in grid}
    top = max(gains, key=lambda condition: gains[condition].mean)
    losses = sum(results.gain("general", condition, "exact").sign < 0 for condition in grid)
    return (
        "## Does the complexity direction raise detail, and what does it cost?\n\nFirst row the means, then differences to plain.\n\n"
        + markdown(["condition", "detail, %", "exact, %", "gradient", "sharpness, %"], rows)
        + f"\n\n- Detail is raised in {sum(gain.sign > 0 for gain in gains.values())} and lowered in "
        f"{sum(gain.sign < 0 for gain in gains.values())} of the {len(grid)} settings of w and start layer; adherence is lowered in {losses}.\n"
        f"- Most detail: w {top.w:g}, start {top.start_layer}: {_gain(gains[top])} on {results.mean('general', PLAIN, 'detail').mean:.2f}, adherence "
        f"{_gain(results.gain('general', top, 'exact'))} points.\n"
        f"- w -2 {_verb(results.gain('general', complexity(-2.0), 'detail'))} detail ({_gain(results.gain('general', complexity(-2.0), 'detail'))})."
    )


def _start_layers(results: Results) -> str:
    rows, answers = [], []
    for start in START_LAYERS[1:]:
        compared = results.at_equal_detail(start)
        if not compared:
            answers.append(f"- start {start}: no detail gained, nothing to compare.")
            continue
        for share, equal in compared.items():
            reached = "" if equal.reached > 0.995 else f" (both reach it in {equal.reached:.0%} of resamples)"
            rows.append([
                f"start {start}", f"{share:.0%}", f"{equal.strength:.2f}{reached}", f"{equal.first:.1f}", f"{equal.second:.1f}",
                _gain(equal.difference),
            ])
        differences = [equal.difference for equal in compared.values()]
        answers.append(f"- start {start}: {_outcome(differences, 'adherence is higher', 'adherence is lower', 'no clear difference to constant guidance')}.")
    return (
        "## Does a start layer beat constant guidance at equal detail?\n\nBetween the measured points of w each curve (`pareto.png`) is read "
        f"off straight lines, at {', '.join(f'{share:.0%}' for share in SHARES)} of the gain in detail that both reach.\n\n"
        + markdown(["", "of the gain", "detail, %", "exact, %", "constant, exact, %", "difference"], rows) + "\n\n" + "\n".join(answers)
    )


def _against(results: Results, pairs: list[tuple[Condition, Condition]]) -> str:
    """Rows of the first condition of each pair minus the second."""
    rows = [
        [first.name, second.name, *(_gain(results.gain("general", first, score, over=second)) for score in ("detail", "exact", "sharpness", "change"))]
        for first, second in pairs
    ]
    return markdown(["condition", "against", "detail", "exact", "sharpness", "change"], rows)


def _norm(results: Results) -> str:
    pairs = [(complexity(w, keep_norm=True), complexity(w)) for w in NORM_KEPT_WEIGHTS]
    return "## Does keeping the norm help?\n\nPaired differences to the same w without it.\n\n" + _against(results, pairs) + "\n\n" + "\n".join(
        f"- w {kept.w:g}: detail {_verb(results.gain('general', kept, 'detail', over=other), 'higher', 'lower', 'not clearly different')}, adherence "
        f"{_verb(results.gain('general', kept, 'exact', over=other), 'higher', 'lower', 'not clearly different')}." for kept, other in pairs
    )


def _schedules(results: Results) -> str:
    pairs = [(complexity(3.0, schedule=schedule), complexity(3.0)) for schedule in SCHEDULES]
    return "## Schedules\n\nPaired differences to all 12 layers at full weight, w 3.\n\n" + _against(results, pairs)


def _other(results: Results) -> str:
    lines = []
    for score, conditions in (("detail", [Condition(preset="aesthetics", w=w) for w in (1.0, 3.0)]),
                              ("sharpness", [Condition(sides=SHARPNESS, w=w) for w in (1.0, 3.0)])):
        lines += [
            f"- {condition.name}: {_verb(results.gain('general', condition, score))} {score} ({_gain(results.gain('general', condition, score))} on "
            f"{results.mean('general', PLAIN, score).mean:.1f}), adherence {_gain(results.gain('general', condition, 'exact'))} points."
            for condition in conditions
        ]
    return "## Other directions\n\n" + "\n".join(lines)


def _best(results: Results) -> str:
    rule = (
        "## Which w and start layer are best here?\n\nThe rule, fixed before the run: the most detail among the complexity conditions with w > 0 "
        "whose adherence is not significantly below plain's (its paired interval reaches up to zero). Picked and reported on the same prompts, so a "
        "little flattering.\n\n"
    )
    best = results.best()
    if best is None:
        return rule + "None: each lowers adherence."
    return rule + (
        f"**{best.name}**: detail {_gain(results.gain('general', best, 'detail'))} on {results.mean('general', PLAIN, 'detail').mean:.2f}, adherence "
        f"{_gain(results.gain('general', best, 'exact'))} points on {results.mean('general', PLAIN, 'exact').mean:.1f}, sharpness "
        f"{_gain(results.gain('general', best, 'sharpness'))}."
    )


# ---- words and cells -----------------------------------------------------------------------------------------------

def _mean(estimate: Estimate, digits: int = 1) -> str:
    return f"{estimate.mean:.{digits}f} ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})"


def _gain(estimate: Estimate, digits: int = 1) -> str:
    text = f"{estimate.mean:+.{digits}f} ({estimate.low:+.{digits}f} to {estimate.high:+.{digits}f})"
    return f"**{text}**" if estimate.sign else text


def _verb(estimate: Estimate, up: str = "raises", down: str = "lowers", unclear: str = "does not clearly change") -> str:
    return {1: up, -1: down, 0: unclear}[estimate.sign]


def _outcome(estimates, up: str = "raised", down: str = "lowered", unclear: str = "not clearly changed") -> str:
    """In how many of several settings something went up or down."""
    signs = [estimate.sign for estimate in estimates]
    parts = [f"{word} in {signs.count(sign)} of {len(signs)} settings" for word, sign in ((up, 1), (down, -1)) if sign in signs]
    return " and ".join(parts) or f"{unclear} in any of {len(signs)} settings"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))

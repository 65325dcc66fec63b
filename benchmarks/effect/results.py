"""The measured scores as arrays, and what is computed from them for the report."""

from dataclasses import asdict

import numpy as np

from .conditions import NORM_KEPT_WEIGHTS, PLAIN, SCHEDULES, START_LAYERS, WEIGHTS, Condition, complexity
from .statistics import EqualStrength, Estimate, difference, equal_strength, mean

SHARES = (0.25, 0.5, 0.75)  # of the gain in detail that both curves reach: where they are compared


class Results:
    """Scores by set, condition and name: arrays (prompts, seeds)."""

    def __init__(self, records: list[dict]):
        self.scores: dict[str, dict[str, dict[str, np.ndarray]]] = {}
        for record in records:
            named = self.scores.setdefault(record["set"], {}).setdefault(record["condition"], {})
            for name, values in record["scores"].items():
                named.setdefault(name, []).append([np.nan if value is None else value for value in values])
        for named in (named for conditions in self.scores.values() for named in conditions.values()):
            named.update({name: np.array(rows) for name, rows in named.items()})
        self.seconds = sum(record["seconds"] for record in records)
        self.pictures = sum(len(record["scores"]["exact"]) for record in records)

    def of(self, set_name: str, condition: Condition, score: str) -> np.ndarray:
        return self.scores[set_name][condition.name][score]

    def mean(self, set_name: str, condition: Condition, score: str) -> Estimate:
        return mean(self.of(set_name, condition, score))

    def gain(self, set_name: str, condition: Condition, score: str, over: Condition = PLAIN) -> Estimate:
        """Difference to another condition on the same prompts and seeds."""
        return difference(self.of(set_name, condition, score), self.of(set_name, over, score))

    def curve(self, start_layer: int) -> tuple[list, list]:
        """(details, adherences) of plain and of the complexity direction by growing w, scores (prompts, seeds) each."""
        conditions = [PLAIN, *(complexity(w, start_layer) for w in WEIGHTS)]
        return tuple([self.of("general", condition, score) for condition in conditions] for score in ("detail", "exact"))

    def at_equal_detail(self, start_layer: int) -> dict[float, EqualStrength]:
        """This start layer against constant guidance (start 0), by the share of the detail gain that both reach; empty without a gain."""
        layered, constant = self.curve(start_layer), self.curve(0)
        plain = layered[0][0].mean()
        common = min(max(scores.mean() for scores in details) for details, _ in (layered, constant)) - plain
        if common <= 0:
            return {}
        return {share: equal_strength(layered, constant, plain + share * common) for share in SHARES}

    def best(self) -> list[Condition]:
        """By detail, most first: guided conditions (complexity direction, w > 0) whose adherence is not significantly below plain's,
        that is, whose paired interval reaches up to zero."""
        candidates = [
            *(complexity(w, start) for start in START_LAYERS for w in WEIGHTS),
            *(complexity(w, keep_norm=True) for w in NORM_KEPT_WEIGHTS),
            *(complexity(3.0, schedule=schedule) for schedule in SCHEDULES),
        ]
        allowed = [condition for condition in candidates if self.gain("general", condition, "exact").sign >= 0]
        return sorted(allowed, key=lambda condition: self.of("general", condition, "detail").mean(), reverse=True)

    def typical(self) -> tuple[int, int]:
        """(prompt, seed) of the general set whose gain in detail, averaged over all w and start layers, is nearest to the average
        picture's, among those whose plain picture is exactly as asked (if any is)."""
        grid = [self.of("general", complexity(w, start), "detail") for start in START_LAYERS for w in WEIGHTS]
        gain = np.mean(grid, axis=0) - self.of("general", PLAIN, "detail")
        right = self.of("general", PLAIN, "exact") > 0
        away = np.where(right | (not right.any()), np.abs(gain - gain.mean()), np.inf)
        return tuple(int(index) for index in np.unravel_index(away.argmin(), away.shape))

    def as_json(self) -> dict:
        """Every mean and paired difference to plain, by set, condition and score."""
        return {
            set_name: {
                condition: {
                    score: {"mean": asdict(mean(values)), "minus_plain": asdict(difference(values, conditions[PLAIN.name][score]))}
                    for score, values in named.items()
                    if not np.isnan(values).any()
                }
                for condition, named in conditions.items()
            }
            for set_name, conditions in self.scores.items()
        }

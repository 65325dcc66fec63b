"""What benchmarks/effect.py concludes from scores, and the prompts it asks."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.effect import command, learned
from benchmarks.effect.conditions import IN_WORDS, PLAIN, Condition, complexity, of_set
from benchmarks.effect.prompts import PROMPTS, prompt_set
from benchmarks.effect.results import Results
from benchmarks.effect.statistics import at_strength, difference, equal_strength, mean
from tools.small_world import attributes
from tools.small_world.captions import QUALITY
from tools.small_world.dataset import HELD_OUT

WEIGHTS = Path(command.SMALL_WORLD)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_an_interval_is_that_of_the_normal_distribution_where_scores_are_normal():
    estimate = mean(50 + 10 * normal(400, 1))
    assert (estimate.high - estimate.low) / 2 == pytest.approx(1.96 * 10 / 400**0.5, rel=0.1)
    covered = [estimate.low < 0 < estimate.high for estimate in (mean(normal(100, 2, seed=seed)) for seed in range(100))]
    assert 88 <= sum(covered) <= 99


def test_more_seeds_of_the_same_do_not_narrow_an_interval():
    scores = normal(50, 1)
    assert mean(np.repeat(scores, 4, axis=1)) == mean(scores)


def test_pairing_finds_what_independent_means_cannot():
    plain = 50 + 20 * normal(30, 1) + np.zeros((30, 4))
    guided = plain + 2 + normal(30, 4, seed=1)
    paired = difference(guided, plain)
    assert paired.sign == 1 and 1.5 < paired.mean < 2.5
    assert mean(guided).low < mean(plain).high
    assert difference(plain, guided).sign == -1 and difference(plain, plain).sign == 0


def test_adherence_at_a_strength_is_read_off_the_line():
    strengths, adherences = np.array([[1.0, 2.0, 4.0]]), np.array([[100.0, 90.0, 50.0]])
    assert at_strength(strengths, adherences, 1.5) == 95 and at_strength(strengths, adherences, 3.0) == 70
    assert np.isnan(at_strength(strengths, adherences, 5.0))
    assert at_strength(np.array([[0.0, 4.0, 2.0]]), np.array([[100.0, 60.0, 10.0]]), 3.0) == 70, "the higher of two"
    assert at_strength(np.array([[3.0, 3.0]]), np.array([[8.0, 9.0]]), 1.0) != 8, "a flat line reaches only itself"


def test_curves_are_compared_at_equal_strength():
    """Adherence falls by 1 a step of strength along one curve and by 2 along the other, which needs twice the w."""
    noise = normal(40, 4)
    first = [k + noise for k in range(5)], [100 - k + noise for k in range(5)]
    second = [k / 2 + noise for k in range(9)], [100 - k + noise for k in range(9)]
    equal = equal_strength(first, second, 2.0 + noise.mean())
    assert equal.first - equal.second == pytest.approx(2) and equal.difference.mean == pytest.approx(2)
    assert equal.difference.sign == 1 and equal.reached == 1


def records(scores):
    """Records of {condition: {score: (prompts, seeds)}} in the general set; scores not given are 0."""
    return [
        {"set": "general", "condition": condition.name, "seconds": 1.0, "scores": {name: list(values[i]) for name, values in named.items()}}
        for condition, named in scores.items()
        for i in range(len(next(iter(named.values()))))
    ]


def test_the_best_setting_has_the_most_detail_without_a_clear_loss_of_adherence():
    noise = normal(20, 4)
    scores = {condition: {"exact": 90 + noise, "detail": 5 + noise} for condition in of_set("general")}
    assert Results(records(scores)).at_equal_detail(2) == {}, "no detail gained, nothing to compare"
    scores[complexity(2.0, 4)] = {"exact": 90 + normal(20, 4, seed=1), "detail": 8 + noise}
    scores[complexity(6.0, 0)] = {"exact": 60 + noise, "detail": 20 + noise}
    scores[Condition(preset="aesthetics", w=3.0)] = {"exact": 90 + noise, "detail": 30 + noise}
    results = Results(records(scores))
    assert results.best()[0] == complexity(2.0, 4) and complexity(6.0, 0) not in results.best()
    assert results.gain("general", complexity(6.0, 0), "exact").mean == pytest.approx(-30)
    assert list(results.at_equal_detail(4)) == [0.25, 0.5, 0.75]


def test_the_picture_shown_is_the_one_of_average_effect():
    zero = np.zeros((2, 3))
    gains = np.array([[0.0, 1.0, 9.0], [4.0, 4.5, 6.0]])
    scores = {c: {"exact": 100 + zero, "detail": gains if c.preset == "complexity" else zero} for c in of_set("general")}
    assert Results(records(scores)).typical() == (1, 0), "the mean is 4.08"
    scores[PLAIN]["exact"] = np.array([[100.0, 0, 0], [0, 100, 0]])
    assert Results(records(scores)).typical() == (1, 1), "its plain picture is right"


def test_the_strongest_setting_is_picked_among_those_that_lose_little():
    noise = normal(20, 4)
    line = [learned.learned("detail", w) for w in (1.0, 2.0, 3.0)]
    scores = {PLAIN: {"exact": 80 + noise, "detail": 3 + noise}, IN_WORDS: {"exact": 72 + noise, "detail": 9 + noise}}
    scores |= {each: {"exact": 80 - each.w**2 + noise, "detail": 3 + 4 * each.w + noise} for each in line}
    results = Results(records(scores))
    assert learned.strongest(results, line) == line[1] and learned.strongest(results, line[2:]) is None
    ratio = learned.times(results, line[1], line[0])
    assert (ratio.mean, ratio.low, ratio.high) == pytest.approx((2, 2, 2))
    difference, reached = learned.at_detail_of(results, IN_WORDS, line)
    assert reached == 1
    assert (difference.mean, difference.low) == pytest.approx((80 - 2.5 - 72, 80 - 2.5 - 72)), "w 1.5, between 1 and 4 points lost"
    assert np.isnan(learned.at_detail_of(results, IN_WORDS, line[:1])[0].mean), "w 1 does not reach the words' detail"


def test_of_sets_drawn_by_themselves_the_rest_is_not_told():
    noise = normal(6, 4)
    names = ("detail", "sharpness", "exact", "count", "color", "shape", "position", "ground")
    scores = {each: dict.fromkeys(names, 50 + 10 * each.w + noise) for each in learned.conditions("wan", "both_ways")}
    alone = [record | {"set": "both_ways"} for record in records(scores)]
    table = learned.table("wan", Results(alone), {"prompts": "6 both_ways"})
    assert "## Both ways" in table and "## Detail" not in table and "## The aims" not in table and "nan" not in table
    assert "| learned lightness, w -2, start 0 | **-20.0 (-20.0 to -20.0)** |" in table
    directions = {name: WEIGHTS / attributes.file_name("wan", name) for name in attributes.ATTRIBUTES}
    jobs = learned.jobs_of("wan", directions, 3, ["both_ways"])
    assert {job.set_name for job in jobs} == {"both_ways"} and {job.index for job in jobs} == {0, 1, 2}


# ---- prompts -------------------------------------------------------------------------------------------------------


def test_prompts_are_held_out_and_silent_about_the_style():
    words = [word for kind in QUALITY.values() for word in kind]
    for name, count in PROMPTS.items():
        prompts = prompt_set(name, count)
        assert len({prompt.text for prompt in prompts}) == count and all(prompt.seed >= HELD_OUT for prompt in prompts)
        assert not any(word in prompt.text for prompt in prompts for word in words)
        assert prompts[:3] == prompt_set(name, 3)
    assert all(len(prompt.text.split()) > 10 for prompt in prompt_set("long", 8))
    assert sorted({prompt.wanted.groups[0][0] for prompt in prompt_set("counting", 8)}) == [2, 3, 4, 5]
    assert all(prompt.wanted.relation for prompt in prompt_set("position", 8))
    assert all(len({color for _, color, _ in prompt.wanted.groups}) == 2 for prompt in prompt_set("color", 8))


def test_no_prompt_is_learned_on_and_measured():
    taught = {text.replace("one ", "a ").replace("a single ", "a ") for text in attributes.prompts()}
    words = [word for sides in attributes.ATTRIBUTES.values() for word in sides]
    assert len(taught) > 90 and not any(word in text for text in taught for word in words)
    measured = {prompt.text.replace("one ", "a ").replace("a single ", "a ") for prompt in learned.held_out(40)}
    assert len(measured) == 40 and not taught & measured

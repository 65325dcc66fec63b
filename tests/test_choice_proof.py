"""benchmarks/choice.py: what it tries, how a choice is judged, and a short run of both kinds of guidance."""

import json
from argparse import Namespace

import pytest

from benchmarks import choice
from benchmarks.effect.conditions import PLAIN, complexity
from benchmarks.effect.learned import learned

SWEEPS = {"by text": choice.BY_TEXT, "learned": choice.LEARNED}


@pytest.fixture(params=SWEEPS)
def sweep(request):
    return SWEEPS[request.param]


def flat(sweep, seeds=2, **changed):
    """Scores of pictures that are all alike."""
    return {name: [[1.0] * seeds for _ in sweep.settings] for name in ("detail", "kept", "exact")} | changed


def test_no_setting_is_drawn_twice_and_plain_and_fixed_come_first(sweep):
    assert len(set(sweep.settings)) == len(sweep.settings) == 1 + len({sweep.fixed, *sweep.grid})
    assert sweep.settings[:2] == [choice.PLAIN, sweep.fixed] and len(sweep.rows(sweep.grid)) == 12


def test_the_conditions_are_what_they_are_called():
    assert choice.BY_TEXT.condition(6.0, 2) == complexity(6.0, 2)
    assert choice.LEARNED.condition(1.5, 2) == learned("detail", 1.5, 2)
    assert not choice.LEARNED.condition(0.0, 0).w and not PLAIN.w


def test_coarse_then_fine_goes_on_from_the_best_start_layer_and_tries_no_other(sweep):
    best, elsewhere = (sweep.w_values[-1], 2), (sweep.w_values[-1], 4)
    detail = [[1.0, 1.0] for _ in sweep.settings]
    for setting, number in {(sweep.coarse, 2): 2.0, best: 3.0, elsewhere: 9.0}.items():
        detail[sweep.rows([setting])[0]] = [number, number]
    scores = flat(sweep, detail=detail)
    assert sweep.settings[choice.coarse_then_fine(sweep, scores, [0, 1])] == best
    assert sweep.settings[choice.chosen(sweep, scores, [0, 1], sweep.rows(sweep.grid))] == elsewhere


def test_where_the_first_round_finds_nothing_the_second_is_of_the_first_start_layer(sweep):
    """As the template does, whose start layer is 0 where the plain picture is chosen."""
    detail = [[1.0, 1.0] for _ in sweep.settings]
    detail[sweep.rows([(sweep.w_values[-1], 0)])[0]] = [2.0, 2.0]
    assert sweep.settings[choice.coarse_then_fine(sweep, flat(sweep, detail=detail), [0, 1])] == (sweep.w_values[-1], 0)


def test_a_choice_is_judged_on_the_seeds_it_was_not_made_by(sweep):
    first, second = sweep.rows(sweep.grid)[:2]
    detail = [[0.0] * 4 for _ in sweep.settings]
    detail[first], detail[second] = [5.0, 5.0, 1.0, 1.0], [2.0, 2.0, 7.0, 7.0]
    made = choice.judged([flat(sweep, seeds=4, detail=detail)], lambda scores, seeds: choice.chosen(sweep, scores, seeds, [first, second]))
    assert made["detail"].tolist() == [[2.0, 2.0, 1.0, 1.0]], "each half has what the other half's choice gives it"


def test_more_seeds_choose_what_holds_on_others(sweep):
    """Three pictures of four of one setting are good; the other's is better by one seed alone."""
    steady, lucky = sweep.rows(sweep.grid)[-2:]
    detail = [[0.0] * 4 for _ in sweep.settings]
    detail[steady], detail[lucky] = [2.0] * 4, [5.0, 0.0, 0.0, 0.0]
    lines = choice.by_seeds(sweep, [flat(sweep, seeds=4, detail=detail)], sweep.rows(sweep.grid))
    told = [float(line.split("|")[2].split(",")[0]) for line in lines if line.startswith("| ") and line[2].isdigit()]
    # by one seed: the lucky one by the first, which is worth 0 on the others; by two: by three of six pairs, 5 / 2 > 2; by three: 5 / 3 < 2
    assert told == pytest.approx([(0 + 3 * 2) / 4, (3 * 0 + 3 * 2) / 6, 2.0])


def test_a_short_run_reports_and_goes_on_where_it_was(sweep, tmp_path, monkeypatch):
    options = Namespace(out=tmp_path, steps=1, seeds=2, prompts=1, report=False)
    done = choice.measured(sweep, options)
    assert [len(done[0][name]) for name in ("detail", "kept", "exact")] == [len(sweep.settings)] * 3
    assert len({json.dumps(each) for each in done[0]["detail"]}) > len(sweep.settings) // 2, "settings give other pictures"
    table = choice.report(sweep, done, options)
    assert "chosen, coarse then fine (6 of 12)" in table and "nan" not in table
    assert ("benchmarks/choice.py --learned`" in table) == sweep.learned

    monkeypatch.setattr(choice, "painter", lambda *_: pytest.fail("drawn again"))
    assert choice.measured(sweep, options) == done
    assert choice.measured(sweep, Namespace(**{**vars(options), "prompts": 2, "report": True})) == done

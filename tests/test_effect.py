"""benchmarks/effect.py: its statistics, resuming, what its conditions do to the model, and both modes from end to end."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from PIL import Image
from support.scorers import write_clip

from benchmarks.effect import arguments, command, learned, variance
from benchmarks.effect.conditions import EMPTY, IN_WORDS, PLAIN, SCHEDULES, SHARPNESS, ZEROED, Condition, complexity, of_set
from benchmarks.effect.prompts import PROMPTS, prompt_set
from benchmarks.effect.results import Results
from benchmarks.effect.run import Job, Scores, draw_job, key_of, read_strip, run
from benchmarks.effect.settings import LEARNED_SETS, Files, Settings
from benchmarks.effect.statistics import at_strength, difference, equal_strength, mean
from benchmarks.effect.studio import Studio
from benchmarks.effect.workers import painters
from benchmarks.in_process import of_pack
from tools.small_world import attributes
from tools.small_world.captions import QUALITY
from tools.small_world.dataset import HELD_OUT
from tools.small_world.scenes import RARE
from tools.small_world.text_encoder import write_clip_l

WEIGHTS = Path(command.SMALL_WORLD)


# ---- statistics ----------------------------------------------------------------------------------------------------


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


# ---- resuming ------------------------------------------------------------------------------------------------------


class Painter:
    """Stands in for the studio: grey pictures, counted."""

    def __init__(self):
        self.painted = []

    def pictures(self, prompt, condition, seed, count=1):
        self.painted.append(condition)
        return np.full((count, 80, 80, 3), 0.5, np.float32)


def jobs():
    return [Job("long", i, prompt, condition) for i, prompt in enumerate(prompt_set("long", 2)) for condition in of_set("long")]


def painted(out, made_by="weights", seeds=2):
    painter = Painter()
    done = run(lambda tasks: (draw_job(painter, *task) for task in tasks), jobs(), Settings(2, 3.0, 80), seeds, made_by, out)
    assert [record["condition"] for record in done] == [job.condition.name for job in jobs()]
    return len(painter.painted)


def test_what_is_scored_is_not_drawn_again(tmp_path):
    assert painted(tmp_path) == 4 and painted(tmp_path) == 0
    assert painted(tmp_path, made_by="other weights") == 4
    assert painted(tmp_path, seeds=3) == 4


def test_a_torn_last_line_costs_one_job(tmp_path):
    painted(tmp_path)
    file = tmp_path / "scores.jsonl"
    file.write_text(file.read_text()[:-40])
    assert painted(tmp_path) == 1 and painted(tmp_path) == 0
    assert len(Scores(file).records) == 4


def test_a_lost_picture_is_drawn_again(tmp_path):
    painted(tmp_path)
    (tmp_path / "pictures" / jobs()[0].strip).unlink()
    assert painted(tmp_path) == 1


def test_every_setting_that_matters_is_in_the_key():
    job, other = jobs()[0], jobs()[2]
    settings = Settings(20, 3.0, 80)
    keys = [
        key_of(job, settings, 4, "w"),
        key_of(other, settings, 4, "w"),
        key_of(job, settings, 5, "w"),
        key_of(job, settings, 4, "v"),
        key_of(job, Settings(21, 3.0, 80), 4, "w"),
        key_of(job, Settings(20, 1.0, 80), 4, "w"),
        key_of(jobs()[1], settings, 4, "w"),
        *(key_of(Job("long", 0, job.prompt, condition), settings, 4, "w") for condition in of_set("general")[2:]),
    ]
    assert len(set(keys)) == len(keys)
    assert len({Job("general", 0, job.prompt, condition).strip for condition in of_set("general")}) == len(of_set("general"))


# ---- conditions ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_clip_l(tmp_path_factory.mktemp("encoder") / "clip_l.safetensors")


@pytest.fixture(scope="module")
def studio(encoder):
    files = Files(WEIGHTS / "small_world_flux.safetensors", (encoder,), WEIGHTS / "small_world_vae.safetensors", "flux")
    with torch.inference_mode():
        return Studio(files, Settings(1, 3.0, 80))


def pooled_seen(studio, condition):
    """y of every row of every model call."""
    seen = []

    def look(executor, *args, **kwargs):
        seen.append(kwargs["y"].clone())
        return executor(*args, **kwargs)

    plain = studio.model
    studio.model = plain.clone()
    studio.model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "look", look)
    try:
        studio.pictures("a red circle", condition, 0, 2)
    finally:
        studio.model = plain
    return torch.cat(seen)


def test_plain_zeroed_and_empty_give_the_model_the_pooled_vector_they_claim(studio):
    prompt, empty = (studio.encoded(text)[0][1]["pooled_output"][0] for text in ("a red circle", ""))
    plain = pooled_seen(studio, PLAIN)
    assert {tuple(row[:4].tolist()) for row in plain} == {tuple(prompt[:4].tolist()), tuple(empty[:4].tolist())}
    assert not pooled_seen(studio, ZEROED).any()
    assert torch.equal(pooled_seen(studio, EMPTY), empty.expand(len(plain), -1))
    said = studio.encoded("a red circle, highly detailed")[0][1]["pooled_output"][0]
    assert any(torch.equal(row, said) for row in pooled_seen(studio, IN_WORDS))
    assert torch.equal(studio.conditioning("a red circle", "zero")[0][0], studio.encoded("a red circle")[0][0]), "tokens stay"


def guidance_of(studio, condition, prompt="three red circles"):
    (guidance,) = studio.guided(condition, prompt).model_options["transformer_options"]["modulation_guidance"]
    return guidance


def test_guided_conditions_give_the_model_the_guidance_they_claim(studio):
    assert studio.guided(PLAIN, "a red circle") is studio.model
    guidance = guidance_of(studio, complexity(2.0, 4, keep_norm=True))
    assert guidance.w == 2 and guidance.keep_norm and guidance.layer_weights == (0.0,) * 4 + (1.0,) * 8 + (0.0,), "the head's is the last"
    weights = {name: guidance_of(studio, complexity(3.0, schedule=name)).layer_weights for name in SCHEDULES}
    assert weights["last 4 layers x 0.25"] == (1.0,) * 8 + (0.25,) * 4 + (0.0,)
    assert weights["double blocks only"] == (1.0,) * 4 + (0.0,) * 8 + (0.0,)
    assert weights["ramp 0 to 1"] == pytest.approx([i / 11 for i in range(12)] + [0])


def test_directions_are_the_papers_and_the_prompts_own(studio):
    def sides(condition):
        (pair,) = guidance_of(studio, condition).direction.pairs
        return [pair.positive.pooled, pair.negative.pooled]

    expected = {
        complexity(3.0): ("Extremely complex, the highest quality", "Very simple, no details at all"),
        Condition(preset="counting", w=3.0): ("three red circles", "Very simple, no details at all"),
        Condition(sides=SHARPNESS, w=3.0): SHARPNESS,
    }
    for condition, texts in expected.items():
        for pooled, text in zip(sides(condition), texts):
            assert torch.equal(pooled, studio.encoded(text)[0][1]["pooled_output"])


def test_a_learned_condition_gives_the_model_the_direction_of_its_file(encoder):
    options = command.arguments(["--learned", "flux", "--text-encoder", str(encoder), "--steps", "1"])
    with torch.inference_mode():
        studio = Studio(*command.files_and_settings(options))
        guidance = guidance_of(studio, learned.learned("sharpness", 1.5, 2))
    (term,) = guidance.direction.learned
    assert guidance.w == 1.5 and guidance.layer_weights == (0.0,) * 2 + (1.0,) * 10 + (0.0,)
    assert (term.positive, term.negative) == SHARPNESS and term.shifts.shape == (12, 128)


def test_the_pictures_of_a_condition_are_repeatable_and_differ_from_plain(studio):
    plain, guided, again = (studio.pictures("a red circle", c, 5, 2) for c in (PLAIN, complexity(6.0), complexity(6.0)))
    assert plain.shape == (2, 80, 80, 3) and 0 <= plain.min() and plain.max() <= 1
    assert np.array_equal(guided, again) and not np.array_equal(guided, plain)


# ---- from end to end -----------------------------------------------------------------------------------------------


def test_a_quick_run_reports_on_every_condition(tmp_path, monkeypatch, encoder):
    options = command.arguments(["--quick", "--steps", "1", "--workers", "1", "--out", str(tmp_path), "--text-encoder", str(encoder)])
    command.small_world(options)
    report = json.loads((tmp_path / "effect.json").read_text())
    for name, conditions in report["sets"].items():
        assert list(conditions) == [condition.name for condition in of_set(name)]
        assert conditions["plain"]["exact"]["minus_plain"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    table = (tmp_path / "table.md").read_text()
    assert table.count("\n## ") == 8 and "nan" not in table
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("pareto.png", "detail_by_w.png", "grid.png", "gallery.png"))
    assert len(list((tmp_path / "pictures").glob("*.png"))) == sum(len(of_set(name)) for name in PROMPTS)

    monkeypatch.setattr(Studio, "pictures", lambda *_: pytest.fail("drawn again"))
    command.small_world(options)


def test_a_quick_run_on_text_variance(tmp_path, encoder):
    arguments = ["--variance", "--quick", "--steps", "1", "--workers", "1", "--out", str(tmp_path), "--text-encoder", str(encoder)]
    command.small_world_variance(command.arguments(arguments))
    table = (tmp_path / "variance.md").read_text()
    changes = [float(line.split("|")[-2]) for line in table.splitlines() if line.startswith("| ") and line[2].isdigit()]
    for by_scale in (changes[:5], changes[5:]):
        assert by_scale[0] == 0 and len(by_scale) == 5 and 0 < by_scale[1] < by_scale[2] < by_scale[3] < by_scale[4]


def test_a_quick_run_on_the_text_blind_model(tmp_path, encoder):
    arguments = ["--projection", "--quick", "--steps", "1", "--workers", "1", "--out", str(tmp_path), "--text-encoder", str(encoder)]
    command.small_world_projection(command.arguments(arguments))
    table = (tmp_path / "projection.md").read_text()
    assert "Wan-shaped" in table and "dpmpp_2m, simple, shift 1, CFG 6" in table
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    changes = {row[0]: float(row[-1]) for row in rows if len(row) == 6 and row[-1][:1].isdigit()}
    by_w = [changes[complexity(w).name] for w in (1.0, 2.0, 3.0, 6.0)]
    assert 0 < by_w[0] < by_w[1] < by_w[2] < by_w[3]
    assert changes["pooled text alone"] > 0


@pytest.mark.parametrize("model", learned.LINES)
def test_a_quick_run_on_learned_directions(tmp_path, encoder, model):
    arguments = ["--learned", model, "--quick", "--steps", "1", "--workers", "1", "--out", str(tmp_path), "--text-encoder", str(encoder)]
    command.small_world_learned(command.arguments(arguments))
    table = (tmp_path / f"learned_{model}.md").read_text()
    assert "nan" not in table and all(each.name in table for name in LEARNED_SETS for each in learned.conditions(model, name))
    assert (tmp_path / f"learned_{model}.png").stat().st_size > 1000


def test_rare_prompts_ask_for_what_training_never_showed():
    for name in ("rare", "common"):
        prompts = variance.prompts(name, 12)
        kinds = [{(color, shape) for _, color, shape in prompt.wanted.groups} for prompt in prompts]
        assert all(bool(of_prompt & RARE) == (name == "rare") for of_prompt in kinds)
        assert all(prompt.seed >= HELD_OUT for prompt in prompts) and len({prompt.text for prompt in prompts}) == 12


def test_several_processes_draw_what_one_draws(tmp_path, studio, encoder):
    tasks = [(job, 1, job.condition.name, tmp_path) for job in jobs()[:2]]
    files = Files(WEIGHTS / "small_world_flux.safetensors", (encoder,), WEIGHTS / "small_world_vae.safetensors", "flux")
    with painters(files, studio.settings, 2) as draw:
        apart = {record["key"]: record["scores"] for record in draw(tasks)}
    assert apart == {task[2]: draw_job(studio, *task)["scores"] for task in tasks}


def test_own_models_give_pictures_grids_and_scores(tmp_path, monkeypatch, encoder):
    (tmp_path / "prompts.txt").write_text("a red circle\n\ntwo blue squares\n")
    (tmp_path / "redness_scorer.py").write_text("def redness(picture, prompt):\n    return float(picture[..., 0].mean()) + len(prompt)\n")
    monkeypatch.chdir(tmp_path)
    given = [
        "--diffusion-model",
        str(WEIGHTS / "small_world_flux.safetensors"),
        "--vae",
        str(WEIGHTS / "small_world_vae.safetensors"),
        "--text-encoder",
        str(encoder),
        "--prompts-file",
        "prompts.txt",
        "--out",
        "made",
        "--size",
        "80",
        "--steps",
        "1",
        "--positive",
        "detailed",
        "--negative",
        "flat",
        "--w",
        "0",
        "3",
        "--start-layers",
        "0",
        "2",
        "--seeds",
        "2",
        "--layers",
        "0-3: 1, 4-11: 0.5",
        "--direction",
        str(WEIGHTS / "small_world_flux_detail.safetensors"),
        "--direction-w",
        "1",
        "1.5",
        "--scorer",
        "redness_scorer:redness",
        str(write_clip(tmp_path / "a_clip")),
    ]
    command.own_models(command.arguments(given))
    made = tmp_path / "made"
    assert len(list(made.glob("prompt*.png"))) == 2 * 2 * 8, "two prompts, two seeds; plain, two start layers, layers, two of two learned"
    assert len(list(made.glob("grid_prompt*.png"))) == 2 * 2
    both = json.loads((made / "scores.json").read_text())["scorers"]
    scores = both["redness_scorer:redness"]
    learned_name = "learned small_world_flux_detail"
    ways = {
        "plain": "plain",
        "detailed, w 3, start 0": "constant",
        "detailed, w 3, start 2": "layer-wise",
        "detailed, w 3, 0-3: 1, 4-11: 0.5": "layer-wise",
        **{f"{learned_name}, w {w}, start {start}": "learned" for start in (0, 2) for w in ("1", "1.5")},
    }
    assert {name: each["guidance"] for name, each in scores.items()} == ways
    assert 12 < scores["plain"]["scores"][0][0] < 13 and 16 < scores["plain"]["scores"][1][1] < 17
    table = (made / "table.md").read_text()
    assert "| guidance | condition | redness_scorer:redness | difference to plain | a_clip | difference to plain |" in table
    for name, way in ways.items():
        of_clip = np.array(both[str(tmp_path / "a_clip")][name]["scores"]) - both[str(tmp_path / "a_clip")]["plain"]["scores"]
        (row,) = (line for line in table.splitlines() if line.startswith(f"| {way} | {name} |"))
        assert f"| {of_clip.mean():.4g} (" in row and row.count(" to ") == 4, "a mean and a difference by each scorer, with intervals"
    picture = torch.from_numpy(read_strip(made / "prompt02_seed1_plain.png", 1)[0].astype(np.float32) / 255).unsqueeze(0)
    (expected,) = of_pack("scoring.loading").load(str(tmp_path / "a_clip")).score(picture, "two blue squares")
    assert both[str(tmp_path / "a_clip")]["plain"]["scores"][1][1] == pytest.approx(expected, abs=1e-5)
    assert Image.open(made / "choice.png").width == 1280 and Image.open(made / "curve.png").width > 800

    monkeypatch.setattr(Studio, "pictures", lambda *_: pytest.fail("drawn again"))
    (made / "scores.json").unlink()
    scored = (made / "scores.jsonl").read_text()
    command.own_models(command.arguments(given))
    assert json.loads((made / "scores.json").read_text())["scorers"] == both
    assert (made / "scores.jsonl").read_text() == scored and scored.count("\n") == 2 * 2 * 8 * 2, "nothing is scored again"

    (tmp_path / "redness_scorer.py").write_text("def redness(picture, prompt):\n    return -1.0\n")
    monkeypatch.delitem(sys.modules, "redness_scorer")
    command.own_models(command.arguments(given))
    again = json.loads((made / "scores.json").read_text())["scorers"]
    assert again["redness_scorer:redness"]["plain"]["scores"][0][0] == -1, "another scorer scores anew"


def test_a_start_layer_beyond_the_model_is_refused_before_anything_is_drawn(tmp_path, encoder):
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    options = command.arguments(
        [
            "--diffusion-model",
            str(WEIGHTS / "small_world_flux.safetensors"),
            "--vae",
            str(WEIGHTS / "small_world_vae.safetensors"),
            "--text-encoder",
            str(encoder),
            "--prompts-file",
            str(tmp_path / "prompts.txt"),
            "--out",
            str(tmp_path / "made"),
        ]
    )
    options.start_layers = [0, 12]
    with pytest.raises(ValueError, match="12 layers"):
        command.own_models(options)
    assert not (tmp_path / "made").exists()


def test_learned_directions_need_names_of_their_own(tmp_path):
    with pytest.raises(ValueError, match="two files are called Detail"):
        command.named([tmp_path / "a" / "detail.safetensors", r"b\Detail.safetensors"])


def test_a_learned_direction_alone_without_text_guidance(tmp_path, encoder):
    """As on a text-blind model, which text cannot guide."""
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    blind = [
        "--diffusion-model",
        str(WEIGHTS / "small_world_wan.safetensors"),
        "--clip-type",
        "sd3",
        *OWN[2:4],
        "--steps",
        "1",
        "--size",
        "80",
    ]
    files = ["--text-encoder", str(encoder), "--prompts-file", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "made")]
    direction = [
        "--w",
        "0",
        "--start-layers",
        "0",
        "--direction",
        str(WEIGHTS / "small_world_wan_detail.safetensors"),
        "--direction-w",
        "1",
    ]
    command.own_models(command.arguments([*blind, *files, *direction]))
    names = {path.name for path in (tmp_path / "made").glob("*.png")}
    learned_name = "small_world_wan_detail"
    assert names == {"grid_prompt01_learned.png", "prompt01_seed0_plain.png", f"prompt01_seed0_{learned_name}_w1_start0.png"}
    first, second = (read_strip(tmp_path / "made" / f"prompt01_seed0_{name}.png", 1)[0] for name in ("plain", f"{learned_name}_w1_start0"))
    assert not np.array_equal(first, second)


OWN = [
    *("--diffusion-model", str(WEIGHTS / "small_world_flux.safetensors"), "--vae", str(WEIGHTS / "small_world_vae.safetensors")),
    *("--text-encoder", __file__, "--prompts-file", __file__),
]


@pytest.mark.parametrize(
    "given, message",
    (
        (["--vae", __file__], "go with --diffusion-model"),
        (["--servers", "http://127.0.0.1:8188"], "go with --diffusion-model"),
        (OWN + ["--servers", "127.0.0.1:8188"], "write the whole address, e.g. http://127.0.0.1:8188"),
        (OWN + ["--direction", "nowhere.safetensors"], "there is no file nowhere.safetensors"),
        (OWN + ["--preset", "nothing"], "argument --preset: invalid choice: 'nothing'"),
        (["--diffusion-model", __file__], "needs --text-encoder, --vae, --prompts-file too"),
        (["--text-encoder", "nowhere.safetensors"], "there is no file nowhere.safetensors"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--positive", "sharp"], "--positive and --negative together"),
    ),
)
def test_arguments_that_cannot_work_are_refused_with_a_sentence(given, message, capsys):
    with pytest.raises(SystemExit):
        command.arguments(given)
    assert message in capsys.readouterr().err


def test_more_workers_than_windows_waits_for_are_refused_there(capsys, monkeypatch):
    monkeypatch.setattr(arguments, "MOST_WORKERS", 61)  # which it is on Windows
    with pytest.raises(SystemExit):
        command.arguments(["--workers", "62"])
    assert "--workers must be at most 61 on Windows" in capsys.readouterr().err
    assert command.arguments(["--workers", "61"]).workers == 61

"""benchmarks/effect.py on the small world: resuming, what its conditions do to the model, and each mode from end to end."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from benchmarks.effect import command, learned, variance
from benchmarks.effect.conditions import EMPTY, IN_WORDS, PLAIN, SCHEDULES, SHARPNESS, ZEROED, Condition, complexity, of_set
from benchmarks.effect.prompts import PROMPTS, prompt_set
from benchmarks.effect.run import Job, Scores, draw_job, key_of, run
from benchmarks.effect.settings import LEARNED_SETS, Files, Settings
from benchmarks.effect.studio import Studio
from benchmarks.effect.workers import painters
from tools.small_world.dataset import HELD_OUT
from tools.small_world.scenes import RARE

WEIGHTS = Path(command.SMALL_WORLD)


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
def studio(text_encoder):
    files = Files(WEIGHTS / "small_world_flux.safetensors", (text_encoder,), WEIGHTS / "small_world_vae.safetensors", "flux")
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


def test_a_learned_condition_gives_the_model_the_direction_of_its_file(text_encoder):
    options = command.arguments(["--learned", "flux", "--text-encoder", str(text_encoder), "--steps", "1"])
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


def test_a_quick_run_reports_on_every_condition(tmp_path, monkeypatch, text_encoder):
    options = command.arguments(["--quick", "--steps", "1", "--workers", "1", "--out", str(tmp_path), "--text-encoder", str(text_encoder)])
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


def test_a_quick_run_on_text_variance(tmp_path, text_encoder):
    arguments = ["--variance", "--quick", "--steps", "1", "--workers", "1", "--out", str(tmp_path), "--text-encoder", str(text_encoder)]
    command.small_world_variance(command.arguments(arguments))
    table = (tmp_path / "variance.md").read_text()
    changes = [float(line.split("|")[-2]) for line in table.splitlines() if line.startswith("| ") and line[2].isdigit()]
    for by_scale in (changes[:5], changes[5:]):
        assert by_scale[0] == 0 and len(by_scale) == 5 and 0 < by_scale[1] < by_scale[2] < by_scale[3] < by_scale[4]


def test_a_quick_run_on_the_text_blind_model(tmp_path, text_encoder):
    arguments = ["--projection", "--quick", "--steps", "1", "--workers", "1", "--out", str(tmp_path), "--text-encoder", str(text_encoder)]
    command.small_world_projection(command.arguments(arguments))
    table = (tmp_path / "projection.md").read_text()
    assert "Wan-shaped" in table and "dpmpp_2m, simple, shift 1, CFG 6" in table
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    changes = {row[0]: float(row[-1]) for row in rows if len(row) == 6 and row[-1][:1].isdigit()}
    by_w = [changes[complexity(w).name] for w in (1.0, 2.0, 3.0, 6.0)]
    assert 0 < by_w[0] < by_w[1] < by_w[2] < by_w[3]
    assert changes["pooled text alone"] > 0


@pytest.mark.parametrize("model", learned.LINES)
def test_a_quick_run_on_learned_directions(tmp_path, text_encoder, model):
    arguments = [
        "--learned",
        model,
        "--quick",
        "--steps",
        "1",
        "--workers",
        "1",
        "--out",
        str(tmp_path),
        "--text-encoder",
        str(text_encoder),
    ]
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


def test_several_processes_draw_what_one_draws(tmp_path, studio, text_encoder):
    tasks = [(job, 1, job.condition.name, tmp_path) for job in jobs()[:2]]
    files = Files(WEIGHTS / "small_world_flux.safetensors", (text_encoder,), WEIGHTS / "small_world_vae.safetensors", "flux")
    with painters(files, studio.settings, 2) as draw:
        apart = {record["key"]: record["scores"] for record in draw(tasks)}
    assert apart == {task[2]: draw_job(studio, *task)["scores"] for task in tasks}

"""Learning a direction from words: its gradients, what it learns, what w 1 means, and that it is the same however the run was cut."""

import importlib
import sys
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path

import comfy.model_management
import comfy.quant_ops
import comfy.sd
import pytest
import torch
from support import families
from support.distilling import PACK, PROMPTS, TextOf, needs_distilling, size, text_encoder
from support.flux import apply, conditioning, direction, flux, node, schedule
from support.flux import sample as sample_flux
from support.learned import learned as direction_of
from support.text_blind_families import WAN
from test_distillation import plain_rms_rope, plain_rope
from test_distillation_models import EVERY, quantized

sys.path.insert(1, str(Path(__file__).parent.parent))  # after the host's own folder, whose modules go first

from tools.pinned import cache_folder
from tools.small_models import write_small_models

pytestmark = needs_distilling

learning, settings_module, checkpoints = (
    importlib.import_module(f"{PACK}.training.{name}") for name in ("direction", "settings", "checkpoints")
)
WORDS = "highly detailed", "very simple"
MORE = [f"{prompt}, number {number}" for prompt in PROMPTS for number in range(4)]


class FluxText:
    """A text encoder that gives what small FLUX.1 models read, another for each text, with a pooled output of its own."""

    def tokenize(self, text):
        return sum(map(ord, text))

    def encode_from_tokens_scheduled(self, tokens):
        return conditioning(tokens)


class SmallFlux:
    """FLUX.1 as tests/support/families has other families."""

    name, latent, load = "FLUX.1", (16, 8, 8), staticmethod(flux)

    def sample(self, model):
        return sample_flux(model)


FLUX = SmallFlux()


class SmallWorld:
    """The small world's Wan-shaped model, which has learned what words mean, and a text encoder that remembers."""

    name, latent = "Wan", (16, 1, 10, 10)

    def load(self):
        model = comfy.sd.load_diffusion_model(str(self.files[1]), model_options={"dtype": torch.float32})
        return node("ModelSamplingSD3", model=model, shift=1.0)[0]

    def tokenize(self, text):
        return text

    @cache
    def encode_from_tokens_scheduled(self, text):
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    @cached_property
    def clip(self):
        return comfy.sd.load_clip([str(self.files[-1])], clip_type=comfy.sd.CLIPType.SD3)

    @cached_property
    def files(self):
        return write_small_models(cache_folder() / "small-world")


SMALL_WORLD = SmallWorld()


def encoder_of(small):
    if small is SMALL_WORLD:
        return small
    return FluxText() if small is FLUX else TextOf(small)


def settings(small, model, **changes):
    frames = small.latent[1] if len(small.latent) == 4 else 1
    return settings_module.Settings(
        **dict(
            steps=4,
            batch_size=2,
            learning_rate=1e-2,
            seed=1,
            frames=1 + 4 * (frames - 1),
            checkpointing=False,
            samples_per_prompt=1,
            sample_steps=2,
            pairs=2,
            **size(small, model),
        )
        | changes
    )


def training(small, prompts=PROMPTS, words=WORDS, model=None, direction=None, checkpoint=None, **changes):
    model = model or small.load()
    return learning.DirectionTraining(
        model, encoder_of(small), prompts, *words, settings(small, model, **changes), direction=direction, checkpoint=checkpoint
    )


def run(small, prompts=PROMPTS, words=WORDS, model=None, direction=None, on_progress=lambda progress: None, **changes):
    """A whole run."""
    model = model or small.load()
    return learning.learn_direction(model, encoder_of(small), prompts, *words, settings(small, model, **changes), direction, on_progress)


def shifts(direction):
    [learned] = direction.learned
    return learned.shifts


def record(direction):
    return direction.learned[0].record["runs"]


@contextmanager
def with_gradients():
    with torch.inference_mode(False), torch.enable_grad():
        yield


# The equation, on a second load.


@contextmanager
def shifted_layers(small, model, added):
    """Within it, layer i of the host's diffusion model has y + added[i], (R, D), for its y; all else is plain."""
    hooks, time = [], {}

    def put_in(place, position, make):
        def hook(module, args, kwargs):
            if place in kwargs:
                return args, kwargs | {place: make(kwargs[place])}
            return (*args[:position], make(args[position]), *args[position + 1 :]), kwargs

        return hook

    if small is FLUX:
        layers = [*((block, "vec", 2) for block in model.double_blocks), *((block, "vec", 1) for block in model.single_blocks)]
        made = [lambda y, shift=shift: y + shift for shift in added]
    else:  # what modulates Wan's blocks is made of y by one layer before them

        def y(rows):
            return time["y"].reshape(rows, -1, model.dim)

        hooks.append(model.time_embedding.register_forward_hook(lambda module, args, y: time.update(y=y)))
        layers = [(block, "e", 1) for block in model.blocks]
        made = [
            lambda e, shift=shift: model.time_projection(y(len(shift)) + shift[:, None]).unflatten(-1, (6, model.dim)) for shift in added
        ]
    for (layer, name, position), make in zip(layers, made, strict=True):
        hooks.append(layer.register_forward_pre_hook(put_in(name, position, make), with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def prediction(small, patcher, batch, conditionings, added, pooled=None):
    """What the host's diffusion model gives for a prompt a row, layer i shifted by added[i]; pooled: those of other prompts."""
    model, sampling = patcher.model.diffusion_model, patcher.get_model_object("model_sampling")
    sigmas = batch.sigmas(sampling)
    x = sampling.noise_scaling(sigmas, batch.noise, batch.clean)
    context = torch.cat([tokens for [[tokens, _]] in conditionings])
    more = {"y": torch.cat([extras["pooled_output"] for [[_, extras]] in pooled or conditionings])} if small is FLUX else {}
    with shifted_layers(small, model, added):
        return model(x, sampling.timestep(sigmas), context, **more)


@contextmanager
def followed_by_autograd():
    with pytest.MonkeyPatch.context() as host, torch.autograd.graph.allow_mutation_on_saved_tensors():
        host.setattr(comfy.model_management, "in_training", True)  # the rotary embedding that autograd knows
        host.setattr(comfy.quant_ops.ck, "rms_rope_split_half", plain_rms_rope, raising=False)
        host.setattr(comfy.quant_ops.ck, "apply_rope_split_half", plain_rope, raising=False)  # hosts before 0.30
        yield


def in_the_equation(small, run, course, batch, second, delta):
    """(teacher, student, plain) predictions for a batch, from texts and delta (L, D) alone; the words are WORDS."""
    encoder = encoder_of(small)
    signs, numbers = run.teaching.rows(course, batch)
    texts = [run.prompts if course is run.course else run.held_out] * len(numbers)
    texts = ["" if number == learning.EMPTY else of[number] for number, of in zip(numbers, texts, strict=True)]
    words = [", ".join(filter(None, (text, WORDS[0 if sign == 1 else 1]))) for sign, text in zip(signs, texts, strict=True)]
    encoded, with_words = ([encoder.encode_from_tokens_scheduled(encoder.tokenize(text)) for text in each] for each in (texts, words))
    added = [torch.tensor(signs)[:, None] * row for row in delta]
    none = [torch.zeros_like(rows) for rows in added]
    return (
        prediction(small, second, batch, with_words, none, pooled=encoded),
        prediction(small, second, batch, encoded, added),
        prediction(small, second, batch, encoded, none),
    )


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("small", [FLUX, WAN], ids=lambda small: small.name)
def test_loss_and_gradient_are_those_of_the_equation(small, checkpointing):
    given = run(small, steps=3, learning_rate=0.1).direction
    with with_gradients():
        # Of this seed the batch has rows of both words, and one of the empty prompt.
        one = training(small, direction=given, checkpointing=checkpointing, steps=2, batch_size=8, seed=4)
        one.prepare()
        batch = one.course.lessons.visited(0)
        with one.running():
            signs, numbers = one.teaching.rows(one.course, batch)
            assert {*signs} == {1, -1} and 0 < numbers.count(learning.EMPTY) < len(numbers)
            loss = one.take_step()
        delta = shifts(given).clone().requires_grad_()
        with followed_by_autograd():
            teacher, student, _ = in_the_equation(small, one, one.course, batch, small.load(), delta)
            expected = (student - teacher.detach()).square().mean()
            [gradient] = torch.autograd.grad(expected, [delta])
    assert abs(loss - expected.item()) < 1e-5 * expected.item()
    assert gradient.abs().amax(dim=1).min() > 0, "a layer that the loss does not depend on"
    clipped = min(1.0, 1.0 / gradient.norm().item())
    torch.testing.assert_close(one.network.shifts.grad, gradient * clipped, rtol=1e-3, atol=1e-4 * gradient.abs().max().item())


# What w 1 means.


def moved_in_the_equation(small, run, delta):
    """(how far the shift moves the predictions of the held-out prompts, of as far as the words do, the cosine of both changes)."""
    batches = [run.exam.lessons[number] for number in range(len(run.exam.lessons))]
    second = small.load()
    one_by_one = [in_the_equation(small, run, run.exam, batch, second, delta) for batch in batches]
    by_shift, by_words = (torch.cat([(predictions[which] - predictions[2]).flatten() for predictions in one_by_one]) for which in (1, 0))
    return (by_shift.norm() / by_words.norm()).item(), torch.cosine_similarity(by_shift, by_words, dim=0).item()


@contextmanager
def taught(small, prompts=MORE, **changes):
    """A run that has taken its steps, and is still running."""
    with with_gradients():
        one = training(small, prompts, **changes)
        assert len(one.held_out) == 2 and not {*one.held_out} & {*one.prompts} and {*one.held_out, *one.prompts} == {*prompts}
        one.prepare()
        with one.running():
            while one.step < one.settings.steps:
                one.take_step()
            yield one


def of_the_small_world(**changes):
    """A run of some seconds on a model that words mean something to."""
    shapes, colors = ("circle", "square", "cross", "triangle"), ("red", "blue", "green", "yellow")
    prompts = [f"a {color} {shape}" for color in colors for shape in shapes]
    return taught(SMALL_WORLD, prompts, **dict(steps=16, batch_size=8, learning_rate=2e-2, cfg=6.0, pairs=4) | changes)


def test_w_1_is_as_strong_as_the_words_on_prompts_set_aside():
    with of_the_small_world() as one:
        said = one.measure()
        made = shifts(one.result())
        far, alike = moved_in_the_equation(SMALL_WORLD, one, made)
    assert far == pytest.approx(1, abs=0.05) and one.strength.scaled > 1.2, "as it was learned it is weaker"
    torch.testing.assert_close(made, one.strength.scaled * one.network.shifts.detach())
    assert one.strength[:2] == (pytest.approx(far, rel=1e-3), pytest.approx(alike, rel=1e-3))
    assert said == (
        f"w 1 is {one.strength.far:.2f} times as strong as the words, on 2 prompts (alike by {one.strength.alike:.2f}; scaled by "
        f"{one.strength.scaled:.2f})."
    )
    [of_run] = record(one.result())
    assert of_run["positive"] == "highly detailed" and of_run["measured on"] == 2
    assert (of_run["strength"], of_run["alike"], of_run["scaled by"]) == one.strength


def test_it_is_scaled_no_further_than_is_safe():
    with of_the_small_world(learning_rate=1e-3) as one:
        said = one.measure()
        far, _ = moved_in_the_equation(SMALL_WORLD, one, shifts(one.result()))
    assert one.strength.scaled == 4 and one.strength.far == pytest.approx(far, rel=1e-3) and far < 0.97
    assert said.endswith(f"It was scaled as far as is safe; w {1 / one.strength.far:.1f} is about as strong as they are.")


@pytest.mark.parametrize("small", [FLUX, WAN], ids=lambda small: small.name)
def test_what_goes_another_way_than_the_words_is_not_scaled(small):
    """As on these models of random weights, to which words mean another thing for each prompt."""
    with taught(small, steps=4, learning_rate=5e-2) as one:
        said = one.measure()
        far, alike = moved_in_the_equation(small, one, shifts(one.result()))
        assert torch.equal(shifts(one.result()), one.network.shifts.detach())
    assert one.strength == (pytest.approx(far, rel=1e-3), pytest.approx(alike, abs=1e-3), 1) and far > 0.01 and alike < 0.3
    assert said.endswith(f"on 2 prompts, and goes another way (alike by {one.strength.alike:.2f}): learn longer.")
    assert record(one.result())[0]["strength"] == one.strength.far


def test_what_cannot_be_measured_is_said():
    with taught(WAN, steps=1) as one:
        before = shifts(one.result())
        with torch.no_grad():
            one.diffusion_model.head.head.weight.fill_(torch.inf)
        assert one.measure() == "What w 1 means could not be measured: this model's predictions are not finite."
        assert torch.equal(shifts(one.result()), before) and "strength" not in record(one.result())[0]


# What it learns.


@pytest.mark.parametrize("small", [FLUX, WAN], ids=lambda small: small.name)
def test_the_student_comes_closer_to_the_teacher(small):
    made = run(small, steps=48, learning_rate=5e-2, batch_size=4)
    assert sum(made.losses[-4:]) < 0.9 * sum(made.losses[:4]), made.losses
    assert record(made.direction)[0]["strength"] > 0.1


EVERY_FAMILY = [FLUX, *families.FAMILIES, *EVERY]


@pytest.mark.parametrize("small", EVERY_FAMILY, ids=[f"{small.name} {number}" for number, small in enumerate(EVERY_FAMILY)])
def test_every_family_learns_recomputed_or_not_and_stays_what_it_was(small):
    model = small.load()
    plain = small.sample(model)
    kept, recomputed = (run(small, model=model, steps=2, learning_rate=3e-2, checkpointing=again) for again in (False, True))
    assert shifts(kept.direction).isfinite().all() and shifts(kept.direction).abs().amax(dim=1).min() > 0, "a layer has learned nothing"
    assert kept.losses == pytest.approx(recomputed.losses, rel=1e-4)
    assert torch.equal(small.sample(model), plain)
    assert not torch.equal(small.sample(apply(model, kept.direction, w=1.0)), plain)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("load", [lambda small: small.load(torch.bfloat16), quantized], ids=["bf16", "fp8"])
def test_weights_of_few_bits_teach_nearly_what_those_of_fp32_do(load, checkpointing):
    model = load(WAN)
    weights = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    made, exact = (run(WAN, model=each, checkpointing=checkpointing) for each in (model, WAN.load()))
    assert made.losses == pytest.approx(exact.losses, rel=0.2)
    assert shifts(made.direction).dtype == torch.float32
    assert torch.cosine_similarity(shifts(made.direction).flatten(), shifts(exact.direction).flatten(), dim=0) > 0.5
    bits = [
        (tensor.reshape(-1).view(torch.uint8), weights[name].reshape(-1).view(torch.uint8))
        for name, tensor in model.model.state_dict().items()
    ]
    assert all(torch.equal(*both) for both in bits)


@pytest.mark.parametrize("small", [FLUX, WAN], ids=lambda small: small.name)
def test_what_has_learned_nothing_changes_no_bit(small):
    model = small.load()
    made = run(small, model=model, steps=0)
    assert made.losses == [] and not shifts(made.direction).any()
    assert torch.equal(small.sample(apply(model, made.direction, w=7.0, schedule=schedule(0))), small.sample(model))


@pytest.mark.parametrize("words, sign", [(("detailed", " "), 1), (("", "simple"), -1)])
def test_one_of_the_words_may_be_empty(words, sign):
    one = training(WAN, words=words, steps=8)
    one.prepare()
    with one.running():
        lessons = one.course.lessons
        assert {each for number in range(len(lessons)) for each in one.teaching.rows(one.course, lessons[number])[0]} == {sign}
        one.take_step()
    said = one.course.prompts[learning.EMPTY]
    assert said.words[-sign] is said.plain and said.words[sign] is not said.plain


def test_rows_of_the_empty_prompt_are_about_15_in_100_and_both_words_alike():
    one = training(WAN, MORE * 8, steps=400, data="noise")
    one.prepare()
    with one.running():
        rows = [one.teaching.rows(one.course, one.course.lessons[number]) for number in range(len(one.course.lessons))]
    signs, numbers = ([each for part in parts for each in part] for parts in zip(*rows, strict=True))
    assert len(signs) > 200
    assert 0.10 < numbers.count(learning.EMPTY) / len(numbers) < 0.20 and 0.40 < signs.count(1) / len(signs) < 0.60


# The same run, however it goes.


def test_the_same_seed_gives_the_same_direction():
    first, again, other = (run(WAN, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(shifts(first.direction), shifts(again.direction)) and first.losses == again.losses
    assert record(first.direction) == record(again.direction)
    assert not torch.equal(shifts(first.direction), shifts(other.direction))


def test_an_interrupted_run_keeps_what_was_learned():
    texts = []

    def interrupt(progress):
        texts.append(progress.text)
        if progress.step == 3 and not progress.last:
            comfy.model_management.interrupt_current_processing()

    cut = run(WAN, steps=10, on_progress=interrupt)
    assert len(cut.losses) == 3 and record(cut.direction)[0]["steps"] == 3
    assert "What was learned in 3 of 10 steps is kept. w 1 is" in texts[-1]
    assert not comfy.model_management.processing_interrupted(), "the rest of the graph runs on"
    with with_gradients():
        whole = training(WAN, steps=10)
        whole.prepare()
        with whole.running():
            for _ in range(3):
                whole.take_step()
            whole.measure()
    assert torch.equal(shifts(cut.direction), shifts(whole.result()))


def stepped(run, steps):
    with with_gradients():
        run.prepare()
        with run.running():
            while run.step < steps:
                run.take_step()
            run.measure()
            return run.state()


def test_a_run_that_was_cut_goes_on_bit_for_bit(tmp_path):
    whole, cut = (training(FLUX, MORE, steps=6, accumulation=2) for _ in range(2))
    stepped(whole, 6)
    checkpoints.save(stepped(cut, 3), tmp_path / "checkpoint.safetensors")
    rest = training(FLUX, MORE, steps=6, accumulation=2, checkpoint=checkpoints.load(tmp_path / "checkpoint.safetensors"))
    assert rest.step == 3 and torch.equal(rest.network.shifts, cut.network.shifts.cpu())
    stepped(rest, 6)
    assert torch.equal(shifts(whole.result()), shifts(rest.result())) and record(whole.result()) == record(rest.result())
    others = {(WORDS[0], "flat"): "negative was very simple and is flat", (WORDS[1], WORDS[0]): "positive was highly detailed"}
    for words, what in others.items():
        with pytest.raises(ValueError, match=f"The checkpoint is of another run: {what}.*there, --direction goes on"):
            training(FLUX, MORE, words=words, steps=6, accumulation=2, checkpoint=checkpoints.load(tmp_path / "checkpoint.safetensors"))


def test_a_direction_is_gone_on_from():
    first = run(WAN, steps=40, learning_rate=5e-2)
    more = run(WAN, steps=2, learning_rate=1e-9, direction=first.direction)
    assert (shifts(more.direction) - shifts(first.direction)).abs().max() < 1e-6
    assert [one["steps"] for one in record(more.direction)] == [40, 2]
    assert run(WAN, steps=0, direction=first.direction).direction is first.direction


def test_one_that_was_scaled_is_gone_on_from_as_it_was_learned():
    tensor = torch.ones(WAN.depth, WAN.width)
    given = direction_of(tensor, "Wan", record={"runs": [{"scaled by": 3.0}, {"scaled by": 2.0}]})
    assert torch.equal(training(WAN, direction=given).network.shifts.detach(), tensor / 2)


@pytest.mark.parametrize("said", [{}, {"scaled by": "2"}, {"scaled by": 0.0}, {"scaled by": float("nan")}, {"scaled by": 1e9}, "no run"])
def test_what_a_file_says_of_its_scale_is_believed_within_bounds(said):
    tensor = torch.ones(WAN.depth, WAN.width)
    given = direction_of(tensor, "Wan", record={"runs": [{"scaled by": 2.0}, said]})
    assert torch.equal(training(WAN, direction=given).network.shifts.detach(), tensor)


# Errors.


@pytest.mark.parametrize("words", [("", ""), ("detailed", " detailed")])
def test_words_that_say_nothing_are_refused(words):
    with pytest.raises(ValueError, match="positive and negative are both .*nothing to learn"):
        run(WAN, words=words)


def test_a_direction_that_cannot_be_gone_on_from_is_refused():
    with pytest.raises(ValueError, match="the direction to go on from is an encoded one"):
        run(FLUX, direction=direction())
    with pytest.raises(ValueError, match="learned on Wan, but the model is a FLUX.1"):
        run(FLUX, direction=run(WAN, steps=0).direction)


def test_out_of_memory_says_what_to_lower():
    def exhausted(module, args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    model = WAN.load()
    with torch.inference_mode():
        hook = model.model.diffusion_model.blocks[0].register_forward_pre_hook(exhausted)
    try:
        with pytest.raises(ValueError, match="out of memory, at batch_size 2 .*lower batch_size.*width.*checkpointing.*20.00 GiB"):
            run(WAN, model=model, data="noise")
    finally:
        hook.remove()
    assert comfy.model_management.in_training is False
    run(WAN, model=model, steps=1)


# The node.


def learned(model, clip, **inputs):
    return node(
        "DistillGuidanceDirection",
        **dict(
            model=model,
            clip=clip,
            prompts="\n".join(PROMPTS),
            positive=WORDS[0],
            negative=WORDS[1],
            steps=3,
            batch_size=2,
            learning_rate=1e-2,
            width=32,
            height=32,
            seed=1,
            sample_steps=2,
        )
        | inputs,
    )


def test_the_node_gives_direction_losses_and_steps():
    clip = text_encoder()
    made, loss_map, steps = learned(WAN.load(), clip)
    assert steps == 3 and list(loss_map) == ["loss"] and len(loss_map["loss"]) == 3
    [one] = made.learned
    assert (one.family, one.positive, one.negative) == ("Wan", *WORDS) and one.shifts.dtype == torch.float32
    more, _, _ = learned(WAN.load(), clip, direction=made, steps=1)
    assert [run["steps"] for run in record(more)] == [3, 1]
    with pytest.raises(ValueError, match="Distill Guidance Direction: prompts is empty"):
        learned(WAN.load(), clip, prompts=" \n")
    with pytest.raises(ValueError, match="Distill Guidance Direction: there is no text encoder"):
        learned(WAN.load(), None)

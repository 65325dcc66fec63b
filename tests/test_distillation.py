"""Distilling a projection: its gradients, what it learns, and that it is the same however the run was cut."""

import importlib
import math
from dataclasses import replace

import comfy.model_management
import comfy.quant_ops
import folder_paths
import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from support.distilling import PACK, PROMPTS, TextOf, distillation, needs_distilling, run, same, settings, text_encoder
from support.flux import apply, flux, node, schedule
from support.text_blind import COSMOS
from support.text_blind_families import QWEN_IMAGE, WAN

pytestmark = needs_distilling

checkpoints = importlib.import_module(f"{PACK}.training.checkpoints")
Distillation, distill = distillation.Distillation, distillation.distill


@pytest.fixture(scope="module")
def clip():
    return text_encoder()


# The gradient.


def prediction(small, patcher, batch, conditioning, added):
    """What the host's diffusion model gives, the time embedding shifted by `added` (R, D)."""
    base_model, rows = patcher.model, len(batch.clean)
    sampling, model = base_model.model_sampling, base_model.diffusion_model
    sigmas = batch.sigmas(sampling)
    x = sampling.calculate_input(sigmas, sampling.noise_scaling(sigmas, batch.noise, batch.clean))
    embedder = {"Wan": "time_embedding", "Cosmos-Predict2": "t_embedding_norm"}[small.name]
    shape = {"Wan": (rows, -1), "Cosmos-Predict2": (rows, 1, -1)}[small.name]
    hook = model.get_submodule(embedder).register_forward_hook(lambda module, args, y: y + added.view(shape))
    try:
        context = torch.cat([tokens for [[tokens, _]] in conditioning])
        more = {"padding_mask": torch.zeros(rows, 1, *batch.clean.shape[-2:])} if small is COSMOS else {}
        return model(x, sampling.timestep(sigmas), context, **more)
    finally:
        hook.remove()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("small", [WAN, COSMOS], ids=lambda small: small.name)
def test_loss_and_gradient_are_those_of_the_equation(small, checkpointing):
    """The student once more in plain torch, on a second load: proj(c) into the time embedding, of which all else is made."""
    encoder = TextOf(small)
    given = run(small, steps=3, learning_rate=0.1).projection
    with torch.inference_mode(False), torch.enable_grad():
        training = Distillation(
            small.load(), encoder, PROMPTS, settings(small, checkpointing=checkpointing, steps=1, batch_size=3), projection=given
        )
        training.prepare()
        batch = training.course.lessons.visited(0)
        with training.running():
            loss = training.take_step()

        second = small.load()
        names = ["linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"]
        leaves = [given.weights[name].clone().requires_grad_() for name in names]
        w1, b1, w2, b2 = leaves
        prompts = [training.course.prompts[number].conditioning for number in batch.prompts]
        c = torch.cat([tokens.amax(dim=1) for [[tokens, _]] in prompts])
        proj = torch.nn.functional.silu(c @ w1.T + b1) @ w2.T + b2
        empty = [encoder.encode_from_tokens_scheduled(encoder.tokenize(""))] * len(prompts)
        with pytest.MonkeyPatch.context() as host:
            host.setattr(comfy.model_management, "in_training", True)  # the rotary embedding that autograd knows
            host.setattr(comfy.quant_ops.ck, "rms_rope_split_half", plain_rms_rope, raising=False)
            host.setattr(comfy.quant_ops.ck, "apply_rope_split_half", plain_rope, raising=False)  # hosts before 0.30
            teacher = prediction(small, second, batch, prompts, torch.zeros_like(proj)).detach()
            expected = (prediction(small, second, batch, empty, proj) - teacher).square().mean()
            gradients = torch.autograd.grad(expected, leaves)
    assert abs(loss - expected.item()) < 1e-6 * expected.item() + 1e-8
    clipped = min(1.0, 1.0 / torch.cat([gradient.flatten() for gradient in gradients]).norm().item())
    found = dict(training.network.named_parameters())
    for name, gradient in zip(names, gradients, strict=True):
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found[name].grad, gradient * clipped, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())


def plain_rms_rope(q, k, pe, q_scale, k_scale, eps):
    q, k = (x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * scale for x, scale in ((q, q_scale), (k, k_scale)))
    return plain_rope(q, k, pe)


def plain_rope(q, k, pe):
    def rotated(x):
        first, second = x.chunk(2, dim=-1)
        return torch.cat([pe[..., row, 0] * first + pe[..., row, 1] * second for row in (0, 1)], dim=-1)

    return rotated(q), rotated(k)


# What it learns.


@pytest.mark.parametrize("pooling, injection", [("clip", "adaln lora"), ("max", "time embedding"), ("mean", "adaln lora")])
def test_an_untrained_projection_changes_no_bit(clip, pooling, injection):
    model = COSMOS.load()
    made = run(COSMOS, model, clip, steps=0, pooling=pooling, injection=injection)
    assert made.losses == [] and made.projection.weights["linear_1.weight"].abs().max() > 0
    direction = node("EncodeGuidanceDirection", clip=clip, positive="detailed", negative="flat")[0]
    guided = apply(
        model, direction, w=7.0, projection=made.projection, schedule=schedule(0), cfg_rows="both", base_positive=COSMOS.pooled(1, 16)
    )
    assert torch.equal(COSMOS.sample(guided), COSMOS.sample(model))


@pytest.mark.parametrize("pooling", ["clip", "max", "mean"])
def test_the_student_comes_closer_to_the_teacher(clip, pooling):
    losses = run(WAN, clip=clip, pooling=pooling, steps=32, learning_rate=2e-2).losses
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4]), losses


# The same run, however it goes.


def test_the_same_seed_gives_the_same_projection(clip):
    first, again, other = (run(WAN, clip=clip, seed=seed) for seed in (1, 1, 2))
    assert same(first.projection, again.projection) and first.losses == again.losses
    assert not same(first.projection, other.projection)


def test_the_teacher_is_asked_once_and_a_small_cache_changes_nothing(clip):
    def calls(**changes):
        model, count = WAN.load(), []
        model.model.diffusion_model.register_forward_pre_hook(lambda module, args: count.append(len(args[0])))
        return run(WAN, model, clip, data="noise", steps=12, **changes).projection, len(count)

    # 4 prompts of 2 pairs make 4 batches of 2, visited 3 times.
    kept, count = calls()
    assert count == 12 + 4
    for cache, expected in ((0, 12 + 12), (2 * kept_bytes(), 12 + 2 + 3 * 2)):
        made, count = calls(cache=cache)
        assert same(made, kept) and count == expected


def kept_bytes():
    """Of one batch of predictions."""
    rows, channels, frames, height, width = 2, *WAN.latent
    return 4 * rows * channels * frames * height * width


def test_accumulated_batches_are_one_step(clip):
    made = run(WAN, clip=clip, accumulation=3, steps=2)
    assert len(made.losses) == 2 and made.projection.record["runs"][0]["accumulation"] == 3


def test_an_interrupted_run_keeps_what_was_learned(clip):
    def interrupt(progress):
        if progress.step == 3 and not progress.last:
            comfy.model_management.interrupt_current_processing()

    cut = run(WAN, clip=clip, steps=10, on_progress=interrupt)
    assert len(cut.losses) == 3 and cut.projection.record["runs"][0]["steps"] == 3
    assert not comfy.model_management.processing_interrupted(), "the rest of the graph runs on"
    with torch.inference_mode(False), torch.enable_grad():
        training = Distillation(WAN.load(), clip, PROMPTS, settings(WAN, steps=10))
        training.prepare()
        with training.running():
            for _ in range(3):
                training.take_step()
    assert same(cut.projection, training.result())


@pytest.mark.parametrize("moment", ["Encoding prompts: 2 of 4", "Making samples: 1 of 4"])
def test_an_interrupt_before_the_first_step_ends_all_and_says_so(clip, moment):
    texts = []

    def interrupt(progress):
        texts.append(progress.text)
        if progress.text == moment:
            comfy.model_management.interrupt_current_processing()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(WAN, clip=clip, on_progress=interrupt)
    assert texts[-2:] == [moment, "Interrupted before the first step: nothing was learned."]
    assert not comfy.model_management.processing_interrupted()


def test_a_projection_is_gone_on_from(clip):
    first = run(WAN, clip=clip, steps=40, pooling="mean", injection="time embedding")
    more = run(WAN, clip=clip, steps=2, learning_rate=1e-9, projection=first.projection, pooling="clip")
    assert more.projection.pooling == "mean", "its own pooling counts"
    assert more.losses[0] < 0.8 * first.losses[0]
    assert [one["steps"] for one in more.projection.record["runs"]] == [40, 2]
    assert run(WAN, clip=clip, steps=0, projection=first.projection).projection is first.projection


def training(clip, prompts=PROMPTS, projection=None, checkpoint=None, origin=None, **changes):
    changes = {"steps": 9, "accumulation": 2} | changes
    return Distillation(
        WAN.load(),
        clip,
        prompts,
        settings(WAN, **changes),
        projection=projection,
        held_out=["a purple triangle"],
        checkpoint=checkpoint,
        origin=origin,
    )


def stepped(run, steps):
    """Takes steps until so many have been taken; returns (held-out loss, checkpoint)."""
    with torch.inference_mode(False), torch.enable_grad():
        run.prepare()
        with run.running():
            while run.step < steps:
                run.take_step()
            return run.held_out_loss(), run.state()


@pytest.mark.parametrize("pooling", ["max", "clip"])
def test_a_run_that_was_cut_goes_on_bit_for_bit(tmp_path, clip, pooling):
    whole, cut = (training(clip, pooling=pooling) for _ in range(2))
    held_out, _ = stepped(whole, 9)
    checkpoints.save(stepped(cut, 4)[1], tmp_path / "checkpoint.safetensors")
    rest = training(clip, pooling=pooling, checkpoint=checkpoints.load(tmp_path / "checkpoint.safetensors"))
    assert rest.step == 4 and same(rest.result(), cut.result())
    assert stepped(rest, 9)[0] == held_out
    assert same(whole.result(), rest.result()) and whole.losses == rest.losses
    assert whole.result().record == rest.result().record


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(tmp_path, clip):
    given, other = (run(WAN, clip=clip, steps=0, seed=seed).projection for seed in (1, 2))
    path = tmp_path / "checkpoint.safetensors"
    checkpoints.save(stepped(training(clip, projection=given, origin={"model": "0" * 64, "shift": 3.0}), 2)[1], path)
    same_run = dict(projection=given, origin={"model": "0" * 64, "shift": 3.0})
    assert training(clip, checkpoint=checkpoints.load(path), **same_run).step == 2
    for changes, words in (
        (dict(steps=10), "steps was 9 and is 10"),
        (dict(seed=5, learning_rate=0.5), "learning_rate was 0.01 and is 0.5, seed was 1 and is 5"),
        (dict(prompts=PROMPTS[::-1]), "prompts is another"),
        (dict(projection=other), "projection is another"),
        (dict(projection=None), "projection is another"),
        (dict(origin={"model": "1" * 64, "shift": 3.0}), "model is another"),
        (dict(origin={"model": "0" * 64, "shift": 5.0}), "shift was 3.0 and is 5.0"),
    ):
        with pytest.raises(ValueError, match=f"The checkpoint is of another run: {words}. Start it as before, or in another folder"):
            training(clip, checkpoint=checkpoints.load(path), **same_run | changes)


def test_a_checkpoint_that_is_cut_or_foreign_is_refused_with_its_name(tmp_path, clip):
    whole = tmp_path / "whole.safetensors"
    checkpoints.save(stepped(training(clip), 1)[1], whole)
    data, state = whole.read_bytes(), load_file(whole)
    spoilt = {name: tensor.clone() for name, tensor in state.items()}
    spoilt["mean linear_1.bias"][0] = float("nan")
    run_of = {"format": checkpoints.FORMAT, "format_version": "1", "run": "{}"}
    checkpoint = tmp_path / "checkpoint.safetensors"
    for content, words in (
        (data[: len(data) // 2], "cut off, damaged"),
        (b"", "cut off, damaged"),
        (safetensors_bytes(state, {"format": "pt"}), "none of this version"),
        (safetensors_bytes(state, run_of | {"run": "[" * 5000}), "does not say what run"),
        (safetensors_bytes(state, run_of | {"run": "[]"}), "does not hold what"),
        (safetensors_bytes({name: tensor for name, tensor in state.items() if "square" not in name}, run_of), "does not hold what"),
        (safetensors_bytes(spoilt, run_of), "holds numbers that no training leaves"),
        (safetensors_bytes({name: tensor.half() for name, tensor in state.items()}, run_of), "holds numbers that no training leaves"),
    ):
        checkpoint.write_bytes(content)
        with pytest.raises(ValueError, match=f"^The checkpoint checkpoint.safetensors .*{words}"):
            checkpoints.load(checkpoint)
    with pytest.raises(ValueError, match="weights are not those of this model's projection"):
        training(clip, checkpoint=replace(checkpoints.load(whole), weights={"linear_1.bias": torch.zeros(3)}))


# Errors.


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(prompts=["", "  "]), "prompts is empty"),
        (dict(injection="adaln lora"), "Wan takes no shift at its adaln lora. Set injection to time embedding"),
        (dict(pooling="sum"), "pooling is 'sum'; it must be clip or max or mean"),
        (dict(steps=-1), "steps is -1; it must be 0 at least"),
        (dict(learning_rate=0.0), "learning_rate is 0.0; it must be above 0 and at most 1"),
        (dict(learning_rate=1e30), "learning_rate is 1e.30; it must be above 0 and at most 1"),
        *(
            ({name: value}, f"{name} is {value}; it must be a finite number")
            for name in ("learning_rate", "cfg", "cache")
            for value in (math.nan, math.inf)
        ),
        (dict(cfg=-1.0), "cfg is -1.0; it must be 0 at least"),
        (dict(pooling="sum" * 10_000), r"pooling is 'sumsum[sum]*\.\.\.[sum]*'; it must be clip or max or mean"),
        (dict(width=4), "less than one latent"),
    ],
)
def test_what_cannot_work_is_said(clip, changes, words):
    with pytest.raises(ValueError, match=words) as refused:
        run(WAN, clip=clip, **changes)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_node_says_of_a_cache_that_is_no_number(clip, value):
    with pytest.raises(ValueError, match=f"cache is {value}; it must be a finite number"):
        distilled(WAN.load(), clip, cache=value)


def test_a_model_with_pooled_text_needs_none(clip):
    with pytest.raises(ValueError, match="FLUX.1 has pooled text in its modulation already"):
        distill(flux(), clip, PROMPTS, settings(WAN))


def test_an_encoder_without_pooled_output_is_said():
    class NoPooled(TextOf):
        def encode_from_tokens_scheduled(self, tokens):
            return self.small.encoded(tokens)

    with pytest.raises(ValueError, match="gives no pooled output. Connect .* to pooled_clip"):
        run(WAN, clip=NoPooled(WAN), pooling="clip")


def test_a_projection_of_another_family_is_refused_by_name(clip):
    made = run(WAN, clip=clip, steps=0).projection
    with pytest.raises(ValueError, match="made for Wan, but the model is a Qwen-Image"):
        run(QWEN_IMAGE, clip=clip, projection=made)


def test_a_compiled_model_is_refused(clip):
    compiled = node("TorchCompileModel", model=WAN.load(), backend="inductor")[0]
    with pytest.raises(ValueError, match="compiled"):
        run(WAN, compiled, clip)


def overflowing(clip, model, where):
    """A projection whose training has an infinite gradient, or loss, at its first step: the model multiplies by 1e6."""
    with torch.no_grad():
        model.model.diffusion_model.head.head.weight.mul_(1e6)
    made = run(WAN, clip=clip, steps=0).projection
    weights = {name: torch.zeros_like(tensor) for name, tensor in made.weights.items()}
    weights["linear_2.weight"] = torch.full_like(weights["linear_2.weight"], where)
    return replace(made, weights=weights)


@pytest.mark.parametrize("number, words", [(3e38, "(loss|gradient) is (inf|nan)"), (1e33, "gradient is (inf|nan)")])
def test_a_step_that_would_make_nan_is_not_taken(clip, number, words):
    model = WAN.load()
    given = overflowing(clip, model, number)
    training = Distillation(model, clip, PROMPTS, settings(WAN, data="noise"), projection=given)
    training.prepare()
    with torch.inference_mode(False), torch.enable_grad(), training.running():
        with pytest.raises(ValueError, match=f"the {words} at step 1. Lower learning_rate, now 0.01"):
            training.take_step()
        assert all(torch.equal(tensor, given.weights[name]) for name, tensor in training.network.weights().items())


def test_what_was_learned_before_a_step_that_would_make_nan_is_kept(clip):
    model, texts = WAN.load(), []

    def spoil(progress):
        texts.append(progress.text)
        if progress.step == 2:
            with torch.no_grad():
                model.model.diffusion_model.head.head.weight.fill_(1e30)

    made = run(WAN, model, clip, steps=10, on_progress=spoil, data="noise", cache=0)
    assert len(made.losses) == 2 and "What was learned in 2 of 10 steps is kept" in texts[-1] and "at step 3" in texts[-1]
    assert all(tensor.isfinite().all() for tensor in made.projection.weights.values())


def test_out_of_memory_says_what_to_lower(clip):
    def exhausted(module, args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    model = WAN.load()
    network = model.model.diffusion_model
    with torch.inference_mode():
        hook = network.blocks[0].register_forward_pre_hook(exhausted)
    try:
        with pytest.raises(ValueError, match="out of memory, at batch_size 2 .*lower batch_size.*width.*checkpointing.*20.00 GiB"):
            run(WAN, model, clip, data="noise")
    finally:
        hook.remove()
    assert comfy.model_management.in_training is False
    run(WAN, model, clip, steps=1)


# The node.


def distilled(model, clip, **inputs):
    return node(
        "DistillPooledProjection",
        **dict(
            model=model,
            clip=clip,
            prompts="\n".join(PROMPTS),
            steps=3,
            batch_size=2,
            learning_rate=1e-2,
            width=32,
            height=32,
            seed=1,
            pooling="max",
            injection="time embedding",
            sample_steps=2,
        )
        | inputs,
    )


def test_the_node_gives_projection_losses_and_steps(clip):
    projection, loss_map, steps = distilled(WAN.load(), clip)
    assert steps == 3 and list(loss_map) == ["loss"] and len(loss_map["loss"]) == 3
    assert all(type(loss) is float for loss in loss_map["loss"])
    assert projection.family == "Wan" and projection.injection == "time embedding"
    assert projection.record["runs"][0]["prompts"] == 4
    assert node("LossGraphNode", loss=loss_map, filename_prefix="loss") is not None


def test_prompts_may_come_from_a_file_in_the_input_folder(tmp_path, clip, monkeypatch):
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "prompts.txt").write_text("one\n\ntwo\n")
    (tmp_path / "secret.txt").write_text("three")
    projection, *_ = distilled(WAN.load(), clip, prompts="zero", prompts_file="prompts.txt", steps=1)
    assert projection.record["runs"][0]["prompts"] == 3
    for name in ("../secret.txt", str(tmp_path / "secret.txt"), "missing.txt"):
        with pytest.raises(ValueError, match="prompts_file .* is not in ComfyUI's input folder"):
            distilled(WAN.load(), clip, prompts_file=name)


def test_pooled_clip_is_what_is_projected(clip):
    wide = text_encoder(width=24, seed=9)
    projection, *_ = distilled(WAN.load(), clip, pooling="clip", pooled_clip=wide, steps=1)
    assert projection.input_width == 24
    with pytest.raises(ValueError, match="16 wide, but the projection reads 24"):
        distilled(WAN.load(), clip, projection=projection)


def test_a_host_that_is_too_old_is_told(clip, monkeypatch):
    model = WAN.load()
    for owner in type(model.get_model_object("latent_format")).__mro__:
        monkeypatch.delattr(owner, "temporal_downscale_ratio", raising=False)
    with pytest.raises(ValueError, match="Distilling needs ComfyUI 0.24.0 or newer.*Update ComfyUI"):
        distill(model, clip, PROMPTS, settings(WAN))

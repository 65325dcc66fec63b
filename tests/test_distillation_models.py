"""Distilling on models of every kind, each of which is afterwards what it was."""

from dataclasses import replace

import comfy.model_management
import comfy.quant_ops
import pytest
import torch
from comfy.ldm.flux.model import Flux
from support.distilling import PROMPTS, TextOf, distillation, needs_distilling, run, settings, size, text_encoder
from support.flux import apply
from support.text_blind import ANIMA, COSMOS
from support.text_blind_families import FAMILIES, FLUX2, FLUX2_DIMS, VARIANTS, WAN, built, config_of
from support.text_blind_variants import MEANFLOW

from benchmarks.in_process import node

pytestmark = needs_distilling

Distillation = distillation.Distillation

# FLUX.2 with as many channels as the host's latents of it have.
_FLUX2 = FLUX2_DIMS | dict(in_channels=128, out_channels=128)
FLUX2 = replace(FLUX2, model=built(Flux, _FLUX2), config=config_of("Flux2", _FLUX2, "flux2"), latent=(128, 4, 4))
EVERY = [COSMOS, ANIMA, *(FLUX2 if small.name == "FLUX.2" else small for small in (*FAMILIES, *VARIANTS, *MEANFLOW))]


@pytest.fixture(scope="module")
def clip():
    return text_encoder()


@pytest.mark.parametrize("small", EVERY, ids=[f"{small.name} {small.width if hasattr(small, 'width') else ''}" for small in EVERY])
def test_every_family_learns_recomputed_or_not_and_stays_what_it_was(small):
    model = small.load()
    plain = small.sample(model)  # the host notes things on modules when it first loads them
    network = model.model.diffusion_model
    before = {name: (tensor, tensor.clone()) for name, tensor in model.model.state_dict(keep_vars=True).items()}
    own = {module: set(module.__dict__) for module in network.modules()}
    fused = {name: function for name, function in vars(comfy.quant_ops.ck).items() if "rope" in name}
    kept, recomputed = (run(small, model, steps=2, learning_rate=3e-2, checkpointing=again) for again in (False, True))
    assert all(tensor.isfinite().all() for tensor in kept.projection.weights.values())
    assert kept.projection.weights["linear_2.weight"].abs().min() > 0, "a row of it has learned nothing"
    assert kept.losses == pytest.approx(recomputed.losses, rel=1e-4)
    for name, tensor in model.model.state_dict(keep_vars=True).items():
        assert tensor is before[name][0] and torch.equal(tensor, before[name][1]), name
    assert {module: set(module.__dict__) for module in network.modules()} == own
    assert comfy.model_management.in_training is False and fused.items() <= vars(comfy.quant_ops.ck).items()
    assert torch.equal(small.sample(model), plain)
    assert not torch.equal(small.sample(apply(model, small.direction(), projection=kept.projection)), plain)


def test_weights_patched_by_a_lora_are_the_ones_taught(clip):
    model = WAN.load()
    name = "diffusion_model.blocks.2.ffn.0.weight"
    strong = model.clone()
    strong.add_patches({name: ("diff", (torch.randn_like(model.model.state_dict()[name]),))})
    plain, patched = (run(WAN, one, clip, steps=2).losses for one in (model, strong))
    assert plain != patched
    assert run(WAN, model, clip, steps=2).losses == plain


def test_a_cache_of_the_model_s_outputs_is_never_asked(clip):
    """EasyCache tells the host's conditionings apart by what the host's sampler calls them."""
    model = WAN.load()
    cached = node("EasyCache", model=model, reuse_threshold=0.9, start_percent=0.0, end_percent=1.0, verbose=False)[0]
    assert run(WAN, cached, clip, data="noise").losses == run(WAN, model, clip, data="noise").losses


@pytest.mark.parametrize("small", MEANFLOW, ids=lambda small: small.label)
def test_a_mean_flow_model_is_told_of_each_row_where_sampling_goes_next(small):
    """y is made from the level after this one too, as the host makes it in a sampling of as many steps as the samples have."""
    encoder, steps = TextOf(small), 5
    given = run(small, steps=3, learning_rate=0.1).projection
    w1, b1, w2, b2 = (given.weights[name] for name in ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"))
    model = small.load()
    changes = dict(steps=1, batch_size=3, sample_steps=steps) | size(small, model)
    training = Distillation(model, encoder, PROMPTS, settings(small, **changes), projection=given)
    training.prepare()
    batch = training.course.lessons.visited(0)
    with training.running():
        loss = training.take_step()

    second = small.load().model
    made = []
    second.diffusion_model.register_forward_hook(lambda module, args, output: made.append(output))
    percent_to_sigma = second.model_sampling.percent_to_sigma

    def predicted(row, conditioning, added):
        """One row, with the time embedding shifted by `added`, of which mean flow takes the half where it does not sum."""
        percent = batch.percents[row].item()
        sigmas = torch.tensor([percent_to_sigma(percent), percent_to_sigma(min(percent + 1 / steps, 1))])
        x = second.model_sampling.noise_scaling(sigmas[:1], batch.noise[[row]], batch.clean[[row]])
        [[tokens, extras]] = conditioning
        conds = second.extra_conds(cross_attn=tokens, noise=x, device=x.device, **extras)
        share = 1 if second.diffusion_model.params.meanflow_sum else 2
        hook = second.diffusion_model.time_in.register_forward_hook(lambda module, args, y: y + share * added)
        inputs = {name: cond.cond for name, cond in conds.items()}
        try:
            second.apply_model(x, sigmas[:1], transformer_options={"sigmas": sigmas[:1], "sample_sigmas": sigmas}, **inputs)
        finally:
            hook.remove()
        return made.pop()

    losses = []
    for row, number in enumerate(batch.prompts):
        prompt = training.course.prompts[number].conditioning
        shift = torch.nn.functional.silu(prompt[0][0].amax(dim=1) @ w1.T + b1) @ w2.T + b2
        student = predicted(row, encoder.encode_from_tokens_scheduled(encoder.tokenize("")), shift)
        losses.append((student - predicted(row, prompt, 0)).square().mean())
    assert loss == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)


def quantized(small):
    """A model in fp8, as the host loads one from its file; only the blocks' weights are."""
    state = dict(small.load().model.made_from[0])
    for name in [name for name, tensor in state.items() if name.startswith("blocks.") and name.endswith(".weight") and tensor.ndim == 2]:
        layer = name.removesuffix(".weight")
        state[f"{layer}.weight_scale"] = state[name].abs().max() / torch.finfo(torch.float8_e4m3fn).max
        state[name] = (state[name] / state[f"{layer}.weight_scale"]).to(torch.float8_e4m3fn)
        state[f"{layer}.comfy_quant"] = torch.tensor([*b'{"format": "float8_e4m3fn"}'], dtype=torch.uint8)
    config = small.config()
    config.quant_config = {"mixed_ops": True}  # what the host's loader finds in such a file
    return replace(small, config=lambda: config)._loaded(state, torch.float32)


class Noted(torch.nn.Parameter):
    """A weight of a pack's own class that holds more than its numbers, as bitsandbytes' do."""


def noted(small):
    model = small.load()
    for module in model.model.diffusion_model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight = torch.Tensor._make_subclass(Noted, module.weight.detach())
            module.weight.note = module
    return model


@pytest.mark.parametrize("load, kind", [(quantized, comfy.quant_ops.QuantizedTensor), (noted, Noted)], ids=["quantized", "a pack's own"])
def test_no_weight_is_held_twice(clip, load, kind):
    model = load(WAN)
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    before = dict(model.model.named_parameters())
    assert any(type(parameter) is kind for parameter in before.values())
    training = Distillation(model, clip, PROMPTS, settings(WAN, steps=2, pooling="clip", data="noise"))
    training.prepare()
    with training.running():
        for name, parameter in model.model.named_parameters():
            assert not parameter.is_inference() and parameter.data_ptr() == before[name].data_ptr(), name
            assert type(parameter) is type(before[name]) and getattr(parameter, "note", None) is getattr(before[name], "note", None)
        training.take_step()
        training.take_step()
    assert training.losses[0] > 0 and training.result().weights["linear_2.weight"].abs().max() > 0
    assert all(parameter is before[name] for name, parameter in model.model.named_parameters())

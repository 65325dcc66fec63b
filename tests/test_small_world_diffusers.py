"""A check of the shipped FLUX weights, and of guidance on them, from outside: diffusers' own model."""

from functools import cache
from pathlib import Path

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.in_process import node
from tools.small_world.models import FLUX
from tools.small_world.sampling import load

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "tools" / "small_world" / "weights"


def to_diffusers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The host's FLUX weights under diffusers' names."""
    width, out = FLUX["hidden_size"], {}
    top = {
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "final_layer.linear": "proj_out",
        "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
        "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
        "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    }
    double = {
        "img_mod.lin": "norm1.linear",
        "txt_mod.lin": "norm1_context.linear",
        "img_attn.proj": "attn.to_out.0",
        "txt_attn.proj": "attn.to_add_out",
        "img_attn.norm.query_norm": "attn.norm_q",
        "img_attn.norm.key_norm": "attn.norm_k",
        "txt_attn.norm.query_norm": "attn.norm_added_q",
        "txt_attn.norm.key_norm": "attn.norm_added_k",
        "img_mlp.0": "ff.net.0.proj",
        "img_mlp.2": "ff.net.2",
        "txt_mlp.0": "ff_context.net.0.proj",
        "txt_mlp.2": "ff_context.net.2",
    }
    double_qkv = {
        "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    }
    single = {"linear2": "proj_out", "modulation.lin": "norm.linear", "norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"}
    for key, weight in weights.items():
        name, kind = key.rsplit(".", 1)
        part, _, rest = name.partition(".")
        index, _, inner = rest.partition(".")
        if name in top:
            out[f"{top[name]}.{kind}"] = weight
        elif name == "final_layer.adaLN_modulation.1":
            shift, scale = weight.chunk(2)
            out[f"norm_out.linear.{kind}"] = torch.cat([scale, shift])
        elif part == "double_blocks" and inner in double:
            out[f"transformer_blocks.{index}.{double[inner]}.{kind}"] = weight
        elif part == "double_blocks":
            for target, piece in zip(double_qkv[inner], weight.chunk(3)):
                out[f"transformer_blocks.{index}.{target}.{kind}"] = piece
        elif inner in single:
            out[f"single_transformer_blocks.{index}.{single[inner]}.{kind}"] = weight
        else:
            pieces = weight.split([width, width, width, 4 * width])
            for target, piece in zip(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), pieces):
                out[f"single_transformer_blocks.{index}.{target}.{kind}"] = piece
    return out


@cache
def theirs():
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=FLUX["depth"],
        num_single_layers=FLUX["depth_single_blocks"],
        attention_head_dim=128,
        num_attention_heads=1,
        joint_attention_dim=768,
        pooled_projection_dim=768,
        guidance_embeds=False,
        axes_dims_rope=tuple(FLUX["axes_dim"]),
    )
    weights = load_file(WEIGHTS / "small_world_flux.safetensors")
    model.load_state_dict(to_diffusers({name: weight.float() for name, weight in weights.items()}))
    return model.eval()


def their_velocity(x, sigma, tokens, pooled, w, start_layer, positive, negative):
    """y_hat = y + w (y(p+) - y(p-)) on blocks from start_layer on, doubles first; the head keeps the plain y."""
    count, rows, columns = len(x), x.shape[2] // 2, x.shape[3] // 2
    tokens, pooled, positive, negative = (each.expand(count, *each.shape[1:]) for each in (tokens, pooled, positive, negative))
    sigmas = sigma.expand(count)
    y = theirs().time_text_embed
    delta = w * (y(sigmas * 1000, positive) - y(sigmas * 1000, negative))
    hooks = [
        block.register_forward_pre_hook(lambda _, args, kwargs: (args, {**kwargs, "temb": kwargs["temb"] + delta}), with_kwargs=True)
        for block in [*theirs().transformer_blocks, *theirs().single_transformer_blocks][start_layer:]
    ]
    packed = x.view(count, 16, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2)
    places = torch.cartesian_prod(torch.zeros(1), torch.arange(float(rows)), torch.arange(float(columns)))
    velocity = theirs()(packed, tokens, pooled, sigmas, img_ids=places, txt_ids=torch.zeros(tokens.shape[1], 3)).sample
    for hook in hooks:
        hook.remove()
    return velocity.view(count, rows, columns, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).flatten(2, 3).flatten(3)


@pytest.fixture(scope="module")
def ours(text_encoder):
    """The host's fp32 model, and texts as its text encoder gives them."""
    path = str(WEIGHTS / "small_world_flux.safetensors")
    clip = load("flux", WEIGHTS, text_encoder).clip
    return comfy.sd.load_diffusion_model(path, model_options={"dtype": torch.float32}), cache(
        lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text))
    )


@pytest.mark.parametrize("w, start_layer, cfg", ((0.0, 0, 3.0), (3.0, 0, 1.0), (3.0, None, 1.0), (3.0, None, 3.0), (6.0, 2, 3.0)))
def test_the_node_on_the_host_samples_what_the_equation_samples_in_diffusers(ours, w, start_layer, cfg, steps=4):
    """start_layer None: the default one, 5."""
    model, encoded = ours
    sides = {"positive": "Extremely complex, the highest quality", "negative": "Very simple, no details at all"}
    (direction,) = node("GuidanceDirectionFromConditioning", **{name: encoded(text) for name, text in sides.items()})
    schedule = {} if start_layer is None else {"schedule": node("GuidanceLayerSchedule", start_layer=start_layer)[0]}
    (guided,) = node("ApplyModulationGuidance", model=model, direction=direction, w=w, **schedule)
    prompts = [encoded(text) for text in ("three red circles", "")]
    noise = torch.randn(2, 16, 10, 10, generator=torch.Generator().manual_seed(0))
    sampled = comfy.sample.sample(guided, noise, steps, cfg, "euler", "simple", *prompts, torch.zeros_like(noise), disable_pbar=True)

    x, pooled = noise, {name: encoded(text)[0][1]["pooled_output"] for name, text in sides.items()}
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
    for sigma, following in zip(sigmas, sigmas[1:]):
        wanted, unwanted = (
            their_velocity(x, sigma, tokens, extras["pooled_output"], w, 5 if start_layer is None else start_layer, **pooled)
            for ((tokens, extras),) in prompts
        )
        x = x + (following - sigma) * (unwanted + cfg * (wanted - unwanted))
    assert x.std() > 0.3
    torch.testing.assert_close(model.model.process_latent_in(sampled), x, atol=1e-4, rtol=1e-4)


def test_the_guidance_compared_there_moves_the_output():
    prompt, positive, negative = torch.randn(3, 1, 768, generator=torch.Generator().manual_seed(0))
    noise, tokens = torch.randn(1, 16, 10, 10), torch.randn(1, 77, 768)
    plain, guided, later = (
        their_velocity(noise, torch.tensor(0.7), tokens, prompt, w, start, positive, negative)
        for w, start in ((0.0, 0), (3.0, 0), (3.0, 5))
    )
    assert min((plain - guided).abs().max(), (guided - later).abs().max(), (plain - later).abs().max()) > 1e-2

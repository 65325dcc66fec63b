"""Train the small world's models: `python -m tools.small_world.train` (see --help).

Three stages, in this order: the autoencoder, the FLUX.1-shaped model, the text-blind Wan-shaped model. Each draws its
scenes afresh, resumes from its checkpoint, and leaves weights, a JSON record and a loss curve.
"""
import argparse
import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional

from .dataset import draw
from .features import encode, load_encoder
from .host import use_host
from .loop import Settings, fit, write_record
from .models import (TEXT_WIDTH, VAE_SCALE, VAE_SHIFT, WAN_TEXT_WIDTH, build_autoencoder, build_flux, build_wan,
                     save_weights)
from .text_encoder import write_clip_l

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
STAGES = ("autoencoder", "flux", "wan")
FILES = {"autoencoder": "small_world_vae.safetensors", "flux": "small_world_flux.safetensors",
         "wan": "small_world_wan.safetensors"}
PRESETS = {
    "gpu": {
        "autoencoder": Settings(steps=9000, batch=128, learning_rate=1.5e-3, scenes=40_000),
        "flux": Settings(steps=20_000, batch=256, learning_rate=1.5e-3, scenes=60_000),
        "wan": Settings(steps=20_000, batch=256, learning_rate=1.5e-3, scenes=60_000),
    },
    "cpu": {
        "autoencoder": Settings(steps=10_000, batch=4, learning_rate=1e-3, scenes=10_000),
        "flux": Settings(steps=24_000, batch=16, learning_rate=1e-3, scenes=12_000),
        "wan": Settings(steps=16_000, batch=16, learning_rate=1e-3, scenes=12_000),
    },
}

CROP = 48                # pixels; the autoencoder learns on square crops, aligned to its patches
LATENT_NOISE = 0.1       # standard deviation added to latents (of unit variance) while the decoder learns
POOLED_DROPPED = 0.5     # share of training rows whose pooled vector is taken away on its own,
TOKENS_DROPPED = 0.12    # and whose text tokens are: so neither path may lean on the other
SIGMA_UNIFORM = 0.3      # share of noise levels drawn uniformly; the others are logit-normal around SIGMA_CENTER
SIGMA_CENTER = 0.4
WAN_MULTIPLIER = 1000    # the host hands Wan sigma * 1000 as its timestep, FLUX sigma itself


def pictures_to_tensor(pictures, device: torch.device) -> torch.Tensor:
    """(N, H, W, 3) uint8 array -> (N, 3, H, W) uint8 tensor on `device`."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous().to(device)


def start(model: torch.nn.Module, stage: str, options) -> torch.nn.Module:
    """The fresh model, or with --start-from the one trained before."""
    if options.start_from:
        weights = load_file(options.start_from / FILES[stage])
        if stage == "wan":
            weights["text_embedding.0.weight"] = weights["text_embedding.0.weight"][:, :TEXT_WIDTH]
        model.load_state_dict(weights)
    return model


# ---- stage 1 ------------------------------------------------------------------------------------------------------

def autoencoder_loss(pictures: torch.Tensor, batch: int):
    """Loss of reconstruction through noisy latents: L1 of pixels and of their gradients, latents kept near unit scale."""
    def loss_of(model, generator):
        rows = torch.randint(len(pictures), (batch,), generator=generator, device=pictures.device)
        place = torch.Generator().manual_seed(generator.initial_seed())
        top, left = (8 * torch.randint((pictures.shape[-1] - CROP) // 8 + 1, (2,), generator=place)).tolist()
        real = pictures[rows, :, top:top + CROP, left:left + CROP].float() / 255
        latents = model.taesd_encoder(real).float()
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        made = model.taesd_decoder(latents + LATENT_NOISE * noise).float()
        pixels = functional.l1_loss(made, real) + 2 * functional.mse_loss(made, real)
        edges = sum(functional.l1_loss(made.diff(dim=dim), real.diff(dim=dim)) for dim in (-1, -2))
        scale = latents.mean((0, 2, 3)).square().mean() + (latents.std((0, 2, 3)) - 1).square().mean()
        return pixels + edges + 0.02 * scale
    return loss_of


def train_autoencoder(settings: Settings, options) -> None:
    pictures = pictures_to_tensor(draw(settings.scenes, workers=options.workers)[0], options.device)
    model = start(build_autoencoder(settings.seed), "autoencoder", options).to(memory_format=torch.channels_last)
    if options.compiled and options.device.type != "cpu":  # torch 2.11's inductor mistakes its strides there, in bf16
        model.taesd_encoder.compile()
        model.taesd_decoder.compile()
    average = fit("autoencoder", model, autoencoder_loss(pictures, settings.batch), settings, options.work,
                  options.bf16)
    save_weights(average.state_dict(), options.out / FILES["autoencoder"])
    latents = encode_pictures(average, pictures[:2000])
    write_record("autoencoder", settings, options.work, options.out, crop=CROP, latent_noise=LATENT_NOISE,
                 latent_mean=round(latents.mean().item(), 4), latent_std=round(latents.std().item(), 4))


@torch.no_grad()
def encode_pictures(autoencoder: torch.nn.Module, pictures: torch.Tensor, batch: int = 256) -> torch.Tensor:
    """(N, 16, H/8, W/8) fp32 latents of unit scale, as FLUX sees them, of uint8 pictures (N, 3, H, W)."""
    return torch.cat([autoencoder.taesd_encoder(pictures[at:at + batch].float() / 255)
                      for at in range(0, len(pictures), batch)])


# ---- stages 2 and 3 -----------------------------------------------------------------------------------------------

def sample_sigmas(batch: int, generator: torch.Generator) -> torch.Tensor:
    """(batch,) noise levels in (0, 1), denser in the middle, none left out."""
    device = generator.device
    middle = torch.sigmoid(torch.randn(batch, generator=generator, device=device) + SIGMA_CENTER)
    anywhere = torch.rand(batch, generator=generator, device=device)
    return torch.where(torch.rand(batch, generator=generator, device=device) < SIGMA_UNIFORM, anywhere, middle)


def noisy_batch(latents: torch.Tensor, batch: int, generator: torch.Generator):
    """(rows, sigmas, x at sigma, velocity to predict) of a random batch: x = (1 - sigma) x0 + sigma noise."""
    rows = torch.randint(len(latents), (batch,), generator=generator, device=latents.device)
    sigmas = sample_sigmas(batch, generator)
    clean = latents[rows].float()
    noise = torch.randn(clean.shape, generator=generator, device=clean.device)
    level = sigmas.view(-1, *[1] * (clean.ndim - 1))
    return rows, sigmas, (1 - level) * clean + level * noise, noise - clean


def chance(batch: int, probability: float, generator: torch.Generator) -> torch.Tensor:
    """(batch,) bool, true with this probability."""
    return torch.rand(batch, generator=generator, device=generator.device) < probability


def flux_loss(latents, states, pooled, empty_states, empty_pooled, batch: int):
    """Rectified flow for FLUX. Text tokens and pooled vector are dropped independently; a dropped pooled vector is

    the empty prompt's or zeros, half of the time each."""
    def loss_of(model, generator):
        rows, sigmas, noisy, velocity = noisy_batch(latents, batch, generator)
        no_tokens = chance(batch, TOKENS_DROPPED, generator)[:, None, None]
        context = torch.where(no_tokens, empty_states, states[rows]).float()
        gone = empty_pooled * chance(batch, 0.5, generator)[:, None]
        vector = torch.where(chance(batch, POOLED_DROPPED, generator)[:, None], gone, pooled[rows]).float()
        return functional.mse_loss(model(noisy, sigmas, context, y=vector).float(), velocity)
    return loss_of


def wan_loss(latents, states, empty_states, batch: int):
    """Rectified flow for Wan; latents (N, 16, 1, h, w)."""
    def loss_of(model, generator):
        rows, sigmas, noisy, velocity = noisy_batch(latents, batch, generator)
        no_tokens = chance(batch, TOKENS_DROPPED, generator)[:, None, None]
        context = torch.where(no_tokens, empty_states, states[rows]).float()
        return functional.mse_loss(model(noisy, sigmas * WAN_MULTIPLIER, context).float(), velocity)
    return loss_of


def text_and_latents(settings: Settings, options, layer: str):
    """Latents as FLUX sees them, caption features and pooled vectors, and those of the empty prompt."""
    pictures, captions = draw(settings.scenes, workers=options.workers)
    autoencoder = build_autoencoder(0)
    autoencoder.load_state_dict(load_file(options.out / FILES["autoencoder"]))
    latents = encode_pictures(autoencoder.to(options.device), pictures_to_tensor(pictures, options.device))
    encoder = load_encoder(options.text_encoder, options.device)
    states, pooled = encode(encoder, captions, layer, 512 if options.device.type == "cuda" else 16, options.bf16)
    return latents, states, pooled, *encode(encoder, [""], layer)


def train_flux(settings: Settings, options) -> None:
    latents, *text = text_and_latents(settings, options, "last")
    model = start(build_flux(settings.seed), "flux", options)
    if options.compiled:
        model.compile()
    average = fit("flux", model, flux_loss(latents, *text, settings.batch), settings, options.work,
                  options.bf16)
    save_weights(average.state_dict(), options.out / FILES["flux"])
    write_record("flux", settings, options.work, options.out, pooled_dropped=POOLED_DROPPED,
                 tokens_dropped=TOKENS_DROPPED)


def train_wan(settings: Settings, options) -> None:
    """Trained on the 768 columns the text fills; the file holds the host's 4096, the others zero."""
    import comfy.latent_formats
    latents, states, _, empty_states, _ = text_and_latents(settings, options, "penultimate")
    latents = comfy.latent_formats.Wan21().process_in((latents / VAE_SCALE + VAE_SHIFT).unsqueeze(2))
    model = start(build_wan(settings.seed, text_dim=TEXT_WIDTH), "wan", options)
    if options.compiled:
        model.compile()
    average = fit("wan", model, wan_loss(latents, states, empty_states, settings.batch), settings, options.work,
                  options.bf16)
    weights = average.state_dict()
    first = "text_embedding.0.weight"
    weights[first] = functional.pad(weights[first], (0, WAN_TEXT_WIDTH - TEXT_WIDTH))
    save_weights(weights, options.out / FILES["wan"])
    write_record("wan", settings, options.work, options.out, tokens_dropped=TOKENS_DROPPED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--preset", choices=PRESETS, default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--comfyui", help="the ComfyUI folder (default: $COMFYUI_PATH)")
    parser.add_argument("--out", type=Path, default=HERE / "weights", help="weights, records and loss curves")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "small_world", help="checkpoints, text encoder")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that draw scenes")
    parser.add_argument("--compiled", action="store_true", help="torch.compile the models (a few minutes' start; on a CPU not the autoencoder)")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available(),
                        help="bf16 autocast (default: on a GPU; also 2.5 times faster on a CPU that has avx512_bf16)")
    parser.add_argument("--start-from", type=Path, help="a folder of weights to go on from (default: start afresh)")
    parser.add_argument("--steps", type=int, help="override the preset's number of steps")
    parser.add_argument("--scenes", type=int, help="override the preset's number of scenes")
    parser.add_argument("--learning-rate", type=float, help="override the preset's highest learning rate")
    parser.add_argument("--threads", type=int, help="torch's threads (default: one a core)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    use_host(options.comfyui)
    import comfy.model_management
    comfy.model_management.in_training = True  # the differentiable rotary embedding
    torch.set_float32_matmul_precision("high")
    options.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options.text_encoder = options.work / "small_world_clip_l.safetensors"
    if not options.text_encoder.exists():
        write_clip_l(options.text_encoder)
    options.out.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        if stage in options.stage:
            settings = PRESETS[options.preset][stage]
            changes = {key: getattr(options, key) for key in ("steps", "scenes", "learning_rate") if getattr(options, key)}
            {"autoencoder": train_autoencoder, "flux": train_flux, "wan": train_wan}[stage](
                Settings(**{**vars(settings), **changes}), options)


if __name__ == "__main__":
    main()

"""Train the small world's models: `python -m tools.small_world.train` (see --help).

Four stages, in this order: the captions' features, the autoencoder, the FLUX.1-shaped model, the text-blind Wan-shaped
model. Each draws its scenes afresh; the last three resume from their checkpoint and leave weights, a JSON record and a
loss curve. The first two need nothing of each other, nor do the last two: they may run beside each other.
"""

if __name__ == "__main__":
    from .host import under_host

    under_host(__spec__.name)

import argparse
import hashlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional

from tools.files import write_whole
from tools.gpu import has_gpu
from tools.options import above_zero

from .dataset import draw
from .features import encode, load_encoder, tokenize
from .host import use_host
from .loop import Settings, fit, write_record
from .models import TEXT_WIDTH, VAE_SCALE, VAE_SHIFT, WAN_TEXT_WIDTH, build_autoencoder, build_flux, build_wan, save_weights
from .scenes import sample_scene
from .text_encoder import write_clip_l

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
STAGES = ("captions", "autoencoder", "flux", "wan")
FILES = {"autoencoder": "small_world_vae.safetensors", "flux": "small_world_flux.safetensors", "wan": "small_world_wan.safetensors"}
PRESETS = {
    "gpu": {
        "autoencoder": Settings(steps=9000, batch=128, learning_rate=1.5e-3, scenes=40_000),
        "flux": Settings(steps=20_000, batch=256, learning_rate=1.5e-3, scenes=60_000),
        "wan": Settings(steps=20_000, batch=256, learning_rate=1.5e-3, scenes=60_000),
    },
    "cpu": {
        "autoencoder": Settings(steps=12_000, batch=4, learning_rate=2e-3, scenes=10_000, muon=True),
        "flux": Settings(steps=12_000, batch=32, learning_rate=3e-3, scenes=12_000, easy_steps=7_500, muon=True),
        "wan": Settings(steps=27_000, batch=32, learning_rate=3e-3, scenes=12_000, easy_steps=15_500, muon=True),
    },
}

CROP = 48  # pixels; the autoencoder learns on square crops, aligned to its patches
LATENT_NOISE = 0.1  # standard deviation added to latents (of unit variance) while the decoder learns
POOLED_DROPPED = 0.5  # share of training rows whose pooled vector is taken away on its own,
TOKENS_DROPPED = 0.12  # and whose text tokens are: so neither path may lean on the other
SIGMA_UNIFORM = 0.3  # share of noise levels drawn uniformly; the others are logit-normal around SIGMA_CENTER
SIGMA_CENTER = 0.4
EASY_TOKENS = 20  # text tokens that the steps on easy scenes see, of the 77: no caption of theirs is longer
END_TOKEN = 49407  # CLIP's, which also fills up
WAN_MULTIPLIER = 1000  # the host hands Wan sigma * 1000 as its timestep, FLUX sigma itself


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

    def loss_of(model, generator, step):
        rows = torch.randint(len(pictures), (batch,), generator=generator, device=pictures.device)
        place = torch.Generator().manual_seed(generator.initial_seed())
        top, left = (8 * torch.randint((pictures.shape[-1] - CROP) // 8 + 1, (2,), generator=place)).tolist()
        real = pictures[rows, :, top : top + CROP, left : left + CROP].float() / 255
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
    average = fit("autoencoder", model, autoencoder_loss(pictures, settings.batch), settings, options.work, options.bf16)
    save_weights(average.state_dict(), options.out / FILES["autoencoder"])
    latents = encode_pictures(average, pictures[:2000])
    write_record(
        "autoencoder",
        settings,
        options.work,
        options.out,
        crop=CROP,
        latent_noise=LATENT_NOISE,
        latent_mean=round(latents.mean().item(), 4),
        latent_std=round(latents.std().item(), 4),
    )


@torch.no_grad()
def encode_pictures(autoencoder: torch.nn.Module, pictures: torch.Tensor, batch: int = 256) -> torch.Tensor:
    """(N, 16, H/8, W/8) fp32 latents of unit scale, as FLUX sees them, of uint8 pictures (N, 3, H, W)."""
    return torch.cat([autoencoder.taesd_encoder(pictures[at : at + batch].float() / 255) for at in range(0, len(pictures), batch)])


# ---- stages 2 and 3 -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenes:
    """What the two transformers learn from; N scenes, on the device."""

    latents: torch.Tensor  # (N, 16, h, w) as FLUX sees them
    states: torch.Tensor  # (N + 1, 77, 768) fp16, the empty prompt's last
    pooled: torch.Tensor  # (N + 1, 768) fp16, likewise
    easy: torch.Tensor  # rows of the scenes with one object and a short caption

    def rows(self, batch: int, easy: bool, generator: torch.Generator) -> torch.Tensor:
        """(batch,) rows at random, of all scenes or of the easy ones."""
        if easy:
            return self.easy[torch.randint(len(self.easy), (batch,), generator=generator, device=generator.device)]
        return torch.randint(len(self.latents), (batch,), generator=generator, device=generator.device)


def sample_sigmas(batch: int, generator: torch.Generator) -> torch.Tensor:
    """(batch,) noise levels in (0, 1), denser in the middle, none left out."""
    device = generator.device
    middle = torch.sigmoid(torch.randn(batch, generator=generator, device=device) + SIGMA_CENTER)
    anywhere = torch.rand(batch, generator=generator, device=device)
    return torch.where(torch.rand(batch, generator=generator, device=device) < SIGMA_UNIFORM, anywhere, middle)


def noisy_batch(clean: torch.Tensor, generator: torch.Generator):
    """(sigmas, x at sigma, velocity to predict) of latents (B, 16, ...): x = (1 - sigma) x0 + sigma noise."""
    sigmas = sample_sigmas(len(clean), generator)
    noise = torch.randn(clean.shape, generator=generator, device=clean.device)
    level = sigmas.view(-1, *[1] * (clean.ndim - 1))
    return sigmas, (1 - level) * clean + level * noise, noise - clean


def chance(batch: int, probability: float, generator: torch.Generator) -> torch.Tensor:
    """(batch,) bool, true with this probability."""
    return torch.rand(batch, generator=generator, device=generator.device) < probability


def tokens_of(world: Scenes, rows: torch.Tensor, easy: bool, generator: torch.Generator) -> torch.Tensor:
    """(B, 77, 768) fp32 text tokens of these rows, or the first EASY_TOKENS of them; some rows get the empty prompt's."""
    length = EASY_TOKENS if easy else world.states.shape[1]
    dropped = chance(len(rows), TOKENS_DROPPED, generator)[:, None, None]
    return torch.where(dropped, world.states[-1:, :length], world.states[rows, :length]).float()


def flux_loss(world: Scenes, settings: Settings):
    """Rectified flow for FLUX. Text tokens and pooled vector are dropped independently; a dropped pooled vector is

    the empty prompt's or zeros, half of the time each."""
    batch = settings.batch

    def loss_of(model, generator, step):
        easy = step < settings.easy_steps
        rows = world.rows(batch, easy, generator)
        sigmas, noisy, velocity = noisy_batch(world.latents[rows], generator)
        context = tokens_of(world, rows, easy, generator)
        gone = world.pooled[-1:] * chance(batch, 0.5, generator)[:, None]
        vector = torch.where(chance(batch, POOLED_DROPPED, generator)[:, None], gone, world.pooled[rows]).float()
        return functional.mse_loss(model(noisy, sigmas, context, y=vector).float(), velocity)

    return loss_of


def wan_loss(world: Scenes, settings: Settings):
    """Rectified flow for Wan; latents (N, 16, 1, h, w)."""

    def loss_of(model, generator, step):
        easy = step < settings.easy_steps
        rows = world.rows(settings.batch, easy, generator)
        sigmas, noisy, velocity = noisy_batch(world.latents[rows], generator)
        context = tokens_of(world, rows, easy, generator)
        return functional.mse_loss(model(noisy, sigmas * WAN_MULTIPLIER, context).float(), velocity)

    return loss_of


def captions_file(captions: list[str], options) -> Path:
    """The file of these captions' features, made if it is not there; the empty prompt is its last row."""
    path = options.work / f"captions_{len(captions)}.safetensors"
    contents = {"sha256": hashlib.sha256("\n".join(captions).encode()).hexdigest()}
    if path.exists():
        with safe_open(path, "pt") as file:
            if file.metadata() == contents:
                return path
    weights = options.work / "small_world_clip_l.safetensors"
    if not weights.exists():
        write_clip_l(weights)
    encoder = load_encoder(weights, options.device)
    features = encode(encoder, [*captions, ""], 512 if options.device.type == "cuda" else 16, options.bf16)
    write_whole(path, lambda temporary: save_file(features, temporary, contents))
    return path


def scenes(settings: Settings, options, layer: str) -> Scenes:
    pictures, captions = draw(settings.scenes, workers=options.workers)
    autoencoder = build_autoencoder(0).to(memory_format=torch.channels_last)
    autoencoder.load_state_dict(load_file(options.out / FILES["autoencoder"]))
    with torch.autocast(options.device.type, torch.bfloat16, enabled=options.bf16):
        latents = encode_pictures(autoencoder.to(options.device), pictures_to_tensor(pictures, options.device), 32)
    with safe_open(captions_file(captions, options), "pt", str(options.device)) as text:
        states, pooled = text.get_tensor(layer), text.get_tensor("pooled")
    easy = []
    if settings.easy_steps:
        length = (tokenize(captions) != END_TOKEN).sum(1) + 1
        easy = [row for row in range(settings.scenes) if length[row] <= EASY_TOKENS and len(sample_scene(row).things) == 1]
    return Scenes(latents.float(), states, pooled, torch.tensor(easy, dtype=torch.long, device=options.device))


def train_flux(settings: Settings, options) -> None:
    world = scenes(settings, options, "last")
    model = start(build_flux(settings.seed), "flux", options)
    if options.compiled:
        model.compile()
    average = fit("flux", model, flux_loss(world, settings), settings, options.work, options.bf16)
    save_weights(average.state_dict(), options.out / FILES["flux"])
    write_record("flux", settings, options.work, options.out, pooled_dropped=POOLED_DROPPED, tokens_dropped=TOKENS_DROPPED)


def train_wan(settings: Settings, options) -> None:
    """Trained on the 768 columns the text fills; the file holds the host's 4096, the others zero."""
    import comfy.latent_formats

    world = scenes(settings, options, "penultimate")
    world = replace(world, latents=comfy.latent_formats.Wan21().process_in((world.latents / VAE_SCALE + VAE_SHIFT).unsqueeze(2)))
    model = start(build_wan(settings.seed, text_dim=TEXT_WIDTH), "wan", options)
    if options.compiled:
        model.compile()
    average = fit("wan", model, wan_loss(world, settings), settings, options.work, options.bf16)
    weights = average.state_dict()
    first = "text_embedding.0.weight"
    weights[first] = functional.pad(weights[first], (0, WAN_TEXT_WIDTH - TEXT_WIDTH))
    save_weights(weights, options.out / FILES["wan"])
    write_record("wan", settings, options.work, options.out, tokens_dropped=TOKENS_DROPPED)


def run_side_by_side(options) -> int:
    """Run this command for two stages at a time; returns the exit status. A stage that fails takes the other one with it."""
    threads = options.threads or max(1, os.cpu_count() // 2)
    rest = [argument for argument in sys.argv[1:] if argument != "--side-by-side"]
    for pair in (("captions", "autoencoder"), ("flux", "wan")):
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "tools.small_world.train", *rest, "--threads", str(threads), "--stage", stage],
                env={**os.environ, "TQDM_POSITION": str(line)},
            )
            for line, stage in enumerate(pair)
            if stage in options.stage
        ]
        while any(process.poll() is None for process in running):
            if any(process.poll() for process in running):
                for process in running:
                    process.terminate()
            time.sleep(1)
        if any(process.returncode for process in running):
            return 1
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--preset", choices=PRESETS, default="gpu" if has_gpu() else "cpu")
    parser.add_argument("--comfyui", help="the ComfyUI folder (default: $COMFYUI_PATH)")
    parser.add_argument("--out", type=Path, default=HERE / "weights", help="weights, records and loss curves")
    parser.add_argument(
        "--work",
        type=Path,
        default=ROOT / "out" / "small_world",
        help="checkpoints, text encoder, the captions' features (2.9 GB for 12,000)",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that draw scenes")
    parser.add_argument(
        "--compiled", action="store_true", help="torch.compile the models (a few minutes' start; on a CPU not the autoencoder)"
    )
    parser.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        default=torch.cuda.is_available(),
        help="bf16 autocast (default: on a GPU; also 2.5 times faster on a CPU that has avx512_bf16)",
    )
    parser.add_argument("--start-from", type=Path, help="a folder of weights to go on from (default: start afresh)")
    parser.add_argument("--steps", type=int, help="override the preset's number of steps")
    parser.add_argument("--scenes", type=int, help="override the preset's number of scenes")
    parser.add_argument("--learning-rate", type=above_zero, help="override the preset's highest learning rate")
    parser.add_argument("--threads", type=int, help="torch's threads (default: one a core)")
    parser.add_argument(
        "--side-by-side",
        action="store_true",
        help="on a CPU: captions beside the autoencoder, then FLUX beside Wan, each on half of the cores",
    )
    options = parser.parse_args()
    if options.side_by_side:
        sys.exit(run_side_by_side(options))
    if options.threads:
        torch.set_num_threads(options.threads)

    use_host(options.comfyui)
    import comfy.model_management

    comfy.model_management.in_training = True  # the differentiable rotary embedding
    torch.set_float32_matmul_precision("high")
    options.device = comfy.model_management.get_torch_device()
    options.out.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    changes = {key: getattr(options, key) for key in ("steps", "scenes", "learning_rate") if getattr(options, key)}
    if options.start_from:
        changes["easy_steps"] = 0  # they are for a fresh model
    settings = {stage: replace(preset, **changes) for stage, preset in PRESETS[options.preset].items()}
    if "captions" in options.stage:
        for count in {settings["flux"].scenes, settings["wan"].scenes}:
            captions_file(draw(count, workers=options.workers)[1], options)
    for stage, train in (("autoencoder", train_autoencoder), ("flux", train_flux), ("wan", train_wan)):
        if stage in options.stage:
            train(settings[stage], options)


if __name__ == "__main__":
    main()

"""Pictures from the small world's models, made by the host's own loaders and sampler."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .models import DOWNSCALE, LATENT_CHANNELS
from .scenes import SIZE

ENCODER_TYPES = {"flux": "FLUX", "wan": "SD3"}  # CLIPLoader's type for each model


@dataclass(frozen=True)
class Loaded:
    """A model with its text encoder and autoencoder, as the host's loaders give them."""

    model: object
    clip: object
    vae: object


def load(kind: str, weights: Path, text_encoder: Path, shift: float | None = None) -> Loaded:
    """kind: "flux" or "wan". shift: of the noise levels, as ModelSamplingSD3's; None for the model's own."""
    import comfy.sd
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    model = comfy.sd.load_diffusion_model(str(weights / f"small_world_{kind}.safetensors"))
    return Loaded(
        model=model if shift is None else ModelSamplingSD3().patch(model, shift)[0],
        clip=comfy.sd.load_clip([str(text_encoder)], clip_type=comfy.sd.CLIPType[ENCODER_TYPES[kind]]),
        vae=load_autoencoder(weights),
    )


def load_autoencoder(weights: Path):
    """The host's VAE object of the autoencoder in the folder `weights`."""
    import comfy.sd
    import comfy.utils

    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(weights / "small_world_vae.safetensors")))


@torch.inference_mode()
def reconstructed(vae, picture: np.ndarray) -> np.ndarray:
    """A drawn picture, (SIZE, SIZE, 3) uint8, encoded and decoded: (SIZE, SIZE, 3) float in [0, 1]."""
    return vae.decode(vae.encode(torch.from_numpy(picture.astype(np.float32) / 255)[None]))[0].float().cpu().numpy()


@torch.inference_mode()
def pictures(loaded: Loaded, prompt: str, count: int, seed: int, steps: int = 20, cfg: float = 1.0, sampler: str = "euler") -> np.ndarray:
    """(count, SIZE, SIZE, 3) float in [0, 1]: one batch of the prompt, "simple" schedule; negative prompt empty."""
    import comfy.sample

    condition = [loaded.clip.encode_from_tokens_scheduled(loaded.clip.tokenize(text)) for text in (prompt, "")]
    latent = torch.zeros(count, LATENT_CHANNELS, SIZE // DOWNSCALE, SIZE // DOWNSCALE)
    latent = comfy.sample.fix_empty_latent_channels(loaded.model, latent)
    noise = comfy.sample.prepare_noise(latent, seed)
    latent = comfy.sample.sample(loaded.model, noise, steps, cfg, sampler, "simple", *condition, latent, seed=seed, disable_pbar=True)
    return loaded.vae.decode(latent).float().numpy()

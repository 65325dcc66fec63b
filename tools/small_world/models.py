"""The three small models, all of them the host's own classes, and the files they are kept in."""

import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from tools.dimensions import FLUX1
from tools.files import write_whole

LATENT_CHANNELS = 16
DOWNSCALE = 8
VAE_SCALE, VAE_SHIFT = 0.3611, 0.1159  # FLUX's latent format, so that what FLUX sees is the encoder's own output
TEXT_WIDTH = 768
WAN_TEXT_WIDTH = 4096  # fixed by the host's detector; the host's SD3 encoder class pads CLIP-L's 768 to it

FLUX = FLUX1 | dict(vec_in_dim=TEXT_WIDTH, context_in_dim=TEXT_WIDTH, hidden_size=128, num_heads=1, depth=4, depth_single_blocks=8)
WAN = dict(model_type="t2v", dim=128, ffn_dim=512, num_heads=1, num_layers=7, text_dim=WAN_TEXT_WIDTH)
HIDDEN_LAYERS = ("taesd_", "double_blocks.", "single_blocks.", "blocks.")  # names begin so; the rest embeds, or is the head


class CopyingLayerNorm(nn.LayerNorm):
    """Normalises a copy: the host's blocks add to their streams in place, over what autograd had saved of the input."""

    def forward(self, x):
        return super().forward(x.clone())


class TrainingOps:
    """What the host's model classes build themselves from: torch's own layers, initialised and differentiable."""

    Linear = nn.Linear
    LayerNorm = CopyingLayerNorm
    RMSNorm = nn.RMSNorm
    Conv3d = nn.Conv3d


def build_autoencoder(seed: int) -> nn.Module:
    """The host's TAESD with 16 latent channels, freshly initialised."""
    import comfy.taesd.taesd

    model = comfy.taesd.taesd.TAESD(latent_channels=LATENT_CHANNELS)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=1.0, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    model.vae_scale.data.fill_(VAE_SCALE)
    model.vae_shift.data.fill_(VAE_SHIFT)
    model.vae_scale.requires_grad_(False)
    model.vae_shift.requires_grad_(False)
    return model


def initialise(model: nn.Module, seed: int, zero: tuple[str, ...]) -> nn.Module:
    """Xavier-uniform weights and zero biases; modules whose name ends in one of `zero` start at zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv3d)):
            nn.init.zeros_(module.bias)
            if name.endswith(zero):
                nn.init.zeros_(module.weight)
            else:
                bound = math.sqrt(6 / (module.weight[0].numel() + module.weight.shape[0]))
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
    return model


def build_flux(seed: int, **overrides) -> nn.Module:
    """The host's FLUX.1 class (schnell: no guidance embedding), modulation starting at zero."""
    import comfy.ldm.flux.model

    model = comfy.ldm.flux.model.Flux(dtype=torch.float32, operations=TrainingOps, **{**FLUX, **overrides})
    return initialise(model, seed, ("img_mod.lin", "txt_mod.lin", "modulation.lin", "adaLN_modulation.1", "final_layer.linear"))


def build_wan(seed: int, **overrides) -> nn.Module:
    """The host's Wan 2.1 text-to-video class: text reaches it by cross-attention only, never by its modulation."""
    import comfy.ldm.wan.model

    model = comfy.ldm.wan.model.WanModel(dtype=torch.float32, operations=TrainingOps, **{**WAN, **overrides})
    initialise(model, seed, ("time_projection.1", "head.head"))
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in model.named_parameters():
        if name.endswith("modulation"):
            nn.init.normal_(parameter, std=model.dim**-0.5, generator=generator)
    return model


def save_weights(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Write bf16 safetensors, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = {name: weight.detach().to("cpu", torch.bfloat16).contiguous() for name, weight in weights.items()}
    write_whole(path, lambda temporary: save_file(rounded, temporary, metadata={"format": "pt"}))

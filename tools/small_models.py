"""Small stand-ins for the models of the shared workflows, for machines that have none: FLUX-shaped, random, seeded.

Their pictures are patterns, not scenes; what they show is that everything runs, and that text and modulation matter.
"""

import copy
import os

import torch
from safetensors.torch import save_file

from tools.small_world.text_encoder import write_clip_l

HIDDEN = 128  # one head, whose 128 dimensions FLUX's positions need
DOUBLE_BLOCKS, SINGLE_BLOCKS = 4, 8  # so that guidance from layer 5 leaves layers on both sides
TEXT = 768  # CLIP-L's width, for tokens and pooled output alike
LATENT_CHANNELS = 16
PICTURE = 512  # width and height in pixels
SMALL_FOR = {  # the real file of a workflow -> the small one that takes its place
    "flux1-schnell.safetensors": "small_flux_schnell.safetensors",
    "flux1-dev.safetensors": "small_flux_dev.safetensors",
    "clip_l.safetensors": "small_clip_l.safetensors",
    "ae.safetensors": "small_ae.safetensors",
}


def write_small_models(folder):
    """Writes the small models that are missing into a folder laid out like ComfyUI's models folder."""
    writers = {
        "diffusion_models/small_flux_schnell.safetensors": lambda path: save_whole(flux(seed=1, guidance=False), path),
        "diffusion_models/small_flux_dev.safetensors": lambda path: save_whole(flux(seed=2, guidance=True), path),
        "vae/small_ae.safetensors": lambda path: save_whole(autoencoder(seed=3), path),
        "text_encoders/small_clip_l.safetensors": write_clip_l,
    }
    for name, write in writers.items():
        path = folder / name
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)


def with_small_models(prompt):
    """A copy of an API-format prompt that uses the small models in place of the real ones it names.

    File names are replaced, and the DualCLIPLoader of FLUX's two encoders becomes a CLIPLoader of the small CLIP-L: T5-XXL
    cannot be made small, and the small FLUX reads CLIP-L's tokens instead of T5's. Pictures become PICTURE pixels wide and high.
    """
    prompt = copy.deepcopy(prompt)
    for node in prompt.values():
        if node["class_type"] == "DualCLIPLoader":
            node["class_type"] = "CLIPLoader"
            node["inputs"] = {"clip_name": node["inputs"]["clip_name1"], "type": "stable_diffusion", "device": "default"}
        if node["class_type"] == "EmptySD3LatentImage":
            node["inputs"].update(width=PICTURE, height=PICTURE)
        for name, value in node["inputs"].items():
            if isinstance(value, str) and value in SMALL_FOR:
                node["inputs"][name] = SMALL_FOR[value]
    return prompt


def save_whole(weights, path):
    """Writes a safetensors file so that it is never seen half-written."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    save_file(weights, partial)
    os.replace(partial, path)


class Weights(dict):
    """A state dict under construction, with seeded random numbers."""

    def __init__(self, seed):
        self.random = torch.Generator().manual_seed(seed)

    def linear(self, name, inputs, outputs, gain=1.0):
        """A layer that keeps its input's variance times gain^2, with a zero bias."""
        self[f"{name}.weight"] = torch.randn(outputs, inputs, generator=self.random) * gain / inputs**0.5
        self[f"{name}.bias"] = torch.zeros(outputs)

    def conv(self, name, inputs, outputs, gain=1.0, bias=True, size=3):
        """As `linear`, over a square of `size` pixels."""
        weight = torch.randn(outputs, inputs, size, size, generator=self.random)
        self[f"{name}.weight"] = weight * gain / (inputs * size**2) ** 0.5
        if bias:
            self[f"{name}.bias"] = torch.zeros(outputs)


def flux(seed, guidance):
    """A FLUX.1 state dict, keys as published: dev's with `guidance`, else schnell's."""
    weights = Weights(seed)
    weights.linear("img_in", LATENT_CHANNELS * 4, HIDDEN)
    weights.linear("txt_in", TEXT, HIDDEN)
    for name, inputs in {"time_in": 256, "vector_in": TEXT, **({"guidance_in": 256} if guidance else {})}.items():
        weights.linear(f"{name}.in_layer", inputs, HIDDEN, gain=1.4)
        weights.linear(f"{name}.out_layer", HIDDEN, HIDDEN, gain=1.4)
    for index in range(DOUBLE_BLOCKS):
        for stream in ("img", "txt"):
            name = f"double_blocks.{index}.{stream}"
            weights.linear(f"{name}_mod.lin", HIDDEN, 6 * HIDDEN)
            weights.linear(f"{name}_attn.qkv", HIDDEN, 3 * HIDDEN)
            weights.linear(f"{name}_attn.proj", HIDDEN, HIDDEN)
            norms(weights, f"{name}_attn.norm")
            weights.linear(f"{name}_mlp.0", HIDDEN, 4 * HIDDEN)
            weights.linear(f"{name}_mlp.2", 4 * HIDDEN, HIDDEN)
    for index in range(SINGLE_BLOCKS):
        name = f"single_blocks.{index}"
        weights.linear(f"{name}.modulation.lin", HIDDEN, 3 * HIDDEN)
        weights.linear(f"{name}.linear1", HIDDEN, 7 * HIDDEN)
        weights.linear(f"{name}.linear2", 5 * HIDDEN, HIDDEN)
        norms(weights, f"{name}.norm")
    weights.linear("final_layer.adaLN_modulation.1", HIDDEN, 2 * HIDDEN)
    weights.linear("final_layer.linear", HIDDEN, LATENT_CHANNELS * 4)
    return dict(weights)


def norms(weights, name):
    # larger than 1: with random weights attention would else be nearly even over all tokens, and the text be lost in it
    weights[f"{name}.query_norm.scale"] = torch.full((HIDDEN,), 1.5)
    weights[f"{name}.key_norm.scale"] = torch.full((HIDDEN,), 1.5)


def autoencoder(seed):
    """A TAESD state dict for FLUX's latents, keys as ComfyUI saves one."""
    weights = Weights(seed)

    def block(name):
        for layer in (0, 2, 4):
            weights.conv(f"{name}.conv.{layer}", 64, 64)

    weights.conv("taesd_encoder.0", 3, 64)
    block("taesd_encoder.1")
    for down in (2, 6, 10):
        weights.conv(f"taesd_encoder.{down}", 64, 64, bias=False)
        for index in range(down + 1, down + 4):
            block(f"taesd_encoder.{index}")
    weights.conv("taesd_encoder.14", 64, LATENT_CHANNELS)

    weights.conv("taesd_decoder.1", LATENT_CHANNELS, 64)
    for first, up in ((3, 7), (8, 12), (13, 17)):
        for index in range(first, first + 3):
            block(f"taesd_decoder.{index}")
        weights.conv(f"taesd_decoder.{up}", 64, 64, bias=False)
    block("taesd_decoder.18")
    weights.conv("taesd_decoder.19", 64, 3, gain=0.8)
    weights["taesd_decoder.19.bias"] += 0.5  # middle grey, so that few pixels are cut at black and white
    # FLUX's latents to about unit variance
    weights["vae_scale"], weights["vae_shift"] = torch.tensor(0.3611), torch.tensor(0.1159)
    return dict(weights)

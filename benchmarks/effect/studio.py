"""Pictures for effect.py by the host's loaders and sampler and the pack's nodes, wired as a user would wire them."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import comfy.utils
import folder_paths
import numpy as np
import torch

from benchmarks.in_process import PACK, node

from .conditions import Condition, schedule_of
from .settings import Files, Settings

PRESETS = json.loads((PACK / "nodes" / "presets.json").read_text(encoding="utf-8"))
CLIP_LOADERS = {1: "CLIPLoader", 2: "DualCLIPLoader", 3: "TripleCLIPLoader", 4: "QuadrupleCLIPLoader"}


class Studio:
    """A model, its text encoder and its autoencoder, ready to draw. node: calls a node, as in_process.node does."""

    def __init__(self, files: Files, settings: Settings, node: Callable[..., tuple] = node):
        comfy.utils.PROGRESS_BAR_ENABLED = False  # the sampler's own bar; the command has one
        self.settings, self.node = settings, node
        (self.model,) = node("UNETLoader", unet_name=_offered("diffusion_models", files.diffusion_model), weight_dtype="default")
        if settings.shift is not None:
            (self.model,) = node("ModelSamplingSD3", model=self.model, shift=settings.shift)
        self.projection = None
        if files.projection:
            (self.projection,) = node("LoadPooledProjection", projection_name=_offered("pooled_projections", files.projection))
        names = [_offered("text_encoders", file) for file in files.text_encoders]
        inputs = {"clip_name": names[0]} if len(names) == 1 else {f"clip_name{i + 1}": name for i, name in enumerate(names)}
        if len(names) <= 2:  # the loaders of more take no type
            inputs["type"] = files.clip_type
        (self.clip,) = node(CLIP_LOADERS[len(names)], **inputs)
        (self.vae,) = node("VAELoader", vae_name=_offered("vae", files.vae))
        self.learned = cache(
            lambda name: node("LoadGuidanceDirection", direction_name=_offered("guidance_directions", files.directions[name]))[0]
        )
        self.encoded = cache(lambda text: node("CLIPTextEncode", clip=self.clip, text=text)[0])
        self.direction = cache(
            lambda positive, negative: node("EncodeGuidanceDirection", clip=self.clip, positive=positive, negative=negative)[0]
        )

    def conditioning(self, text: str, pooled: str = "prompt"):
        """The prompt encoded, its pooled vector replaced as Condition.pooled says."""
        encoded = self.encoded(text)
        if pooled == "prompt":
            return encoded
        ((tokens, extras),) = encoded
        replaced = {"zero": torch.zeros_like(extras["pooled_output"]), "empty": self.encoded("")[0][1]["pooled_output"]}[pooled]
        return [[tokens, {**extras, "pooled_output": replaced}]]

    def guided(self, condition: Condition, prompt: str):
        """The model with the condition's guidance or text variance on it."""
        if condition.variance != 1:
            return self.node("ScaleTextVariance", model=self.model, scale=condition.variance, clip=self.clip, prompt=prompt)[0]
        if not condition.guided:
            return self.model
        name, inputs = schedule_of(condition)
        base = {"base_positive": self.encoded(prompt), "base_negative": self.encoded("")} if condition.base else {}
        return self.node(
            "ApplyModulationGuidance",
            model=self.model,
            direction=self.direction_of(condition, prompt),
            w=condition.w,
            start_percent=condition.since,
            cfg_rows=condition.rows,
            keep_norm=condition.keep_norm,
            schedule=self.node(name, **inputs)[0],
            projection=self.projection,
            **base,
        )[0]

    def direction_of(self, condition: Condition, prompt: str):
        if condition.learned:
            return self.learned(condition.learned)
        sides = condition.sides
        if condition.preset:
            subject = "" if "positive" in PRESETS[condition.preset] else prompt
            sides = self.node("GuidancePreset", preset=condition.preset, subject=subject)[:2]
        return self.direction(*sides)

    def pictures(self, prompt: str, condition: Condition, seed: int, count: int = 1) -> np.ndarray:
        """(count, size, size, 3) float in [0, 1], one batch."""
        return self.drawn(prompt, condition, seed, count).float().clamp(0, 1).cpu().numpy()

    def drawn(self, prompt: str, condition: Condition, seed: int, count: int = 1):
        """The same as an IMAGE."""
        settings = self.settings
        text = ", ".join(filter(None, (prompt, condition.words)))
        (empty,) = self.node("EmptySD3LatentImage", width=settings.size, height=settings.size, batch_size=count)
        (latent,) = self.node(
            "KSampler",
            model=self.guided(condition, prompt),
            seed=seed,
            steps=settings.steps,
            cfg=settings.cfg,
            sampler_name=settings.sampler,
            scheduler=settings.scheduler,
            positive=self.conditioning(text, condition.pooled),
            negative=self.conditioning("", condition.pooled),
            latent_image=empty,
            denoise=1.0,
        )
        return self.node("VAEDecode", vae=self.vae, samples=latent)[0]


def _offered(kind: str, file: Path | str) -> str:
    """A name under which the host's loaders of `kind` now find the file; its folder's too, as several may be called model.safetensors."""
    if isinstance(file, str):
        return file
    file = file.absolute()
    folder_paths.add_model_folder_path(kind, str(file.parent.parent), is_default=True)
    return f"{file.parent.name}/{file.name}"

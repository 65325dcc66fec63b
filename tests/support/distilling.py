"""What the tests of distillation share: a small text encoder of the host's own class, and the modules under test."""

import importlib
from types import SimpleNamespace

import comfy.latent_formats
import comfy.sd
import comfy.sd1_clip
import pytest
import torch

import nodes

PACK = nodes.NODE_CLASS_MAPPINGS["DistillPooledProjection"].__module__.rpartition(".nodes.")[0]
distillation = importlib.import_module(f"{PACK}.training.projection")

CAN_DISTILL = hasattr(comfy.latent_formats.LatentFormat, "temporal_downscale_ratio")
needs_distilling = pytest.mark.skipif(not CAN_DISTILL, reason="distilling needs ComfyUI 0.24.0")

WIDTH = 16  # of the text encoder's tokens and pooled output, and of what the small models read
PROMPTS = ["a red circle", "two blue squares, highly detailed", "a green cross on a busy background", "flat and simple"]


def text_encoder(width=WIDTH, seed=3):
    """The host's CLIP-L, small, with seeded random weights."""
    config = dict(
        attention_dropout=0.0,
        bos_token_id=0,
        dropout=0.0,
        eos_token_id=49407,
        hidden_act="quick_gelu",
        hidden_size=width,
        initializer_factor=1.0,
        initializer_range=0.02,
        intermediate_size=2 * width,
        layer_norm_eps=1e-05,
        max_position_embeddings=77,
        num_attention_heads=2,
        num_hidden_layers=2,
        pad_token_id=1,
        projection_dim=width,
        torch_dtype="float32",
        vocab_size=49408,
    )
    target = SimpleNamespace(
        clip=comfy.sd1_clip.SD1ClipModel,
        tokenizer=comfy.sd1_clip.SD1Tokenizer,
        params={"textmodel_json_config": config, "clip_model": comfy.sd1_clip.SDClipModel},
    )
    clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32})
    generator = torch.Generator().manual_seed(seed)
    for tensor in clip.cond_stage_model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / (tensor.shape[-1] ** 0.5 if tensor.ndim > 1 else 1))
    return clip


class TextOf:
    """A text encoder that gives what a family's own gives (`small.prompt`), another for each text."""

    def __init__(self, small):
        self.small = small

    def tokenize(self, text):
        return sum(map(ord, text))

    def encode_from_tokens_scheduled(self, tokens):
        [[embeddings, extras]] = self.small.encoded(tokens)
        draw = torch.Generator().manual_seed(tokens)
        return [[embeddings, {"pooled_output": torch.randn(1, WIDTH, generator=draw)} | extras]]


def settings(small, **changes):
    """Of a run of a second or two."""
    frames = small.latent[1] if len(small.latent) == 4 else 1
    return distillation.ProjectionSettings(
        **dict(
            steps=4,
            batch_size=2,
            learning_rate=1e-2,
            width=8 * small.latent[-1],
            height=8 * small.latent[-2],
            seed=1,
            pooling="max",
            injection="time embedding",
            frames=1 + 4 * (frames - 1),
            checkpointing=False,
            samples_per_prompt=1,
            sample_steps=2,
            pairs=2,
        )
        | changes
    )


def size(small, model):
    """Of the pictures, in pixels, whose latents are the small model's."""
    ratio = model.get_model_object("latent_format").spacial_downscale_ratio
    return {"height": ratio * small.latent[-2], "width": ratio * small.latent[-1]}


def run(small, model=None, clip=None, prompts=PROMPTS, projection=None, pooled_clip=None, on_progress=lambda progress: None, **changes):
    """A whole run."""
    model = model or small.load()
    made = settings(small, **size(small, model) | changes)
    return distillation.distill(model, clip or TextOf(small), prompts, made, pooled_clip, projection, on_progress)


def same(one, other):
    """Whether two projections are bit-equal."""
    return one.weights.keys() == other.weights.keys() and all(
        torch.equal(tensor, other.weights[name]) for name, tensor in one.weights.items()
    )

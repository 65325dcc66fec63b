"""Scores by a CLIP model: how well a picture fits a prompt, and how beautiful it is by a small head on its embedding."""

from __future__ import annotations

import comfy.model_management
import comfy.model_patcher
import torch
from PIL import Image
from torch import Tensor, nn

LONGEST = 77  # tokens that CLIP reads; the rest of a prompt is cut


class _Held(nn.Module):
    """The model as the host's patcher wants it: transformers' own refuses a `device` to be set."""

    def __init__(self, clip: nn.Module):
        super().__init__()
        self.clip = clip


class ClipModel:
    """transformers' CLIPModel in fp32, in memory once, wherever the host's memory management puts it.

    prepare: its CLIPImageProcessor. tokenize: its tokenizer.
    """

    def __init__(self, clip: nn.Module, prepare, tokenize):
        self.clip, self.prepare, self.tokenize = clip.requires_grad_(False).eval(), prepare, tokenize
        self.patcher = comfy.model_patcher.ModelPatcher(
            _Held(self.clip), comfy.model_management.text_encoder_device(), comfy.model_management.text_encoder_offload_device()
        )

    @property
    def scale(self) -> float:
        return self.clip.logit_scale.exp().item()

    @torch.inference_mode()
    def images(self, images: Tensor) -> Tensor:
        """(B, D), unit embeddings of images (B, H, W, 3) in [0, 1], taken in 8 bits, as the host saves them."""
        pixels = (images.cpu() * 255).byte().numpy()  # cut, not rounded: the host does so
        ready = self.prepare([Image.fromarray(one) for one in pixels], return_tensors="pt")["pixel_values"]
        self._load()
        return _unit(self.clip.visual_projection(self.clip.vision_model(pixel_values=ready.to(self._device)).pooler_output))

    @torch.inference_mode()
    def text(self, prompt: str) -> Tensor:
        """(1, D), its unit embedding."""
        longest = min(LONGEST, self.clip.config.text_config.max_position_embeddings)
        tokens = self.tokenize([prompt], truncation=True, max_length=longest, return_tensors="pt")
        self._load()
        read = self.clip.text_model(
            input_ids=tokens["input_ids"].to(self._device), attention_mask=tokens["attention_mask"].to(self._device)
        )
        return _unit(self.clip.text_projection(read.pooler_output))

    @property
    def _device(self) -> torch.device:
        return self.clip.logit_scale.device

    def _load(self) -> None:
        # Whole: its layers are torch's own, of which the host cannot leave a part in main memory.
        comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)


class ClipScorer:
    """How well pictures fit their prompt: the cosine of the two embeddings times the model's own logit scale.

    CLIP's scale is 100, so its scores are those of the CLIP score; PickScore's are as its authors give them (arXiv 2305.01569).
    """

    def __init__(self, clip: ClipModel):
        self.clip = clip

    def score(self, images: Tensor, prompt: str) -> list[float]:
        return (self.clip.scale * (self.clip.images(images) @ self.clip.text(prompt).T)).flatten().tolist()


class AestheticScorer:
    """How beautiful pictures are, about 1 to 10, whatever the prompt: LAION's linear head on the unit embedding of CLIP ViT-L/14.

    layers: (weight (out, in), bias (out)) one after another, with nothing between them.
    """

    def __init__(self, clip: ClipModel, layers: list[tuple[Tensor, Tensor]]):
        self.clip, self.layers = clip, layers

    def score(self, images: Tensor, prompt: str) -> list[float]:
        values = self.clip.images(images).cpu()
        for weight, bias in self.layers:
            values = nn.functional.linear(values, weight, bias)
        return values.flatten().tolist()


def _unit(embeddings: Tensor) -> Tensor:
    return embeddings / embeddings.norm(dim=-1, keepdim=True)

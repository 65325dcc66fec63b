"""Scorers as transformers saves them, small and with random weights, and LAION's head for one; made when they are needed."""

import json
import os
import shutil
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

SIZE = 32  # pixels that it reads
WIDTH = 16  # of its embeddings


def write_clip(folder, seed=0, scale=4.6, width=WIDTH):
    """A CLIP model with its processor and tokenizer; scale: the logarithm of its logit scale, 4.6 in CLIP."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    towers = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, projection_dim=width)
    config = CLIPConfig(
        text_config=towers | {"vocab_size": 49408}, vision_config=towers | {"image_size": SIZE, "patch_size": 8}, projection_dim=width
    )
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.3)
            model.logit_scale.fill_(scale)
        model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=SIZE).save_pretrained(folder)
    tokenizer = Path(os.environ["COMFYUI_PATH"]) / "comfy" / "sd1_tokenizer"
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(tokenizer / name, folder / name)
    return folder


def head(width=WIDTH, seed=0, linear=False):
    """The tensors of an aesthetic head as LAION publishes it."""
    draw = torch.Generator().manual_seed(seed)
    sizes = [width, 1] if linear else [width, 24, 16, 8, 4, 1]
    names = [""] if linear else [f"layers.{i}." for i in (0, 2, 4, 6, 7)]
    return {
        name + part: torch.randn(shape, generator=draw)
        for name, (read, made) in zip(names, zip(sizes, sizes[1:]), strict=True)
        for part, shape in (("weight", (made, read)), ("bias", (made,)))
    }


def pictures(count=3, height=40, width=56, seed=0):
    """(count, height, width, 3) in [0, 1]: smooth, and different."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=draw)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").movedim(1, -1)


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")

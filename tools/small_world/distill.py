"""Distill the projection that ships with the small world's text-blind model: `python -m tools.small_world.distill`.

Captions of scenes as prompts, the small CLIP-L's pooled output projected. Leaves small_world_wan_projection.safetensors beside the
weights, in bf16. Options after these are those of tools/distill.py.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from tools import distill

from .captions import caption
from .dataset import HELD_OUT
from .host import use_host
from .models import TEXT_WIDTH
from .scenes import SIZE, sample_scene
from .text_encoder import write_clip_l

HERE = Path(__file__).parent
NAME = "small_world_wan_projection.safetensors"
SETTINGS = dict(
    steps=500,
    batch_size=64,
    learning_rate=2e-3,
    width=SIZE,
    height=SIZE,
    cfg=6.0,
    sample_steps=10,
    samples_per_prompt=1,
    pairs=8,
    held_out_every=100,
    checkpoint_every=100,
)
SHIFT = 1.0  # at this size; the host's shift of 8 for Wan is for videos
PROMPTS, HELD_OUT_PROMPTS = 600, 30


def captions(count: int, first: int) -> str:
    return "\n".join(caption(sample_scene(seed), seed) or "a picture" for seed in range(first, first + count)) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", default=os.environ.get("COMFYUI_PATH"), help="the ComfyUI folder (default: $COMFYUI_PATH)")
    parser.add_argument("--weights", type=Path, default=HERE / "weights", help="the small world's weights; the projection goes there")
    parser.add_argument("--work", type=Path, default=HERE.parent.parent / "out" / "small_world", help="checkpoint, metrics, text encoder")
    parser.add_argument("--prompts-count", type=int, default=PROMPTS, help="captions to train on")
    parser.add_argument("--threads", type=int, help="torch's threads (default: one a core)")
    options, rest = parser.parse_known_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    out = options.work / "projection"
    out.mkdir(parents=True, exist_ok=True)
    (out / "prompts.txt").write_text(captions(options.prompts_count, 0))
    (out / "held_out.txt").write_text(captions(HELD_OUT_PROMPTS, HELD_OUT))
    encoder = options.work / "small_world_clip_l.safetensors"
    if not encoder.exists():
        write_clip_l(encoder)
    sys.argv[1:] = [
        "--comfyui",
        options.comfyui,
        "--model",
        str(options.weights / "small_world_wan.safetensors"),
        "--out",
        str(out),
        "--clip",
        str(encoder),
        "--clip-type",
        "sd3",
        "--shift",
        str(SHIFT),
        "--prompts",
        str(out / "prompts.txt"),
        "--held-out",
        str(out / "held_out.txt"),
        "--no-checkpointing",
        *(part for name, value in SETTINGS.items() for part in ("--" + name.replace("_", "-"), str(value))),
        *rest,
    ]
    use_host(options.comfyui)
    distill.main()
    formats = distill.pack("pooled_proj.formats")
    made = formats.load(out / "projection.safetensors")
    weights = {name: tensor.bfloat16() for name, tensor in made.weights.items()}
    weights["linear_1.weight"] = weights["linear_1.weight"][:, :TEXT_WIDTH]  # beyond, the sd3 type gives zeros in place of CLIP-G's
    formats.save(replace(made, weights=weights), options.weights / NAME)


if __name__ == "__main__":
    main()

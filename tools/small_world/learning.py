"""What learning on the small world's models takes, whatever is learned: options, encoder and the call of tools/distill.py."""

import argparse
import os
import sys
from pathlib import Path

import torch

from tools import distill

from .host import use_host
from .scenes import SIZE
from .text_encoder import write_clip_l

HERE = Path(__file__).parent


def parser_of(description: str, prompts: int) -> argparse.ArgumentParser:
    """Takes options that distill.py knows beside these. prompts: how many are learned on."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", default=os.environ.get("COMFYUI_PATH"), help="the ComfyUI folder (default: $COMFYUI_PATH)")
    parser.add_argument("--weights", type=Path, default=HERE / "weights", help="the small world's weights; what is learned goes there")
    parser.add_argument("--work", type=Path, default=HERE.parent.parent / "out" / "small_world", help="checkpoint, metrics, text encoder")
    parser.add_argument("--prompts-count", type=int, default=prompts, help="prompts to learn on")
    parser.add_argument("--threads", type=int, help="torch's threads (default: one a core)")
    return parser


def options_of(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
    """(its options, those for distill.py), with the host at hand. Ends the process where there is none."""
    options, rest = parser.parse_known_args()
    use_host(options.comfyui)
    return options, rest


def learn(options: argparse.Namespace, rest: list[str], model: str, out: Path, prompts: list[str], **settings) -> None:
    """Runs distill.py on a model of the small world. out: gets what comes of it. settings: its options; rest: options given by hand."""
    if options.threads:
        torch.set_num_threads(options.threads)
    out.mkdir(parents=True, exist_ok=True)
    encoder = options.work / "small_world_clip_l.safetensors"
    if not encoder.exists():
        write_clip_l(encoder)
    given = {
        "comfyui": options.comfyui,
        "model": options.weights / f"small_world_{model}.safetensors",
        "out": out,
        "clip": encoder,
        "prompts": written(out / "prompts.txt", prompts),
        "width": SIZE,
        "height": SIZE,
        **settings,
    }
    options_of_distill = (part for name, value in given.items() for part in ("--" + name.replace("_", "-"), str(value)))
    sys.argv[1:] = [*options_of_distill, "--no-checkpointing", *rest]
    distill.main()


def written(path: Path, prompts: list[str]) -> Path:
    """A file of prompts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(prompts) + "\n", encoding="utf-8")
    return path

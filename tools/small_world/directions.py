"""Learn the guidance directions that ship with the small world's models: `python -m tools.small_world.directions flux detail`.

Subjects of scenes as prompts, which say nothing of the style. Leaves small_world_flux_detail.safetensors beside the weights. Options
after these are those of tools/distill.py.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

import torch

from tools import distill

from .attributes import ATTRIBUTES, PROMPTS, file_name, prompts
from .host import use_host
from .scenes import SIZE
from .text_encoder import write_clip_l

HERE = Path(__file__).parent
MODELS = {  # how each samples
    "flux": dict(clip_type="flux", cfg=3.0),
    "wan": dict(clip_type="sd3", cfg=6.0, shift=1.0),
}
SETTINGS = dict(
    steps=300,
    batch_size=16,
    learning_rate=1e-2,
    width=SIZE,
    height=SIZE,
    sample_steps=10,
    samples_per_prompt=1,
    pairs=16,
    precision="bf16",
    checkpoint_every=100,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("attribute", choices=ATTRIBUTES)
    parser.add_argument("--comfyui", default=os.environ.get("COMFYUI_PATH"), help="the ComfyUI folder (default: $COMFYUI_PATH)")
    parser.add_argument("--weights", type=Path, default=HERE / "weights", help="the small world's weights; the direction goes there")
    parser.add_argument("--work", type=Path, default=HERE.parent.parent / "out" / "small_world", help="checkpoint, metrics, text encoder")
    parser.add_argument("--prompts-count", type=int, default=PROMPTS, help="subjects to learn on")
    parser.add_argument("--threads", type=int, help="torch's threads (default: one a core)")
    options, rest = parser.parse_known_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    out = options.work / f"{options.model}_{options.attribute}"
    out.mkdir(parents=True, exist_ok=True)
    (out / "prompts.txt").write_text("\n".join(prompts(options.prompts_count)) + "\n")
    encoder = options.work / "small_world_clip_l.safetensors"
    if not encoder.exists():
        write_clip_l(encoder)
    positive, negative = ATTRIBUTES[options.attribute]
    settings = SETTINGS | MODELS[options.model]
    sys.argv[1:] = [
        "--comfyui",
        options.comfyui,
        "--model",
        str(options.weights / f"small_world_{options.model}.safetensors"),
        "--out",
        str(out),
        "--clip",
        str(encoder),
        "--prompts",
        str(out / "prompts.txt"),
        "--positive",
        positive,
        "--negative",
        negative,
        "--no-checkpointing",
        *(part for name, value in settings.items() for part in ("--" + name.replace("_", "-"), str(value))),
        *rest,
    ]
    use_host(options.comfyui)
    distill.main()
    shutil.copyfile(out / "direction.safetensors", options.weights / file_name(options.model, options.attribute))


if __name__ == "__main__":
    main()

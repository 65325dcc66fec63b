"""Measures the small world itself: the checkers on held-out drawn scenes, plain and through the autoencoder, the models on single objects.

    python -m tools.small_world.measure checkers
    python -m tools.small_world.measure autoencoder
    python -m tools.small_world.measure quality --model flux

`quality` writes <model>_quality.json beside the weights, and a contact sheet for CFG 1 and for the first other CFG scale.
"""

if __name__ == "__main__":
    from .host import under_host

    under_host(__spec__.name)

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from tools.files import write_whole

from ..options import above_zero, finite
from .checkers import Expectation, read_picture, score
from .dataset import HELD_OUT
from .host import use_host
from .scenes import COLORS, RARE, SHAPES, render, sample_scene

HERE = Path(__file__).parent
WITH_CFG = 3.0
ENLARGE = 2  # pixels of the contact sheet for one of a picture
SHEET_PROMPTS = (
    "a red circle",
    "a blue square",
    "a green triangle on the left",
    "a yellow cross in the center",
    "three red circles",
    "five blue squares",
    "two green crosses",
    "four cyan triangles",
    "a red circle to the left of a green square",
    "a purple square above a cyan triangle",
    "a blue cross below a yellow square",
    "two yellow squares and a red cross",
    "a green square, highly detailed",
    "a green square, very simple, no details at all",
    "three purple circles on a busy background, highly detailed",
    "a large red triangle, blurred",
)


def check_checkers(count: int, rare: bool = False, first: int = HELD_OUT, through=None) -> dict[str, float]:
    """Share of drawn scenes that the checkers read right, in percent, by what is read; through(picture): what they are shown."""
    right: dict[str, list[bool]] = {}
    for seed in tqdm(range(first, first + count), desc="reading drawn scenes", leave=False):
        scene = sample_scene(seed, rare)
        picture = render(scene)
        reading = read_picture(through(picture) if through else picture)
        scores = score(reading, Expectation(scene.groups, scene.relation))
        results = {name: scores[name] for name in ("count", "color", "shape", "exact", "position")}
        results |= {"detail": reading.detailed == bool(scene.texture), "sharpness": reading.sharp != scene.blurred}
        for name, value in results.items():
            if value is not None:
                right.setdefault(name, []).append(value)
    return {name: round(100 * float(np.mean(values)), 2) for name, values in right.items()}


def single_objects(loaded, per_kind: int, rare: bool = False, cfg: float = 1.0, seed: int = 0, sampler: str = "euler") -> dict[str, float]:
    """Share of "a [color] [shape]" pictures that are right, in percent; `exact` also asks for exactly one object."""
    from .sampling import pictures

    kinds = [(color, shape) for color in COLORS for shape in SHAPES if ((color, shape) in RARE) == rare]
    scores = []
    for index, (color, shape) in enumerate(tqdm(kinds, desc="single objects", leave=False)):
        for picture in pictures(loaded, f"a {color} {shape}", per_kind, seed=seed + index, cfg=cfg, sampler=sampler):
            scores.append(score(read_picture(picture), Expectation(((1, color, shape),))))
    result = {name: round(100 * float(np.mean([s[name] for s in scores])), 1) for name in ("color", "shape", "count", "exact")}
    result["color and shape"] = round(100 * float(np.mean([s["color"] and s["shape"] for s in scores])), 1)
    return result | {"pictures": len(scores)}


def contact_sheet(loaded, path: Path, cfg: float, sampler: str, per_prompt: int = 4) -> None:
    """A row of pictures under each prompt, two columns of prompts."""
    from .sampling import pictures

    cells = []
    for index, prompt in enumerate(tqdm(SHEET_PROMPTS, desc="contact sheet", leave=False)):
        row = np.concatenate(
            [
                np.pad(picture, ((1, 1), (1, 1), (0, 0)), constant_values=1)
                for picture in pictures(loaded, prompt, per_prompt, seed=1000 + index, cfg=cfg, sampler=sampler)
            ],
            axis=1,
        )
        image = Image.fromarray((row * 255 + 0.5).astype(np.uint8))
        image = image.resize((image.width * ENLARGE, image.height * ENLARGE), Image.NEAREST)
        cell = Image.new("RGB", (image.width, image.height + 16), "white")
        cell.paste(image, (0, 16))
        ImageDraw.Draw(cell).text((4, 3), prompt, fill="black")
        cells.append(np.asarray(cell))
    half = len(cells) // 2
    sheet = np.concatenate([np.concatenate(cells[:half]), np.concatenate(cells[half:])], axis=1)
    write_whole(path, lambda temporary: Image.fromarray(sheet).save(temporary, "PNG", optimize=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("checkers", "autoencoder", "quality"))
    parser.add_argument("--model", choices=("flux", "wan"), default="flux")
    parser.add_argument("--count", type=int, default=3000, help="scenes the checkers read")
    parser.add_argument("--per-kind", type=int, default=8, help="pictures of each color and shape")
    parser.add_argument("--cfg", type=finite, nargs="+", default=(1.0, WITH_CFG), help="CFG scales, negative prompt empty")
    parser.add_argument("--shift", type=above_zero, help="of the noise levels, as ModelSamplingSD3's (default: the model's own)")
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--seed", type=int, default=0, help="of the first kind's noise")
    parser.add_argument("--comfyui", help="the ComfyUI folder (default: $COMFYUI_PATH)")
    parser.add_argument("--weights", type=Path, default=HERE / "weights")
    parser.add_argument("--text-encoder", type=Path, default=HERE.parent.parent / "out" / "small_world" / "small_world_clip_l.safetensors")
    options = parser.parse_args()
    if options.what == "checkers":
        for rare in (False, True):
            print("rare kinds" if rare else "held out", check_checkers(options.count, rare))
        return

    use_host(options.comfyui)
    from .sampling import load, load_autoencoder, reconstructed

    if options.what == "autoencoder":
        vae = load_autoencoder(options.weights)
        print("held out, encoded and decoded", check_checkers(options.count, through=lambda picture: reconstructed(vae, picture)))
        return
    from .text_encoder import write_clip_l

    if not options.text_encoder.exists():
        write_clip_l(options.text_encoder)
    loaded = load(options.model, options.weights, options.text_encoder, options.shift)
    how = {"seed": options.seed, "sampler": options.sampler}
    quality = {f"single objects, CFG {cfg:g}": single_objects(loaded, options.per_kind, cfg=cfg, **how) for cfg in options.cfg}
    quality[f"rare single objects, CFG {options.cfg[0]:g}"] = single_objects(loaded, options.per_kind, rare=True, cfg=options.cfg[0], **how)
    print(json.dumps(quality, indent=1))
    write_whole(options.weights / f"{options.model}_quality.json", lambda path: path.write_text(json.dumps(quality, indent=1) + "\n"))
    for name, wanted in (("contact_sheet", lambda cfg: cfg == 1), ("contact_sheet_cfg", lambda cfg: cfg != 1)):
        for cfg in list(filter(wanted, options.cfg))[:1]:
            contact_sheet(loaded, options.weights.parent / f"{options.model}_{name}.png", cfg, options.sampler)


if __name__ == "__main__":
    main()

"""The small world's models in place of those the shared workflows name, for machines that have none of these."""

import copy
import filecmp
import shutil

from tools.files import write_whole
from tools.host import CHECKOUT
from tools.small_world.attributes import DIRECTIONS
from tools.small_world.text_encoder import write_clip_l

WEIGHTS = CHECKOUT / "tools" / "small_world" / "weights"
DIFFUSION_MODEL, VAE, TEXT_ENCODER = "small_world_flux.safetensors", "small_world_vae.safetensors", "small_world_clip_l.safetensors"
TEXT_BLIND, PROJECTION = "small_world_wan.safetensors", "small_world_wan_projection.safetensors"
SMALL_FOR = {  # the real file of a workflow -> the small one that takes its place
    "flux1-schnell.safetensors": DIFFUSION_MODEL,
    "flux1-dev.safetensors": DIFFUSION_MODEL,
    "clip_l.safetensors": TEXT_ENCODER,
    "ae.safetensors": VAE,
}
SIZE, STEPS, CFG = 80, 20, 3  # how the small models were measured; width and height in pixels


def write_small_models(folder):
    """Puts the small models into a folder laid out like ComfyUI's models folder: copies of the shipped ones, and the text encoder.

    Returns their paths.
    """
    shipped = (
        ("diffusion_models", DIFFUSION_MODEL),
        ("diffusion_models", TEXT_BLIND),
        ("pooled_projections", PROJECTION),
        ("vae", VAE),
        *(("guidance_directions", name) for name in DIRECTIONS),
    )
    models = [folder / kind / name for kind, name in shipped]
    for path in models:
        copy_whole(WEIGHTS / path.name, path)
    text_encoder = folder / "text_encoders" / TEXT_ENCODER
    if not text_encoder.is_file():
        write_clip_l(text_encoder)
    return [*models, text_encoder]


def copy_whole(source, target):
    """Copies a file, unless it is there already, so that it is never seen half-written."""
    if target.is_file() and filecmp.cmp(source, target, shallow=False):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, lambda path: shutil.copyfile(source, path))


def with_small_models(prompt):
    """A copy of an API-format prompt that uses the small models in place of the real ones it names, with the settings they need.

    File names are replaced, and the DualCLIPLoader of FLUX's two encoders becomes a CLIPLoader of the small CLIP-L, whose tokens
    the small FLUX reads instead of T5's (the type stable_diffusion is CLIP-L as it is). Pictures are SIZE wide and high; CFG is on,
    so the empty prompt takes the place of the zeros that stand where it is off.
    """
    prompt = copy.deepcopy(prompt)
    for node in prompt.values():
        if node["class_type"] == "DualCLIPLoader":
            node["class_type"] = "CLIPLoader"
            node["inputs"] = {"clip_name": node["inputs"]["clip_name1"], "type": "stable_diffusion", "device": "default"}
        if node["class_type"] == "ConditioningZeroOut":
            node["class_type"], node["_meta"]["title"] = "CLIPTextEncode", "Empty negative prompt"
            node["inputs"] = {"text": "", "clip": next(text["inputs"]["clip"] for text in prompt.values() if "clip" in text["inputs"])}
        if node["class_type"] == "EmptySD3LatentImage":
            node["inputs"].update(width=SIZE, height=SIZE)
        if node["class_type"] == "KSampler":
            node["inputs"].update(steps=STEPS, cfg=CFG)
        for name, value in node["inputs"].items():
            if isinstance(value, str) and value in SMALL_FOR:
                node["inputs"][name] = SMALL_FOR[value]
    return prompt

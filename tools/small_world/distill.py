"""Distill the projection that ships with the small world's text-blind model: `python -m tools.small_world.distill`.

Captions of scenes as prompts, the small CLIP-L's pooled output projected. Leaves small_world_wan_projection.safetensors beside the
weights, in bf16. Options after these are those of tools/distill.py.
"""

if __name__ == "__main__":
    from .host import under_host

    under_host(__spec__.name)

from dataclasses import replace

from tools import distill

from .captions import caption
from .dataset import HELD_OUT
from .learning import learn, options_of, parser_of, written
from .models import TEXT_WIDTH
from .scenes import sample_scene

NAME = "small_world_wan_projection.safetensors"
SETTINGS = dict(
    steps=500,
    batch_size=64,
    learning_rate=2e-3,
    clip_type="sd3",
    cfg=6.0,
    shift=1.0,  # at this size; the host's shift of 8 for Wan is for videos
    sample_steps=10,
    samples_per_prompt=1,
    pairs=8,
    held_out_every=100,
    checkpoint_every=100,
)
PROMPTS, HELD_OUT_PROMPTS = 600, 30


def captions(count: int, first: int) -> list[str]:
    return [caption(sample_scene(seed), seed) or "a picture" for seed in range(first, first + count)]


def main() -> None:
    options, rest = options_of(parser_of(__doc__, PROMPTS))
    out = options.work / "projection"
    held_out = written(out / "held_out.txt", captions(HELD_OUT_PROMPTS, HELD_OUT))
    learn(options, rest, "wan", out, captions(options.prompts_count, 0), held_out=held_out, **SETTINGS)
    formats = distill.pack("pooled_proj.formats")
    made = formats.load(out / "projection.safetensors")
    weights = {name: tensor.bfloat16() for name, tensor in made.weights.items()}
    weights["linear_1.weight"] = weights["linear_1.weight"][:, :TEXT_WIDTH]  # beyond, the sd3 type gives zeros in place of CLIP-G's
    formats.save(replace(made, weights=weights), options.weights / NAME)


if __name__ == "__main__":
    main()

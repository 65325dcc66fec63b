"""Learn the guidance directions that ship with the small world's models: `python -m tools.small_world.directions flux detail`.

Subjects of scenes as prompts, which say nothing of the style. Leaves small_world_flux_detail.safetensors beside the weights. Options
after these are those of tools/distill.py.
"""

if __name__ == "__main__":
    from .host import under_host

    under_host(__spec__.name)

import shutil

from .attributes import ATTRIBUTES, PROMPTS, file_name, prompts
from .learning import learn, options_of, parser_of

MODELS = {  # how each samples
    "flux": dict(clip_type="flux", cfg=3.0),
    "wan": dict(clip_type="sd3", cfg=6.0, shift=1.0),
}
SETTINGS = dict(
    steps=300, batch_size=16, learning_rate=1e-2, sample_steps=10, samples_per_prompt=1, pairs=16, precision="bf16", checkpoint_every=100
)


def main() -> None:
    parser = parser_of(__doc__, PROMPTS)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("attribute", choices=ATTRIBUTES)
    options, rest = options_of(parser)
    positive, negative = ATTRIBUTES[options.attribute]
    out = options.work / f"{options.model}_{options.attribute}"
    settings = SETTINGS | MODELS[options.model]
    learn(options, rest, options.model, out, prompts(options.prompts_count), positive=positive, negative=negative, **settings)
    shutil.copyfile(out / "direction.safetensors", options.weights / file_name(options.model, options.attribute))


if __name__ == "__main__":
    main()

"""What guidance does to pictures: counting, color, position, detail, sharpness and adherence, measured on the host.

    python benchmarks/effect.py                      on the small world (tools/small_world), at most half an hour on 2 cores
    python benchmarks/effect.py --quick              the same as a smoke run: one prompt a set, one seed, 2 steps
    python benchmarks/effect.py --variance           Scale Text Variance, on kinds that training never showed and on others: variance.md
    python benchmarks/effect.py --projection         the distilled projection on the small world's text-blind model: projection.md
    python benchmarks/effect.py --learned flux       directions learned from words: learned_flux.md and .png; or wan, which is text-blind
    python benchmarks/effect.py --diffusion-model FILE --text-encoder FILE [FILE] --clip-type flux --vae FILE \\
        --prompts-file FILE [--preset NAME | --positive TEXT --negative TEXT] [--w ...] [--start-layers ...] [--layers TEXT ...] \\
        [--direction FILE ... --direction-w ...] [--scorer SCORER ...] [--servers URL ...]

On the small world it writes effect.json, table.md, pareto.png, detail_by_w.png and grid.png. With your own models it compares plain,
constant (start layer 0), layer-wise (other start layers, and --layers) and learned guidance (--direction): each picture and grids per prompt,
and with scorers (folders of CLIP models, PickScore among them, files of aesthetic heads, or a function you have installed of a picture (H, W, 3), float
in [0, 1], and its prompt) scores.json and table.md; with two, what the first gains at what is lost of the second: curve.png, and which
setting Choose Guidance would take: choice.png.
With --servers running ComfyUI servers that have this pack draw the pictures, each the next one when it is done with one; a server that dies
leaves its picture to the others. Model files are then named as in the servers' model folders (diffusion_models, text_encoders, vae,
guidance_directions), prompts and scorers are read here.
Cut at any time, it goes on where it was. Nothing is downloaded but the host where there is none.
"""

import argparse
import json
import math
import os
from pathlib import Path

from benchmarks.in_process import PACK
from tools.options import finite

from .settings import LEARNED_SETS

SMALL_DEFAULTS = {"seeds": 4, "steps": 20, "size": 80}
SAMPLING = {
    "flux": {"cfg": 3.0},
    # The shift is what its training pays most attention to; the host's of 8 is for videos.
    "wan": {"cfg": 6.0, "sampler": "dpmpp_2m", "shift": 1.0},
}
MOST_WORKERS = 61 if os.name == "nt" else math.inf  # processes that Windows waits for
OWN_DEFAULTS = {"seeds": 1, "steps": 4, "cfg": 1.0, "size": 1024}


def arguments(given=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the results (default out/effect, with your own models out/effect_own)")
    parser.add_argument("--seeds", type=int, help="pictures of each prompt and condition (default 4; your own models 1)")
    parser.add_argument("--steps", type=int, help="sampling steps (default 20; your own models 4)")
    parser.add_argument("--cfg", type=finite, help="classifier-free guidance, negative prompt empty (default 3; your own models 1)")
    parser.add_argument("--text-encoder", nargs="+", metavar="FILE", help="(small world: written once where it is not yet)")
    small = parser.add_argument_group("on the small world")
    small.add_argument("--prompts", type=int, help="prompts in each set (default 24 general ones, 32 in the others; learned: 16)")
    small.add_argument(
        "--variance", action="store_true", help="Scale Text Variance instead, on kinds that training never showed and on others"
    )
    small.add_argument("--projection", action="store_true", help="the distilled projection instead, on the small world's text-blind model")
    small.add_argument("--learned", choices=SAMPLING, help="directions learned from words instead, on that model")
    small.add_argument("--sets", nargs="+", choices=LEARNED_SETS, default=[*LEARNED_SETS], help="those that --learned draws (default all)")
    small.add_argument("--quick", action="store_true", help="one prompt a set, one seed, 2 steps: do all conditions run?")
    small.add_argument("--workers", type=int, help="processes that draw, 1.5 GB each (default: as many as cores, at most 4; GPU 1)")
    own = parser.add_argument_group("on your own models")
    own.add_argument("--diffusion-model", metavar="FILE")
    own.add_argument("--vae", metavar="FILE")
    own.add_argument("--clip-type", default="flux", help="the text encoder loader's type (default flux)")
    own.add_argument("--prompts-file", type=Path, metavar="FILE", help="a prompt on each line")
    own.add_argument("--preset", choices=presets(), metavar="NAME", help="a direction of the Guidance Preset node (default complexity)")
    own.add_argument("--positive", help="p+ of a direction of your own")
    own.add_argument("--negative", help="p- of it")
    own.add_argument("--w", type=finite, nargs="+", default=[0.0, 1.5, 3.0, 6.0], help="guidance scales (default 0 1.5 3 6)")
    own.add_argument("--start-layers", type=int, nargs="+", default=[0, 5, 10], help="first guided layers (default 0 5 10)")
    own.add_argument(
        "--layers",
        nargs="+",
        default=[],
        metavar="TEXT",
        help='layers and their weights, as Layer Schedule (Text) reads them: "5-18: 1, 19-56: 0.5"',
    )
    own.add_argument("--direction", nargs="+", default=[], metavar="FILE", help="learned directions, with each start layer too")
    own.add_argument("--direction-w", type=finite, nargs="+", default=[0.5, 1.0, 1.5], help="their guidance scales (default 0.5 1 1.5)")
    own.add_argument("--size", type=int, help="width and height in pixels (default 1024)")
    own.add_argument(
        "--scorer",
        nargs="+",
        metavar="SCORER",
        help="scores pictures for their prompts: a path as Load Picture Scorer reads it, or MODULE:FUNCTION",
    )
    own.add_argument("--servers", nargs="+", metavar="URL", help="ComfyUI servers that draw, e.g. http://127.0.0.1:8188")
    options = parser.parse_args(given)
    check(parser, options)
    if options.quick:
        options.prompts, options.seeds, options.steps = options.prompts or 1, options.seeds or 1, options.steps or 2
    options.model = options.learned or ("wan" if options.projection else "flux")
    defaults = OWN_DEFAULTS if options.diffusion_model else SMALL_DEFAULTS | {"cfg": SAMPLING[options.model]["cfg"]}
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    kind = "_own" if options.diffusion_model else "_quick" * options.quick + (f"_learned_{options.learned}" if options.learned else "")
    options.out = options.out or PACK / "out" / f"effect{kind}"
    return options


def presets() -> list[str]:
    return list(json.loads((PACK / "nodes" / "presets.json").read_text(encoding="utf-8")))


def check(parser, options):
    """Ends with what to do about arguments that cannot work."""
    if options.diffusion_model:
        needed = {"--text-encoder": options.text_encoder, "--vae": options.vae, "--prompts-file": options.prompts_file}
        missing = [name for name, value in needed.items() if not value]
        if missing:
            parser.error(f"--diffusion-model needs {', '.join(missing)} too")
    elif options.vae or options.prompts_file or options.size or options.direction or options.layers or options.servers:
        parser.error("--vae, --prompts-file, --size, --layers, --direction and --servers go with --diffusion-model")
    if (options.positive is None) != (options.negative is None) or (options.positive and options.preset):
        parser.error("give --positive and --negative together, or --preset")
    for url in options.servers or ():
        if not url.startswith(("http://", "https://")):
            parser.error(f"--servers {url}: write the whole address, e.g. http://127.0.0.1:8188")
    if not options.servers:  # which find the models in their own folders
        options.diffusion_model, options.vae = (file and Path(file) for file in (options.diffusion_model, options.vae))
        options.text_encoder = options.text_encoder and [Path(file) for file in options.text_encoder]
        options.direction = [Path(file) for file in options.direction]
    for file in (options.diffusion_model, options.vae, options.prompts_file, *(options.text_encoder or ()), *options.direction):
        if isinstance(file, Path) and not file.is_file():
            parser.error(f"there is no file {file}")
    for name in ("prompts", "seeds", "steps", "size", "workers"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if (options.workers or 1) > MOST_WORKERS:
        parser.error(f"--workers must be at most {MOST_WORKERS} on Windows, which waits for no more processes at once")

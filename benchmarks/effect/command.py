"""What guidance does to pictures: counting, color, position, detail, sharpness and adherence, measured on the host.

    python benchmarks/effect.py                      on the small world (tools/small_world), at most half an hour on 2 cores
    python benchmarks/effect.py --quick              the same as a smoke run: one prompt a set, one seed, 2 steps
    python benchmarks/effect.py --variance           Scale Text Variance, on kinds that training never showed and on others: variance.md
    python benchmarks/effect.py --projection         the distilled projection on the small world's text-blind model: projection.md
    python benchmarks/effect.py --learned flux       directions learned from words: learned_flux.md and .png; or wan, which is text-blind
    python benchmarks/effect.py --diffusion-model FILE --text-encoder FILE [FILE] --clip-type flux --vae FILE \\
        --prompts-file FILE [--preset NAME | --positive TEXT --negative TEXT] [--w ...] [--start-layers ...] [--scorer SCORER [SCORER ...]]

On the small world it writes effect.json, table.md, pareto.png, detail_by_w.png and grid.png; with your own models each picture and
a grid per prompt, and with scorers (folders of CLIP models, PickScore among them, files of aesthetic heads, or a function you have installed of
a picture (H, W, 3), float in [0, 1], and its prompt) scores.json and table.md; with two, which setting has the most of the first at
little lost of the second: choice.png.
Cut at any time, it goes on where it was. Nothing is downloaded but the host where there is none.
"""

import argparse
import json
import math
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.in_process import PACK, load_host
from tools.host import SetupError, ensure_host, run_under, write_whole
from tools.options import finite

SMALL_WORLD = PACK / "tools" / "small_world" / "weights"
SMALL_ENCODER = PACK / "out" / "small_world" / "small_world_clip_l.safetensors"
SMALL_DEFAULTS = {"seeds": 4, "steps": 20, "size": 80}
SAMPLING = {
    "flux": {"cfg": 3.0},
    # The shift is what its training pays most attention to; the host's of 8 is for videos.
    "wan": {"cfg": 6.0, "sampler": "dpmpp_2m", "shift": 1.0},
}
MOST_WORKERS = 4
MOST_AT_ONCE = 61 if os.name == "nt" else math.inf  # processes that Windows waits for
DRAWN = 300  # held-out drawn scenes that the measures' scale is told from
OWN_DEFAULTS = {"seeds": 1, "steps": 4, "cfg": 1.0, "size": 1024}


def arguments(given=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the results (default out/effect, with your own models out/effect_own)")
    parser.add_argument("--seeds", type=int, help="pictures of each prompt and condition (default 4; your own models 1)")
    parser.add_argument("--steps", type=int, help="sampling steps (default 20; your own models 4)")
    parser.add_argument("--cfg", type=finite, help="classifier-free guidance, negative prompt empty (default 3; your own models 1)")
    parser.add_argument("--text-encoder", type=Path, nargs="+", metavar="FILE", help="(small world: written once where it is not yet)")
    small = parser.add_argument_group("on the small world")
    small.add_argument("--prompts", type=int, help="prompts in each set (default 24 general ones, 32 in the others; learned: 16)")
    small.add_argument(
        "--variance", action="store_true", help="Scale Text Variance instead, on kinds that training never showed and on others"
    )
    small.add_argument("--projection", action="store_true", help="the distilled projection instead, on the small world's text-blind model")
    small.add_argument("--learned", choices=SAMPLING, help="directions learned from words instead, on that model")
    small.add_argument("--quick", action="store_true", help="one prompt a set, one seed, 2 steps: do all conditions run?")
    small.add_argument("--workers", type=int, help="processes that draw, 1.5 GB each (default: as many as cores, at most 4; GPU 1)")
    own = parser.add_argument_group("on your own models")
    own.add_argument("--diffusion-model", type=Path, metavar="FILE")
    own.add_argument("--vae", type=Path, metavar="FILE")
    own.add_argument("--clip-type", default="flux", help="the text encoder loader's type (default flux)")
    own.add_argument("--prompts-file", type=Path, metavar="FILE", help="a prompt on each line")
    own.add_argument("--preset", help="a direction of the Guidance Preset node (default complexity)")
    own.add_argument("--positive", help="p+ of a direction of your own")
    own.add_argument("--negative", help="p- of it")
    own.add_argument("--w", type=finite, nargs="+", default=[0.0, 1.5, 3.0, 6.0], help="guidance scales (default 0 1.5 3 6)")
    own.add_argument("--start-layers", type=int, nargs="+", default=[0, 5, 10], help="first guided layers (default 0 5 10)")
    own.add_argument("--size", type=int, help="width and height in pixels (default 1024)")
    own.add_argument(
        "--scorer",
        nargs="+",
        metavar="SCORER",
        help="scores pictures for their prompts: a path as Load Picture Scorer reads it, or MODULE:FUNCTION",
    )
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


def check(parser, options):
    """Ends with what to do about arguments that cannot work."""
    if options.diffusion_model:
        needed = {"--text-encoder": options.text_encoder, "--vae": options.vae, "--prompts-file": options.prompts_file}
        missing = [name for name, value in needed.items() if not value]
        if missing:
            parser.error(f"--diffusion-model needs {', '.join(missing)} too")
    elif options.vae or options.prompts_file or options.size:
        parser.error("--vae, --prompts-file and --size go with --diffusion-model")
    if (options.positive is None) != (options.negative is None) or (options.positive and options.preset):
        parser.error("give --positive and --negative together, or --preset")
    for file in (options.diffusion_model, options.vae, options.prompts_file, *(options.text_encoder or ())):
        if file and not file.is_file():
            parser.error(f"there is no file {file}")
    for name in ("prompts", "seeds", "steps", "size", "workers"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if (options.workers or 1) > MOST_AT_ONCE:
        parser.error(f"--workers must be at most {MOST_AT_ONCE} on Windows, which waits for no more processes at once")


def main():
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes started here end, too
    try:
        if "COMFYUI_PYTHON" not in os.environ:
            run_under(ensure_host(), [PACK / "benchmarks" / "effect.py", *sys.argv[1:]])
        load_host()
        import torch

        with torch.inference_mode():  # as the host runs its nodes
            mode = (
                own_models
                if options.diffusion_model
                else small_world_variance
                if options.variance
                else small_world_projection
                if options.projection
                else small_world_learned
                if options.learned
                else small_world
            )
            mode(options)
    except (SetupError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nInterrupted. Run it again to go on.", file=sys.stderr)
        sys.exit(130)


def small_world(options):
    """Draws, scores and reports."""
    from benchmarks.effect.plots import detail_by_w, gallery, grid, pareto
    from benchmarks.effect.report import table
    from benchmarks.effect.run import jobs_of

    jobs = jobs_of(options.prompts)
    results, made_by = drawn_and_scored(options, jobs)
    about = description(options, jobs, results, made_by)
    write_whole(
        options.out / "effect.json",
        json.dumps({"about": about, "best": [condition.name for condition in results.best()], "sets": results.as_json()}, indent=1),
    )
    write_whole(options.out / "table.md", table(results, about))
    pareto(results, options.out / "pareto.png")
    detail_by_w(results, options.out / "detail_by_w.png")
    grid(jobs, results, options.seeds, options.out / "pictures", options.out / "grid.png")
    gallery(jobs, options.seeds, options.out / "pictures", options.out / "gallery.png")
    print(
        *(options.out / name for name in ("table.md", "effect.json", "pareto.png", "detail_by_w.png", "grid.png", "gallery.png")), sep="\n"
    )


def small_world_variance(options):
    """Draws, scores and reports what Scale Text Variance does."""
    from benchmarks.effect.variance import jobs_of, table

    jobs = jobs_of(options.prompts)
    results, made_by = drawn_and_scored(options, jobs)
    write_whole(options.out / "variance.md", table(results, description(options, jobs, results, made_by)))
    print(options.out / "variance.md")


def small_world_projection(options):
    """Draws, scores and reports what the text-blind model's projection does."""
    from benchmarks.effect.projection import jobs_of, table

    jobs = jobs_of(options.prompts)
    results, made_by = drawn_and_scored(options, jobs)
    write_whole(options.out / "projection.md", table(results, description(options, jobs, results, made_by)))
    print(options.out / "projection.md")


def small_world_learned(options):
    """Draws, scores and reports what directions learned from words do."""
    from benchmarks.effect.learned import jobs_of, plot, table

    files, _ = files_and_settings(options)
    jobs = jobs_of(options.learned, files.directions, options.prompts)
    results, made_by = drawn_and_scored(options, jobs)
    report, picture = (options.out / f"learned_{options.learned}{ending}" for ending in (".md", ".png"))
    write_whole(report, table(options.learned, results, description(options, jobs, results, made_by)))
    plot(options.learned, results, picture)
    print(report, picture, sep="\n")


def files_and_settings(options):
    """What the small world's pictures are drawn with."""
    from benchmarks.effect.settings import Files, Settings
    from tools.small_world.attributes import ATTRIBUTES, file_name
    from tools.small_world.text_encoder import write_clip_l

    encoders = tuple(options.text_encoder or (SMALL_ENCODER if SMALL_ENCODER.is_file() else write_clip_l(SMALL_ENCODER),))
    kind = "sd3" if options.model == "wan" else "flux"
    files = Files(SMALL_WORLD / f"small_world_{options.model}.safetensors", encoders, SMALL_WORLD / "small_world_vae.safetensors", kind)
    if options.projection:
        files = replace(files, projection=SMALL_WORLD / "small_world_wan_projection.safetensors")
    if options.learned:
        files = replace(files, directions={name: SMALL_WORLD / file_name(options.model, name) for name in ATTRIBUTES})
    return files, Settings(steps=options.steps, size=options.size, **SAMPLING[options.model] | {"cfg": options.cfg})


def drawn_and_scored(options, jobs):
    """(the results, hash of what they were made by)"""
    import torch

    from benchmarks.effect.results import Results
    from benchmarks.effect.run import fingerprint, run
    from benchmarks.effect.workers import painters

    files, settings = files_and_settings(options)
    made_by = fingerprint([file for file in (files.diffusion_model, *files.text_encoders, files.vae, files.projection) if file])
    options.out.mkdir(parents=True, exist_ok=True)
    workers = options.workers or (1 if torch.cuda.is_available() else min(os.cpu_count(), MOST_WORKERS))
    with painters(files, settings, workers) as draw:
        return Results(run(draw, jobs, settings, options.seeds, made_by, options.out)), made_by


def description(options, jobs, results, made_by):
    """What was run, in words."""
    import comfyui_version
    import torch

    prompts = {name: len({job.index for job in jobs if job.set_name == name}) for name in dict.fromkeys(job.set_name for job in jobs)}
    counts = ", ".join(f"{count} {name}" for name, count in prompts.items())
    files, settings = files_and_settings(options)
    model = "Wan-shaped one (7 blocks)" if options.model == "wan" else "FLUX.1-shaped one (4 double + 8 single blocks)"
    shift = "" if settings.shift is None else f", shift {settings.shift:g}"
    return {
        "model": f"the small world's {model}, {settings.steps} steps, {settings.sampler}, {settings.scheduler}{shift}, "
        f"CFG {settings.cfg:g}, negative prompt empty, {settings.size} x {settings.size} pixels",
        "prompts": f"{counts}; {options.seeds} seeds each; {results.pictures} pictures",
        "made by": f"ComfyUI {comfyui_version.__version__}, torch {torch.__version__}, weights and code {made_by}",
        "for scale": drawn_scale(),
        "time": f"{results.seconds / 60:.1f} minutes of one core, drawing and scoring",
    }


def drawn_scale():
    """What the checkers measure on held-out drawn scenes, in words."""
    from statistics import mean

    from tools.small_world.checkers import read_picture
    from tools.small_world.dataset import HELD_OUT
    from tools.small_world.scenes import render, sample_scene

    scenes = [sample_scene(seed) for seed in range(HELD_OUT, HELD_OUT + DRAWN)]
    read = [(scene, read_picture(render(scene))) for scene in scenes]
    detail, sharpness = {}, {}
    for scene, reading in read:
        detail.setdefault(bool(scene.texture), []).append(100 * reading.detail)
        sharpness.setdefault((scene.blurred, bool(scene.texture)), []).append(100 * reading.sharpness)
    return (
        f"drawn scenes have detail {mean(detail[False]):.1f} (flat) or {mean(detail[True]):.1f} (detailed), sharpness "
        f"{mean(sharpness[True, False]):.0f} (blurred), {mean(sharpness[False, False]):.0f} (sharp, flat) or "
        f"{mean(sharpness[False, True]):.0f} (sharp, detailed: the dark outline counts)"
    )


def own_models(options):
    """Pictures, a grid per prompt, and scores where there is a scorer."""
    from benchmarks.effect.own import run
    from benchmarks.effect.settings import Files, Settings
    from benchmarks.effect.studio import Studio

    files = Files(options.diffusion_model, tuple(options.text_encoder), options.vae, options.clip_type)
    studio = Studio(files, Settings(options.steps, options.cfg, options.size))
    for path in run(studio, files, options):
        print(path)

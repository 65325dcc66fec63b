"""effect.py: its modes, each from the arguments to what is written."""

import json
import os
import re
import signal
import sys
from dataclasses import replace

from benchmarks.in_process import PACK, load_host
from tools.files import write_whole
from tools.host import ensure_host, run_under
from tools.packages import SetupError

from .arguments import SAMPLING, arguments

SMALL_WORLD = PACK / "tools" / "small_world" / "weights"
SMALL_ENCODER = PACK / "out" / "small_world" / "small_world_clip_l.safetensors"
MOST_WORKERS = 4
DRAWN = 300  # held-out drawn scenes that the measures' scale is told from


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
    from benchmarks.effect.plots import GALLERY, detail_by_w, gallery, grid, pareto
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
    gallery(jobs, GALLERY, options.seeds, options.out / "pictures", options.out / "gallery.png")
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
    from benchmarks.effect.learned import SHOWN, jobs_of, plot, table
    from benchmarks.effect.plots import gallery

    files, _ = files_and_settings(options)
    jobs = jobs_of(options.learned, files.directions, options.prompts, options.sets)
    results, made_by = drawn_and_scored(options, jobs)
    report, picture, shown = (options.out / f"learned_{options.learned}{ending}" for ending in (".md", ".png", "_gallery.png"))
    write_whole(report, table(options.learned, results, description(options, jobs, results, made_by)))
    print(report)
    if "general" in options.sets:
        plot(options.learned, results, picture)
        gallery(jobs, SHOWN[options.learned], options.seeds, options.out / "pictures", shown)
        print(picture, shown, sep="\n")


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
    detail, sharpness, ground = {}, {}, {}
    for scene, reading in read:
        detail.setdefault(bool(scene.texture), []).append(100 * reading.detail)
        sharpness.setdefault((scene.blurred, bool(scene.texture)), []).append(100 * reading.sharpness)
        ground.setdefault(scene.tone, []).append(100 * reading.ground)
    return (
        f"drawn scenes have detail {mean(detail[False]):.1f} (flat) or {mean(detail[True]):.1f} (detailed), sharpness "
        f"{mean(sharpness[True, False]):.0f} (blurred), {mean(sharpness[False, False]):.0f} (sharp, flat) or "
        f"{mean(sharpness[False, True]):.0f} (sharp, detailed: the dark outline counts), ground {mean(ground['dark']):.0f} (dark), "
        f"{mean(ground['grey']):.0f} or {mean(ground['light']):.0f} (light)"
    )


def own_models(options):
    """Pictures, grids, and scores where there is a scorer."""
    from benchmarks.effect.own import Here, run
    from benchmarks.effect.servers import Servers
    from benchmarks.effect.settings import Files, Settings

    files = Files(options.diffusion_model, tuple(options.text_encoder), options.vae, options.clip_type, directions=named(options.direction))
    settings = Settings(options.steps, options.cfg, options.size)
    painter = Servers(options.servers, files, settings) if options.servers else Here(files, settings)
    for path in run(painter, files, settings, options):
        print(path)


def named(directions):
    """{file name without its ending: the direction} of files, or of names in a server's folder."""
    names = {}
    for each in directions:
        name = re.split(r"[/\\\\]", str(each))[-1].rpartition(".")[0] or str(each)
        if name.casefold() in (known.casefold() for known in names):
            raise ValueError(f"--direction: two files are called {name}, which names them in the table. Rename one.")
        names[name] = each
    return names

"""What guidance costs: guided against unguided forward passes of FLUX.1, measured on the host with the pack loaded.

    python benchmarks/overhead.py [--repeats N] [--json FILE]
    python benchmarks/overhead.py --families     every family at its real width, few blocks; those named after it alone
    python benchmarks/overhead.py --growth       time added per step by depth, batch and number of distinct weights
    python benchmarks/overhead.py --telling      time that telling what was done adds to a sampling

--families and --growth also say how much of a guided step passes on the host's side, outside the model's own forward.

Without a GPU: FLUX width (hidden 3072), 1 double + 3 single blocks, 1024 image + 128 text tokens, fp32. With one: the full
19 + 38 blocks, 1024 px (4096 + 512 tokens), bf16. Random weights. Each round runs the variants one after the other in one
process, so that a change of the machine's speed meets all of them; the ratios are medians over rounds of times in the same
round. "paper's way" is the unguided model with its time-text embedder run three times a step and the y of each block chosen
beforehand, as the paper's code does. Eager and through the host's TorchCompileModel.
"""

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PACK))

from benchmarks.in_process import load_host, node
from benchmarks.overhead_families import SIZED, build, variants
from tools.dimensions import FLUX1
from tools.files import write_whole
from tools.gpu import has_gpu
from tools.host import ensure_host, run_under


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, help="rounds (default 5 on a CPU, 20 on a GPU)")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--families", nargs="*", metavar="NAME", choices=[*SIZED], help="time every family, or these")
    parser.add_argument("--growth", action="store_true", help="time what guidance adds, by depth, batch and distinct weights")
    parser.add_argument("--telling", action="store_true", help="time what telling after the run adds to a sampling")
    options = parser.parse_args()
    if "COMFYUI_PYTHON" not in os.environ:
        run_under(ensure_host(), [__file__, *sys.argv[1:]])
    load_host()
    named = partial(families, names=options.families or SIZED)
    what = named if options.families is not None else growth if options.growth else telling if options.telling else measure
    results = what(options.repeats)
    if options.json:
        write_whole(options.json, json.dumps(results, indent=1))


def measure(repeats):
    import torch

    gpu = has_gpu()
    size = (19, 38, 128, 512) if gpu else (1, 3, 64, 128)
    repeats = repeats or (20 if gpu else 5)
    torch.manual_seed(0)
    with torch.inference_mode():
        model, inputs = flux_model(*size, torch.bfloat16 if gpu else torch.float32)
        machine = gpu_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
        print(f"FLUX.1 width, {size[0]} + {size[1]} blocks, {size[2] ** 2 // 4} + {size[3]} tokens; {machine}; torch {torch.__version__}")
        results = {"machine": machine, "torch": torch.__version__, "blocks": size[:2], "repeats": repeats}
        results["eager"] = compare(model, inputs, repeats)
        results["extra_peak_memory_bytes"] = extra_memory(model, inputs)
        if results["extra_peak_memory_bytes"] is not None:
            print(f"extra peak memory: {results['extra_peak_memory_bytes'] / 2**20:.3f} MiB")
        model = compiled(model)
        results["dynamo"] = dynamo(model, inputs)
        results["compiled"] = compare(model, inputs, repeats)
    return results


def families(repeats, names):
    """Ratios of these families, eager, default settings; see overhead_families.py."""
    import torch

    results = {}
    with torch.inference_mode():
        for name in names:
            sized = SIZED[name]
            torch.manual_seed(0)
            model, inputs = build(sized)
            print(name)
            guide = partial(variants, inputs=inputs, sized=sized, schedule=from_layer(0))
            guided_ones = guide(model)
            results[name] = timed_rounds({"unguided": model, **guided_ones, "unguided again": model}, inputs, repeats or 7)
            for variant, outside in outside_the_model(model, inputs, guide, repeats or 7).items():
                results[name][variant]["outside_ms"] = outside
                print(f"  {variant:18} {outside:10.2f} ms of it outside the model", flush=True)
            del model, guided_ones, guide
    return results


def growth(repeats):
    """Milliseconds that guidance adds to a step, on FLUX.1 with blocks so small (hidden 128) that it shows.

    On a GPU nearly all of it is launched while the GPU still works on earlier blocks; on a CPU it is what a step takes longer.
    """
    import torch

    results = {}
    with torch.inference_mode():
        for blocks in ((3, 6), (6, 12), (19, 38)):
            for batch in (1, 2, 8):
                depth = sum(blocks)
                model, inputs = flux_model(*blocks, 4, 8, torch.float32, hidden=128, batch=batch)
                own = ", ".join(f"{layer}: {1 + layer / 100}" for layer in range(depth))
                schedules = {1: from_layer(0), 2: from_layer(1), depth: node("GuidanceLayerScheduleText", layers=own, final_layer=0.0)[0]}
                for weights, schedule in schedules.items():
                    variants = {"unguided": model, "guided": guided(model, schedule=schedule)}
                    seconds = {name: [] for name in variants}
                    for _ in range(repeats or 60):
                        for name, variant in variants.items():
                            seconds[name].append(timed(variant, inputs))
                    added = statistics.median(a - b for a, b in zip(seconds["guided"], seconds["unguided"])) * 1000
                    outside = outside_the_model(
                        model, inputs, lambda model, schedule=schedule: {"guided": guided(model, schedule=schedule)}, repeats or 60
                    )["guided"]
                    results[f"{depth} layers, batch {batch}, {weights} distinct weights"] = {"added_ms": added, "outside_ms": outside}
                    print(
                        f"  {depth:3} layers, batch {batch}, {weights:3} distinct weights: + {added:.3f} ms, "
                        f"of a guided step outside the model: {outside:.3f} ms",
                        flush=True,
                    )
    return results


def telling(repeats):
    """Milliseconds of CPU time a step that telling adds to guided samplings of 20 steps: with a teller against without, pair by pair.

    On FLUX.1's 57 layers with blocks so small (hidden 128) that it shows.
    """
    import comfy.sample
    import torch

    torch.manual_seed(0)
    steps = 20
    with torch.inference_mode():
        model, inputs = flux_model(19, 38, 4, 8, torch.float32, hidden=128)
        told = guided(model, w=0.2, schedule=from_layer(5))
        untold = told.clone()
        options = untold.model_options["transformer_options"]
        options |= {key: tuple(replace(value, teller=None) for value in values) for key, values in options.items() if has_teller(values)}
        prompt = [[inputs["c_crossattn"], {"pooled_output": inputs["y"]}]]
        noise = torch.randn(inputs["x"].shape)

        def seconds(variant):
            started = time.process_time()  # what else the machine does is not in it
            comfy.sample.sample(variant, noise, steps, 1.0, "euler", "simple", prompt, prompt, torch.zeros_like(noise), disable_pbar=True)
            return time.process_time() - started

        seconds(told), seconds(untold)
        pairs = []
        for number in range(repeats or 40):
            first, second = (told, untold) if number % 2 else (untold, told)
            one, other = seconds(first), seconds(second)
            pairs.append((one - other if number % 2 else other - one) * 1000 / steps)
        whole = statistics.median(seconds(untold) for _ in range(5)) * 1000 / steps
    low, middle, high = statistics.quantiles(pairs, n=4)
    print(
        f"a guided step takes {whole:.2f} ms; telling adds {middle:+.4f} ms to it (quartiles {low:+.4f} to {high:+.4f}, {len(pairs)} pairs)"
    )
    return {"step_ms": whole, "added_ms": pairs}


def has_teller(values):
    return isinstance(values, tuple) and all(hasattr(value, "teller") for value in values)


def outside_the_model(model, inputs, guide, repeats):
    """Of each variant that `guide` makes of a model, the milliseconds by which more of a call passes outside the diffusion model's own
    forward than without guidance: all that guidance does on the host's side but for its part in the blocks. Medians."""
    diffusion_model, marks = model.model.diffusion_model, []
    own_forward = diffusion_model.forward

    def marked(*args, **kwargs):
        marks.append(time.perf_counter())
        result = own_forward(*args, **kwargs)
        marks.append(time.perf_counter())
        return result

    made = {"unguided": model, **guide(model)}
    seconds = {name: [] for name in made}
    diffusion_model.forward = marked
    try:
        for variant in made.values():
            forward(variant, inputs)  # what is made once per prompt is known from here on
        for _ in range(repeats):
            for name, variant in made.items():
                marks.clear()
                start = time.perf_counter()
                forward(variant, inputs)
                within, within_end = marks
                seconds[name].append(within - start + time.perf_counter() - within_end)
    finally:
        del diffusion_model.forward
    unguided = statistics.median(seconds.pop("unguided"))
    return {name: (statistics.median(values) - unguided) * 1000 for name, values in seconds.items()}


def from_layer(start):
    return node("GuidanceLayerSchedule", start_layer=start, end_layer=-1, taper_layers=0, taper_scale=0.25, final_layer=0.0)[0]


def gpu_name():
    import comfy.model_management

    return comfy.model_management.get_torch_device_name(comfy.model_management.get_torch_device())


def flux_model(double, single, latent_size, text_tokens, dtype, hidden=3072, batch=1):
    """A FLUX.1 schnell of real width with random weights, and the arguments of apply_model."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    config = comfy.supported_models.FluxSchnell(
        FLUX1
        | dict(
            image_model="flux",
            vec_in_dim=768,
            context_in_dim=4096,
            hidden_size=hidden,
            num_heads=hidden // 128,
            depth=double,
            depth_single_blocks=single,
        )
    )
    config.set_inference_dtype(dtype, None)
    device = comfy.model_management.get_torch_device()
    model = config.get_model({}, device=device)
    for parameter in model.diffusion_model.parameters():
        parameter.normal_(0, 0.02)
    patcher = comfy.model_patcher.ModelPatcher(model, device, device)
    inputs = dict(
        x=torch.randn(batch, 16, latent_size, latent_size, device=device),
        t=torch.full((batch,), 0.7, device=device),
        c_crossattn=torch.randn(batch, text_tokens, 4096, device=device),
        y=torch.randn(batch, 768, device=device),
    )
    return patcher, inputs


def guided(model, w=3.0, schedule=None, seed=1, keep_norm=False):
    import torch

    generator = torch.Generator().manual_seed(seed)
    sides = [[[torch.zeros(1, 1, 4096), {"pooled_output": torch.randn(1, 768, generator=generator)}]] for _ in range(2)]
    pair = node("GuidanceDirectionFromConditioning", positive=sides[0], negative=sides[1])[0]
    return node("ApplyModulationGuidance", model=model, direction=pair, w=w, keep_norm=keep_norm, schedule=schedule)[0]


def papers_way(model):
    """y, y(p+) and y(p-) from three runs of the time-text embedder, outside; the guided y then costs a block nothing."""
    import torch
    from comfy.ldm.flux.layers import timestep_embedding
    from comfy.patcher_extension import WrappersMP

    def three_embeddings(executor, x, t, *args, **kwargs):
        diffusion_model = executor.class_obj.diffusion_model
        diffusion_model = getattr(diffusion_model, "_orig_mod", diffusion_model)
        dtype = executor.class_obj.get_dtype_inference()
        y, wanted, unwanted = (
            diffusion_model.time_in(timestep_embedding(t, 256).to(dtype)) + diffusion_model.vector_in(pooled)
            for pooled in torch.randn(3, 1, 768, device=x.device, dtype=dtype)
        )
        torch.add(y, wanted - unwanted, alpha=3.0)
        return executor(x, t, *args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "papers_way", three_embeddings)
    return model


def compiled(model):
    import nodes

    return nodes.NODE_CLASS_MAPPINGS["TorchCompileModel"].execute(model, "inductor").args[0]


def forward(model, inputs):
    """One call of the model as the sampler makes it."""
    import comfy.patcher_extension

    options = comfy.patcher_extension.copy_nested_dicts(model.model_options["transformer_options"])
    comfy.patcher_extension.merge_nested_dicts(options.setdefault("wrappers", {}), model.wrappers, copy_dict1=False)
    options |= {"cond_or_uncond": [0], "sigmas": inputs["t"]}
    return model.model.apply_model(**inputs, transformer_options=options)


def timed(model, inputs):
    """Seconds of one forward. On a GPU the mean of 4 back to back, as a sampler runs them: the GPU works behind the host."""
    import torch

    gpu = has_gpu()
    steps = 4 if gpu else 1
    started = time.perf_counter()
    for _ in range(steps):
        forward(model, inputs)
    if gpu:
        torch.accelerator.synchronize()
    return (time.perf_counter() - started) / steps


def compare(model, inputs, repeats):
    """Guided, with the norm kept, and the paper's way, against the unguided model."""
    print("compiled" if "torch_compile_kwargs" in model.model_options else "eager")
    start = from_layer(min(5, len(model.model.diffusion_model.double_blocks)))
    return timed_rounds(
        {
            "unguided": model,
            "guided": guided(model, schedule=start),
            "guided, norm kept": guided(model, schedule=start, keep_norm=True),
            "paper's way": papers_way(model),
            "unguided again": model,
        },
        inputs,
        repeats,
    )


def timed_rounds(variants, inputs, repeats):
    """Medians of seconds and of ratios to the mean of both unguided runs of the same round; theirs show the noise."""
    for variant in variants.values():
        timed(variant, inputs)
    rounds = {name: [] for name in variants}
    for i in range(repeats):
        # Turned round each time, so that no variant always follows the same one.
        for name in list(variants)[i % len(variants) :] + list(variants)[: i % len(variants)]:
            rounds[name].append(timed(variants[name], inputs))
    plain = [(a + b) / 2 for a, b in zip(rounds["unguided"], rounds["unguided again"])]
    ratios = {name: [a / b for a, b in zip(rounds[name], plain)] for name in variants}
    table = {
        name: {"seconds": statistics.median(rounds[name]), "ratio": statistics.median(ratios[name]), "ratios": ratios[name]}
        for name in variants
    }
    for name, row in table.items():
        low, _, high = statistics.quantiles(row["ratios"], n=4)
        print(f"  {name:18} {row['seconds'] * 1000:10.2f} ms   x {row['ratio']:.4f}  (quartiles {low:.4f} to {high:.4f})", flush=True)
    return table


def extra_memory(model, inputs):
    """Peak bytes allocated by a guided call beyond those of an unguided one; None on a GPU that keeps no such count."""
    import torch

    if has_gpu() and not torch.cuda.is_available():
        return None
    return peak(guided(model, schedule=from_layer(1)), inputs) - peak(model, inputs)


def peak(model, inputs):
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        forward(model, inputs)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        forward(model, inputs)
    changes = (event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")
    now = highest = 0
    for change in changes:
        now += change
        highest = max(highest, now)
    return highest


def dynamo(model, inputs):
    """Graph breaks and graphs of the plain model, of the guided, and after every knob has been turned."""
    from torch._dynamo.utils import counters

    def count(*models):
        for variant in models:
            forward(variant, inputs)
        return {"graph_breaks": sum(counters["graph_break"].values()), "graphs": counters["stats"]["unique_graphs"]}

    counters.clear()
    results = {
        "unguided": count(model),
        "and guided": count(guided(model, schedule=from_layer(1))),
        "after w, start layer, direction, on and off": count(
            guided(model, w=-1.0, schedule=from_layer(1)),
            guided(model, schedule=from_layer(2)),
            model,
            guided(model, schedule=from_layer(0), seed=7),
            model,
        ),
    }
    for name, row in results.items():
        print(f"  {name:45} graph breaks {row['graph_breaks']}, graphs {row['graphs']}", flush=True)
    return results


if __name__ == "__main__":
    main()

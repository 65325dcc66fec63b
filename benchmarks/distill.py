"""How fast distilling is: rows per second and peak memory, against a plain loop that asks teacher and student at every step.

    python benchmarks/distill.py [--width 512 --blocks 8 ...]

A Wan 2.1 text-to-video model with random weights, still pictures, prompts of 512 random tokens. Both loops are the distillation's own, on
one model in one process, in turns; the plain one keeps none of the teacher's predictions. The first pass over the data, in which the
teacher answers for the first time, is not timed. Prints JSON.
"""

import argparse
import importlib
import json
import os
import platform
import statistics
import sys
import time
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.in_process import load_host  # noqa: E402
from tools.gpu import has_gpu  # noqa: E402
from tools.host import ensure_host, run_under  # noqa: E402

PROMPTS = 8
TOKENS, TEXT_WIDTH, POOLED = 512, 4096, 768


class RandomText:
    """In place of a text encoder, whose time is none of this: random tokens and pooled output for each text."""

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, text):
        import torch

        draw = torch.Generator().manual_seed(sum(map(ord, text)))
        return [[torch.randn(1, TOKENS, TEXT_WIDTH, generator=draw), {"pooled_output": torch.randn(1, POOLED, generator=draw)}]]


def wan(width: int, blocks: int, dtype):
    import comfy.ops
    import comfy.sd
    import torch
    from comfy.ldm.wan.model import WanModel

    model = WanModel(
        model_type="t2v", dim=width, ffn_dim=round(width * 35 / 6), num_heads=width // 128, num_layers=blocks, text_dim=TEXT_WIDTH,
        dtype=dtype, operations=comfy.ops.disable_weight_init,
    )
    state = {name: torch.randn(tensor.shape, dtype=dtype) / tensor[0].numel() ** 0.5 for name, tensor in model.state_dict().items()}
    return comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": dtype})


class Memory:
    """Peak of an Nvidia or AMD device's memory since the last reset, in MiB; elsewhere that of the process (Linux)."""

    def __init__(self, device):
        self.cuda = device.type == "cuda"

    def reset(self):
        import torch

        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> float:
        import torch

        if self.cuda:
            return torch.cuda.max_memory_allocated() / 2**20
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) / 1024


def timed(action, device) -> float:
    import torch

    started = time.perf_counter()
    action()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - started


def measure(options) -> dict:
    load_host()
    import comfy.model_management
    import nodes
    import torch

    pack = nodes.NODE_CLASS_MAPPINGS["DistillPooledProjection"].__module__.rpartition(".nodes.")[0]
    distillation = importlib.import_module(f"{pack}.training.projection")
    if options.threads:
        torch.set_num_threads(options.threads)
    dtype = torch.bfloat16 if has_gpu() else torch.float32
    model = wan(options.width, options.blocks, dtype)
    device, memory = model.load_device, Memory(model.load_device)
    batches = PROMPTS // options.batch_size

    def training(cache):
        settings = distillation.ProjectionSettings(
            steps=10**6, batch_size=options.batch_size, learning_rate=1e-4, width=options.size, height=options.size, seed=0, pooling="clip",
            injection="time embedding", checkpointing=options.checkpointing, data="noise", samples_per_prompt=1, pairs=1, cache=cache,
        )
        made = distillation.Distillation(model, RandomText(), [f"prompt {number}" for number in range(PROMPTS)], settings)
        made.prepare()
        return made

    ours, plain = training(4 << 30), training(0)
    seconds, peaks = {"plain": [], "ours": []}, {"plain": [], "ours": []}
    parts = {"teacher": []}
    for loop in (ours, plain):
        with loop.running():
            for _ in range(batches):
                loop.take_step()
    for turn in range(options.rounds):
        for name, loop in (("plain", plain), ("ours", ours))[:: -1 if turn % 2 else 1]:
            with loop.running():
                memory.reset()
                seconds[name].append(timed(lambda: [loop.take_step() for _ in range(batches)], device) / batches)
                peaks[name].append(memory.peak())
        with plain.running():
            batch = plain.course.lessons[0]
            parts["teacher"].append(timed(lambda: plain.teaching.teacher(plain.course, batch), device))
    median = {name: statistics.median(values) for name, values in (seconds | parts).items()}
    # All that is saved is the teacher's pass, so this is the most there is to win.
    bound = (median["ours"] + median["teacher"]) / median["ours"]
    ratios = sorted(slow / fast for slow, fast in zip(seconds["plain"], seconds["ours"], strict=True))
    return {
        "date": date.today().isoformat(),
        "hardware": comfy.model_management.get_torch_device_name(device) if has_gpu() else f"{os.cpu_count()} CPU cores ({platform.machine()})",
        "torch": torch.__version__, "dtype": str(dtype), **vars(options),
        "rows per second": {name: round(options.batch_size / median[name], 3) for name in seconds},
        "peak MiB": {name: round(max(values)) for name, values in peaks.items()},
        "speed-up": {"median": round(statistics.median(ratios), 3), "lowest": round(ratios[0], 3), "highest": round(ratios[-1], 3)},
        "bound": round(bound, 3),
        "seconds a batch": {name: round(value, 4) for name, value in median.items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512, help="of the model, a multiple of 128 (Wan 1.3B: 1536)")
    parser.add_argument("--blocks", type=int, default=8, help="(Wan 1.3B: 30)")
    parser.add_argument("--size", type=int, default=512, help="of the pictures, in pixels")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--threads", type=int, help="torch's threads (default: one a core)")
    options = parser.parse_args()
    if "COMFYUI_PYTHON" not in os.environ:
        run_under(ensure_host(), [__file__, *sys.argv[1:]])
    print(json.dumps(measure(options), indent=1))


if __name__ == "__main__":
    main()

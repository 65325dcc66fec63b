"""How fast distilling is: rows per second and peak memory, against a plain loop that asks teacher and student at every step.

    python benchmarks/distill.py [--width 512 --blocks 8 ...]
    python benchmarks/distill.py --memory [--weights bf16 ...]     what a direction's step takes, against a LoRA's by the host's Train LoRA

A Wan 2.1 text-to-video model with random weights, still pictures, prompts of 512 random tokens. Both loops are the distillation's own, on
one model in one process, in turns; the plain one keeps none of the teacher's predictions. The first pass over the data, in which the
teacher answers for the first time, is not timed. With --memory each step has a process of its own. Prints JSON.
"""

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.in_process import load_host
from tools.gpu import has_gpu
from tools.host import ensure_host, run_under

PROMPTS = 8
TOKENS, TEXT_WIDTH, POOLED = 512, 4096, 768
WEIGHTS = {"fp32": "float32", "bf16": "bfloat16", "fp8": "float8_e4m3fn"}
STEPS = 3
FOLDER = tempfile.TemporaryDirectory()  # of the model: the host's own trainer reads its file again


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
    from safetensors.torch import save_file

    model = WanModel(
        model_type="t2v",
        dim=width,
        ffn_dim=round(width * 35 / 6),
        num_heads=width // 128,
        num_layers=blocks,
        text_dim=TEXT_WIDTH,
        dtype=dtype,
        operations=comfy.ops.disable_weight_init,
    )
    state = {name: (torch.randn(tensor.shape) / tensor[0].numel() ** 0.5).to(dtype) for name, tensor in model.state_dict().items()}
    path = Path(FOLDER.name) / "wan.safetensors"
    save_file(state, path)
    return comfy.sd.load_diffusion_model(str(path), model_options={"dtype": dtype})


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

        return torch.cuda.max_memory_allocated() / 2**20 if self.cuda else self._status("VmHWM")

    def now(self) -> float:
        import torch

        return torch.cuda.memory_allocated() / 2**20 if self.cuda else self._status("VmRSS")

    def _status(self, name: str) -> float:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status[name].split()[0]) / 1024


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
    import torch

    import nodes

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
            steps=10**6,
            batch_size=options.batch_size,
            learning_rate=1e-4,
            width=options.size,
            height=options.size,
            seed=0,
            pooling="clip",
            injection="time embedding",
            checkpointing=options.checkpointing,
            data="noise",
            samples_per_prompt=1,
            pairs=1,
            cache=cache,
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
        "hardware": comfy.model_management.get_torch_device_name(device)
        if has_gpu()
        else f"{os.cpu_count()} CPU cores ({platform.machine()})",
        "torch": torch.__version__,
        "dtype": str(dtype),
        **vars(options),
        "rows per second": {name: round(options.batch_size / median[name], 3) for name in seconds},
        "peak MiB": {name: round(max(values)) for name, values in peaks.items()},
        "speed-up": {"median": round(statistics.median(ratios), 3), "lowest": round(ratios[0], 3), "highest": round(ratios[-1], 3)},
        "bound": round(bound, 3),
        "seconds a batch": {name: round(value, 4) for name, value in median.items()},
    }


def measure_memory(options) -> dict:
    """Peaks of the steps, each in a process of its own, above the loaded model's memory."""
    command = [sys.executable, __file__, *sys.argv[1:], "--step"]
    answers = {kind: subprocess.run([*command, kind], check=True, stdout=subprocess.PIPE).stdout for kind in ("direction", "lora")}
    steps = {kind: json.loads(answer) for kind, answer in answers.items()}
    peaks = {kind: step.pop("peak MiB") for kind, step in steps.items()}
    return steps["lora"] | {"peak MiB": peaks, "of the LoRA's": round(peaks["direction"] / peaks["lora"], 3)}


def measure_step(options) -> dict:
    load_host()
    import torch

    import nodes

    if options.threads:
        torch.set_num_threads(options.threads)
    model = wan(options.width, options.blocks, getattr(torch, WEIGHTS[options.weights]))
    memory, weights = Memory(model.load_device), model.model_size() / 2**20
    precision = "fp32" if options.weights == "fp32" else "bf16"
    if options.step == "direction":
        pack = nodes.NODE_CLASS_MAPPINGS["DistillPooledProjection"].__module__.rpartition(".nodes.")[0]
        settings = importlib.import_module(f"{pack}.training.settings").Settings(
            steps=STEPS,
            batch_size=options.batch_size,
            learning_rate=5e-3,
            width=options.size,
            height=options.size,
            seed=0,
            checkpointing=options.checkpointing,
            data="noise",
            samples_per_prompt=1,
            pairs=1,
            precision=precision,
        )
        prompts = [f"prompt {number}" for number in range(PROMPTS)]
        course = importlib.import_module(f"{pack}.training.direction").DirectionTraining
        training = course(model, RandomText(), prompts, "more", "less", settings)
        training.prepare()
        with torch.inference_mode(False):
            before, copied = memory.now(), 0.0
            memory.reset()
            with training.running():
                for _ in range(STEPS):
                    training.take_step()
    else:
        latents = {"samples": torch.zeros(options.batch_size, 16, 1, options.size // 8, options.size // 8)}
        positive = RandomText().encode_from_tokens_scheduled("prompt")
        settings = dict(
            batch_size=options.batch_size,
            steps=STEPS,
            grad_accumulation_steps=1,
            learning_rate=1e-4,
            rank=options.rank,
            optimizer="AdamW",
            loss_function="MSE",
            seed=0,
            training_dtype=precision,
            lora_dtype=precision,
            quantized_backward=False,
            algorithm="LoRA",
            gradient_checkpointing=options.checkpointing,
            checkpoint_depth=1,
            offloading=False,
            existing_lora="[None]",
            bucket_mode=False,
            bypass_mode=options.weights == "fp8",  # the host's way for weights that cannot be added to
        )
        # The node trains a copy of the model: on a CPU both stay in memory, on a GPU the first one leaves it.
        before, copied = memory.now(), weights
        memory.reset()
        train = nodes.NODE_CLASS_MAPPINGS["TrainLoraNode"].execute
        train(model=[model], latents=[latents], positive=[positive], **{name: [value] for name, value in settings.items()})
    return {
        "date": date.today().isoformat(),
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores ({platform.machine()})",
        "torch": torch.__version__,
        "precision": precision,
        **{name: getattr(options, name) for name in ("width", "blocks", "size", "batch_size", "checkpointing", "weights", "rank")},
        "weights MiB": round(weights),
        "peak MiB": round(memory.peak() - before - copied),
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
    parser.add_argument("--memory", action="store_true", help="the peak memory of a direction's step and of a LoRA's instead")
    parser.add_argument("--weights", choices=WEIGHTS, default="bf16", help="what the model's weights are kept in, with --memory")
    parser.add_argument("--rank", type=int, default=8, help="of the LoRA, with --memory (default: the host's, 8)")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if "COMFYUI_PYTHON" not in os.environ:
        run_under(ensure_host(), [__file__, *sys.argv[1:]])
    print(json.dumps((measure_step if options.step else measure_memory if options.memory else measure)(options), indent=1))


if __name__ == "__main__":
    main()

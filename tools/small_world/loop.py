"""The training loop all three models share: AdamW and Muon, warm-up and cosine, EMA, checkpoints, a record, a loss curve.

Every random number of a step comes from a generator seeded by (seed, step), so a run that was cut and resumed takes
exactly the steps of one that was not.
"""

import copy
import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from tools.files import write_whole
from tools.gpu import has_gpu

from .models import HIDDEN_LAYERS


@dataclass(frozen=True)
class Settings:
    """One stage's training. steps and batch set the cost; scenes is how many distinct pictures are drawn."""

    steps: int
    batch: int
    learning_rate: float
    scenes: int
    warmup: int = 200
    ema: float = 0.999
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    easy_steps: int = 0  # the first ones, on the scenes with one object and a short caption alone
    muon: bool = False  # the hidden layers' matrices by Muon, the rest by AdamW; without, all by AdamW


class Muon(torch.optim.Muon):
    """torch's Muon, for channels-last convolutions too: a kernel counts as a matrix with a row for each output channel.

    Its steps have the size of AdamW's, so that one learning rate does for both.
    """

    def __init__(self, parameters: list[nn.Parameter], **settings):
        self.kernels = parameters
        super().__init__([nn.Parameter(self.rows(kernel.data)) for kernel in parameters], adjust_lr_fn="match_rms_adamw", **settings)

    @staticmethod
    def rows(kernel: torch.Tensor) -> torch.Tensor:
        """(outputs, everything else): a view, so that a step on it is one on the kernel."""
        return kernel.movedim(1, -1).view(len(kernel), -1)

    def step(self, closure=None):
        for matrix, kernel in zip(self.param_groups[0]["params"], self.kernels):
            matrix.grad = kernel.grad.movedim(1, -1).reshape(matrix.shape)
        return super().step(closure)


def optimizers_of(model: nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters, or with settings.muon Muon for the hidden layers' weights and AdamW for the others."""
    hidden = {
        name: parameter
        for name, parameter in model.named_parameters()
        if settings.muon and parameter.requires_grad and parameter.ndim > 1 and name.startswith(HIDDEN_LAYERS) and name.endswith(".weight")
    }
    others = [parameter for name, parameter in model.named_parameters() if name not in hidden]
    optimizers = [torch.optim.AdamW(others, lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=settings.weight_decay, fused=True)]
    if hidden:
        optimizers.append(Muon(list(hidden.values()), lr=settings.learning_rate, weight_decay=settings.weight_decay))
    return optimizers


def rate(settings: Settings, step: int) -> float:
    """Learning rate: linear warm-up, then a cosine to zero."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def hardware(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores ({platform.machine()})"


def fit(
    name: str,
    model: nn.Module,
    loss_of: Callable[[nn.Module, torch.Generator, int], torch.Tensor],
    settings: Settings,
    work: Path,
    bf16: bool = False,
    checkpoint_every: int = 500,
    stop_at: int | None = None,
) -> nn.Module:
    """Train `model` in place and return its exponential moving average.

    loss_of(model, generator, step) draws a batch and gives its loss. Checkpoints go to `work`; a checkpoint of the same
    settings found there is resumed. `stop_at` leaves the run early, as an interruption would. With `bf16` the
    forward pass runs in autocast.
    """
    accelerator = Accelerator(cpu=not has_gpu())
    device = accelerator.device
    model = accelerator.prepare(model)
    optimizers = optimizers_of(model, settings)
    average = copy.deepcopy(model).requires_grad_(False)
    losses: list[float] = []
    seconds = 0.0
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / f"{name}.checkpoint"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["settings"] != asdict(settings):
            raise ValueError(f"{checkpoint} was made with other settings; remove it to start over")
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        losses, seconds = state["losses"], state["seconds"]

    generator = torch.Generator(device)
    pending: list[torch.Tensor] = []
    started = time.time() - seconds
    flushed, pace = time.time(), 0.0
    bar = tqdm(range(len(losses), settings.steps), initial=len(losses), total=settings.steps, desc=name, mininterval=5)
    for step in bar:
        if step == stop_at:
            break
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate(settings, step)
        generator.manual_seed(settings.seed * 1_000_003 + step)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = loss_of(model, generator, step)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), settings.clip)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            decay = min(settings.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        pending.append(loss.detach())
        last = step + 1 == settings.steps
        if len(pending) == 50 or last or step + 1 == stop_at or (step + 1) % checkpoint_every == 0:
            losses += torch.stack(pending).tolist()
            pace, flushed = (time.time() - flushed) / len(pending), time.time()
            pending.clear()
            bar.set_postfix(loss=f"{sum(losses[-100:]) / len(losses[-100:]):.4f}")
        if (step + 1) % checkpoint_every == 0 or last:
            state = {
                "settings": asdict(settings),
                "model": model.state_dict(),
                "average": average.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "losses": losses,
                "seconds": time.time() - started,
                "pace": pace,
            }
            write_whole(checkpoint, lambda path: torch.save(state, path))
    return average


def write_record(name: str, settings: Settings, work: Path, out: Path, **facts) -> None:
    """`out`/`name`.json (settings, seed, loss, date, hardware) and `out`/`name`_loss.png, from the last checkpoint."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    state = torch.load(work / f"{name}.checkpoint", map_location="cpu", weights_only=True)
    losses = torch.tensor(state["losses"])
    width = max(1, len(losses) // 200)
    curve = losses[: len(losses) // width * width].view(-1, width).mean(1)
    record = {
        "model": name,
        "settings": asdict(settings),
        "seed": settings.seed,
        "date": date.today().isoformat(),
        "hardware": hardware(Accelerator(cpu=not has_gpu()).device),
        "torch": torch.__version__,
        "seconds": round(state["seconds"]),
        "milliseconds_per_step": round(state["pace"] * 1000, 2),
        "final_loss": round(losses[-max(1, len(losses) // 20) :].mean().item(), 5),
        "loss_every": width,
        "loss": [round(value, 5) for value in curve.tolist()],
        **facts,
    }
    write_whole(out / f"{name}.json", lambda path: path.write_text(json.dumps(record, indent=1) + "\n"))

    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    axes.plot(torch.arange(len(curve)) * width, curve)
    axes.set(xlabel="step", ylabel="loss", yscale="log", title=f"{name}: {len(losses)} steps, batch {settings.batch}")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(out / f"{name}_loss.png", dpi=100)
    pyplot.close(figure)

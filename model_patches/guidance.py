"""Modulation guidance: y_hat = y + w (y(p+) - y(p-)), layer by layer.

"Rethinking Global Text Conditioning in Diffusion Transformers", Starodubcev et al., ICLR 2026, equation 3 and section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import comfy.model_management
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from .directions import GuidanceDirection, PromptPair
from .families import Family, family_of
from .injection import Shift, shifted_modulation, uncompiled
from .schedules import LayerSchedule

# One constant key: a wrapper key of its own per node would give torch.compile a new frame per node.
KEY = "modulation_guidance"

CFG_ROWS = ("both", "cond", "opposed")


@dataclass(frozen=True)
class Guidance:
    """One guidance on one model.

    layer_weights: one unitless weight per layer; head_weight the same for the output head; both multiply w.
    cfg_rows: "both" guides every row, "cond" the conditional rows only, "opposed" the unconditional rows with -w.
    keep_norm: rescale the guided y to the norm of the plain y, per row.
    start_percent, end_percent: the part of sampling that is guided, 0 the start, 1 the end.
    """

    direction: GuidanceDirection
    w: float
    layer_weights: tuple[float, ...]
    head_weight: float
    cfg_rows: str
    keep_norm: bool
    start_percent: float
    end_percent: float

    def active_at(self, sigma: Tensor, model_sampling) -> bool:
        """Whether this guidance acts on a step at noise level sigma (B,)."""
        if self.w == 0:
            return False
        if self.start_percent == 0 and self.end_percent == 1:
            return True  # spares reading sigma back from the device
        first, last = (model_sampling.percent_to_sigma(p) for p in (self.start_percent, self.end_percent))
        sigma = sigma.max()
        # Compared as tensors, in the precision of sigma, as the host does: a step right on the edge belongs to the window.
        return bool((last <= sigma) & (sigma <= first))

    def signs(self, cond_or_uncond: list[int]) -> list[int]:
        """The sign of w for each chunk of the batch; 0 is conditional in `cond_or_uncond`."""
        unconditional = {"both": 1, "cond": 0, "opposed": -1}[self.cfg_rows]
        return [1 if chunk == 0 else unconditional for chunk in cond_or_uncond]


def guide(
    model,
    direction: GuidanceDirection,
    w: float,
    schedule: LayerSchedule | None = None,
    cfg_rows: str = "auto",
    keep_norm: bool = False,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
):
    """A clone of the ModelPatcher `model` with one more guidance on it.

    schedule None and cfg_rows "auto" take what the reference implementation does for the model's family.
    Raises ValueError for a model, direction, schedule or number that cannot work, with what to do about it.
    """
    check_percents(start_percent, end_percent)
    if not math.isfinite(w):
        raise ValueError(f"Modulation guidance: w is {w}; it must be a finite number.")
    if cfg_rows not in ("auto", *CFG_ROWS):
        raise ValueError(f"Modulation guidance: cfg_rows is {cfg_rows!r}; choose auto, {', '.join(CFG_ROWS)}.")
    diffusion_model = uncompiled(model.get_model_object("diffusion_model"))
    family = family_of(diffusion_model, type(model.model).__name__)
    _check_pooled(direction, family, diffusion_model)
    depth = len(family.blocks(diffusion_model))
    schedule = schedule or family.default_schedule(depth)
    layer_weights = schedule.resolve(depth)
    if not all(map(math.isfinite, (*layer_weights, schedule.final_layer))):
        raise ValueError("Layer schedule: it holds a weight that is not a finite number; look at taper_scale, final_layer or the curve.")
    guidance = Guidance(
        direction=direction,
        w=w,
        layer_weights=layer_weights,
        head_weight=schedule.final_layer,
        cfg_rows=family.cfg_rows if cfg_rows == "auto" else cfg_rows,
        keep_norm=keep_norm,
        start_percent=start_percent,
        end_percent=end_percent,
    )
    model = model.clone()
    options = model.model_options["transformer_options"]
    options[KEY] = (*options.get(KEY, ()), guidance)
    if not model.get_wrappers(WrappersMP.APPLY_MODEL, KEY):
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _guided_call)
    return model


def check_percents(start_percent: float, end_percent: float) -> None:
    """Raises ValueError unless 0 <= start_percent <= end_percent <= 1."""
    for name, value in (("start_percent", start_percent), ("end_percent", end_percent)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; it must lie between 0 (start of sampling) and 1 (end).")
    if start_percent > end_percent:
        raise ValueError(
            f"start_percent {start_percent} is past end_percent {end_percent}; lower start_percent or raise end_percent."
        )


def _check_pooled(direction: GuidanceDirection, family: Family, diffusion_model: nn.Module) -> None:
    needed = family.pooled_width(diffusion_model)
    for prompt in (prompt for pair in direction.pairs for prompt in (pair.positive, pair.negative)):
        if prompt.pooled is None:
            raise ValueError(
                f"The guidance direction has no pooled output, which guiding {family.name} needs. "
                f"Encode it with the text encoder the model uses: {family.encoder}."
            )
        if prompt.pooled.shape[-1] < needed:
            raise ValueError(
                f"The guidance direction's pooled output is {prompt.pooled.shape[-1]} wide, but this {family.name} model "
                f"reads {needed}. Encode it with the text encoder the model uses: {family.encoder}."
            )
    counts = {len(side.pooled) for pair in direction.pairs for side in (pair.positive, pair.negative)} - {1}
    if len(counts) > 1:
        raise ValueError(
            f"The guidance direction holds batches of {' and '.join(map(str, sorted(counts)))} prompts; "
            "batches in one direction must be of one size."
        )


def _guided_call(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
    """APPLY_MODEL wrapper: outside any compiled region, the only place of a call where w and layer numbers are read."""
    base_model = executor.class_obj
    chunks = transformer_options.get("cond_or_uncond", [0])
    guidances = [
        guidance for guidance in transformer_options.get(KEY, ())
        if guidance.active_at(t, base_model.model_sampling) and any(guidance.signs(chunks))
    ]
    # Taken out, so that a wrapper list merged twice by somebody does not guide twice.
    transformer_options = {name: value for name, value in transformer_options.items() if name != KEY}
    args = (x, t, c_concat, c_crossattn, control, transformer_options)
    if not guidances:
        return executor(*args, **kwargs)
    diffusion_model = uncompiled(base_model.diffusion_model)
    family = family_of(diffusion_model, type(base_model).__name__)
    shifts = _shifts(guidances, family, diffusion_model, chunks, x.shape[0], x.device, base_model.get_dtype_inference())
    with shifted_modulation(diffusion_model, shifts):
        return executor(*args, **kwargs)


def _shifts(guidances, family, diffusion_model, chunks, rows, device, dtype):
    """One (ModulationInput, Shift) per layer and one for the head; unguided ones too.

    Zeros are added where a layer is not guided, so that another schedule is other numbers for torch.compile and not another
    graph. Layers of equal weights share memory, each through a view of its own: the same tensor object on two layers would
    be a guard.
    """
    blocks = family.blocks(diffusion_model)
    for guidance in guidances:
        if len(guidance.layer_weights) != len(blocks):
            raise ValueError(
                f"Modulation guidance was applied to a model of {len(guidance.layer_weights)} layers and now runs on one of "
                f"{len(blocks)}. Apply it after the node that changes the model, and to each model of a guider on its own."
            )
    deltas = [_row_deltas(guidance, family, diffusion_model, chunks, rows, device, dtype) for guidance in guidances]
    sites = [*blocks, family.head(diffusion_model)]
    weights = zip(*((*guidance.layer_weights, guidance.head_weight) for guidance in guidances))
    distinct = {}
    for site, key in zip(sites, weights, strict=True):
        if key not in distinct:
            terms = [(weight * delta, guidance.keep_norm) for weight, delta, guidance in zip(key, deltas, guidances)]
            distinct[key] = [_summed([term for term, kept in terms if kept == norm_kept], dtype) for norm_kept in (False, True)]
        yield site, Shift(*(tensor if tensor is None else tensor.view(tensor.shape) for tensor in distinct[key]))


def _summed(terms: list[Tensor], dtype: torch.dtype) -> Tensor | None:
    return sum(terms[1:], terms[0]).to(dtype) if terms else None


def _row_deltas(guidance: Guidance, family: Family, diffusion_model, chunks, rows, device, dtype) -> Tensor:
    """sign * w * (y(p+) - y(p-)) for every row of the batch, (rows, D) in fp32."""
    terms = [
        guidance.w * pair.weight * _difference(pair, family, diffusion_model, device, dtype)
        for pair in guidance.direction.pairs
    ]
    delta = sum(terms[1:], terms[0])
    signs = guidance.signs(chunks)
    if len(delta) == 1 and len(set(signs)) == 1:
        # All rows alike: right even where another pack reorders the rows without saying so in cond_or_uncond.
        return (signs[0] * delta).repeat(rows, 1)
    per_chunk = comfy.utils.repeat_to_batch_size(delta, rows // len(chunks))
    return torch.cat([sign * per_chunk for sign in signs])


def _difference(pair: PromptPair, family: Family, diffusion_model, device, dtype) -> Tensor:
    """y(p+) - y(p-), (N, D) in fp32."""
    width = family.pooled_width(diffusion_model)  # a wider pooled output is cut to it, as the host cuts it
    pooled = torch.cat((pair.positive.pooled[:, :width], pair.negative.pooled[:, :width]))
    # A blocking copy would drain the GPU's queue at every step.
    non_blocking = comfy.model_management.device_supports_non_blocking(device)
    pooled = comfy.model_management.cast_to(pooled, dtype, device, non_blocking=non_blocking)
    toward, away = family.pooled_to_modulation(diffusion_model, pooled).float().tensor_split([len(pair.positive.pooled)])
    return toward - away

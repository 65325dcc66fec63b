"""Small text-blind models through the host's own loader, projection files as they are on disk, and method.md's equations.

The equations are evaluated in plain torch, from the tensors of the file alone, at the entrance of every block of a second load.
"""

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import comfy.ldm.anima.model
import comfy.ops
import comfy.supported_models
import torch
from comfy.ldm.anima.model import Anima
from comfy.ldm.cosmos.predict2 import MiniTrainDIT
from safetensors.torch import save_file

from benchmarks.in_process import node
from support.families.small import Small
from support.learned import Learned, registered
from tools.dimensions import COSMOS

WIDTH, CONTEXT, CLIP, HIDDEN, DEPTH = 64, 16, 24, 40, 6

DIMS = COSMOS | dict(
    crossattn_emb_channels=CONTEXT, adaln_lora_dim=16, model_channels=WIDTH, num_blocks=DEPTH, num_heads=2, rope_enable_fps_modulation=False
)
OPERATIONS = {"operations": comfy.ops.disable_weight_init}


@dataclass(frozen=True)
class Blind(Small):
    """A small text-blind model.

    sigma_max: where sampling starts, where the host starts at noise so strong that fp32 rounds it by 1e-5.
    build: a context in which the host builds it small.
    """

    sigma_max: float | None = None
    build: Callable = nullcontext

    def _loaded(self, state, dtype):
        with self.build():
            return super()._loaded(state, dtype)

    def load(self, dtype=torch.float32, seed=0):
        with self.build():
            return super().load(dtype, seed)

    def sample(self, model, *prompts, steps=2, **options):
        if self.sigma_max is not None:
            options["sigmas"] = torch.linspace(self.sigma_max, 0, steps + 1)
        return super().sample(model, *prompts, steps=steps, **options)

    def pooled(self, seed, width=CLIP):
        """What another text encoder makes of prompt number `seed`."""
        draw = torch.Generator().manual_seed(1000 + seed)
        return [[torch.randn(1, 5, 8, generator=draw), {"pooled_output": torch.randn(1, width, generator=draw)}]]

    def pooled_direction(self, seed=10, width=CLIP):
        sides = {name: self.pooled(number, width) for name, number in (("positive", seed), ("negative", seed + 1))}
        return node("GuidanceDirectionFromConditioning", **sides)[0]


COSMOS = Blind(
    name="Cosmos-Predict2",
    model=lambda: MiniTrainDIT(**DIMS, **OPERATIONS),
    config=lambda: comfy.supported_models.CosmosT2IPredict2(DIMS | {"image_model": "cosmos_predict2"}),
    output="final_layer.linear.weight",
    output_scale=0.15,
    prompt=lambda draw: (draw(1, 7, CONTEXT), {}),
    latent=(16, 1, 8, 8),
    text=("context",),
    joint=(),
    layers=(("blocks", "emb_B_T_D"),),
    head=("final_layer", "emb_B_T_D"),
    depth=DEPTH,
    start_layer=0,
    cfg_rows="cond",
    sigma_max=4.0,
)


@contextmanager
def small_adapter():
    """The host builds Anima's adapter at its full size, 157 M parameters, whatever the model's."""
    small = partial(comfy.ldm.anima.model.LLMAdapter, source_dim=CONTEXT, target_dim=CONTEXT, model_dim=CONTEXT, num_layers=2, num_heads=2)
    with patch("comfy.ldm.anima.model.LLMAdapter", small):
        yield


def _anima_prompt(draw):
    length = 3 + int(3 * draw(1).abs())
    return draw(1, 7, CONTEXT), {"t5xxl_ids": (5000 * draw(length).abs()).int(), "t5xxl_weights": 1 + 0.1 * draw(length)}


ANIMA = Blind(
    name="Anima",
    model=lambda: Anima(**DIMS, **OPERATIONS),
    config=lambda: comfy.supported_models.Anima(DIMS | {"image_model": "anima"}),
    output="final_layer.linear.weight",
    output_scale=0.15,
    prompt=_anima_prompt,
    latent=(16, 1, 8, 8),
    text=("context",),
    joint=(),
    layers=(("blocks", "emb_B_T_D"),),
    head=("final_layer", "emb_B_T_D"),
    depth=DEPTH,
    start_layer=0,
    build=small_adapter,
)


# Files.


def form_a(depth=DEPTH, width=WIDTH, clip=CLIP, seed=50):
    """COSMOS and Anima, "CLIP + scales"."""
    draw = torch.Generator().manual_seed(seed)
    return _linears(draw, "text_embedder_clip.linear_1", "text_embedder_clip.linear_2", clip, 3 * width) | {
        "scales": 0.25 * torch.randn(depth, 3 * width, generator=draw)
    }


def form_b(film=False, width=WIDTH, context=CONTEXT, seed=60):
    """Anima, "max-pool", with or without sigma-FiLM."""
    draw = torch.Generator().manual_seed(seed)
    tensors = _linears(draw, "0", "2", context, width)
    if film:
        tensors |= _linear(draw, "sigma_film", width, 2 * HIDDEN)
    return tensors


def own(tensors, pooling, injection, family=None, **metadata):
    """Tensors and metadata of our own format."""
    names = {"0": "linear_1", "2": "linear_2", "sigma_film": "film"}
    tensors = {
        ".".join(names.get(part, part) for part in name.split(".") if part != "text_embedder_clip"): t for name, t in tensors.items()
    }
    return tensors, {
        "format": "modulation guidance pooled projection",
        "format_version": "1",
        "pooling": pooling,
        "injection": injection,
        "family": "null" if family is None else f'"{family}"',
        "record": "{}",
    } | metadata


def _linears(draw, first, last, width, output):
    return _linear(draw, first, width, HIDDEN) | _linear(draw, last, HIDDEN, output)


def _linear(draw, name, width, output):
    return {
        f"{name}.weight": torch.randn(output, width, generator=draw) / width**0.5,
        f"{name}.bias": 0.1 * torch.randn(output, generator=draw),
    }


def write(path, content, metadata=None):
    """Safetensors or a torch pickle, by the name's suffix."""
    if path.suffix == ".safetensors":
        save_file(content, path, metadata)
    else:
        torch.save(content, path)
    return path


def loaded(path):
    """Through the node."""
    with registered(path.parent):
        return node("LoadPooledProjection", projection_name=path.name)[0]


# The equations.


@dataclass
class Projected:
    """One guidance by method.md, section 2. file: the tensors as on disk, of form A or B; rows: as cfg_rows.

    weights: one per layer, then the head's. base: for form A, the seeds of the prompts of conditional and unconditional rows.
    pooling: of form B.
    """

    file: dict
    weights: list
    seed: int = 10
    w: float = 3.0
    rows: str = "both"
    window: tuple = (float("inf"), 0.0)  # sigmas, first and last
    keep_norm: bool = False
    base: tuple = (None, None)
    pooling: str = "max"

    @property
    def a(self):
        return "scales" in self.file

    @property
    def argument(self):
        return "adaln_lora_B_T_3D" if self.a else "emb_B_T_D"

    def proj(self, c, t_emb):
        """c: (R, C), t_emb: (R, T, D) -> (R, 1 or T, D)."""
        first, last = ("text_embedder_clip.linear_1", "text_embedder_clip.linear_2") if self.a else ("0", "2")
        h = c[:, None] @ self.file[f"{first}.weight"].T + self.file[f"{first}.bias"]
        if "sigma_film.weight" in self.file:
            scale, shift = torch.chunk(t_emb @ self.file["sigma_film.weight"].T + self.file["sigma_film.bias"], 2, dim=-1)
            h = h * (1 + scale) + shift
        return torch.nn.functional.silu(h) @ self.file[f"{last}.weight"].T + self.file[f"{last}.bias"]


def weights_from(start, end=None, head=0.0, depth=DEPTH):
    end = depth - 1 if end is None else end
    return [float(start <= layer <= end) for layer in range(depth)] + [head]


def reference(small, patcher, *terms):
    """A second load of the model, whose blocks take what the equations say."""
    patcher = small.reload(patcher)
    model = patcher.model.diffusion_model
    equation = _Equations(small, patcher.model, terms)
    model.register_forward_pre_hook(equation.at_call, with_kwargs=True)
    for layer, (module, _) in enumerate(small.inputs_of(model)):
        module.register_forward_pre_hook(partial(equation.at_layer, layer), with_kwargs=True)
    return patcher


class _Equations:
    def __init__(self, small, base_model, terms):
        self.small, self.base_model, self.terms = small, base_model, terms

    def at_call(self, model, args, kwargs):
        options = kwargs["transformer_options"]
        self.sigma = options["sigmas"].max()
        self.context = kwargs["context"].float()
        rows = len(args[0]) // len(options["cond_or_uncond"])
        self.conditional = [chunk == 0 for chunk in options["cond_or_uncond"] for _ in range(rows)]

    def at_layer(self, layer, module, args, kwargs):
        plain = {"emb_B_T_D": args[1], "adaln_lora_B_T_3D": kwargs["adaln_lora_B_T_3D"]}
        shifted = {}
        for name, y in plain.items():
            terms = [term for term in self.terms if term.argument == name]
            added, kept = (
                sum((self._added(term, layer, plain["emb_B_T_D"]) for term in terms if term.keep_norm == keep), torch.zeros_like(y))
                for keep in (False, True)
            )
            shifted[name] = (y + kept) * y.norm(dim=-1, keepdim=True) / (y + kept).norm(dim=-1, keepdim=True) + added
        return (args[0], shifted["emb_B_T_D"], *args[2:]), kwargs | {"adaln_lora_B_T_3D": shifted["adaln_lora_B_T_3D"]}

    def _added(self, term, layer, t_emb):
        weight = term.weights[layer]
        signs = {"both": (1, 1), "cond": (1, 0), "opposed": (1, -1)}[term.rows]
        sign = torch.tensor([signs[not conditional] for conditional in self.conditional])[:, None, None]
        if isinstance(term, Learned):
            difference = term.shift(layer)
        else:
            toward, away = (term.proj(self._of_prompt(term, seed), t_emb) for seed in (term.seed, term.seed + 1))
            difference = toward - away
        delta = term.w * weight * sign * difference
        if not term.window[1] <= self.sigma <= term.window[0]:
            delta = torch.zeros_like(delta)
        if isinstance(term, Learned):
            return delta
        if not term.a:
            return self._base_of_context(term, t_emb) + delta
        if layer == self.small.depth or weight == 0:
            return 0.0
        return term.file["scales"][layer] * (self._base_of_clip(term) + delta)

    def _of_prompt(self, term, seed):
        rows = len(self.conditional)
        if term.a:
            return self.small.pooled(seed)[0][1]["pooled_output"].expand(rows, -1)
        [[tokens, extras]] = self.small.encoded(seed)
        made = self.base_model.extra_conds(cross_attn=tokens, device=tokens.device, noise=torch.zeros(1, *self.small.latent), **extras)
        return self._pool(term, made["c_crossattn"].cond).expand(rows, -1)

    def _pool(self, term, tokens):
        return tokens.max(dim=1).values if term.pooling == "max" else tokens.mean(dim=1)

    def _base_of_context(self, term, t_emb):
        return term.proj(self._pool(term, self.context), t_emb)

    def _base_of_clip(self, term):
        """(R, 1, D): proj(c_base) of the row's side; nothing where none is connected."""
        sides = []
        for seed in term.base:
            c = None if seed is None else self.small.pooled(seed)[0][1]["pooled_output"]
            sides.append(torch.zeros(1, 3 * WIDTH) if c is None else term.proj(c, None)[0])
        return torch.stack([sides[not conditional] for conditional in self.conditional])

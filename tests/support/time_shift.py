"""What a shift of a text-blind model's time embedding does, asked of the host: its own forward, run once for every layer."""

from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from inspect import signature

import torch

from support.learned import Learned
from support.text_blind import HIDDEN

CONTEXT = 16  # width of the small models' text


def network(small, width=CONTEXT, seed=70, film=False):
    """The tensors of a projection for a family, under the names of our own files."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {
        "linear_1.weight": (HIDDEN, width),
        "linear_1.bias": (HIDDEN,),
        "linear_2.weight": (small.width, HIDDEN),
        "linear_2.bias": (small.width,),
    }
    if film:
        shapes |= {"film.weight": (2 * HIDDEN, small.width), "film.bias": (2 * HIDDEN,)}
    return {name: torch.randn(shape, generator=draw) / shape[-1] ** 0.5 * (1 if len(shape) > 1 else 0.1) for name, shape in shapes.items()}


@dataclass
class Term:
    """One guidance: at each layer, y is shifted by base + sign * w * weight * (proj(c+) - proj(c-)).

    tensors: the projection's. weights: one per layer, then the head's. pooling, rows: as the inputs so called.
    base: for pooling clip, the seeds of the prompts of conditional and of unconditional rows.
    """

    tensors: dict
    weights: list
    pooling: str = "max"
    seed: int = 10
    w: float = 3.0
    rows: str = "both"
    window: tuple = (float("inf"), 0.0)
    keep_norm: bool = False
    base: tuple = (None, None)

    def proj(self, c, y):
        """c: (..., C); y: (..., D), the time embedding at this step -> (..., D)."""
        h = c @ self.tensors["linear_1.weight"].T + self.tensors["linear_1.bias"]
        if "film.weight" in self.tensors:
            scale, shift = torch.chunk(y @ self.tensors["film.weight"].T + self.tensors["film.bias"], 2, dim=-1)
            h = h * (1 + scale) + shift
        return torch.nn.functional.silu(h) @ self.tensors["linear_2.weight"].T + self.tensors["linear_2.bias"]


def reference(small, patcher, *terms):
    """A second load, each of whose layers gets what the host itself hands it when the time embedding is the shifted one.

    At every call the host's own forward runs once for every layer, its time embedder's output shifted as that layer's is, up to
    that layer, and what it hands the layer is kept for the run proper.
    """
    patcher = small.reload(patcher)
    model = patcher.model.diffusion_model
    equation = _Asked(small, patcher.model, terms)
    model.register_forward_pre_hook(equation.at_call, with_kwargs=True)
    if small.embedder:
        model.get_submodule(small.embedder).register_forward_hook(equation.at_embedder)
    for layer, (module, argument) in enumerate(small.inputs_of(model)):
        module.register_forward_pre_hook(partial(equation.at_layer, layer, argument), with_kwargs=True)
    return patcher


class _Reached(Exception):
    """The layer that was asked for."""


class _Asked:
    def __init__(self, small, base_model, terms):
        self.small, self.base_model, self.terms = small, base_model, terms
        self.asking = None
        self.arguments = {}

    def at_call(self, model, args, kwargs):
        if self.asking is not None:
            return
        options = kwargs["transformer_options"]
        sigma = options["sigmas"].max()
        rows = len(args[0]) // len(options["cond_or_uncond"])
        conditional = [chunk == 0 for chunk in options["cond_or_uncond"] for _ in range(rows)]
        self.call = (sigma, conditional, kwargs["context"])
        for layer in range(len(self.small.inputs_of(model)) if self.small.embedder else 0):
            self.asking = (layer, *self.call)
            copies = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in kwargs.items()}
            copies["transformer_options"] = {name: deepcopy(value) if name == "ar_state" else value for name, value in options.items()}
            try:
                model(*(arg.clone() for arg in args), **copies)
            except _Reached as reached:
                self.arguments[layer] = reached.args[0]
        self.asking = None

    def at_embedder(self, module, args, y):
        return None if self.asking is None else self._shifted(y, *self.asking)

    def _shifted(self, y, layer, sigma, conditional, context):
        """y: (N, ..., D), each row of the batch N / R times."""
        added, kept = torch.zeros_like(y), torch.zeros_like(y)
        for term in self.terms:
            shift = self._shift(term, y, layer, sigma, conditional, context)
            added, kept = (added, kept + shift) if term.keep_norm else (added + shift, kept)
        return (y + kept) * y.norm(dim=-1, keepdim=True) / (y + kept).norm(dim=-1, keepdim=True) + added

    def _shift(self, term, y, layer, sigma, conditional, context):
        def like_y(rows):
            repeated = rows.repeat(len(y) // len(rows), 1) if self.small.times_first else rows.repeat_interleave(len(y) // len(rows), 0)
            return repeated.view(len(y), *[1] * (y.ndim - 2), -1)

        def projected(seed):
            return term.proj(like_y(self._of_prompt(term, seed).expand(len(conditional), -1)), y)

        weight = term.weights[layer]
        cond, uncond = {"both": (1, 1), "cond": (1, 0), "opposed": (1, -1)}[term.rows]
        signs = like_y(torch.tensor([[float(cond if of_prompt else uncond)] for of_prompt in conditional]))
        inside = term.window[1] <= sigma <= term.window[0]
        if isinstance(term, Learned):
            return inside * term.w * weight * signs * term.shift(layer)
        delta = inside * term.w * weight * signs * (projected(term.seed) - projected(term.seed + 1))
        if term.pooling != "clip":
            return delta + term.proj(like_y(_pooled(term, context)), y)
        if weight == 0:
            return delta
        positive, negative = (0 * delta if seed is None else projected(seed) for seed in term.base)
        is_conditional = like_y(torch.tensor([[float(of_prompt)] for of_prompt in conditional]))
        return delta + is_conditional * positive + (1 - is_conditional) * negative

    def _of_prompt(self, term, seed):
        if term.pooling == "clip":
            return self.small.pooled(seed, CONTEXT)[0][1]["pooled_output"]
        [[tokens, extras]] = self.small.encoded(seed)
        image = torch.zeros(1, *self.small.latent)
        made = self.base_model.extra_conds(cross_attn=tokens, noise=image, latent_image=image, device=tokens.device, **extras)
        return _pooled(term, made["c_crossattn"].cond)

    def at_layer(self, layer, argument, module, args, kwargs):
        position = list(signature(module.forward).parameters).index(argument)
        if self.asking is not None:
            if self.asking[0] == layer:
                raise _Reached(kwargs[argument] if argument in kwargs else args[position])
            return None
        plain = kwargs[argument] if argument in kwargs else args[position]
        shifted = self.arguments[layer] if self.small.embedder else self._shifted(plain, layer, *self.call)
        if argument in kwargs:
            return args, kwargs | {argument: shifted}
        return (*args[:position], shifted, *args[position + 1 :]), kwargs


def _pooled(term, context):
    return context.max(dim=1).values if term.pooling == "max" else context.mean(dim=1)

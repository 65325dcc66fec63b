"""A small model of any family through the host's own loader and sampler, and the paper's equation on a second load of it."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from inspect import signature
from unittest.mock import patch

import comfy.sample
import comfy.sd
import torch
from torch import nn

from benchmarks.in_process import node
from support.learned import Learned

# Standard deviation of what the last layer makes: with more, rounding passes for an error; with less, guidance hardly shows.
OUTPUT = 0.3


@dataclass(frozen=True)
class Small:
    """What a test needs to know of a family.

    model: the host's diffusion model, small, without weights. config: the class by which the host loads it and the dims that go
    with it, where its loader would insist on the full size; None where it reads the dims from the weights.
    output: the last layer's weight, which output_scale brings to outputs of OUTPUT's size; None: it is found.
    prompt: draw, see `drawing` -> what the family's text encoder gives: tokens, and whatever goes with them.
    steps: enough of them to keep the sampler's own rounding small.
    settings: what the user's own conditionings hold beside the prompt. latent: (C, H, W) or (C, T, H, W).
    text: the inputs of the model that hold the prompt.
    joint: where blocks hold the text tokens, the first ones by themselves: (list of blocks, argument, which part of it: "all", "first"
    or, behind the image, "last"); empty where none holds them by themselves.
    layers, head: in the reference's order, each the name of a module (or list of modules) and of its argument y.
    depth, start_layer, final_layer, cfg_rows: method.md's defaults for a model of this depth.
    operations: the classes of the layers, where they are not the host's.
    """

    name: str
    model: Callable[[], nn.Module]
    output: str
    prompt: Callable
    latent: tuple
    text: tuple
    joint: tuple
    layers: tuple
    head: tuple
    depth: int
    start_layer: int
    final_layer: float = 0.0
    cfg_rows: str = "both"
    output_scale: float | None = None
    steps: int = 2
    settings: tuple = ()
    config: Callable | None = None
    operations: type | None = None

    def load(self, dtype=torch.float32, seed=0):
        """A ModelPatcher with seeded random weights, loaded by the host."""
        state = _random_weights(self.model(), seed)
        state[self.output] *= self.scale
        return self._loaded({name: tensor.to(dtype) for name, tensor in state.items()}, dtype)

    @cached_property
    def scale(self):
        """What the last layer's weight is multiplied by: output_scale, or what gives outputs of OUTPUT in the first call of a sampling."""
        if self.output_scale is not None:
            return self.output_scale
        model, seen = replace(self, output_scale=1.0).load(), []
        layer = model.model.diffusion_model.get_submodule(self.output.rpartition(".")[0])
        layer.register_forward_hook(lambda module, args, output: seen.append(output.float().std().item()))
        with torch.inference_mode():
            self.sample(model, steps=1)
        return OUTPUT / seen[0]

    def reload(self, patcher):
        """The same model and patches, a second load that shares nothing with the first."""
        return patcher.clone(model_override=self._loaded(*patcher.model.made_from).get_clone_model_override())

    def _loaded(self, state, dtype):
        insist = patch("comfy.model_detection.model_config_from_unet", lambda *args, **kwargs: self.config())
        options = {"dtype": dtype} | ({"custom_operations": self.operations} if self.operations else {})
        with insist if self.config else nullcontext():
            patcher = comfy.sd.load_diffusion_model_state_dict(dict(state), model_options=options)
        patcher.model.made_from = (state, dtype)
        return patcher

    def encoded(self, seed):
        """What the text encoder makes of prompt number `seed`."""
        return [[*self.prompt(drawing(seed))]]

    def conditioning(self, seed, **settings):
        """The user's conditioning: prompt number `seed` and the settings."""
        [[tokens, extras]] = self.encoded(seed)
        return [[tokens, extras | dict(self.settings) | settings]]

    def direction(self, seed=10):
        return node("GuidanceDirectionFromConditioning", positive=self.encoded(seed), negative=self.encoded(seed + 1))[0]

    def sample(self, model, positive=None, negative=None, cfg=2.5, steps=None, seed=5, batch=1, **options):
        """What the host's KSampler makes of it, in the units of the model, where latents are about of unit size."""
        image = torch.zeros(batch, *self.latent)
        noise = comfy.sample.prepare_noise(image, seed)
        latents = comfy.sample.sample(
            model,
            noise,
            steps or self.steps,
            cfg,
            "euler",
            "simple",
            positive or self.conditioning(1),
            negative or self.conditioning(2),
            image,
            disable_pbar=True,
            seed=seed,
            **options,
        )
        return model.model.process_latent_in(latents)

    def inputs_of(self, model):
        """[(module, name of its argument y)] for every layer, and last for the head."""
        layers = [(block, argument) for name, argument in self.layers for block in model.get_submodule(name)]
        assert len(layers) == self.depth
        name, argument = self.head
        return [*layers, (model.get_submodule(name), argument)]


def assert_fair(small, expected, plain):
    """That an absolute tolerance means something for these latents, and that the reference itself moves the picture."""
    size, moved = expected.std().item(), (expected - plain).abs().max().item()
    assert 0.3 < size < 3 and moved > 1e-2, (
        f"{small.name}: latents of {size:.3g} (0.3 to 3 wanted), moved by {moved:.3g} (0.01 wanted at least), "
        f"with output_scale {small.scale:.3g}. Give the test object another output_scale."
    )


errors = {}  # by family, the largest seen; see --errors in conftest.py


def assert_close(small, actual, expected, atol=1e-5):
    error = (actual - expected).abs().max().item()
    errors[small.name] = max(error, errors.get(small.name, 0.0))
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def _random_weights(model, seed):
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if "norm" in name and tensor.ndim == 1 and name.endswith(("weight", "scale")):
            state[name] = 1 + 0.1 * noise
        else:
            # Modulation weights as large as the others: the shift must be felt by every block.
            state[name] = noise / tensor[0].numel() ** 0.5 if tensor.ndim > 1 else 0.1 * noise
    return state


def drawing(seed):
    """draw(*shape) -> the next random numbers of the seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


@dataclass
class Term:
    """One guidance of the equation: sign per row times w * weights[i] * (y(p+) - y(p-)), p+ and p- the prompts seed and seed + 1."""

    weights: list  # one per layer, then the head's
    seed: int = 10
    w: float = 3.0
    rows: str = "both"
    window: tuple = (float("inf"), 0.0)  # sigmas, first and last
    keep_norm: bool = False


def term(small, start=0, head=0.0, **options):
    """All layers from `start` on."""
    return Term([float(layer >= start) for layer in range(small.depth)] + [head], **options)


def default_term(small, **options):
    return term(small, **{"start": small.start_layer, "head": small.final_layer, "rows": small.cfg_rows} | options)


def reference(small, patcher, *terms, conditional=None):
    """The model with y + w (y(p+) - y(p-)) handed to its blocks, by the definition of y alone.

    y(p) is what the host hands its first block when p is the prompt: at every call the host's own forward runs once for each p+
    and p-, up to that block, with the text inputs that the host itself makes of p.
    conditional: (inputs of the call) -> for each row whether it is conditional; None for the order of the standard CFG.
    """
    patcher = small.reload(patcher)
    model = patcher.model.diffusion_model
    equation = _Equation(small, patcher.model, terms, conditional or _first_of_two)
    model.register_forward_pre_hook(equation.at_call, with_kwargs=True)
    for layer, (module, argument) in enumerate(small.inputs_of(model)):
        module.register_forward_pre_hook(equation.at_layer(layer, argument), with_kwargs=True)
    return patcher


def _first_of_two(inputs):
    chunks = inputs["transformer_options"]["cond_or_uncond"]
    rows = len(inputs["context"]) // len(chunks)
    return [chunk == 0 for chunk in chunks for _ in range(rows)]


class _Reached(Exception):
    """A block was reached while y was asked for."""


class _Equation:
    def __init__(self, small, base_model, terms, conditional):
        self.small, self.base_model, self.terms, self.conditional = small, base_model, terms, conditional
        self.asking = False
        self.active = []

    def at_call(self, model, args, kwargs):
        options = kwargs["transformer_options"]
        sigma = options["sigmas"].max()
        conditional = self.conditional(kwargs)
        self.active = []
        for term in self.terms:
            if term.window[1] <= sigma <= term.window[0]:
                cond, uncond = {"both": (1, 1), "cond": (1, 0), "opposed": (1, -1)}[term.rows]
                signs = torch.tensor([cond if of_prompt else uncond for of_prompt in conditional])
                if isinstance(term, Learned):
                    self.active.append((term, signs, None))
                    continue
                toward, away = (self._y(model, self.small.encoded(seed), args, kwargs) for seed in (term.seed, term.seed + 1))
                self.active.append((term, signs, toward - away))

    def _y(self, model, prompt, args, kwargs):
        [[tokens, extras]] = prompt
        x = args[0]
        image = torch.zeros(1, *self.small.latent)
        made = self.base_model.extra_conds(cross_attn=tokens, noise=image, latent_image=image, device=x.device, **extras)
        made = {"context" if name == "c_crossattn" else name: value.cond for name, value in made.items()}
        text = {name: made[name].expand(len(x), *made[name].shape[1:]) for name in self.small.text}
        inputs = {
            name: value.to(x.device, x.dtype if value.is_floating_point() else value.dtype, copy=True)
            if isinstance(value, torch.Tensor)
            else value
            for name, value in (kwargs | text).items()
        }
        # y before any other node changes it on its way into a block, or keeps the model from running.
        inputs["transformer_options"] = {
            name: value for name, value in kwargs["transformer_options"].items() if name not in ("patches_replace", "wrappers")
        }
        self.asking = True
        try:
            model.forward(*(arg.clone() for arg in args), **inputs)
        except _Reached as reached:
            return reached.args[0]
        finally:
            self.asking = False

    def at_layer(self, layer, argument):
        def hook(module, args, kwargs):
            if argument in kwargs:
                y = kwargs[argument]
            else:
                position = list(signature(module.forward).parameters).index(argument)
                y = args[position]
            if self.asking:
                raise _Reached(y)
            y_hat = self._y_hat(layer, y)
            if argument in kwargs:
                return args, kwargs | {argument: y_hat}
            return (*args[:position], y_hat, *args[position + 1 :]), kwargs

        return hook

    def _y_hat(self, layer, y):
        shift, kept = torch.zeros_like(y), torch.zeros_like(y)
        for term, signs, difference in self.active:
            if isinstance(term, Learned):
                difference = term.shift(layer).to(y)
            added = term.w * term.weights[layer] * signs.to(y).view(-1, *[1] * (y.ndim - 1)) * difference
            shift, kept = (shift, kept + added) if term.keep_norm else (shift + added, kept)
        return (y + kept) * y.norm(dim=-1, keepdim=True) / (y + kept).norm(dim=-1, keepdim=True) + shift

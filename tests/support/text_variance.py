"""The formula z~ = alpha (z - mean(z)) + mean(z), written before each block of a second load of a small model."""

from inspect import signature

import torch

from benchmarks.in_process import node
from support import flux

TOLERANCE = dict(rtol=0, atol=1e-5)


class FluxSmall:
    """FLUX.1 of tests/support/flux.py under the names of tests/support/families."""

    name = "FLUX.1"
    depth = 8
    joint = (("double_blocks", "txt", "all"), ("single_blocks", "x", "first"))

    load = staticmethod(lambda: flux.flux())
    conditioning = staticmethod(flux.conditioning)
    encoded = staticmethod(flux.conditioning)
    direction = staticmethod(flux.direction)

    @staticmethod
    def reload(patcher):
        return patcher.clone(model_override=flux._loaded(*patcher.model.made_from).get_clone_model_override())

    @staticmethod
    def sample(model, cfg=2.5, **options):
        return flux.sample(model, cfg=cfg, **options)


def scale(model, scale=1.5, **inputs):
    return node("ScaleTextVariance", model=model, scale=scale, **inputs)[0]


def layers(text):
    return node("GuidanceLayerScheduleText", layers=text, final_layer=0.0)[0]


def places(small, model):
    """[(block, argument, part)] in global order."""
    return [(block, *where) for name, *where in small.joint for block in model.get_submodule(name)]


def equation(small, patcher, alphas, prompt=None, tokens=None):
    """A second load with the formula before each block; alphas: one per block.

    prompt: (call's kwargs) -> (rows, tokens) of bools, the tokens of the prompt, None for all of them; tokens: how many there are,
    for blocks of mixed streams.
    """
    patcher = small.reload(patcher)
    return with_formula(small, patcher, alphas, prompt, tokens)


def with_formula(small, patcher, alphas, prompt=None, tokens=None):
    model = patcher.model.diffusion_model
    now = {}

    def at_call(module, args, kwargs):
        now["mask"] = prompt(kwargs) if prompt else None

    def formula(z, alpha):
        out = z.clone()
        for row in range(len(z)):
            chosen = slice(None) if now["mask"] is None else now["mask"][row]
            mean = z[row, chosen].mean(dim=0)
            out[row, chosen] = alpha * (z[row, chosen] - mean) + mean
        return out

    def at_block(argument, part, alpha):
        def hook(module, args, kwargs):
            position = None if argument in kwargs else list(parameters(module)).index(argument)
            z = kwargs[argument] if position is None else args[position]
            if part == "all":
                z = formula(z, alpha)
            elif part == "first":
                z = torch.cat((formula(z[:, :tokens], alpha), z[:, tokens:]), dim=1)
            else:
                z = torch.cat((z[:, :-tokens], formula(z[:, -tokens:], alpha)), dim=1)
            if position is None:
                return args, kwargs | {argument: z}
            return (*args[:position], z, *args[position + 1 :]), kwargs

        return hook

    model.register_forward_pre_hook(at_call, with_kwargs=True)
    for (block, argument, part), alpha in zip(places(small, model), alphas, strict=True):
        if alpha != 1:
            block.register_forward_pre_hook(at_block(argument, part, alpha), with_kwargs=True)
    return patcher


def parameters(block):
    names = list(signature(block.forward).parameters)
    return ["context", "x"] if names[0] == "args" else names  # SD3's block takes them as they come


def joint_alphas(small, model, alpha):
    """alpha at joint blocks, 1 at those of mixed streams."""
    return [alpha if part == "all" else 1 for _, _, part in places(small, model.model.diffusion_model)]


def assert_equal_and_moved(actual, expected, plain):
    assert (expected - plain).abs().max() > 1e-2, "the formula itself must move the picture"
    torch.testing.assert_close(actual, expected, **TOLERANCE)


def flux_equation(model, alpha, **options):
    return equation(FluxSmall, model, joint_alphas(FluxSmall, model, alpha), **options)


class Counting:
    """A torch.compile backend that counts graphs and runs them as they are."""

    graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward

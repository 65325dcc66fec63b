"""Guidance on a model that several threads run, and that one may interrupt at any moment."""

import ctypes
import random
import sys
import threading
import time
from contextlib import suppress

import comfy.model_patcher
import comfy.sampler_helpers
import pytest
import torch
from support.matrix import SUBJECTS, equation, guided, model, on_clone, subject  # noqa: F401
from test_neighbours import SAMPLING, assert_guided


def in_two_threads(apply_model, args):
    """Conditional and unconditional rows at once."""
    outputs, options = {}, args["c"]["transformer_options"]

    def run(i, number):
        chunk = {name: value.chunk(2)[i] if isinstance(value, torch.Tensor) else value for name, value in args["c"].items()}
        with torch.inference_mode():
            outputs[i] = apply_model(
                args["input"].chunk(2)[i],
                args["timestep"].chunk(2)[i],
                **chunk | {"transformer_options": options | {"cond_or_uncond": [number]}},
            )

    threads = [threading.Thread(target=run, args=one) for one in enumerate(args["cond_or_uncond"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return torch.cat([outputs[0], outputs[1]])


@pytest.fixture
def busy_threads():
    """Threads that change places as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_two_threads_on_one_model(subject, model, busy_threads):
    sample = subject.small.sample
    other = on_clone(lambda model: model.set_model_unet_function_wrapper(in_two_threads))
    expected, plain = sample(equation(subject, model), **SAMPLING), sample(model, **SAMPLING)
    made = other(guided(subject, model))
    for _ in range(3):
        assert_guided(sample(made, **SAMPLING), expected, plain)
    assert torch.equal(sample(model, **SAMPLING), plain)


def test_an_interrupt_at_any_moment_leaves_nothing(busy_threads):
    subject = SUBJECTS["FLUX.1"]
    model = subject.small.load()
    made = guided(subject, model)
    subject.small.sample(made, **SAMPLING)
    as_loaded = [(type(module), set(vars(module))) for module in model.model.diffusion_model.modules()]
    base_model, draw, interrupted = model.model, random.Random(0), 0

    def run():
        with suppress(KeyboardInterrupt), torch.inference_mode():
            while True:
                base_model.apply_model(x, sigma, c_crossattn=context, transformer_options=options, y=pooled, guidance=None)

    x, sigma = torch.zeros(1, 16, 2, 2), torch.ones(1)
    [[context, extras]] = subject.small.conditioning(1)
    pooled = extras["pooled_output"]
    options = _options(made)
    for _ in range(200):
        thread = threading.Thread(target=run)
        thread.start()
        time.sleep(draw.uniform(0.001, 0.01))
        interrupted += ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(KeyboardInterrupt))
        thread.join()
        assert [(type(module), set(vars(module))) for module in model.model.diffusion_model.modules()] == as_loaded
    assert interrupted == 200


def _options(model):
    """The transformer_options that the model is called with when sampling."""
    options = comfy.model_patcher.create_model_options_clone(model.model_options)
    comfy.sampler_helpers.prepare_model_patcher(model, {}, options)
    return options["transformer_options"]

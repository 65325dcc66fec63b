"""Guidance on a model that several threads run, and that one may interrupt at any moment."""

import ctypes
import random
import sys
import threading
import time
from contextlib import suppress

import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import pytest
import torch
from support.families.small import reference, term
from support.flux import apply, schedule
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
    as_loaded = _as_it_is(model)
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
        assert _as_it_is(model) == as_loaded
    assert interrupted == 200


def test_what_overlaps_in_another_pack_s_wrapper_leaves_nothing():
    """A pack that computes both sides at once, the second beginning within the first and ending after it, beside a function wrapper."""
    subject = SUBJECTS["HiDream-I1"]
    small, model = subject.small, subject.small.load()
    plain, as_loaded = small.sample(model, **SAMPLING), _as_it_is(model)
    second_is_in, first_is_over, seen = threading.Event(), threading.Event(), []

    def wrapper(apply_model, args):
        seen.append(_as_it_is(model) != as_loaded)
        if threading.current_thread().name == "first":
            assert second_is_in.wait(60)
        else:
            second_is_in.set()
            assert first_is_over.wait(60)
        return apply_model(args["input"], args["timestep"], **args["c"])

    def both_sides(args):
        outputs, ended = [None, None], [first_is_over, threading.Event()]
        second_is_in.clear()
        first_is_over.clear()

        def run(side):
            with torch.inference_mode():
                [outputs[side]] = comfy.samplers.calc_cond_batch(
                    args["model"], [args["conds"][side]], args["input"], args["sigma"], args["model_options"]
                )
            ended[side].set()

        threads = [threading.Thread(target=run, args=[side], name=name) for side, name in enumerate(["first", "second"])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return outputs

    def beside(model):
        model.set_model_unet_function_wrapper(wrapper)
        model.set_model_sampler_calc_cond_batch_function(both_sides)

    expected = small.sample(reference(small, model, term(small, start=1, head=1.0, w=2.0, rows="opposed")), **SAMPLING)
    made = on_clone(beside)(apply(model, small.direction(), w=2.0, cfg_rows="opposed", schedule=schedule(1, final_layer=1.0)))
    assert_guided(small.sample(made, **SAMPLING), expected, plain)
    assert seen
    assert all(seen)
    assert _as_it_is(model) == as_loaded
    assert torch.equal(small.sample(model, **SAMPLING), plain)


def _as_it_is(model):
    return [(type(module), set(vars(module))) for module in model.model.diffusion_model.modules()]


def _options(model):
    """The transformer_options that the model is called with when sampling."""
    options = comfy.model_patcher.create_model_options_clone(model.model_options)
    comfy.sampler_helpers.prepare_model_patcher(model, {}, options)
    return options["transformer_options"]

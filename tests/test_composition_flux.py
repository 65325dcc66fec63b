"""Guidance and whatever else is in the graph: the result is the equation applied to the graph without guidance.

What is here is of FLUX.1 alone; test_matrix.py has what other families share.

In each pair the other node is put once on the equation's model and once on the guided one, set before and after guidance.
"""

from functools import partial
from types import MethodType

import comfy.controlnet
import comfy.hooks
import comfy.ldm.flux.controlnet
import comfy.ops
import comfy.sd
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from support.flux import apply, conditioning, direction, flux, node, reference, sample, schedule, terms_of
from support.matrix import on_clone

TOLERANCE = dict(rtol=0, atol=1e-5)


def guided(model, rows="opposed", **window):
    return apply(model, direction(), w=2.0, cfg_rows=rows, schedule=schedule(1), **window)


def equation(model, rows="opposed", **window):
    return reference(model, terms_of(w=2.0, rows=rows, start=1, **window))


def assert_differ(a, b):
    assert (a - b).abs().max() > 1e-2


@pytest.fixture(scope="module")
def model():
    return flux()


# Other nodes, each a function from a model to the patched model.


def host_node(name, **inputs):
    return lambda model: node(name, model=model, **inputs)[0]


def block_slots(patch):
    def put(model):
        for kind, i in (("double_block", 0), ("double_block", 1), ("single_block", 2)):
            model.set_model_patch_replace(patch, "dit", kind, i)

    return on_clone(put)


def scaled_vec(args, extra):
    return extra["original_block"](args | {"vec": 0.8 * args["vec"]})


def damped_output(args, extra):
    return {name: 0.9 * stream for name, stream in extra["original_block"](args).items()}


def attention_patch(q, k, v, extra_options, **kwargs):
    return {"v": v * (0.7 if extra_options["block_index"] == 1 else 1)}


def one_row_at_a_time(apply_model, args, told=True):
    """As packs that save memory do: each chunk of the batch in a call of its own, of which cond_or_uncond is told or not."""

    def chunk(i, value):
        if i is None or not torch.is_tensor(value):
            return value
        return value.chunk(len(args["cond_or_uncond"]))[i]

    outputs = []
    for i, cond_or_uncond in enumerate(args["cond_or_uncond"]):
        c = {name: chunk(i, value) for name, value in args["c"].items()}
        if told:
            c["transformer_options"] = c["transformer_options"] | {"cond_or_uncond": [cond_or_uncond]}
        outputs.append(apply_model(chunk(i, args["input"]), chunk(i, args["timestep"]), **c))
    return 0.9 * torch.cat(outputs)


def model_wrapper(executor, x, timestep, *args, **kwargs):
    return 0.9 * executor(x, 0.9 * timestep, *args, **kwargs)


def cached_forward(model):
    """As TeaCache: `forward_orig` replaced on the instance while the model runs, every second step answered from memory."""
    memory = {"calls": 0}

    def forward_orig(self, *args, **kwargs):
        memory["calls"] += 1
        if memory["calls"] % 2:
            memory["output"] = type(self).forward_orig(self, *args, **kwargs)
        return memory["output"]

    def run(apply_model, args):
        diffusion_model = model.model.diffusion_model
        diffusion_model.forward_orig = MethodType(forward_orig, diffusion_model)
        try:
            return apply_model(args["input"], args["timestep"], **args["c"])
        finally:
            del diffusion_model.forward_orig

    model.set_model_unet_function_wrapper(run)


NODES = {
    "block slots that change vec": block_slots(scaled_vec),
    "block slots that change the output": block_slots(damped_output),
    "ModelSamplingFlux": host_node("ModelSamplingFlux", max_shift=2.0, base_shift=0.5, width=1024, height=1024),
    "attention patch": on_clone(lambda model: model.set_model_attn1_patch(attention_patch)),
    "forward_orig replaced, as TeaCache": on_clone(cached_forward),
}


@pytest.mark.parametrize("other", NODES.values(), ids=NODES)
def test_other_node_before_and_after(model, other):
    sampling = dict(cfg=2.0, steps=6)
    expected = sample(other(equation(model)), **sampling)
    assert_differ(expected, sample(other(model), **sampling))
    assert_differ(expected, sample(guided(model), **sampling))
    torch.testing.assert_close(sample(guided(other(model)), **sampling), expected, **TOLERANCE)
    torch.testing.assert_close(sample(other(guided(model)), **sampling), expected, **TOLERANCE)


# Other conditionings, each (positive, negative).


def of_unequal_length():
    return conditioning(1), conditioning(2, tokens=12)


def hooked(hook):
    group = comfy.hooks.HookGroup()
    group.add(hook)
    return comfy.hooks.set_hooks_for_conditioning(conditioning(1), group), conditioning(2)


def wrapper_hook(scope):
    return hooked(comfy.hooks.TransformerOptionsHook({"wrappers": {WrappersMP.APPLY_MODEL: {"pack": [model_wrapper]}}}, hook_scope=scope))


def slot_hook():
    options = {"patches_replace": {"dit": {("double_block", 1): scaled_vec, ("single_block", 2): damped_output}}}
    return hooked(comfy.hooks.TransformerOptionsHook(options, hook_scope=comfy.hooks.EnumHookScope.HookedOnly))


CONDITIONINGS = {
    "prompts of unequal length": of_unequal_length,
    "wrapper hook for all": lambda: wrapper_hook(comfy.hooks.EnumHookScope.AllConditioning),
    "block slot hook on the positive": slot_hook,
}


@pytest.mark.parametrize("make", CONDITIONINGS.values(), ids=CONDITIONINGS)
@pytest.mark.parametrize("batch", [1, 2])
def test_other_conditionings(model, make, batch):
    positive, negative = make()
    sampling = dict(cfg=2.0, batch=batch)
    other = sampling | dict(positive=positive, negative=negative)
    expected = sample(equation(model), **other)
    assert_differ(expected, sample(model, **other))
    assert_differ(expected, sample(guided(model), **sampling))
    torch.testing.assert_close(sample(guided(model), **other), expected, **TOLERANCE)


@pytest.mark.parametrize("first, second", [((10, 2.0), (20, -1.5)), ((20, -1.5), (10, 2.0))], ids=["one order", "the other"])
def test_two_guidances_with_another_node_between(model, first, second):
    other = block_slots(scaled_vec)
    stacked = apply(other(apply(model, direction(first[0]), w=first[1])), direction(second[0]), w=second[1], cfg_rows="cond")
    terms = terms_of(first[0], w=first[1], start=5), terms_of(second[0], w=second[1], start=5, rows="cond")
    expected = sample(other(reference(model, *terms)), cfg=2.0)
    for term in terms:
        assert_differ(expected, sample(other(reference(model, term)), cfg=2.0))
    torch.testing.assert_close(sample(stacked, cfg=2.0), expected, **TOLERANCE)


def test_percent_window_follows_the_models_own_schedule(model):
    other = NODES["ModelSamplingFlux"]
    window = tuple(other(model).get_model_object("model_sampling").percent_to_sigma(p) for p in (0.2, 0.6))
    options = dict(start_percent=0.2, end_percent=0.6)
    expected = sample(other(equation(model, window=window)), steps=8)
    assert_differ(expected, sample(other(guided(model)), steps=8))
    torch.testing.assert_close(sample(other(guided(model, **options)), steps=8), expected, **TOLERANCE)
    torch.testing.assert_close(sample(guided(other(model), **options), steps=8), expected, **TOLERANCE)


def split(told):
    return on_clone(lambda model: model.set_model_unet_function_wrapper(partial(one_row_at_a_time, told=told)))


def test_rows_guided_alike_need_no_word_of_which_is_which(model):
    expected = sample(split(told=True)(equation(model, rows="both")), cfg=2.0)
    torch.testing.assert_close(sample(split(told=False)(guided(model, rows="both")), cfg=2.0), expected, **TOLERANCE)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("rows", ["cond", "opposed"])
def test_a_batch_split_without_a_word_is_refused_where_rows_are_guided_differently(model, rows, batch):
    expected = sample(split(told=True)(equation(model, rows=rows)), cfg=2.0, batch=batch)
    torch.testing.assert_close(sample(split(told=True)(guided(model, rows=rows)), cfg=2.0, batch=batch), expected, **TOLERANCE)
    with pytest.raises(ValueError, match=f"splits without saying so.* cfg_rows {rows} needs that: set cfg_rows to both"):
        sample(split(told=False)(guided(model, rows=rows)), cfg=2.0, batch=batch)


def test_a_conditioning_of_another_node_is_guided_where_rows_are_guided_alike_and_refused_where_not(model):
    """As the deprecated Perp-Neg, which calls the model with a conditioning that the guider does not have."""
    perp_neg = host_node("PerpNeg", empty_conditioning=conditioning(3), neg_scale=0.5)
    expected = sample(perp_neg(equation(model, rows="both")), cfg=2.0)
    assert_differ(expected, sample(perp_neg(model), cfg=2.0))
    torch.testing.assert_close(sample(perp_neg(guided(model, rows="both")), cfg=2.0), expected, **TOLERANCE)
    for rows in ("cond", "opposed"):
        with pytest.raises(ValueError, match=f"a conditioning of its own.* cfg_rows {rows} needs that: set cfg_rows to both"):
            sample(perp_neg(guided(model, rows=rows)), cfg=2.0)


def of_prompts(*seeds):
    """A direction with a prompt for each image of a batch."""

    def batch(seeds):
        [[tokens, extras]], *others = map(conditioning, seeds)
        pooled = [extras["pooled_output"], *(other["pooled_output"] for [[_, other]] in others)]
        return [[torch.cat([tokens, *(each for [[each, _]] in others)]), {"pooled_output": torch.cat(pooled)}]]

    return node("GuidanceDirectionFromConditioning", positive=batch(seeds), negative=batch([seed + 1 for seed in seeds]))[0]


def windows_of_two(model):
    settings = dict(context_length=2, context_overlap=0, context_schedule="standard_static", context_stride=1, closed_loop=False)
    more = dict(fuse_method="flat", dim=0, freenoise=False, cond_retain_index_list="", split_conds_to_windows=False)
    return node("ContextWindowsManual", model=model, **settings, **more)[0]


@pytest.mark.parametrize("other", [split(told=False), windows_of_two], ids=["a batch split without a word", "windows over the batch"])
def test_a_prompt_for_each_image_is_right_or_refused(model, other):
    seeds = (10, 20, 30, 40)
    together = sample(apply(model, of_prompts(*seeds), w=1.0), cfg=2.0, batch=4)
    for number, seed in enumerate(seeds):
        alone = sample(apply(model, of_prompts(seed), w=1.0), cfg=2.0, batch=4)
        torch.testing.assert_close(together[number], alone[number], **TOLERANCE)
    with pytest.raises(ValueError, match="holds a prompt for each image of the batch, and another node runs the model on a part"):
        sample(other(apply(model, of_prompts(*seeds), w=1.0)), cfg=2.0, batch=4)

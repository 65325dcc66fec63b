"""Guidance and whatever else is in the graph: the result is the equation applied to the graph without guidance.

In each pair the other node is put once on the equation's model and once on the guided one, set before and after guidance.
"""

from functools import partial
from types import MethodType

import comfy.controlnet
import comfy.hooks
import comfy.ldm.flux.controlnet
import comfy.ops
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from flux import CONTEXT, HIDDEN, POOLED, apply, conditioning, direction, flux, node, reference, sample, schedule, terms_of
from torch import nn

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


def on_clone(patch):
    def patched(model):
        model = model.clone()
        patch(model)
        return model

    return patched


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


def lora_weights(*modules, rank=4):
    state = flux(double=3, single=5).model.diffusion_model.state_dict()
    generator = torch.Generator().manual_seed(7)
    lora = {}
    for module in modules:
        wide, narrow = state[f"{module}.weight"].shape
        lora[f"diffusion_model.{module}.lora_up.weight"] = torch.randn(wide, rank, generator=generator) / rank
        lora[f"diffusion_model.{module}.lora_down.weight"] = torch.randn(rank, narrow, generator=generator) / narrow ** 0.5
    return lora


def lora(*modules):
    return lambda model: comfy.sd.load_lora_for_models(model, None, lora_weights(*modules), 0.7, 0.0)[0]


def attention_patch(q, k, v, extra_options, **kwargs):
    return {"v": v * (0.7 if extra_options["block_index"] == 1 else 1)}


def function_wrapper(apply_model, args):
    return 0.9 * apply_model(args["input"], args["timestep"], **args["c"])


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


def calling_wrapper(executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
    """Starts the whole call of the model anew, which runs every wrapper a second time."""
    if transformer_options.get("called"):
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
    again = transformer_options | {"called": True}
    return 0.9 * executor.class_obj.apply_model(x, t, c_concat, c_crossattn, control, again, **kwargs)


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


def replaced_block_forward(model):
    key = "diffusion_model.double_blocks.1.forward"
    original = model.get_model_object(key)

    def forward(img, txt, vec, **kwargs):
        return [0.9 * stream for stream in original(img=img, txt=txt, vec=0.8 * vec, **kwargs)]

    model.add_object_patch(key, forward)


class Damped(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, **kwargs):
        return 0.9 * self.block(x, **kwargs)


def replaced_block(model):
    key = "diffusion_model.single_blocks.1"
    model.add_object_patch(key, Damped(model.get_model_object(key)))


CACHE = dict(reuse_threshold=1.0, start_percent=0.0, end_percent=1.0, verbose=False)
SKIP = dict(double_layers="1", single_layers="2", start_percent=0.0, end_percent=1.0)

NODES = {
    "block slots that change vec": block_slots(scaled_vec),
    "block slots that change the output": block_slots(damped_output),
    "LoRA on vector_in": lora("vector_in.in_layer", "vector_in.out_layer"),
    "LoRA on blocks": lora("double_blocks.1.img_mod.lin", "single_blocks.2.linear1", "final_layer.linear"),
    "SkipLayerGuidanceDiT": host_node("SkipLayerGuidanceDiT", scale=1.0, rescaling_scale=0.5, **SKIP),
    "SkipLayerGuidanceDiTSimple": host_node("SkipLayerGuidanceDiTSimple", **SKIP),
    "EasyCache": host_node("EasyCache", **CACHE),
    "LazyCache": host_node("LazyCache", **CACHE),
    "NAGuidance": host_node("NAGuidance", nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5),
    "ModelMergeSimple": lambda model: node("ModelMergeSimple", model1=model, model2=flux(seed=1), ratio=0.7)[0],
    "ModelSamplingFlux": host_node("ModelSamplingFlux", max_shift=2.0, base_shift=0.5, width=1024, height=1024),
    "attention patch": on_clone(lambda model: model.set_model_attn1_patch(attention_patch)),
    "function wrapper": on_clone(lambda model: model.set_model_unet_function_wrapper(function_wrapper)),
    "function wrapper that splits the batch": on_clone(lambda model: model.set_model_unet_function_wrapper(one_row_at_a_time)),
    "DIFFUSION_MODEL wrapper": on_clone(lambda model: model.add_wrapper(WrappersMP.DIFFUSION_MODEL, model_wrapper)),
    "APPLY_MODEL wrapper": on_clone(lambda model: model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "pack", model_wrapper)),
    "APPLY_MODEL wrapper that calls the model anew": on_clone(
        lambda model: model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "pack", calling_wrapper)
    ),
    "forward_orig replaced, as TeaCache": on_clone(cached_forward),
    "a block's forward replaced": on_clone(replaced_block_forward),
    "a block replaced by a wrapper module": on_clone(replaced_block),
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


def controlnet():
    """A ControlNet in XLabs' form with random weights, loaded by the host."""
    net = comfy.ldm.flux.controlnet.ControlNetFlux(
        in_channels=16, out_channels=16, vec_in_dim=POOLED, context_in_dim=CONTEXT, hidden_size=HIDDEN, mlp_ratio=4.0, num_heads=1,
        depth=1, depth_single_blocks=1, axes_dim=[16, 56, 56], theta=10000, patch_size=2, qkv_bias=True, guidance_embed=False,
        txt_ids_dims=[], dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init,
    )
    generator = torch.Generator().manual_seed(8)
    state = {}
    for name, parameter in net.state_dict().items():
        # The file's own name for the norms' weights.
        state[name.replace("_norm.weight", "_norm.scale")] = torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
    return comfy.controlnet.load_controlnet_state_dict(state)


def with_controlnet():
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(9))
    return node(
        "ControlNetApplyAdvanced", positive=conditioning(1), negative=conditioning(2), control_net=controlnet(), image=hint,
        strength=0.3, start_percent=0.0, end_percent=1.0,
    )


def by_area():
    left = node("ConditioningSetArea", conditioning=conditioning(1), width=32, height=64, x=0, y=0, strength=1.0)[0]
    right = node("ConditioningSetArea", conditioning=conditioning(3), width=48, height=64, x=16, y=0, strength=0.8)[0]
    return node("ConditioningCombine", conditioning_1=left, conditioning_2=right)[0], conditioning(2)


def by_mask():
    mask = torch.zeros(1, 64, 64)
    mask[..., :24] = 1
    prompts = [
        node("ConditioningSetMask", conditioning=conditioning(seed), mask=m, set_cond_area=area, strength=1.0)[0]
        for seed, m, area in ((1, mask, "default"), (3, 1 - mask, "mask bounds"))
    ]
    return node("ConditioningCombine", conditioning_1=prompts[0], conditioning_2=prompts[1])[0], conditioning(2)


def by_time():
    early = node("ConditioningSetTimestepRange", conditioning=conditioning(1), start=0.0, end=0.5)[0]
    late = node("ConditioningSetTimestepRange", conditioning=conditioning(3), start=0.5, end=1.0)[0]
    return node("ConditioningCombine", conditioning_1=early, conditioning_2=late)[0], conditioning(2)


def of_unequal_length():
    return conditioning(1), conditioning(2, tokens=12)


def hooked(hook):
    group = comfy.hooks.HookGroup()
    group.add(hook)
    return comfy.hooks.set_hooks_for_conditioning(conditioning(1), group), conditioning(2)


def lora_hook():
    return hooked(*comfy.hooks.create_hook_lora(lora_weights("vector_in.in_layer", "single_blocks.2.linear1"), 0.7, 0.0).hooks)


def wrapper_hook(scope):
    return hooked(comfy.hooks.TransformerOptionsHook(
        {"wrappers": {WrappersMP.APPLY_MODEL: {"pack": [model_wrapper]}}}, hook_scope=scope
    ))


def slot_hook():
    options = {"patches_replace": {"dit": {("double_block", 1): scaled_vec, ("single_block", 2): damped_output}}}
    return hooked(comfy.hooks.TransformerOptionsHook(options, hook_scope=comfy.hooks.EnumHookScope.HookedOnly))


CONDITIONINGS = {
    "ControlNet": with_controlnet,
    "prompts by area": by_area,
    "prompts by mask": by_mask,
    "prompts by time": by_time,
    "prompts of unequal length": of_unequal_length,
    "LoRA hook on the positive": lora_hook,
    "wrapper hook on the positive": lambda: wrapper_hook(comfy.hooks.EnumHookScope.HookedOnly),
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


# Guiders with three conditionings number the chunks of the batch their own way, so that only "both" has a meaning there.


def sampled_by(guider, model, **inputs):
    prompts = {name: conditioning(seed) for name, seed in inputs.pop("prompts").items()}
    return node(
        "SamplerCustomAdvanced",
        noise=node("RandomNoise", noise_seed=5)[0],
        guider=node(guider, model=model, **prompts, **inputs)[0],
        sampler=node("KSamplerSelect", sampler_name="euler")[0],
        sigmas=node("BasicScheduler", model=model, scheduler="simple", steps=3, denoise=1.0)[0],
        latent_image={"samples": torch.zeros(1, 16, 8, 8)},
    )[0]["samples"]


@pytest.mark.parametrize("guider, inputs", [
    ("DualCFGGuider", dict(prompts=dict(cond1=1, cond2=3, negative=2), cfg_conds=2.0, cfg_cond2_negative=1.5, style="regular")),
    ("PerpNegGuider", dict(prompts=dict(positive=1, negative=2, empty_conditioning=4), cfg=2.0, neg_scale=0.5)),
], ids=["DualCFGGuider", "PerpNegGuider"])
def test_guiders_of_three_conditionings(model, guider, inputs):
    expected = sampled_by(guider, equation(model, rows="both"), **inputs)
    assert_differ(expected, sampled_by(guider, model, **inputs))
    torch.testing.assert_close(sampled_by(guider, guided(model, rows="both"), **inputs), expected, **TOLERANCE)


def test_rows_guided_alike_need_no_word_of_which_is_which(model):
    def split(told):
        return on_clone(lambda model: model.set_model_unet_function_wrapper(partial(one_row_at_a_time, told=told)))

    expected = sample(split(told=True)(equation(model, rows="both")), cfg=2.0)
    torch.testing.assert_close(sample(split(told=False)(guided(model, rows="both")), cfg=2.0), expected, **TOLERANCE)


def test_a_guider_that_hands_guidance_to_a_model_of_another_depth_is_refused(model):
    guider = node(
        "DualModelGuider", model=guided(model), model_negative=flux(double=1, single=2), positive=conditioning(1),
        negative=conditioning(2), cfg=2.0,
    )[0]
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match="model of 8 layers and now runs on one of 3"):
        guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True)

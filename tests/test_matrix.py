"""Guidance beside everything else: families x other nodes, packs, conditionings and guiders, by encoded and by learned directions.

A pair passes when the guided graph, with the other node before guidance and after it, equals the paper's equation applied by hand
to that pair's plain graph. Guidance is "opposed", so that conditional and unconditional rows must be told apart; which is which the
equation knows from the rows' own prompts. `--matrix FILE` writes the table under the heading "The matrix" of that file.
"""

import comfy.cldm.mmdit
import comfy.controlnet
import comfy.hooks
import comfy.model_management
import comfy.ops
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers import set_torch_compile_wrapper
from support.families.sd3 import CONTEXT, POOLED, SD35_LARGE
from support.flux import controlnet, node
from support.matrix import EMPTY, FLUX, NEGATIVE, POSITIVE, SECOND, TABLE, assert_pair, equation, guided, model, on_clone, scaled, subject  # noqa: F401
from torch import nn

import nodes


@pytest.fixture(autouse=True)
def unloaded():
    """The host leaves object patches on a model until it loads another patcher of it; a LoRA read meanwhile misses layers they replace."""
    yield
    comfy.model_management.unload_all_models()


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


# Other nodes and packs: (subject) -> (model) -> patched model, or a reason why there is no such pair.


def lora(*modules):
    def load(subject):
        state = subject.small.model().state_dict()
        draw = torch.Generator().manual_seed(7)
        weights = {}
        for module in getattr(subject, modules[0]):
            wide, narrow = state[f"{module}.weight"].shape
            weights[f"diffusion_model.{module}.lora_up.weight"] = torch.randn(wide, 4, generator=draw) / 4
            weights[f"diffusion_model.{module}.lora_down.weight"] = torch.randn(4, narrow, generator=draw) / narrow**0.5
        return weights

    return lambda subject: lambda model: comfy.sd.load_lora_for_models(model, None, load(subject), 0.7, 0.0)[0]


def host_node(name, **inputs):
    return lambda subject: lambda model: node(name, model=model, **inputs)[0]


def patched(patch):
    return lambda subject: on_clone(patch)


def skip_layers(name, **inputs):
    def make(subject):
        if not subject.slots:
            return "the host gives this family no block slots, so that the node itself does nothing"
        return lambda model: node(name, model=model, **subject.skipped, start_percent=0.0, end_percent=1.0, **inputs)[0]

    return make


def block_slots(subject):
    """As packs that change y on its way into a block."""
    if not subject.slots:
        return "the host gives this family no block slots"

    def slot(args, extra):
        return extra["original_block"](args | {"vec": 0.8 * args["vec"]})

    def put(model):
        for kind, i in subject.slots:
            model.set_model_patch_replace(slot, "dit", kind, i)

    return on_clone(put)


def replaced_forward(subject):
    """As packs that put a forward of their own on a block by an object patch."""

    def put(model):
        key = f"diffusion_model.{subject.block}.forward"
        original = model.get_model_object(key)
        model.add_object_patch(key, lambda *args, **kwargs: scaled(original(*args, **kwargs)))

    return on_clone(put)


def instance_forward(subject):
    """As packs that set a forward on the block itself while the model runs."""

    def run(model):
        def call(apply_model, args):
            block = model.model.diffusion_model.get_submodule(subject.block)
            original = block.forward
            block.forward = lambda *args, **kwargs: scaled(original(*args, **kwargs))
            try:
                return apply_model(args["input"], args["timestep"], **args["c"])
            finally:
                del block.forward

        model.set_model_unet_function_wrapper(call)

    return on_clone(run)


class Swapped(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, *args, **kwargs):
        return scaled(self.block(*args, **kwargs))


def swapped_block(subject):
    """As packs that put a module of their own around a block."""

    def put(model):
        key = f"diffusion_model.{subject.block}"
        model.add_object_patch(key, Swapped(model.get_model_object(key)))

    return on_clone(put)


def unconditional_again(args):
    """As SAG and its like: after CFG, the model is called once more with the negative prompt alone."""
    (again,) = comfy.samplers.calc_cond_batch(args["model"], [args["uncond"]], args["input"], args["sigma"], args["model_options"])
    return args["denoised"] + 0.5 * (args["uncond_denoised"] - again) + 0.1 * again


def merged(subject):
    return lambda model: node("ModelMergeSimple", model1=model, model2=subject.small.load(seed=1), ratio=0.7)[0]


def sampling(subject):
    inputs = dict(max_shift=2.0, base_shift=0.5, width=1024, height=1024) if subject.sampling == "ModelSamplingFlux" else dict(shift=2.0)
    return lambda model: node(subject.sampling, model=model, **inputs)[0]


def compiled(subject):
    if subject.small is FLUX:
        return "`tests/test_compile.py`, in depth"

    def put(model):
        set_torch_compile_wrapper(model, backend="eager")

    return on_clone(put)


CACHE = dict(reuse_threshold=1.0, start_percent=0.0, end_percent=1.0, verbose=False)
WINDOWS = dict(
    context_length=6,
    context_overlap=2,
    context_schedule="standard_static",
    context_stride=1,
    closed_loop=False,
    fuse_method="pyramid",
    freenoise=False,
)

OTHERS = {
    "LoRA on what makes y": lora("embedder"),
    "LoRA on blocks": lora("blocks"),
    "SkipLayerGuidanceDiT": skip_layers("SkipLayerGuidanceDiT", scale=1.0, rescaling_scale=0.5),
    "SkipLayerGuidanceDiTSimple": skip_layers("SkipLayerGuidanceDiTSimple"),
    "EasyCache": host_node("EasyCache", **CACHE),
    "LazyCache": host_node("LazyCache", **CACHE),
    "NAGuidance": host_node("NAGuidance", nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5),
    "ModelMergeSimple": merged,
    "model sampling (shift)": sampling,
    "context windows": lambda subject: host_node("ContextWindowsManual", **WINDOWS, dim=len(subject.small.latent) - 1)(subject),
    "TorchCompileModel": compiled,
    "a call with the negative alone after CFG, as SAG": patched(
        lambda model: model.set_model_sampler_post_cfg_function(unconditional_again)
    ),
    "pack: block slots that change y": block_slots,
    "pack: a block's forward by object patch": replaced_forward,
    "pack: a block's forward on the instance": instance_forward,
    "pack: a block in a module of its own": swapped_block,
    "pack: function wrapper": patched(lambda model: model.set_model_unet_function_wrapper(function_wrapper)),
    "pack: function wrapper that splits the batch": patched(lambda model: model.set_model_unet_function_wrapper(one_row_at_a_time)),
    "pack: DIFFUSION_MODEL wrapper": patched(lambda model: model.add_wrapper(WrappersMP.DIFFUSION_MODEL, model_wrapper)),
    "pack: APPLY_MODEL wrapper": patched(lambda model: model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "pack", model_wrapper)),
    "pack: APPLY_MODEL wrapper that calls the model anew": patched(
        lambda model: model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "pack", calling_wrapper)
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_beside_another_node(pytestconfig, subject, model, name):
    other = OTHERS[name](subject)
    if isinstance(other, str):
        pytestconfig.stash[TABLE].setdefault(name, {})[subject.small.name] = other
        return
    options = dict(cfg=2.0, steps=4)
    sample = subject.small.sample
    expected = sample(other(equation(subject, model)), **options)
    before, after = sample(guided(subject, other(model)), **options), sample(other(guided(subject, model)), **options)
    assert_pair(pytestconfig, subject, name, sample(other(model), **options), expected, before, after)


# Conditionings: (subject) -> (positive, negative), or a reason.


def prompts(subject, *seeds):
    return [subject.small.conditioning(seed) for seed in seeds]


def by_area(subject):
    left = node("ConditioningSetArea", conditioning=prompts(subject, POSITIVE)[0], width=32, height=64, x=0, y=0, strength=1.0)[0]
    right = node("ConditioningSetArea", conditioning=prompts(subject, SECOND)[0], width=48, height=64, x=16, y=0, strength=0.8)[0]
    return left + right, prompts(subject, NEGATIVE)[0]


def by_mask(subject):
    mask = torch.zeros(1, 64, 64)
    mask[..., :24] = 1
    bounds = "mask bounds" if len(subject.small.latent) == 3 else "default"  # the host itself knows no bounds where there are frames
    sides = [
        node("ConditioningSetMask", conditioning=prompts(subject, seed)[0], mask=m, set_cond_area=area, strength=1.0)[0]
        for seed, m, area in ((POSITIVE, mask, "default"), (SECOND, 1 - mask, bounds))
    ]
    return sides[0] + sides[1], prompts(subject, NEGATIVE)[0]


def by_time(subject):
    early = node("ConditioningSetTimestepRange", conditioning=prompts(subject, POSITIVE)[0], start=0.0, end=0.5)[0]
    late = node("ConditioningSetTimestepRange", conditioning=prompts(subject, SECOND)[0], start=0.5, end=1.0)[0]
    return early + late, prompts(subject, NEGATIVE)[0]


def hooked(subject, hook):
    group = comfy.hooks.HookGroup()
    group.add(hook)
    return comfy.hooks.set_hooks_for_conditioning(prompts(subject, POSITIVE)[0], group), prompts(subject, NEGATIVE)[0]


def lora_hook(subject):
    weights = {}
    for module in (*subject.embedder, *subject.blocks):
        wide, narrow = subject.small.model().state_dict()[f"{module}.weight"].shape
        draw = torch.Generator().manual_seed(len(module))
        weights[f"diffusion_model.{module}.lora_up.weight"] = torch.randn(wide, 4, generator=draw) / 4
        weights[f"diffusion_model.{module}.lora_down.weight"] = torch.randn(4, narrow, generator=draw) / narrow**0.5
    return hooked(subject, *comfy.hooks.create_hook_lora(weights, 0.7, 0.0).hooks)


def wrapper_hook(subject):
    options = {"wrappers": {WrappersMP.APPLY_MODEL: {"pack": [model_wrapper]}}}
    return hooked(subject, comfy.hooks.TransformerOptionsHook(options, hook_scope=comfy.hooks.EnumHookScope.HookedOnly))


def controlled(subject):
    if subject.small is FLUX:
        net = controlnet()
    elif subject.small is SD35_LARGE:
        net = sd3_controlnet()
    else:
        return "not tried" if subject.small.name == "Qwen-Image" else "the host has no ControlNet for this family"
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(9))
    positive, negative = prompts(subject, POSITIVE, NEGATIVE)
    return node(
        "ControlNetApplyAdvanced",
        positive=positive,
        negative=negative,
        control_net=net,
        image=hint,
        strength=0.3,
        start_percent=0.0,
        end_percent=1.0,
    )


def sd3_controlnet():
    """The host's own class with random weights; its hint is taken as a latent, so that no autoencoder is needed."""
    net = comfy.cldm.mmdit.ControlNet(
        num_blocks=2,
        control_latent_channels=3,
        input_size=None,
        in_channels=16,
        depth=4,
        adm_in_channels=POOLED,
        num_patches=64,
        pos_embed_max_size=8,
        context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": CONTEXT, "out_features": 256}},
        qk_norm="rms",
        operations=comfy.ops.disable_weight_init,
    )
    draw = torch.Generator().manual_seed(8)
    for tensor in net.state_dict().values():  # its parameters, and a buffer that the host leaves as memory happens to be
        tensor.copy_(torch.randn(tensor.shape, generator=draw) / max(tensor[0].numel(), 1) ** 0.5)
    return comfy.controlnet.ControlNet(net, compression_ratio=1, load_device=torch.device("cpu"))


CONDITIONINGS = {
    "prompts by area": by_area,
    "prompts by mask": by_mask,
    "prompts by time": by_time,
    "LoRA hook on the positive": lora_hook,
    "wrapper hook on the positive": wrapper_hook,
    "ControlNet": controlled,
}


@pytest.mark.parametrize("name", CONDITIONINGS)
def test_other_conditionings(pytestconfig, subject, model, name):
    made = CONDITIONINGS[name](subject)
    if isinstance(made, str):
        pytestconfig.stash[TABLE].setdefault(name, {})[subject.small.name] = made
        return
    positive, negative = made
    options = dict(positive=positive, negative=negative, cfg=2.0, steps=4, batch=2)
    sample = subject.small.sample
    expected = sample(equation(subject, model), **options)
    assert_pair(pytestconfig, subject, name, sample(model, **options), expected, sample(guided(subject, model), **options))


# Guiders.

GUIDERS = {
    "CFGGuider": (dict(positive=POSITIVE, negative=NEGATIVE), dict(cfg=2.0)),
    "DualCFGGuider": (dict(cond1=POSITIVE, cond2=SECOND, negative=NEGATIVE), dict(cfg_conds=2.0, cfg_cond2_negative=1.5, style="regular")),
    "PerpNegGuider": (dict(positive=POSITIVE, negative=NEGATIVE, empty_conditioning=EMPTY), dict(cfg=2.0, neg_scale=0.5)),
    "DualModelGuider": (dict(positive=POSITIVE, negative=NEGATIVE), dict(cfg=2.0)),
}


def sampled_by(guider, subject, model):
    prompts_of, inputs = GUIDERS[guider]
    if guider == "DualModelGuider":
        inputs = inputs | {"model_negative": model}
    guider = node(guider, model=model, **{name: subject.small.conditioning(seed) for name, seed in prompts_of.items()}, **inputs)[0]
    latent = node(
        "SamplerCustomAdvanced",
        noise=node("RandomNoise", noise_seed=5)[0],
        guider=guider,
        sampler=node("KSamplerSelect", sampler_name="euler")[0],
        sigmas=node("BasicScheduler", model=model, scheduler="simple", steps=3, denoise=1.0)[0],
        latent_image={"samples": torch.zeros(1, *subject.small.latent)},
    )[0]["samples"]
    return model.model.process_latent_in(latent)


@pytest.mark.parametrize("rows", ["both", "cond", "opposed"])
@pytest.mark.parametrize("name", GUIDERS)
def test_guiders_rows(pytestconfig, subject, model, name, rows):
    if name == "DualModelGuider" and name not in nodes.NODE_CLASS_MAPPINGS:
        pytest.skip("DualModelGuider came with ComfyUI 0.24")
    expected = sampled_by(name, subject, equation(subject, model, rows))
    actual = sampled_by(name, subject, guided(subject, model, rows))
    assert_pair(pytestconfig, subject, f"{name}, rows {rows}", sampled_by(name, subject, model), expected, actual)


@pytest.mark.parametrize("order", [1, -1], ids=["one order", "the other"])
def test_two_guidances(pytestconfig, subject, model, order):
    made = model
    for seed, w in [(10, 2.0), (20, -1.5)][::order]:
        made = guided(subject, made, seed=seed, w=w)
    options = dict(cfg=2.0, steps=4)
    expected = subject.small.sample(equation(subject, model, "opposed", subject.term(20, rows="opposed", w=-1.5)), **options)
    assert_pair(
        pytestconfig, subject, "a second guidance", subject.small.sample(model, **options), expected, subject.small.sample(made, **options)
    )

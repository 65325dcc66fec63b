"""Guidance beside packs that change the running model itself: its blocks' forward, its class, its list of blocks, its rows.

Small stand-ins do what such packs do. The expected picture is the equation applied by hand to the same graph.
"""

import copy
import logging
from contextlib import contextmanager
from types import MethodType

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers import set_torch_compile_wrapper
from support.families.hunyuan_video import TEXT_TO_VIDEO as HUNYUAN_VIDEO
from support.families.small import reference, term
from support.flux import apply, node, schedule
from support.matrix import SUBJECTS, equation, guided, model, on_clone, scaled, subject  # noqa: F401
from support.text_blind import loaded, own, write
from support.text_blind_families import CHROMA
from support.time_shift import network
from torch import nn

TOLERANCE = dict(rtol=0, atol=1e-5)
SAMPLING = dict(cfg=2.0, steps=4)


def assert_guided(actual, expected, plain):
    assert (expected - plain).abs().max() > 1e-2, "guidance must show"
    torch.testing.assert_close(actual, expected, **TOLERANCE)


def blocks_of(subject, diffusion_model):
    return [block for name, _ in subject.small.layers for block in diffusion_model.get_submodule(name)]


def while_called(setting):
    """A pack that puts something on the diffusion model for each call, by a function wrapper."""

    def patch(model):
        def call(apply_model, args):
            with setting(model.model.diffusion_model):
                return apply_model(args["input"], args["timestep"], **args["c"])

        model.set_model_unet_function_wrapper(call)

    return on_clone(patch)


@contextmanager
def forward_set(module, forward):
    module.forward = MethodType(forward, module)
    try:
        yield
    finally:
        del module.forward


def of_class(module, *args, **kwargs):
    """What the module's class makes of it, whatever forward the module itself has; that of a compiled module before it was compiled."""
    return type(getattr(module, "_orig_mod", module)).forward(module, *args, **kwargs)


# A forward set on blocks while the model's own forward runs, as NAG does.


def nag(subject):
    def block_forward(block, *args, **kwargs):
        return scaled(of_class(block, *args, **kwargs))

    def model_forward(diffusion_model, *args, **kwargs):
        some = blocks_of(subject, diffusion_model)[1:-1]
        for block in some:
            block.forward = MethodType(block_forward, block)
        try:
            return of_class(diffusion_model, *args, **kwargs)
        finally:
            for block in some:
                del block.forward

    return while_called(lambda diffusion_model: forward_set(diffusion_model, model_forward))


def test_a_forward_set_while_the_model_runs(subject, model):
    sample, other = subject.small.sample, nag(subject)
    expected = sample(other(equation(subject, model)), **SAMPLING)
    plain = sample(other(model), **SAMPLING)
    for made in (other(guided(subject, model)), guided(subject, other(model))):
        assert_guided(sample(made, **SAMPLING), expected, plain)


@pytest.mark.parametrize("keys", [["diffusion_model"], None], ids=["whole model", "blocks"])
def test_a_forward_set_while_the_compiled_model_runs(keys):
    subject = SUBJECTS["FLUX.1"]
    model, sample, other = subject.small.load(), subject.small.sample, nag(subject)
    keys = keys or [f"diffusion_model.{name}.{i}" for name, count in (("double_blocks", 2), ("single_blocks", 3)) for i in range(count)]

    def compiled(model):
        model = other(model)
        set_torch_compile_wrapper(model, backend="eager", keys=keys)
        return model

    expected = sample(other(equation(subject, model)), **SAMPLING)
    plain = sample(compiled(model), **SAMPLING)
    assert_guided(sample(compiled(guided(subject, model)), **SAMPLING), expected, plain)
    torch.testing.assert_close(sample(compiled(model), **SAMPLING), plain, rtol=0, atol=0)


def test_blocks_compiled_in_place(subject, model):
    """By nn.Module.compile, which keeps what it compiled on the module."""
    sample = subject.small.sample
    plain, expected = sample(model, **SAMPLING), sample(equation(subject, model), **SAMPLING)
    blocks = blocks_of(subject, model.model.diffusion_model)
    for block in blocks:
        block.compile(backend="eager")
    try:
        assert_guided(sample(guided(subject, model), **SAMPLING), expected, plain)
        torch.testing.assert_close(sample(model, **SAMPLING), plain, **TOLERANCE)
    finally:
        for block in blocks:
            block._compiled_call_impl = None


def test_a_forward_set_between_two_of_our_nodes():
    subject = SUBJECTS["FLUX.1"]
    model, sample, calls = subject.small.load(), subject.small.sample, []

    def between(executor, *args, **kwargs):
        block = executor.class_obj.diffusion_model.single_blocks[1]

        def forward(self, *args, **kwargs):
            calls.append(1)
            return scaled(of_class(self, *args, **kwargs))

        with forward_set(block, forward):
            return executor(*args, **kwargs)

    other = on_clone(lambda model: model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "pack", between))

    def variance(model):
        return node("ScaleTextVariance", model=model, scale=1.5, start_percent=0.0, end_percent=1.0, tokens="all")[0]

    def variance_by_hand(model):
        def before(block, args, kwargs):
            z = kwargs["txt"]
            return args, kwargs | {"txt": 1.5 * (z - z.mean(dim=1, keepdim=True)) + z.mean(dim=1, keepdim=True)}

        for block in model.model.diffusion_model.double_blocks:
            block.register_forward_pre_hook(before, with_kwargs=True)
        return model

    expected = sample(variance_by_hand(other(equation(subject, model))), cfg=1.0, steps=3)
    calls.clear()
    actual = sample(variance(other(guided(subject, model))), cfg=1.0, steps=3)
    assert len(calls) == 3
    assert_guided(actual, expected, sample(other(model), cfg=1.0, steps=3))


# Rows that come and go within the model's forward.


def inputs_for(rows, inputs, of):
    """The inputs of a call, for other rows: those whose first dimension is that of the batch."""
    return {name: value[of] if isinstance(value, torch.Tensor) and len(value) == rows else value for name, value in inputs.items()}


def one_more_row(diffusion_model, x, timestep, **inputs):
    rows = len(x)
    more = [*range(rows), rows - 1]
    return of_class(diffusion_model, x[more], timestep[more], **inputs_for(rows, inputs, more))[:rows]


def one_row_at_a_time(diffusion_model, x, timestep, **inputs):
    return torch.cat([of_class(diffusion_model, x[[row]], timestep[[row]], **inputs_for(len(x), inputs, [row])) for row in range(len(x))])


@pytest.mark.parametrize("forward", [one_more_row, one_row_at_a_time])
def test_rows_that_change_within_the_forward(subject, model, forward):
    sample = subject.small.sample
    other = while_called(lambda diffusion_model: forward_set(diffusion_model, forward))
    expected = sample(equation(subject, model, "both"), **SAMPLING)
    actual = sample(other(guided(subject, model, "both")), **SAMPLING)
    assert_guided(actual, expected, sample(model, **SAMPLING))
    with pytest.raises(ValueError, match="Another node runs the model's blocks on . rows where its batch has 2.*set cfg_rows to both"):
        sample(other(guided(subject, model, "opposed")), **SAMPLING)


# The model's class swapped for a pack's own.


def copied_class(cls):
    """A class that has all of another's methods and is no kind of it."""
    methods = {}
    for part in reversed(cls.__mro__[:-1]):
        if part is not nn.Module:
            methods |= {name: value for name, value in vars(part).items() if name not in ("__dict__", "__weakref__")}
    return type(f"Re{cls.__name__}", (nn.Module,), methods)


def swapped_class(subject, **methods):
    cls = type(subject.small.model())
    base = cls.__mro__[1]
    copied = copied_class(cls)
    if base is not nn.Module:  # a forward that only calls its base's

        def forward(self, x, timesteps, context=None, y=None, control=None, transformer_options={}, **kwargs):
            return base.forward(self, x, timesteps, context=context, y=y, control=control, transformer_options=transformer_options)

        copied.forward = forward
    for name, method in methods.items():
        setattr(copied, name, method)
    return on_clone(lambda model: model.add_object_patch("diffusion_model.__class__", copied))


def test_the_models_class_swapped_for_a_packs_own(subject):
    model, sample, other = subject.small.load(), subject.small.sample, swapped_class(subject)
    expected = sample(other(equation(subject, model)), **SAMPLING)
    plain = sample(other(model), **SAMPLING)
    for made in (other(guided(subject, model)), guided(subject, other(model))):
        assert_guided(sample(made, **SAMPLING), expected, plain)
    # The pack's class stays on the model until another patcher of it is loaded.
    assert type(model.model.diffusion_model).__name__.startswith("Re")
    assert_guided(sample(guided(subject, model), **SAMPLING), sample(equation(subject, model), **SAMPLING), sample(model, **SAMPLING))


def test_a_swapped_class_that_takes_one_row_at_a_time(subject):
    model, sample = subject.small.load(), subject.small.sample
    once = swapped_class(subject)
    copied = once(model).object_patches["diffusion_model.__class__"]
    whole = copied.forward

    def forward(self, x, timestep, **inputs):
        return torch.cat([whole(self, x[[row]], timestep[[row]], **inputs_for(len(x), inputs, [row])) for row in range(len(x))])

    other = swapped_class(subject, forward=forward)
    assert_guided(
        sample(other(guided(subject, model, "both")), **SAMPLING),
        sample(equation(subject, model, "both"), **SAMPLING),
        sample(model, **SAMPLING),
    )


def test_a_swapped_class_without_a_part_is_named(tmp_path):
    copied = copied_class(type(CHROMA.model()))
    del copied.get_modulations
    projection = loaded(write(tmp_path / "projection.safetensors", *own(network(CHROMA), "max", "time embedding", CHROMA.name)))
    made = apply(CHROMA.load(), CHROMA.direction(), projection=projection)
    made.add_object_patch("diffusion_model.__class__", copied)
    with pytest.raises(ValueError, match="a class of its own, .*ReChroma, in place of this model's Chroma.*get_modulations"):
        CHROMA.sample(made)


class PartsOfHead(nn.Module):
    """A head whose parts are run one by one, so that the head itself is never called."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, x, vec):
        shift, scale = self.head.adaLN_modulation(vec[:, None]).chunk(2, dim=-1)
        return self.head.linear((1 + scale) * self.head.norm_final(x) + shift)


@pytest.mark.parametrize("name", ["FLUX.1", "HiDream-I1"])
def test_a_head_whose_parts_are_run_one_by_one(name):
    """As RES4LYF's classes of these two families do."""
    subject = SUBJECTS[name]
    model, sample = subject.small.load(), subject.small.sample

    def forward(diffusion_model, *args, **kwargs):
        head = diffusion_model.final_layer
        diffusion_model.final_layer = PartsOfHead(head)
        try:
            return of_class(diffusion_model, *args, **kwargs)
        finally:
            diffusion_model.final_layer = head

    other = while_called(lambda diffusion_model: forward_set(diffusion_model, forward))
    made = apply(model, subject.small.direction(), w=2.0, cfg_rows="both", schedule=schedule(1, final_layer=1.0))
    expected = sample(reference(subject.small, model, term(subject.small, start=1, head=1.0, w=2.0)), **SAMPLING)
    assert_guided(sample(other(made), **SAMPLING), expected, sample(model, **SAMPLING))


# The list of blocks swapped for one block that runs them all, as FBCache does.


class Together(nn.Module):
    def __init__(self, blocks, registered):
        super().__init__()
        self.blocks = blocks if registered else [*blocks]
        self.kept = (*blocks,)

    def forward(self, context, x, **inputs):
        for block in self.kept:
            context, x = block(context, x, **inputs)
        return context, x


def one_block(registered):
    @contextmanager
    def setting(diffusion_model):
        blocks = diffusion_model.joint_blocks
        diffusion_model.joint_blocks = nn.ModuleList([Together(blocks, registered)])
        try:
            yield
        finally:
            diffusion_model.joint_blocks = blocks

    return while_called(setting)


def test_blocks_within_one_block():
    subject = SUBJECTS["SD3.5"]
    model, sample, other = subject.small.load(), subject.small.sample, one_block(registered=True)
    expected = sample(other(equation(subject, model)), **SAMPLING)
    for made in (other(guided(subject, model)), guided(subject, other(model))):
        assert_guided(sample(made, **SAMPLING), expected, sample(other(model), **SAMPLING))


def test_blocks_hidden_in_one_block_are_refused():
    subject = SUBJECTS["SD3.5"]
    made = one_block(registered=False)(guided(subject, subject.small.load()))
    with pytest.raises(ValueError, match=r"a model of 4 layers and now runs on one of 1 \(Together\).*it hides them: remove that node"):
        subject.small.sample(made, **SAMPLING)


class DoublesThenSingles(nn.Module):
    """All blocks of HunyuanVideo behind the list of double ones."""

    def __init__(self, doubles, singles):
        super().__init__()
        self.doubles, self.singles = doubles, singles

    def forward(self, img, txt, vec, *args, **inputs):
        for block in self.doubles:
            img, txt = block(img, txt, vec, *args, **inputs)
        x = torch.cat((img, txt), dim=1)
        for name in ("modulation_dims_img", "modulation_dims_txt"):
            inputs.pop(name, None)
        for block in self.singles:
            x = block(x, vec, *args, **inputs)
        return x[:, : img.shape[1]], x[:, img.shape[1] :]


def test_both_lists_of_blocks_within_one_block():
    @contextmanager
    def setting(diffusion_model):
        doubles, singles = diffusion_model.double_blocks, diffusion_model.single_blocks
        diffusion_model.double_blocks = nn.ModuleList([DoublesThenSingles(doubles, singles)])
        diffusion_model.single_blocks = nn.ModuleList()
        try:
            yield
        finally:
            diffusion_model.double_blocks, diffusion_model.single_blocks = doubles, singles

    model, sample, other = HUNYUAN_VIDEO.load(), HUNYUAN_VIDEO.sample, while_called(setting)
    made = apply(model, HUNYUAN_VIDEO.direction(), w=2.0, schedule=schedule(1))
    expected = sample(other(reference(HUNYUAN_VIDEO, model, term(HUNYUAN_VIDEO, start=1, w=2.0))))
    for actual in (other(made), apply(other(model), HUNYUAN_VIDEO.direction(), w=2.0, schedule=schedule(1))):
        assert_guided(sample(actual), expected, sample(other(model)))


# What never reaches the model's own blocks.


def copied_model(model):
    """As packs that run copies of the blocks, whatever the host's model is given meanwhile."""
    twin = copy.deepcopy(model.model.diffusion_model)
    return while_called(lambda diffusion_model: forward_set(diffusion_model, lambda self, *args, **kwargs: twin(*args, **kwargs)))


def said(caplog):
    """Our own warnings."""
    return " ".join(
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING and "guidance" in record.getMessage()
    )


def test_a_sampling_that_reaches_no_layer_is_said(subject, model, caplog):
    sample = subject.small.sample
    sample(guided(subject, model), **SAMPLING)
    assert not said(caplog)
    sample(copied_model(model)(guided(subject, model)), **SAMPLING)
    assert "Modulation guidance did nothing in this sampling of 4 calls" in said(caplog)


def test_layers_that_are_never_reached_are_counted(caplog):
    subject = SUBJECTS["SD3.5"]
    model = subject.small.load()
    skipping = while_called(
        lambda diffusion_model: forward_set(diffusion_model.joint_blocks[2], lambda self, context, x, **inputs: (context, x))
    )
    other = on_clone(lambda model: model.set_model_patch_replace(lambda args, extra: args, "dit", "double_block", 2))
    subject.small.sample(skipping(guided(subject, model)), **SAMPLING)
    assert not said(caplog), "another forward is still the block's"
    subject.small.sample(other(guided(subject, model)), **SAMPLING)
    assert "Modulation guidance left out 1 of the 3 layers it acts on in this sampling of 4 calls" in said(caplog)

"""Scaled text tokens where other nodes put tokens beside them: in the conditioning (Redux), or within the model (USO, post_input patches)."""

from types import SimpleNamespace

import comfy.ldm.flux.redux
import comfy.model_patcher
import comfy.ops
import comfy.sd
import pytest
import torch
from comfy_extras.nodes_model_patch import SigLIPMultiFeatProjModel
from support import flux
from support.text_blind_families import CHROMA, FLUX2, QWEN_IMAGE
from support.text_encoders import encode, flux_clip
from support.text_variance import (
    TOLERANCE,
    Counting,
    FluxSmall,
    assert_equal_and_moved,
    equation,
    flux_equation,
    joint_alphas,
    layers,
    scale,
)
from support.time_shift import CONTEXT
from torch._dynamo.utils import counters

from benchmarks.in_process import node

PICTURE = 5  # tokens that Redux makes


@pytest.fixture(scope="module")
def schnell():
    return flux.flux()


def random_weights(module, seed=0):
    draw = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.normal_(generator=draw).div_(parameter.shape[-1] ** 0.5)
    return module


def redux(conditioning, *ways):
    """The host's Apply Style Model, once for each (strength_type, strength)."""
    style_model = comfy.sd.StyleModel(random_weights(comfy.ldm.flux.redux.ReduxImageEncoder(8, conditioning[0][0].shape[-1])))
    for seed, (strength_type, strength) in enumerate(ways):
        seen = SimpleNamespace(last_hidden_state=torch.randn(1, PICTURE, 8, generator=torch.Generator().manual_seed(seed)))
        conditioning = node(
            "StyleModelApply",
            conditioning=conditioning,
            style_model=style_model,
            clip_vision_output=seen,
            strength=strength,
            strength_type=strength_type,
        )[0]
    return conditioning


WAYS = {
    "multiply": [("multiply", 0.7)],
    "attn_bias": [("attn_bias", 0.5)],
    "stacked": [("attn_bias", 0.5), ("attn_bias", 2.0)],
    "on a mask": [("attn_bias", 0.5), ("multiply", 1.0)],
}
# Prompts of so many tokens: the host pads FLUX.2's to 512, but not the mask.
FAMILIES = ((FluxSmall, 8), (CHROMA, 7), (FLUX2, 512))


def prompt_of(small, tokens, seed=1):
    [[_, extras]] = small.conditioning(seed)
    width = flux.CONTEXT if small is FluxSmall else CONTEXT
    return [[torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(seed)), extras]]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("small, tokens", FAMILIES, ids=lambda value: getattr(value, "name", ""))
def test_redux_in_every_strength_type(small, tokens, way):
    """Its tokens can't be told from a prompt's, and are scaled with them."""
    model = small.load()
    sampling = dict(positive=redux(prompt_of(small, tokens), *WAYS[way]), negative=prompt_of(small, tokens, 2), cfg=2.0)
    expected = small.sample(equation(small, model, joint_alphas(small, model, 2.0)), **sampling)
    assert_equal_and_moved(small.sample(scale(model, 2.0), **sampling), expected, small.sample(model, **sampling))

    sampling["cfg"] = 1.0
    last = f"0: 1, {small.depth - 1}: 0.5"  # text and image in one stream
    alphas = [{0: 2.0, small.depth - 1: 1.5}.get(layer, 1) for layer in range(small.depth)]
    expected = small.sample(equation(small, model, alphas, tokens=tokens + PICTURE * len(WAYS[way])), **sampling)
    torch.testing.assert_close(small.sample(scale(model, 2.0, schedule=layers(last)), **sampling), expected, **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float16])
def test_tokens_that_no_image_token_sees_are_padding(schnell, dtype):
    """In a mask over text and image tokens, 8 and 4 x 4 of them."""
    seen = torch.ones(1, 24, 24, dtype=torch.bool)
    seen[:, 5:, 5:8] = torch.eye(19, 3, dtype=torch.bool)  # each token sees itself
    mask = seen if dtype == torch.bool else torch.where(seen, 0.0, -torch.inf).to(dtype)
    sampling = dict(positive=flux.conditioning(1, attention_mask=mask, attention_mask_img_shape=(4, 4)), cfg=1.0)
    expected = flux.sample(flux_equation(schnell, 2.0, prompt=lambda kwargs: (torch.arange(8) < 5)[None]), **sampling)
    assert_equal_and_moved(flux.sample(scale(schnell, 2.0), **sampling), expected, flux.sample(schnell, **sampling))
    expected = flux.sample(flux_equation(schnell, 2.0), **sampling)
    torch.testing.assert_close(flux.sample(scale(schnell, 2.0, tokens="all"), **sampling), expected, **TOLERANCE)


@pytest.mark.parametrize("way", WAYS)
def test_redux_is_left_as_it_is_where_tokens_are_counted(schnell, way):
    clip, text = flux_clip(flux.CONTEXT), "a teal lighthouse"
    count = len(clip.tokenizer.t5xxl.tokenizer(text)["input_ids"])
    sampling = dict(positive=redux(encode(clip, text), *WAYS[way]), cfg=1.0)

    def counted(kwargs):
        return (torch.arange(kwargs["context"].shape[1]) < count)[None]

    expected = flux.sample(flux_equation(schnell, 2.0, prompt=counted), **sampling)
    assert_equal_and_moved(flux.sample(scale(schnell, 2.0, clip=clip, prompt=text), **sampling), expected, flux.sample(schnell, **sampling))


STYLE = 4  # tokens that USO makes of each of three layers


def uso(model):
    """The host's USO Style Reference."""
    dims = dict(siglip_token_nums=9, style_token_nums=STYLE, siglip_token_dims=8, hidden_size=flux.HIDDEN)
    projector = random_weights(SigLIPMultiFeatProjModel(**dims, operations=comfy.ops.disable_weight_init))
    cpu = torch.device("cpu")
    draw = torch.Generator().manual_seed(7)
    seen = SimpleNamespace(
        all_hidden_states=torch.randn(1, 27, 9, 8, generator=draw), penultimate_hidden_states=torch.randn(1, 9, 8, generator=draw)
    )
    patch = comfy.model_patcher.ModelPatcher(projector, load_device=cpu, offload_device=cpu)
    return node("USOStyleReference", model=model, model_patch=patch, clip_vision_output=seen)[0]


def beside(before, after, width=flux.HIDDEN, factor=1.0, cut=0):
    """A post_input patch that puts tokens before and after the text, multiplies it and cuts off its first tokens."""

    def patch(args):
        text = factor * args["txt"][:, cut:]
        ids = args["txt_ids"][:, cut:]
        draw = torch.Generator().manual_seed(3)
        put = [torch.randn(1, count, width, generator=draw).expand(len(text), -1, -1) for count in (before, after)]
        places = [ids[:, :1].expand(-1, count, -1) for count in (before, after)]
        return args | {"txt": torch.cat((put[0], text, put[1]), dim=1), "txt_ids": torch.cat((places[0], ids, places[1]), dim=1)}

    def patched(model):
        model = model.clone()
        model.set_model_patch(patch, "post_input")
        return model

    return patched


def both(first, second):
    return lambda model: second(first(model))


# What puts tokens there, and how many of them before and after the text.
PATCHES = {
    "uso": (uso, 3 * STYLE, 0),
    "before": (beside(3, 0), 3, 0),
    "after": (beside(0, 3), 0, 3),
    "around": (beside(2, 300), 2, 300),
    "changed": (beside(3, 0, factor=1.1), 3, 0),
    "none": (beside(0, 0, factor=1.1), 0, 0),
    "two": (both(uso, beside(1, 2)), 3 * STYLE + 1, 2),
}


@pytest.mark.parametrize("order", ["first", "last"])
@pytest.mark.parametrize("name", PATCHES)
def test_tokens_put_beside_the_text_within_the_model_are_left_as_they_are(schnell, name, order):
    other, before, after = PATCHES[name]
    patched = (lambda model: scale(other(model), 2.0)) if order == "last" else (lambda model: other(scale(model, 2.0)))
    text = torch.cat([torch.zeros(before), torch.ones(8), torch.zeros(after)]).bool()
    expected = flux.sample(flux_equation(other(schnell), 2.0, prompt=lambda kwargs: text[None]))
    assert_equal_and_moved(flux.sample(patched(schnell)), expected, flux.sample(other(schnell)))

    alphas = [1, 2.0, 1, 1, 1, 1, 1, 1.5]
    expected = flux.sample(equation(FluxSmall, other(schnell), alphas, lambda kwargs: text[None], len(text)))
    actual = flux.sample(scale(other(schnell), 2.0, schedule=layers("1: 1, 7: 0.5")))
    torch.testing.assert_close(actual, expected, **TOLERANCE)


def test_a_patch_that_cuts_the_text(schnell):
    other = beside(0, 0, cut=2)
    expected = flux.sample(flux_equation(other(schnell), 2.0))
    assert_equal_and_moved(flux.sample(scale(other(schnell), 2.0)), expected, flux.sample(other(schnell)))


def test_rows_of_another_prompt_and_qwen_image():
    """With a prompt for each row: padding is still told where tokens stand before the text."""
    model = QWEN_IMAGE.load()
    other = beside(3, 0, width=64)
    prompts = [QWEN_IMAGE.conditioning(seed) for seed in (1, 2)]
    for prompt, count in zip(prompts, (5, 3)):
        prompt[0][0][:, count:] = 0
    counts = {0: 5, 1: 3}

    def rows(kwargs):
        position = torch.arange(10)
        return torch.stack([(position >= 3) & (position < 3 + counts[chunk]) for chunk in kwargs["transformer_options"]["cond_or_uncond"]])

    sampling = dict(zip(("positive", "negative"), prompts), cfg=2.0)
    expected = QWEN_IMAGE.sample(equation(QWEN_IMAGE, other(model), joint_alphas(QWEN_IMAGE, model, 2.0), rows), **sampling)
    assert_equal_and_moved(QWEN_IMAGE.sample(scale(other(model), 2.0), **sampling), expected, QWEN_IMAGE.sample(other(model), **sampling))


def test_tokens_that_cannot_be_told_are_refused(schnell):
    def longer(args, extra):
        return extra["original_block"](args | {"txt": torch.cat((args["txt"], args["txt"]), dim=1)})

    model = scale(schnell)
    model.set_model_patch_replace(longer, "dit", "double_block", 1)
    with pytest.raises(ValueError, match="16 text tokens reach a block, but the model was given 8"):
        flux.sample(model)


def test_no_number_compiles_again_beside_uso():
    torch._dynamo.reset()
    counters.clear()
    backend = Counting()
    model, eager = flux.flux(double=1, single=1), flux.flux(double=1, single=1)
    compiled = node("TorchCompileModel", model=uso(model), backend=backend)[0]

    def check(patch, graphs):
        torch.testing.assert_close(flux.sample(patch(compiled), steps=1), flux.sample(patch(uso(eager)), steps=1), **TOLERANCE)
        assert backend.graphs == graphs

    check(lambda model: model, 1)
    check(scale, 2)
    for same in (lambda model: scale(model, 2.0), lambda model: model, lambda model: scale(model, tokens="all")):
        check(same, 2)
    check(lambda model: scale(model, schedule=layers("0-1: 1")), 3)  # the single block too
    check(lambda model: scale(model, 0.5, schedule=layers("1: 1")), 3)
    assert not counters["graph_break"]

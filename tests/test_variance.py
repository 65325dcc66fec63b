"""Scaled text tokens equal z~ = alpha (z - mean(z)) + mean(z), written before each block of a second load of the model."""

from inspect import signature

import comfy.ops
import comfy.sd
import comfy.text_encoders.flux
import comfy.text_encoders.sd3_clip
import flux
import pytest
import torch
from benchmarks.in_process import node
from blind_families import CHROMA, FLUX2, HUNYUAN_VIDEO15, QWEN_IMAGE
from families.hidream import HIDREAM_I1
from families.hunyuan_video import REPLACE, TEXT_TO_VIDEO
from families.kandinsky5 import KANDINSKY5_VIDEO
from families.mochi import MOCHI
from families.sd3 import SD3, SD35_MEDIUM
from torch._dynamo.utils import counters
from transformers import T5TokenizerFast

TOLERANCE = dict(rtol=0, atol=1e-5)

# Where each class's text tokens are: (list of blocks, argument, which part of it), joint blocks first; "last" is behind the image.
PLACES = {
    "Flux": [("double_blocks", "txt", "all"), ("single_blocks", "x", "first")],
    "OpenAISignatureMMDITWrapper": [("joint_blocks", "context", "all")],
    "HiDreamImageTransformer2DModel": [("double_stream_blocks", "text_tokens", "all"), ("single_stream_blocks", "image_tokens", "last")],
    "HunyuanVideo": [("double_blocks", "txt", "all"), ("single_blocks", "x", "first")],
    "QwenImageTransformer2DModel": [("transformer_blocks", "encoder_hidden_states", "all")],
    "AsymmDiTJoint": [("blocks", "y", "all")],
    "Chroma": [("double_blocks", "txt", "all"), ("single_blocks", "x", "first")],
}


class FluxSmall:
    """FLUX.1 of tests/flux.py under the names of tests/families."""

    name = "FLUX.1"
    depth = 8

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


FAMILIES = (FluxSmall, SD35_MEDIUM, HIDREAM_I1, TEXT_TO_VIDEO, QWEN_IMAGE, MOCHI, FLUX2, CHROMA, HUNYUAN_VIDEO15)


def scale(model, scale=1.5, **inputs):
    return node("ScaleTextVariance", model=model, scale=scale, **inputs)[0]


def layers(text):
    return node("GuidanceLayerScheduleText", layers=text, final_layer=0.0)[0]


def places(model):
    """[(block, argument, part)] in global order."""
    kind = next(base.__name__ for base in type(model).__mro__ if base.__name__ in PLACES)
    return [(block, *where) for name, *where in PLACES[kind] for block in model.get_submodule(name)]


def equation(small, patcher, alphas, prompt=None, tokens=None):
    """A second load with the formula before each block; alphas: one per block.

    prompt: (call's kwargs) -> (rows, tokens) of bools, the tokens of the prompt, None for all of them; tokens: how many there are,
    for blocks of mixed streams.
    """
    patcher = small.reload(patcher)
    return _with_formula(patcher, alphas, prompt, tokens)


def _with_formula(patcher, alphas, prompt=None, tokens=None):
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
            return (*args[:position], z, *args[position + 1:]), kwargs

        return hook

    model.register_forward_pre_hook(at_call, with_kwargs=True)
    for (block, argument, part), alpha in zip(places(model), alphas, strict=True):
        if alpha != 1:
            block.register_forward_pre_hook(at_block(argument, part, alpha), with_kwargs=True)
    return patcher


def parameters(block):
    names = list(signature(block.forward).parameters)
    return ["context", "x"] if names[0] == "args" else names  # SD3's block takes them as they come


def joint_alphas(model, alpha):
    """alpha at joint blocks, 1 at those of mixed streams."""
    return [alpha if part == "all" else 1 for _, _, part in places(model.model.diffusion_model)]


def assert_equal_and_moved(actual, expected, plain):
    assert (expected - plain).abs().max() > 1e-2, "the formula itself must move the picture"
    torch.testing.assert_close(actual, expected, **TOLERANCE)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda small: small.name)
def small(request):
    return request.param


@pytest.fixture(scope="module")
def model(small):
    return small.load()


@pytest.fixture(scope="module")
def plain(small, model):
    with torch.inference_mode():
        return small.sample(model)


PROMPTS = {
    "Mochi": lambda kwargs: kwargs["attention_mask"].bool(),
    "FLUX.2": lambda kwargs: (torch.arange(512) >= 512 - 7).expand(len(kwargs["context"]), -1),
}


def test_by_default_every_joint_block_is_scaled(small, model):
    expected = small.sample(equation(small, model, joint_alphas(model, 1.5), PROMPTS.get(small.name)), batch=2)
    actual = small.sample(scale(model), batch=2)
    assert_equal_and_moved(actual, expected, small.sample(model, batch=2))


# How many text tokens there are in blocks of mixed streams; the host pads FLUX.2's to 512, zeros before.
TOKENS = {"FLUX.1": 8, "HiDream-I1": 6 + 5 + 5, "HunyuanVideo": 8, "FLUX.2": 512, "Chroma": 7, "HunyuanVideo 1.5": 7}


def test_a_schedule_weighs_the_scale_and_names_blocks_of_mixed_streams(small, model, plain):
    text = f"0: 1, 2: 0.5, {small.depth - 1}: -0.5"
    alphas = [{0: 1.8, 2: 1.4, small.depth - 1: 0.6}.get(layer, 1) for layer in range(small.depth)]
    expected = small.sample(equation(small, model, alphas, PROMPTS.get(small.name), TOKENS.get(small.name)))
    assert_equal_and_moved(small.sample(scale(model, 1.8, schedule=layers(text))), expected, plain)


def test_variants():
    """A second attention beside the joint one or none, and frames with a time of their own."""
    for variant in (SD3, REPLACE):
        model = variant.load()
        expected = variant.sample(equation(variant, model, joint_alphas(model, 2.0)))
        assert_equal_and_moved(variant.sample(scale(model, 2.0)), expected, variant.sample(model))


def test_scale_1_is_bit_identical(small, model, plain):
    assert torch.equal(small.sample(scale(model, 1.0)), plain)


@pytest.fixture(scope="module")
def schnell():
    return flux.flux()


def flux_equation(model, alpha, **options):
    return equation(FluxSmall, model, joint_alphas(model, alpha), **options)


def test_wrong_equations_would_be_noticed(schnell):
    actual = flux.sample(scale(schnell, 1.5))
    alphas = joint_alphas(schnell, 1.5)
    for wrong in ([1.6] + alphas[1:], [1] + alphas[1:], [*alphas[:-1], 1.5]):
        assert (flux.sample(equation(FluxSmall, schnell, wrong, tokens=8)) - actual).abs().max() > 1e-3


@pytest.mark.parametrize("small", [TEXT_TO_VIDEO, QWEN_IMAGE], ids=lambda small: small.name)
def test_masked_padding_neither_shifts_the_mean_nor_is_scaled(small):
    model = small.load()
    # HunyuanVideo's own mask is for one row, so rows go one by one.
    for seed, count in enumerate((5, 2)):
        mask = (torch.arange(small.encoded(seed)[0][0].shape[1]) < count).long()[None]
        sampling = dict(cfg=1.0, positive=small.conditioning(seed, attention_mask=mask))
        expected = small.sample(equation(small, model, joint_alphas(model, 2.0), prompt=lambda kwargs: mask.bool()), **sampling)
        assert_equal_and_moved(small.sample(scale(model, 2.0), **sampling), expected, small.sample(model, **sampling))
        of_all = small.sample(scale(model, 2.0, tokens="all"), **sampling)
        expected = small.sample(equation(small, model, joint_alphas(model, 2.0)), **sampling)
        assert_equal_and_moved(of_all, expected, small.sample(model, **sampling))


def test_rows_of_zeros_are_padding(schnell):
    """Each row of the batch has its own."""
    prompts = [flux.conditioning(seed) for seed in (1, 2)]
    for prompt, count in zip(prompts, (5, 3)):
        prompt[0][0][:, count:] = 0
    mask = {0: torch.arange(8) < 5, 1: torch.arange(8) < 3}

    def rows(kwargs):
        return torch.stack([mask[chunk] for chunk in kwargs["transformer_options"]["cond_or_uncond"]])

    sampling = dict(zip(("positive", "negative"), prompts), cfg=2.0)
    expected = flux.sample(flux_equation(schnell, 2.0, prompt=rows), **sampling)
    assert_equal_and_moved(flux.sample(scale(schnell, 2.0), **sampling), expected, flux.sample(schnell, **sampling))
    expected = flux.sample(flux_equation(schnell, 2.0), **sampling)
    torch.testing.assert_close(flux.sample(scale(schnell, 2.0, tokens="all"), **sampling), expected, **TOLERANCE)


def test_a_prompt_of_zeros_stays_one(schnell):
    """As ConditioningZeroOut makes it."""
    nothing = [[torch.zeros(1, 8, flux.CONTEXT), {"pooled_output": torch.zeros(1, flux.POOLED)}]]
    sampling = dict(positive=nothing, cfg=1.0)
    assert torch.equal(flux.sample(scale(schnell, 2.0), **sampling), flux.sample(schnell, **sampling))


T5 = dict(num_layers=1, d_model=flux.CONTEXT, d_kv=4, num_heads=2, d_ff=16)
CLIP = dict(num_hidden_layers=2, hidden_size=flux.POOLED, num_attention_heads=2, intermediate_size=32)


def flux_clip():
    """The host's own FLUX text encoder, tokenizers included, with small random weights."""
    clip = comfy.sd.CLIP(no_init=True)
    clip.tokenizer = comfy.text_encoders.flux.FluxTokenizer()
    small = {"t5xxl_model_config": T5, "clip_l_model_config": CLIP, "custom_operations": comfy.ops.disable_weight_init}
    clip.cond_stage_model = comfy.text_encoders.flux.FluxClipModel(dtype=torch.float32, dtype_t5=torch.float32, model_options=small)
    draw = torch.Generator().manual_seed(0)
    for name, parameter in clip.cond_stage_model.named_parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=draw) / (parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 1))
    clip.tokenizer_options, clip.layer_idx = {}, None
    return clip


def encoded(clip, text):
    """As CLIPTextEncode does, without moving models about."""
    tokens, pooled = clip.cond_stage_model.encode_token_weights(clip.tokenize(text))
    return [[tokens, {"pooled_output": pooled}]]


def test_the_tokens_of_a_prompt_can_be_counted(schnell):
    """FLUX's T5 pads to 256 tokens and gives no mask."""
    clip = flux_clip()
    texts = {0: "a (teal:1.2) lighthouse wearing a knitted scarf", 1: "blurred"}
    count = T5TokenizerFast.from_pretrained(clip.tokenizer.t5xxl.tokenizer.name_or_path)
    counts = {chunk: len(count(text.replace("(", "").replace(":1.2)", ""))["input_ids"]) for chunk, text in texts.items()}
    assert 1 < counts[1] < counts[0] < 30
    positive, negative = (encoded(clip, text) for text in texts.values())
    assert positive[0][0].shape[1] == 256

    def rows(kwargs):
        return torch.stack([torch.arange(256) < counts[chunk] for chunk in kwargs["transformer_options"]["cond_or_uncond"]])

    sampling = dict(positive=positive, negative=negative, cfg=2.0, steps=2)
    expected = flux.sample(flux_equation(schnell, 2.0, prompt=rows), **sampling)
    actual = flux.sample(scale(schnell, 2.0, clip=clip, prompt=texts[0], negative_prompt=texts[1]), **sampling)
    assert_equal_and_moved(actual, expected, flux.sample(schnell, **sampling))
    uncounted = flux.sample(scale(schnell, 2.0), **sampling)
    torch.testing.assert_close(uncounted, flux.sample(flux_equation(schnell, 2.0), **sampling), **TOLERANCE)
    assert (uncounted - actual).abs().max() > 1e-3

    with pytest.raises(ValueError, match="make 256 text tokens, but a conditioning that is sampled with has 8"):
        flux.sample(scale(schnell, 2.0, clip=clip, prompt=texts[0]), cfg=1.0)
    with pytest.raises(ValueError, match="clip and prompt, and clip is not connected"):
        scale(schnell, prompt="a")
    with pytest.raises(ValueError, match="clip and prompt, and prompt is not connected"):
        scale(schnell, clip=clip)
    with pytest.raises(ValueError, match="nothing to count"):
        scale(schnell, clip=clip, prompt="a", tokens="all")
    perp_neg = node("PerpNeg", model=scale(schnell, 2.0, clip=clip, prompt=texts[0]), empty_conditioning=negative, neg_scale=0.5)[0]
    with pytest.raises(ValueError, match="a conditioning of its own.* reads their tokens off the prompts connected to it: disconnect these"):
        flux.sample(perp_neg, **sampling)
    other = comfy.sd.CLIP(no_init=True)
    other.tokenizer, other.cond_stage_model, other.tokenizer_options = comfy.sd1_clip.SD1Tokenizer(clip_name="h"), clip.cond_stage_model, {}
    with pytest.raises(ValueError, match="makes tokens for h, but FLUX.1 reads those of t5xxl or l.*DualCLIPLoader and type flux"):
        scale(schnell, clip=other, prompt="a")


def test_percent_window(schnell):
    early = scale(schnell, 2.0, start_percent=0.0, end_percent=0.3)
    model_sampling = schnell.get_model_object("model_sampling")
    last = model_sampling.percent_to_sigma(0.3)
    both = flux_equation(schnell, 2.0)
    denoise = both.clone()

    def by_step(apply_model, args):
        model = both if args["timestep"].max() >= last else unscaled
        return model.model.apply_model(args["input"], args["timestep"], **args["c"])

    unscaled = FluxSmall.reload(schnell)
    denoise.set_model_unet_function_wrapper(by_step)
    assert_equal_and_moved(flux.sample(early, steps=6), flux.sample(denoise, steps=6), flux.sample(schnell, steps=6))
    assert torch.equal(flux.sample(scale(schnell, start_percent=0.999), steps=2), flux.sample(schnell, steps=2))


def test_two_nodes_multiply(schnell):
    twice = scale(scale(schnell, 1.5), 1.2, schedule=layers("1: 1"))
    alphas = [1.5, 1.5 * 1.2, 1.5, 1, 1, 1, 1, 1]
    assert_equal_and_moved(flux.sample(twice), flux.sample(equation(FluxSmall, schnell, alphas)), flux.sample(schnell))


@pytest.mark.parametrize("first", ["guidance", "variance"])
def test_beside_guidance(schnell, first):
    def guided(model):
        return flux.apply(model, flux.direction(), schedule=flux.schedule(1), cfg_rows="opposed")

    both = scale(guided(schnell)) if first == "guidance" else guided(scale(schnell))
    reference = _with_formula(flux.reference(schnell, flux.terms_of(start=1, rows="opposed")), [1.5, 1.5, 1.5, 1, 1, 1, 1, 1])
    expected = flux.sample(reference, cfg=2.0)
    for other in (guided(schnell), scale(schnell)):
        assert_equal_and_moved(flux.sample(both, cfg=2.0), expected, flux.sample(other, cfg=2.0))


@pytest.mark.parametrize("order", ["before", "after"])
def test_beside_a_lora_and_another_packs_block_slot(schnell, order):
    lora = {
        "diffusion_model.txt_in.lora_up.weight": torch.full((flux.HIDDEN, 1), 0.3),
        "diffusion_model.txt_in.lora_down.weight": torch.full((1, flux.CONTEXT), 0.3),
    }

    def others(model):
        model, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
        model.set_model_patch_replace(
            lambda args, extra: extra["original_block"](args | {"txt": args["txt"] * 1.1}), "dit", "double_block", 1
        )
        return model

    patched = scale(others(schnell)) if order == "after" else others(scale(schnell))
    expected = flux.sample(flux_equation(others(schnell), 1.5))
    assert_equal_and_moved(flux.sample(patched), expected, flux.sample(scale(schnell)))


def test_nothing_is_left_behind(schnell):
    attributes = {name: set(module.__dict__) for name, module in schnell.model.named_modules()}
    before = flux.sample(schnell)
    flux.sample(flux.apply(scale(schnell), flux.direction()))
    assert torch.equal(flux.sample(schnell), before)
    assert {name: set(module.__dict__) for name, module in schnell.model.named_modules()} == attributes


class Counting:
    """A torch.compile backend that counts graphs and runs them as they are."""

    graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


def test_no_number_compiles_again():
    torch._dynamo.reset()
    counters.clear()
    backend = Counting()
    model, eager = flux.flux(double=1, single=1), flux.flux(double=1, single=1)
    compiled = node("TorchCompileModel", model=model, backend=backend)[0]

    def guided(model):
        return flux.apply(model, flux.direction(), schedule=flux.schedule(0))

    def check(patch, graphs, last=False):
        patched = node("TorchCompileModel", model=patch(model), backend=backend)[0] if last else patch(compiled)
        torch.testing.assert_close(flux.sample(patched, steps=1), flux.sample(patch(eager), steps=1), rtol=0, atol=1e-5)
        assert backend.graphs == graphs

    check(lambda model: model, 1)
    check(scale, 2)
    for same in (
        lambda model: scale(model, 2.0), lambda model: scale(model, 2.0, schedule=layers("0: 0.5")), lambda model: model,
        lambda model: scale(scale(model, 0.5), 1.2), lambda model: scale(model, tokens="all"),
    ):
        check(same, 2)
    check(lambda model: guided(scale(model)), 3)
    check(lambda model: scale(guided(model), 1.2), 3, last=True)
    check(lambda model: scale(model, schedule=layers("0-1: 1")), 4)  # the single block too
    check(lambda model: scale(model, 0.5, schedule=layers("1: 1")), 4, last=True)
    assert not counters["graph_break"]


def test_bf16_is_finite_and_close(schnell):
    half = flux.flux(dtype=torch.bfloat16)
    expected, actual = (flux.sample(scale(loaded)) for loaded in (schnell, half))
    assert actual.isfinite().all() and (actual - expected).norm() / expected.norm() < 0.1


def test_models_without_joint_attention_are_refused():
    with pytest.raises(ValueError, match=r"MM-DiT\): FLUX.1, SD3, .*This model is a Kandinsky5 \(class Kandinsky5\)"):
        scale(KANDINSKY5_VIDEO.load())


@pytest.mark.parametrize("inputs, sentence", [
    ({"scale": float("nan")}, "scale is nan; it must be 0 or more"),
    ({"scale": -1.0}, "scale is -1.0; it must be 0 or more"),
    ({"start_percent": 0.6, "end_percent": 0.3}, "start_percent 0.6 is past end_percent 0.3"),
    ({"tokens": "some"}, "tokens is 'some'; choose prompt or all"),
])
def test_bad_numbers_are_refused(schnell, inputs, sentence):
    with pytest.raises(ValueError, match=sentence):
        scale(schnell, **inputs)


def test_schedules_that_cannot_work_are_refused(schnell):
    with pytest.raises(ValueError, match="layer 8 is beyond this model, which has 8 layers"):
        scale(schnell, schedule=layers("8: 1"))
    with pytest.raises(ValueError, match="final_layer is 0.5, but no text tokens reach the output head"):
        scale(schnell, schedule=flux.schedule(0, final_layer=0.5))

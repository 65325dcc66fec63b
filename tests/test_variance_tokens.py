"""Which tokens are scaled: those of the prompt, whatever tells them from padding."""

from dataclasses import replace

import comfy.ops
import comfy.sd1_clip
import comfy.supported_models
import pytest
import torch
from comfy.ldm.hidream.model import HiDreamImageTransformer2DModel
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.patcher_extension import WrappersMP
from comfy_extras import nodes_custom_sampler
from support import flux
from support.families.hidream import DIMS, HIDREAM_I1
from support.families.hunyuan_video import TEXT_TO_VIDEO
from support.families.sd3 import SD35_MEDIUM
from support.text_blind_families import QWEN_IMAGE
from support.text_encoders import encode, flux_clip, hidream_clip, sd3_clip
from support.text_variance import TOLERANCE, assert_equal_and_moved, equation, flux_equation, joint_alphas, layers, scale
from transformers import T5TokenizerFast

from benchmarks.in_process import node


@pytest.fixture(scope="module")
def schnell():
    return flux.flux()


@pytest.mark.parametrize("small", [TEXT_TO_VIDEO, QWEN_IMAGE], ids=lambda small: small.name)
def test_masked_padding_neither_shifts_the_mean_nor_is_scaled(small):
    model = small.load()
    # HunyuanVideo's own mask is for one row, so rows go one by one.
    for seed, count in enumerate((5, 2)):
        mask = (torch.arange(small.encoded(seed)[0][0].shape[1]) < count).long()[None]
        sampling = dict(cfg=1.0, positive=small.conditioning(seed, attention_mask=mask))
        expected = small.sample(equation(small, model, joint_alphas(small, model, 2.0), prompt=lambda kwargs: mask.bool()), **sampling)
        assert_equal_and_moved(small.sample(scale(model, 2.0), **sampling), expected, small.sample(model, **sampling))
        of_all = small.sample(scale(model, 2.0, tokens="all"), **sampling)
        expected = small.sample(equation(small, model, joint_alphas(small, model, 2.0)), **sampling)
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


def test_rows_handed_over_one_by_one_are_refused_with_what_helps_here(schnell):
    """They take no cfg_rows, which guidance has for this."""

    def one_by_one(executor, *args, **inputs):
        def of(row):
            return [value[row : row + 1] if isinstance(value, torch.Tensor) else value for value in args]

        return torch.cat([executor(*of(row), **inputs) for row in range(len(args[0]))])

    other = schnell.clone()
    other.add_wrapper(WrappersMP.DIFFUSION_MODEL, one_by_one)
    negative = flux.conditioning(2)
    negative[0][0][:, 3:] = 0
    sampling = dict(positive=flux.conditioning(1), negative=negative, cfg=2.0)
    with pytest.raises(ValueError, match="runs the model's blocks on 1 rows where its batch has 2.*set tokens to all") as refused:
        flux.sample(scale(other, 2.0), **sampling)
    assert "cfg_rows" not in str(refused.value)
    expected = flux.sample(flux_equation(schnell, 2.0), **sampling)
    torch.testing.assert_close(flux.sample(scale(other, 2.0, tokens="all"), **sampling), expected, **TOLERANCE)


def test_a_prompt_of_zeros_stays_one(schnell):
    """As ConditioningZeroOut makes it."""
    nothing = [[torch.zeros(1, 8, flux.CONTEXT), {"pooled_output": torch.zeros(1, flux.POOLED)}]]
    sampling = dict(positive=nothing, cfg=1.0)
    assert torch.equal(flux.sample(scale(schnell, 2.0), **sampling), flux.sample(schnell, **sampling))


LONG, SHORT, NEGATIVE = "a teal lighthouse wearing a knitted scarf", "a red boat", "blurred"


@pytest.fixture(scope="module")
def clip():
    with torch.inference_mode():
        return flux_clip(flux.CONTEXT)


def t5_count(clip, text):
    """How many tokens T5 makes of a text, its end included."""
    return len(T5TokenizerFast.from_pretrained(clip.tokenizer.t5xxl.tokenizer.name_or_path)(text)["input_ids"])


def prompts_of(clip, *texts):
    """`prompt` for `equation`: each row's own prompt, known by its tokens; FLUX's T5 pads to 256, and of concatenated ones each."""
    known = [(encode(clip, text)[0][0][0], torch.arange(256) < t5_count(clip, text)) for text in texts]

    def of_row(row):
        return torch.cat(
            [
                next((mask for tokens, mask in known if torch.equal(part, tokens)), torch.zeros(256, dtype=torch.bool))
                for part in row.split(256)
            ]
        )

    return lambda kwargs: torch.stack([of_row(row) for row in kwargs["context"]])


def test_the_tokens_of_a_prompt_can_be_counted(schnell, clip):
    """FLUX's T5 pads to 256 tokens and gives no mask."""
    text = "a (teal:1.2) lighthouse wearing a knitted scarf"
    counts = {0: t5_count(clip, LONG), 1: t5_count(clip, NEGATIVE)}
    assert 1 < counts[1] < counts[0] < 30
    positive, negative = encode(clip, text), encode(clip, NEGATIVE)
    assert positive[0][0].shape[1] == 256

    def rows(kwargs):
        return torch.stack([torch.arange(256) < counts[chunk] for chunk in kwargs["transformer_options"]["cond_or_uncond"]])

    sampling = dict(positive=positive, negative=negative, cfg=2.0, steps=2)
    expected = flux.sample(flux_equation(schnell, 2.0, prompt=rows), **sampling)
    actual = flux.sample(scale(schnell, 2.0, clip=clip, prompt=text, negative_prompt=NEGATIVE), **sampling)
    assert_equal_and_moved(actual, expected, flux.sample(schnell, **sampling))
    uncounted = flux.sample(scale(schnell, 2.0), **sampling)
    torch.testing.assert_close(uncounted, flux.sample(flux_equation(schnell, 2.0), **sampling), **TOLERANCE)
    assert (uncounted - actual).abs().max() > 1e-3


def test_texts_that_cannot_be_counted_are_refused(schnell, clip):
    with pytest.raises(ValueError, match="clip and prompt, and clip is not connected"):
        scale(schnell, prompt="a")
    with pytest.raises(ValueError, match="clip and prompt, and prompt is not connected"):
        scale(schnell, clip=clip)
    with pytest.raises(ValueError, match="clip and prompt, and prompt is not connected"):
        scale(schnell, clip=clip, prompts={"prompt0": "a"})
    with pytest.raises(ValueError, match="nothing to count"):
        scale(schnell, clip=clip, prompt="a", tokens="all")
    other = clip.clone()
    other.tokenizer = comfy.sd1_clip.SD1Tokenizer(clip_name="h")
    with pytest.raises(ValueError, match="makes tokens for h, but FLUX.1 reads those of t5xxl or l.*DualCLIPLoader and type flux"):
        scale(schnell, clip=other, prompt="a")
    with pytest.raises(ValueError, match="makes tokens for g, but FLUX.1 reads those of t5xxl or l"):
        scale(schnell, clip=sd3_clip(clip_l=False, t5=False), prompt="a")


# Several prompts.


def area(conditioning, y):
    return node("ConditioningSetArea", conditioning=conditioning, width=64, height=32, x=0, y=y, strength=1.0)[0]


def masked(conditioning, row):
    mask = (torch.arange(8) // 4 == row).float().expand(1, 8, 8).mT.contiguous()
    return node("ConditioningSetMask", conditioning=conditioning, mask=mask, strength=1.0, set_cond_area="default")[0]


def during(conditioning, start, end):
    return node("ConditioningSetTimestepRange", conditioning=conditioning, start=start, end=end)[0]


def combined(first, second):
    return node("ConditioningCombine", conditioning_1=first, conditioning_2=second)[0]


def concatenated(first, second):
    return node("ConditioningConcat", conditioning_to=first, conditioning_from=second)[0]


def averaged(first, second):
    return node("ConditioningAverage", conditioning_to=first, conditioning_from=second, conditioning_to_strength=0.5)[0]


def zeroed(conditioning):
    return node("ConditioningZeroOut", conditioning=conditioning)[0]


SEVERAL = {
    "combined": combined,
    "regions": lambda a, b: combined(area(a, 0), area(b, 32)),
    "masks": lambda a, b: combined(masked(a, 0), masked(b, 1)),
    "times": lambda a, b: combined(during(a, 0.0, 0.4), during(b, 0.4, 1.0)),
    "concatenated": concatenated,
    "one zeroed": lambda a, b: combined(a, zeroed(b)),
}


@pytest.mark.parametrize("way", SEVERAL)
def test_each_of_several_prompts_has_its_own_tokens(schnell, clip, way):
    texts = dict(prompt=LONG, negative_prompt=NEGATIVE, prompts={"prompt0": SHORT})
    sampling = dict(positive=SEVERAL[way](encode(clip, LONG), encode(clip, SHORT)), negative=encode(clip, NEGATIVE), cfg=2.0)
    expected = flux.sample(flux_equation(schnell, 2.0, prompt=prompts_of(clip, LONG, SHORT, NEGATIVE)), **sampling)
    assert_equal_and_moved(flux.sample(scale(schnell, 2.0, clip=clip, **texts), **sampling), expected, flux.sample(schnell, **sampling))


def test_the_texts_of_two_nodes_count_for_both(schnell, clip):
    sampling = dict(positive=combined(encode(clip, LONG), encode(clip, SHORT)), cfg=1.0)
    expected = flux.sample(flux_equation(schnell, 1.5 * 1.2, prompt=prompts_of(clip, LONG, SHORT)), **sampling)
    twice = scale(scale(schnell, 1.5, clip=clip, prompt=LONG), 1.2, clip=clip, prompt=SHORT)
    assert_equal_and_moved(flux.sample(twice, **sampling), expected, flux.sample(schnell, **sampling))


def guided(guider, model, **inputs):
    """The host's SamplerCustomAdvanced with one of its guiders."""
    latent = {"samples": torch.zeros(1, 16, 8, 8)}
    sigmas = node("BasicScheduler", model=model, scheduler="simple", steps=3, denoise=1.0)[0]
    return node(
        "SamplerCustomAdvanced",
        noise=node("RandomNoise", noise_seed=5)[0],
        guider=node(guider, model=model, **inputs)[0],
        sampler=node("KSamplerSelect", sampler_name="euler")[0],
        sigmas=sigmas,
        latent_image=latent,
    )[0]["samples"]


@pytest.mark.parametrize(
    "guider, conditionings",
    [
        ("PerpNegGuider", dict(positive=LONG, negative=NEGATIVE, empty_conditioning="")),
        ("DualCFGGuider", dict(cond1=LONG, cond2=SHORT, negative=NEGATIVE)),
    ],
)
def test_guiders_of_three_prompts(schnell, clip, guider, conditionings):
    inputs = dict(PerpNegGuider=dict(cfg=2.0, neg_scale=0.5), DualCFGGuider=dict(cfg_conds=2.0, cfg_cond2_negative=1.5, style="regular"))[
        guider
    ]
    inputs |= {name: encode(clip, text) for name, text in conditionings.items()}
    first, *others = conditionings.values()
    model = scale(schnell, 2.0, clip=clip, prompt=first, prompts=dict(enumerate(others)))
    expected = guided(guider, flux_equation(schnell, 2.0, prompt=prompts_of(clip, *conditionings.values())), **inputs)
    assert_equal_and_moved(guided(guider, model, **inputs), expected, guided(guider, schnell, **inputs))


def test_each_model_of_a_guider_that_runs_two_counts_its_own(schnell, clip):
    if not hasattr(nodes_custom_sampler, "DualModelGuider"):
        pytest.skip("This ComfyUI has no DualModelGuider.")
    negative = flux.flux(seed=1)
    inputs = dict(positive=encode(clip, LONG), negative=encode(clip, SHORT), cfg=2.0)
    rows = prompts_of(clip, LONG, SHORT)

    def sampled(model, of_negative):
        return guided("DualModelGuider", model, model_negative=of_negative, **inputs)

    plain = sampled(schnell, negative)
    scaled = (scale(schnell, 2.0, clip=clip, prompt=LONG), scale(negative, 3.0, clip=clip, prompt=SHORT))
    references = (flux_equation(schnell, 2.0, prompt=rows), flux_equation(negative, 3.0, prompt=rows))
    for which in ((0, 1), (0,), (1,)):
        models, expected = ([made[i] if i in which else (schnell, negative)[i] for i in (0, 1)] for made in (scaled, references))
        assert_equal_and_moved(sampled(*models), sampled(*expected), plain)


NOT_THESE = "holds none of the texts on prompt, negative_prompt and prompts"


@pytest.mark.parametrize(
    "positive",
    [
        lambda clip: encode(clip, SHORT),
        lambda clip: combined(encode(clip, LONG), encode(clip, SHORT)),
        lambda clip: combined(during(encode(clip, LONG), 0.0, 0.5), during(encode(clip, SHORT), 0.5, 1.0)),
        lambda clip: averaged(encode(clip, LONG), encode(clip, SHORT)),
        lambda clip: flux.conditioning(1),
        lambda clip: concatenated(zeroed(encode(clip, LONG)), encode(clip, SHORT)),
    ],
    ids=["another", "combined", "later", "averaged", "another encoder's", "after zeros"],
)
def test_other_prompts_are_refused_before_sampling(schnell, clip, positive):
    steps = []
    with pytest.raises(ValueError, match=NOT_THESE):
        flux.sample(scale(schnell, clip=clip, prompt=LONG), positive=positive(clip), cfg=1.0, callback=lambda *step: steps.append(step))
    assert not steps


def test_another_negative_is_refused_where_it_is_sampled_with(schnell, clip):
    sampling = dict(positive=encode(clip, LONG), negative=encode(clip, SHORT))
    counting = scale(schnell, 2.0, clip=clip, prompt=LONG)
    expected = flux.sample(flux_equation(schnell, 2.0, prompt=prompts_of(clip, LONG)), cfg=1.0, **sampling)
    assert_equal_and_moved(flux.sample(counting, cfg=1.0, **sampling), expected, flux.sample(schnell, cfg=1.0, **sampling))
    narrow = [[torch.randn(1, 77, 8), sampling["negative"][0][1]]]
    assert torch.equal(flux.sample(counting, cfg=1.0, **sampling | {"negative": narrow}), flux.sample(counting, cfg=1.0, **sampling))
    with pytest.raises(ValueError, match=NOT_THESE):
        flux.sample(counting, cfg=2.0, **sampling)
    perp_neg = node("PerpNeg", model=counting, empty_conditioning=encode(clip, SHORT), neg_scale=0.5)[0]
    with pytest.raises(ValueError, match="or another node brings it"):
        flux.sample(perp_neg, cfg=2.0, positive=encode(clip, LONG), negative=encode(clip, ""))


# Encoders of several parts, of which some may be missing.


def test_hidream_without_some_of_its_encoders():
    """Each block reads T5's tokens and twice Llama's; the host puts zeros, 4096 wide, in place of either."""
    for widths, loaded in (((16, 16), {}), ((4096, 16), {"t5": False}), ((16, 4096), {"llama": False})):
        dims = DIMS | dict(caption_channels=list(widths), text_emb_dim=2048, llama_layers=[0, 1, 2, 2, 2, 2, 2, 2])
        small = replace(
            HIDREAM_I1,
            model=lambda: HiDreamImageTransformer2DModel(**dims, operations=comfy.ops.disable_weight_init),
            config=lambda: comfy.supported_models.HiDream(dims),
            output_scale=HIDREAM_I1.scale,
        )
        clip = hidream_clip(*(16 if width == 4096 else width for width in widths), **loaded)
        count = t5_count(clip, LONG)
        t5 = torch.arange(128) < (count if loaded.get("t5", True) else 0)
        llama = torch.arange(128) < len(clip.tokenizer.llama.tokenizer(LONG)["input_ids"])
        if not loaded.get("llama", True):
            llama = torch.zeros(1, dtype=torch.bool)
        mask = torch.cat((t5, llama, llama))
        assert 0 < mask.sum() < 40

        model = small.load()
        sampling = dict(positive=encode(clip, LONG), cfg=1.0)
        alphas = [2.0, 2.0, 2.0, 1, 1, 1, 1, 1.5]
        reference = equation(small, model, alphas, prompt=lambda kwargs: mask[None], tokens=len(mask))
        actual = scale(model, 2.0, clip=clip, prompt=LONG, schedule=layers("0-2: 1, 7: 0.5"))
        assert_equal_and_moved(small.sample(actual, **sampling), small.sample(reference, **sampling), small.sample(model, **sampling))
        with pytest.raises(ValueError, match=NOT_THESE):
            small.sample(scale(model, clip=clip, prompt=SHORT), **sampling)


@pytest.mark.parametrize("loaded", [("clip_l",), ("clip_g",), ("t5",), ("clip_l", "clip_g"), ("clip_l", "t5")], ids=" ".join)
def test_sd3_without_some_of_its_encoders(loaded):
    """CLIP's 77 tokens, then T5's 77, as many as are loaded."""
    width = 16 if loaded == ("t5",) else 4096
    clip = sd3_clip(width, **{name: name in loaded for name in ("clip_l", "clip_g", "t5")})
    small = replace(SD35_MEDIUM, model=lambda: _sd35(width), output_scale=SD35_MEDIUM.scale)
    counts = [len(clip.tokenizer.clip_l.tokenizer(LONG)["input_ids"])] * (loaded != ("t5",)) + [t5_count(clip, LONG)] * ("t5" in loaded)
    mask = torch.cat([torch.arange(77) < count for count in counts])

    model = small.load()
    [[tokens, _]] = encode(clip, LONG)
    sampling = dict(positive=[[tokens, small.encoded(1)[0][1]]], cfg=1.0)
    assert tokens.shape[1] == len(mask)
    expected = small.sample(equation(small, model, joint_alphas(small, model, 5.0), prompt=lambda kwargs: mask[None]), **sampling)
    assert_equal_and_moved(small.sample(scale(model, 5.0, clip=clip, prompt=LONG), **sampling), expected, small.sample(model, **sampling))


def _sd35(width):
    return OpenAISignatureMMDITWrapper(
        input_size=None,
        in_channels=16,
        depth=4,
        adm_in_channels=32,
        num_patches=64,
        pos_embed_max_size=8,
        qk_norm="rms",
        context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": width, "out_features": 256}},
        operations=comfy.ops.disable_weight_init,
    )

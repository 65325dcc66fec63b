"""What the families cannot guide by is refused when the node runs, with a sentence that says what to load."""

from dataclasses import replace
from functools import partial

import comfy.ops
import comfy.supported_models
import pytest
from comfy.ldm.hunyuan_video.model import HunyuanVideo
from comfy.ldm.lumina.model import NextDiT
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from support.families import HIDREAM_I1, HUNYUAN_DIT_11, KANDINSKY5_VIDEO, MOCHI, NEWBIE, SD3, TEXT_TO_VIDEO, hunyuan_video, newbie
from support.flux import apply, node


def direction(small, change):
    """A direction whose p- was changed by change(tokens, extras) -> (tokens, extras)."""
    [[tokens, extras]] = small.encoded(11)
    return node("GuidanceDirectionFromConditioning", positive=small.encoded(10), negative=[[*change(tokens, extras)]])[0]


def without(name):
    return lambda tokens, extras: (tokens, {key: value for key, value in extras.items() if key != name})


def narrowed(name):
    return lambda tokens, extras: (tokens, extras | {name: extras[name][..., :20]})


POOLED = {
    SD3: ("SD3", 32, "CLIP-L and CLIP-G.*TripleCLIPLoader"),
    HIDREAM_I1: ("HiDream-I1", 32, "CLIP-L and CLIP-G.*QuadrupleCLIPLoader"),
    TEXT_TO_VIDEO: ("HunyuanVideo", 768, "CLIP-L.*type hunyuan_video"),
    KANDINSKY5_VIDEO: ("Kandinsky 5", 768, "CLIP-L.*type kandinsky5"),
    NEWBIE: ("NewBie", 24, "Jina CLIP v2.*type newbie"),
}


@pytest.mark.parametrize("small", POOLED, ids=lambda small: small.name)
def test_pooled_output_missing_or_narrow(small):
    name, width, encoder = POOLED[small]
    model = small.load()
    with pytest.raises(ValueError, match=f"no pooled output, which guiding {name} needs.*{encoder}"):
        apply(model, direction(small, without("pooled_output")))
    with pytest.raises(ValueError, match=f"20 wide, but this {name} model reads {width}.*{encoder}"):
        apply(model, direction(small, narrowed("pooled_output")))


@pytest.mark.parametrize(
    "small, change, words",
    [
        (
            MOCHI,
            lambda tokens, extras: (tokens[..., :20], extras),
            r"20 wide, but this Mochi model reads 32.*T5-XXL.*CLIPLoader and type mochi",
        ),
        (HUNYUAN_DIT_11, without("conditioning_mt5xl"), "no mT5 tokens, which guiding Hunyuan-DiT needs.*mT5-XL.*CheckpointLoaderSimple"),
        (HUNYUAN_DIT_11, narrowed("conditioning_mt5xl"), r"\(8, 20\), but this Hunyuan-DiT model reads \(8, 32\).*mT5-XL"),
        (
            HUNYUAN_DIT_11,
            lambda tokens, extras: (tokens, extras | {"conditioning_mt5xl": extras["conditioning_mt5xl"][:, :6]}),
            r"\(6, 32\), but this Hunyuan-DiT model reads \(8, 32\)",
        ),
    ],
    ids=["Mochi, width", "Hunyuan-DiT, missing", "Hunyuan-DiT, width", "Hunyuan-DiT, length"],
)
def test_tokens_that_the_model_cannot_pool(small, change, words):
    with pytest.raises(ValueError, match=words):
        apply(small.load(), direction(small, change))


# The classes of supported families, without their pooled text path.
BLIND = {
    SD3: (
        partial(OpenAISignatureMMDITWrapper, input_size=None, in_channels=16, depth=1),
        r"pooled text in their modulation.*This model is a SD3 \(class OpenAISignatureMMDITWrapper\)",
    ),
    TEXT_TO_VIDEO: (
        partial(
            HunyuanVideo,
            **hunyuan_video.DIMS
            | dict(in_channels=65, out_channels=32, vec_in_dim=None, depth=1, depth_single_blocks=1, patch_size=[1, 1, 1])
            | dict(guidance_embed=False, use_cond_type_embedding=True),
        ),
        "HunyuanVideo.*text-blind",
    ),
    NEWBIE: (partial(NextDiT, **newbie.DIMS | {"clip_text_dim": None}), "Lumina.*text-blind"),
}


@pytest.mark.parametrize("small", BLIND, ids=lambda small: small.name)
def test_models_of_the_same_class_without_pooled_text(small):
    build, words = BLIND[small]
    dims = newbie.DIMS | {"clip_text_dim": None}
    blind = replace(
        small,
        model=partial(build, operations=comfy.ops.disable_weight_init),
        config=(lambda: comfy.supported_models.Lumina2(dims)) if small.config else None,
        output_scale=1.0,
    )
    with pytest.raises(ValueError, match=words):
        apply(blind.load(), direction(small, lambda *side: side))

"""What a prompt quotes is text, in its own place; its padding and a picture's tokens are none: HunyuanVideo 1.5 and HunyuanImage 2.1."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from comfy.ldm.hunyuan_video.model import HunyuanVideo
from support.families.small import drawing
from support.text_blind_families import HUNYUAN_DIMS, HUNYUAN_VIDEO15, built, config_of
from support.text_blind_variants import HUNYUAN_IMAGE, IMAGE21_DIMS
from support.text_variance import assert_equal_and_moved, equation, joint_alphas, layers, scale

QUOTED, PADDED, PICTURE, TEXT = 3, 1, 2, 7  # tokens
BYT5, VISION = 1472, 12  # the host's width of quoted text, and of a picture's tokens here


def small(of, config, dims, **settings):
    byt5 = torch.nn.functional.pad(drawing(40)(1, QUOTED, BYT5), (0, 0, 0, PADDED))
    byt5[0, 0, 0] = 0.0  # one number, not a token of zeros
    settings = {"conditioning_byt5small": byt5} | settings
    return replace(
        of, model=built(HunyuanVideo, dims), config=config_of(config, dims, "hunyuan_video"), settings=(*of.settings, *settings.items())
    )


IMAGE = small(HUNYUAN_IMAGE, "HunyuanImage21", IMAGE21_DIMS | dict(byt5=True))
VIDEO_DIMS = HUNYUAN_DIMS | dict(byt5=True, use_cond_type_embedding=True, vision_in_dim=VISION)
VIDEO = small(
    HUNYUAN_VIDEO15, "HunyuanVideo15", VIDEO_DIMS, clip_vision_output=SimpleNamespace(last_hidden_state=drawing(41)(1, PICTURE, VISION))
)
IN_BLOCKS = {
    "behind the prompt, in HunyuanImage 2.1": (IMAGE, [1] * TEXT + [1] * QUOTED + [0] * PADDED),
    "before it and behind a picture, in HunyuanVideo 1.5": (VIDEO, [0] * PICTURE + [1] * QUOTED + [0] * PADDED + [1] * TEXT),
}


@pytest.mark.parametrize("case", IN_BLOCKS)
def test_quoted_text_is_scaled_with_the_prompt(case):
    small, present = IN_BLOCKS[case]
    model = small.load()
    plain = small.sample(model)
    present = torch.tensor(present).bool()

    def rows(kwargs):
        return present.expand(len(kwargs["context"]), -1)

    expected = small.sample(equation(small, model, joint_alphas(small, model, 2.0), rows))
    assert_equal_and_moved(small.sample(scale(model, 2.0)), expected, plain)
    every = small.sample(equation(small, model, [2.0] * small.depth, rows, len(present)))
    assert_equal_and_moved(small.sample(scale(model, 2.0, schedule=layers(f"0-{small.depth - 1}: 1"))), every, plain)

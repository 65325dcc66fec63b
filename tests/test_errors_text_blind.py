"""What text-blind families cannot be guided with is refused when the node runs, by name and width."""

import re

import pytest
from support.flux import apply, node
from support.text_blind import loaded, own, write
from support.text_blind_families import FAMILIES
from support.text_blind_variants import wan
from support.time_shift import CONTEXT, network


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda small: small.name)
def small(request):
    return request.param


def refused(model, direction, words, **inputs):
    with pytest.raises(ValueError, match=words):
        apply(model, direction, **inputs)


def test_no_projection(small, model):
    refused(model, small.direction(), f"{re.escape(small.name)} is text-blind.*Load Pooled Projection")


def test_projection_of_another_width_or_family(small, model, tmp_path):
    tensors, metadata = own(network(small), "max", "time embedding", small.name)
    narrow = tensors | {name: tensors[name][:-8].contiguous() for name in ("linear_2.weight", "linear_2.bias")}
    file = loaded(write(tmp_path / "narrow.safetensors", narrow, metadata))
    words = f"{small.width - 8} wide, but the time embedding of this {re.escape(small.name)} model is {small.width} wide"
    refused(model, small.direction(), words, projection=file)
    file = loaded(write(tmp_path / "anima.safetensors", *own(network(small), "max", "time embedding", "Anima")))
    refused(model, small.direction(), f"made for Anima, but the model is a {re.escape(small.name)}", projection=file)


def test_tokens_of_another_encoder(small, model, tmp_path):
    file = loaded(write(tmp_path / "max.safetensors", *own(network(small), "max", "time embedding", small.name)))
    [[tokens, extras]] = small.encoded(10)
    narrow = [[tokens[..., :8], extras]]
    direction = node("GuidanceDirectionFromConditioning", positive=narrow, negative=narrow)[0]
    words = f"8 wide, but this {re.escape(small.name)} model reads {CONTEXT}.*CLIPLoader"
    refused(model, direction, words, projection=file)


def test_a_wan_of_another_make():
    """WanDancer ends in two heads, of which y would reach one."""
    dancer = pytest.importorskip("comfy.ldm.wan.model_wandancer").WanDancerModel
    small = wan("WanDancer", dancer, "WAN22_WanDancer", dict(model_type="wandancer", audio_inject_layers=[0, 4]))
    refused(small.load(), small.direction(), r"This model is a WAN22_WanDancer \(class WanDancerModel\), which is not among them")

"""Which pooled vector a CLIP-L gives, by the loader and type it is loaded with.

Against transformers' own CLIP text model: its pooled output before text_projection is the one FLUX reads and CLIP + scales was trained on.
"""

import comfy.sd
import pytest
import torch
from safetensors.torch import save_file
from support.text_encoders import CLIP, POOLED, encode
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

import nodes as host_nodes

T5 = dict(num_layers=1, d_model=16, d_kv=4, num_heads=2, d_ff=16)
TEXTS = ["a cat", "", "a (large:1.3) red house, " * 20]
TYPES = host_nodes.CLIPLoader.INPUT_TYPES()["required"]["type"][0]


@pytest.fixture(scope="module")
def clip_l():
    """With a text_projection that is far from the identity, as no published CLIP-L has it."""
    torch.manual_seed(0)
    config = CLIPTextConfig(
        hidden_act="quick_gelu", vocab_size=49408, max_position_embeddings=77, projection_dim=POOLED, eos_token_id=49407, **CLIP
    )
    model = CLIPTextModelWithProjection(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=1 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 1)
    return model


@pytest.fixture(scope="module")
def files(clip_l, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text_encoders")
    save_file({name: tensor.contiguous() for name, tensor in clip_l.state_dict().items()}, folder / "clip_l.safetensors")
    save_file({"encoder.final_layer_norm.weight": torch.ones(16)}, folder / "t5.safetensors")
    return folder


def pooled(files, clip_type, names=("clip_l",)):
    """(len(TEXTS), width), by the function that the host's loaders call."""
    clip = comfy.sd.load_clip(
        ckpt_paths=[str(files / f"{name}.safetensors") for name in names],
        clip_type=getattr(comfy.sd.CLIPType, clip_type.upper()),
        model_options={"model_config": dict(CLIP), "t5xxl_model_config": T5, "dtype": torch.float32},
    )
    return torch.cat([encode(clip, text)[0][1]["pooled_output"] for text in TEXTS])


@pytest.fixture(scope="module")
def flux(files):
    return pooled(files, "flux", ("clip_l", "t5"))


def test_flux_reads_clip_l_before_its_text_projection(clip_l, files, flux):
    ids = torch.tensor([[49406, 320, 2368] + [49407] * 74])  # "a cat"
    expected = clip_l.text_model(ids).pooler_output
    torch.testing.assert_close(flux[:1], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(pooled(files, "hidream")[:1, :POOLED], clip_l.text_projection(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("clip_type", TYPES)
def test_a_clip_l_alone_gives_the_vector_that_flux_reads(files, flux, clip_type):
    alone = pooled(files, clip_type)[:, :POOLED]
    assert torch.equal(alone, flux) == (clip_type != "hidream"), (alone - flux).abs().max()

"""The host's own text encoders, tokenizers and all, as its loaders build them but small and with random weights."""

from types import SimpleNamespace

import comfy.ops
import comfy.sd
import comfy.text_encoders.flux
import comfy.text_encoders.hidream
import comfy.text_encoders.sd3_clip
import torch

from benchmarks.in_process import node

POOLED = 32  # CLIP's width
CLIP = dict(num_hidden_layers=3, hidden_size=POOLED, num_attention_heads=2, intermediate_size=32)
LLAMA = dict(num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2, intermediate_size=32)


def _clip(encoders, tokenizer, t5_width, llama_width=16):
    configs = {
        "t5xxl_model_config": dict(num_layers=1, d_model=t5_width, d_kv=4, num_heads=2, d_ff=16),
        "clip_l_model_config": CLIP,
        "clip_g_model_config": CLIP,
        "llama_model_config": LLAMA | {"hidden_size": llama_width},
    }
    small = configs | {"custom_operations": comfy.ops.disable_weight_init, "dtype": torch.float32}
    clip = comfy.sd.CLIP(SimpleNamespace(clip=encoders, tokenizer=tokenizer, params={}), model_options=small)
    draw = torch.Generator().manual_seed(0)
    for parameter in clip.cond_stage_model.parameters():
        parameter.data.normal_(generator=draw).div_(parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 1)
    return clip


def flux_clip(width):
    return _clip(comfy.text_encoders.flux.flux_clip(dtype_t5=torch.float32), comfy.text_encoders.flux.FluxTokenizer, width)


def sd3_clip(width=16, **loaded):
    """loaded: clip_l, clip_g and t5, False for those that are not. T5 and CLIP together are 4096 wide."""
    return _clip(comfy.text_encoders.sd3_clip.sd3_clip(dtype_t5=torch.float32, **loaded), comfy.text_encoders.sd3_clip.SD3Tokenizer, width)


def hidream_clip(t5_width=16, llama_width=16, **loaded):
    """The host puts zeros, 4096 wide, in the place of a T5 or Llama that is not loaded."""
    encoders = comfy.text_encoders.hidream.hidream_clip(
        clip_l=False, clip_g=False, dtype_t5=torch.float32, dtype_llama=torch.float32, **loaded
    )
    return _clip(encoders, comfy.text_encoders.hidream.HiDreamTokenizer, t5_width, llama_width)


def encode(clip, text):
    return node("CLIPTextEncode", clip=clip, text=text)[0]

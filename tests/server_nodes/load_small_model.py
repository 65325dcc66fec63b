"""A node for the tests' server: the host's loader, but for sizes that the host takes for granted whatever the weights are."""

from contextlib import nullcontext
from functools import partial
from unittest.mock import patch

import comfy.ldm.anima.model
import comfy.sd
import comfy.supported_models
import folder_paths

HIDREAM = dict(
    attention_head_dim=32,
    axes_dims_rope=[16, 8, 8],
    num_attention_heads=2,
    caption_channels=[4096, 4096],
    max_resolution=[128, 128],
    in_channels=16,
    out_channels=16,
    patch_size=2,
    num_layers=3,
    num_single_layers=5,
    llama_layers=[0, 7, 15, 23, 31, 31, 31, 31],
    num_routed_experts=4,
    num_activated_experts=2,
    text_emb_dim=2048,
)
COSMOS = dict(  # and Anima
    max_img_h=240,
    max_img_w=240,
    max_frames=128,
    in_channels=16,
    out_channels=16,
    patch_spatial=2,
    patch_temporal=1,
    concat_padding_mask=True,
    crossattn_emb_channels=768,
    pos_emb_cls="rope3d",
    use_adaln_lora=True,
    adaln_lora_dim=16,
    model_channels=64,
    num_blocks=14,
    num_heads=2,
    rope_enable_fps_modulation=False,
)


def small_adapter():
    """A context in which Anima's adapter is built small."""
    small = partial(comfy.ldm.anima.model.LLMAdapter, source_dim=768, target_dim=768, model_dim=768, num_layers=1, num_heads=2)
    return patch("comfy.ldm.anima.model.LLMAdapter", small)


class LoadSmallModel:
    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "load", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"unet_name": (folder_paths.get_filename_list("diffusion_models"),)}}

    def load(self, unet_name):
        config, dims, context = {
            "small_hidream.safetensors": ("HiDream", HIDREAM, nullcontext),
            "small_cosmos.safetensors": ("CosmosT2IPredict2", COSMOS | {"image_model": "cosmos_predict2"}, nullcontext),
            "small_anima.safetensors": ("Anima", COSMOS | {"image_model": "anima"}, small_adapter),
        }[unet_name]
        path = folder_paths.get_full_path_or_raise("diffusion_models", unet_name)
        made = getattr(comfy.supported_models, config)(dims)
        with patch("comfy.model_detection.model_config_from_unet", lambda *args, **kwargs: made), context():
            return (comfy.sd.load_diffusion_model(path),)


NODE_CLASS_MAPPINGS = {"LoadSmallModel": LoadSmallModel}

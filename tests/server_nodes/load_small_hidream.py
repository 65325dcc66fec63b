"""A node for the tests' server: the host's loader, but for HiDream's size, which that takes for granted whatever the weights are."""

from unittest.mock import patch

import comfy.sd
import comfy.supported_models
import folder_paths

DIMS = dict(
    attention_head_dim=32, axes_dims_rope=[16, 8, 8], num_attention_heads=2, caption_channels=[4096, 4096], max_resolution=[128, 128],
    in_channels=16, out_channels=16, patch_size=2, num_layers=3, num_single_layers=5, llama_layers=[0, 7, 15, 23, 31, 31, 31, 31],
    num_routed_experts=4, num_activated_experts=2, text_emb_dim=2048,
)


class LoadSmallHiDream:
    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "load", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"unet_name": (folder_paths.get_filename_list("diffusion_models"),)}}

    def load(self, unet_name):
        path = folder_paths.get_full_path_or_raise("diffusion_models", unet_name)
        with patch("comfy.model_detection.model_config_from_unet", lambda *args, **kwargs: comfy.supported_models.HiDream(DIMS)):
            return (comfy.sd.load_diffusion_model(path),)


NODE_CLASS_MAPPINGS = {"LoadSmallHiDream": LoadSmallHiDream}

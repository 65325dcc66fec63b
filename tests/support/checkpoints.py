"""Files with small random models of each family, for workflows whose own are too large for a test, and prompts that use them."""

import copy
import json
from pathlib import Path

import comfy.ops
import torch
from comfy.ldm.anima.model import Anima
from comfy.ldm.cosmos.predict2 import MiniTrainDIT
from comfy.ldm.hidream.model import HiDreamImageTransformer2DModel
from comfy.ldm.hunyuan_video.model import HunyuanVideo
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.ldm.wan.vae import WanVAE
from safetensors.torch import load_file, save_file
from server_nodes.load_small_model import COSMOS, HIDREAM, small_adapter

from support.families import hunyuan_video
from support.learned import file_of, shifts
from tools.small_models import DIFFUSION_MODEL, PROJECTION, TEXT_BLIND, TEXT_ENCODER, VAE, WEIGHTS

OPERATIONS = comfy.ops.disable_weight_init
WIDTH, DEPTH = 256, 4  # of SD3.5, where the host makes the width 64 x depth
SMALL_FOR = {  # the file of a workflow -> the small one that takes its place
    "sd3.5_large.safetensors": "small_sd35.safetensors",
    "stable-diffusion-3.5-large-dmd2.safetensors": "small_sd35_lora.safetensors",
    "hidream_i1_fast_fp8.safetensors": "small_hidream.safetensors",
    "hunyuan_video_t2v_720p_bf16.safetensors": "small_hunyuan_video.safetensors",
    "hunyuan_video_vae_bf16.safetensors": "small_video_vae.safetensors",
    "flux1-dev-kontext_fp8_scaled.safetensors": DIFFUSION_MODEL,
    "flux1-schnell.safetensors": DIFFUSION_MODEL,
    "ae.safetensors": VAE,
    "clip_l.safetensors": TEXT_ENCODER,
    "anima-base-v1.0.safetensors": "small_anima.safetensors",
    "checkpoint_4000.pt": "small_clip_scales.pt",
    "pooled_text_proj-0611.safetensors": "small_max_pool.safetensors",
    "qwen_3_06b_base.safetensors": TEXT_ENCODER,
    "qwen_image_vae.safetensors": "small_video_vae.safetensors",
    "cosmos_predict2_2B_t2i.safetensors": "small_cosmos.safetensors",
    "oldt5_xxl_fp8_e4m3fn_scaled.safetensors": TEXT_ENCODER,
    "wan_2.1_vae.safetensors": "small_video_vae.safetensors",
    "wan2.1_t2v_1.3B_fp16.safetensors": TEXT_BLIND,
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": TEXT_ENCODER,
    "Wan21_CausVid_bidirect2_T2V_1_3B_lora_rank32.safetensors": "small_wan_lora.safetensors",
    "wan_clip.safetensors": PROJECTION,
}
BUILT_SMALL = ("small_hidream.safetensors", "small_anima.safetensors", "small_cosmos.safetensors")  # which the host builds in full size
TEXT_ENCODERS = {  # loader of several -> the type that makes one CLIP-L the whole text encoder: zeros stand for the others' output
    "TripleCLIPLoader": "sd3",
    "QuadrupleCLIPLoader": "hidream",
    "DualCLIPLoader": "stable_diffusion",  # CLIP-L's tokens for T5's or Llama's, which the small models read
}
SIZES = {"EmptySD3LatentImage": (80, 80), "EmptyLatentImage": (80, 80), "EmptyHunyuanLatentVideo": (32, 32), "ImageScale": (80, 80)}
FRAMES, STEPS = 5, 4
CLIP = 768  # of CLIP-L's tokens and pooled output


def write_small_checkpoints(folder):
    """Puts the small models into a folder laid out like ComfyUI's models folder."""
    vae = {f"first_stage_model.{name}": tensor for name, tensor in load_file(WEIGHTS / VAE).items()}
    files = {
        "checkpoints/small_sd35": {f"model.diffusion_model.{name}": tensor for name, tensor in _random_weights(_sd35()).items()} | vae,
        "loras/small_sd35_lora": _sd35_lora(),
        "diffusion_models/small_hidream": _random_weights(HiDreamImageTransformer2DModel(**HIDREAM, operations=OPERATIONS)),
        "diffusion_models/small_cosmos": _random_weights(MiniTrainDIT(**COSMOS, operations=OPERATIONS)),
        "diffusion_models/small_anima": _random_weights(_anima()),
        "loras/small_wan_lora": _wan_lora(),
        "pooled_projections/small_max_pool": _max_pool(),
        "diffusion_models/small_hunyuan_video": _random_weights(_hunyuan_video()),
        "vae/small_video_vae": _random_weights(_video_vae()),
        # As the workflows name them.
        "guidance_directions/flux_detail_00001_": file_of(shifts(12, 128), "FLUX.1"),
        "guidance_directions/wan_detail_00001_": file_of(shifts(7, 128), "Wan"),
    }
    for path, tensors in files.items():
        path = Path(folder, f"{path}.safetensors")
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors, metadata = tensors if isinstance(tensors, tuple) else (tensors, None)
        save_file(tensors, path, metadata)
    torch.save(_clip_scales(), Path(folder, "pooled_projections", "small_clip_scales.pt"))


def write_server_nodes(path):
    """Writes a ComfyUI extra_model_paths.yaml (JSON is YAML) by which a server finds the nodes in server_nodes."""
    path.write_text(json.dumps({"tests": {"custom_nodes": str(Path(__file__).parent.parent / "server_nodes")}}), encoding="utf-8")


def with_small_checkpoints(prompt):
    """A copy of an API-format prompt with small models, pictures, videos and step numbers, and all else as it was.

    Loaders keep their place and the host's own code, with two exceptions: several text encoders become the one CLIP-L, because the
    host loads T5, CLIP-G, Llama and Qwen in their full size only; and so does it HiDream, Anima and Cosmos, which LoadSmallModel loads.
    Kontext's preferred sizes are all of a megapixel, so ImageScale scales its picture.
    """
    prompt = copy.deepcopy(prompt)
    for node in prompt.values():
        inputs = node["inputs"]
        inputs.update({name: SMALL_FOR[value] for name, value in inputs.items() if isinstance(value, str) and value in SMALL_FOR})
        if node["class_type"] in TEXT_ENCODERS:
            encoder = "sd3" if inputs.get("type") == "sd3" else TEXT_ENCODERS[node["class_type"]]
            node.update(class_type="CLIPLoader", inputs={"clip_name": TEXT_ENCODER, "type": encoder, "device": "default"})
        if inputs.get("unet_name") in BUILT_SMALL:
            node.update(class_type="LoadSmallModel", inputs={"unet_name": inputs["unet_name"]})
        if node["class_type"] == "CLIPLoader" and inputs.get("type") == "wan":
            inputs["type"] = "sd3"  # CLIP-L's tokens, as wide as Wan reads
        if node["class_type"] == "FluxKontextImageScale":
            node.update(class_type="ImageScale", inputs=inputs | {"upscale_method": "area", "crop": "disabled"})
        if node["class_type"] in SIZES:
            width, height = SIZES[node["class_type"]]
            node["inputs"].update(width=width, height=height)
        if node["class_type"] == "EmptyHunyuanLatentVideo":
            inputs["length"] = FRAMES
        if node["class_type"] == "KSampler":
            inputs["steps"] = STEPS
    return prompt


def _sd35():
    return OpenAISignatureMMDITWrapper(
        input_size=None,
        in_channels=16,
        depth=DEPTH,
        adm_in_channels=2048,
        num_patches=64,
        pos_embed_max_size=8,
        qk_norm="rms",
        context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": WIDTH}},
        operations=OPERATIONS,
    )


def _sd35_lora():
    """An adapter as PEFT saves it, on the queries, keys and values of every block."""
    generator = torch.Generator().manual_seed(1)
    projections = [f"base_model.model.transformer_blocks.{block}.attn.to_{to}" for block in range(DEPTH) for to in "qkv"]
    shapes = {"lora_A": (4, WIDTH), "lora_B": (WIDTH, 4)}
    return {
        f"{projection}.{half}.weight": torch.randn(shape, generator=generator) / shape[1] ** 0.5
        for projection in projections
        for half, shape in shapes.items()
    }


def _anima():
    with small_adapter():
        return Anima(**COSMOS, operations=OPERATIONS)


def _wan_lora():
    generator = torch.Generator().manual_seed(1)
    shapes = {"lora_down": (4, 128), "lora_up": (128, 4)}
    return {
        f"diffusion_model.blocks.{block}.self_attn.{to}.{half}.weight": torch.randn(shape, generator=generator) / shape[1] ** 0.5
        for block in range(7)
        for to in "qkv"
        for half, shape in shapes.items()
    }


def _clip_scales():
    """A projection in the form of COSMOS, for small models of Cosmos and of Anima."""
    width, depth = COSMOS["model_channels"], COSMOS["num_blocks"]
    linears = {"linear_1": (CLIP, CLIP), "linear_2": (3 * width, CLIP)}
    return _linears("text_embedder_clip.", linears) | {"scales": torch.full((depth, 3 * width), 0.5)}


def _max_pool():
    """A projection in the form of Anima's own text."""
    return _linears("", {"0": (CLIP, CLIP), "2": (COSMOS["model_channels"], CLIP)})


def _linears(prefix, shapes):
    generator = torch.Generator().manual_seed(2)
    return {
        f"{prefix}{name}.{part}": torch.randn(shape if part == "weight" else shape[:1], generator=generator) / shape[1] ** 0.5
        for name, shape in shapes.items()
        for part in ("weight", "bias")
    }


def _hunyuan_video():
    return HunyuanVideo(**hunyuan_video.DIMS | {"context_in_dim": 768}, operations=OPERATIONS)


def _video_vae():
    """Wan's, whose latents have the shape of HunyuanVideo's, and which the host loads in any width."""
    return WanVAE(dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], temperal_downsample=[False, True, True])


def _random_weights(model):
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim > 1:
            state[name] = noise / tensor[0].numel() ** 0.5
        else:
            state[name] = 0.1 * noise + (0.0 if name.endswith("bias") else 1.0)  # without a bias's name, it scales a norm
    return state

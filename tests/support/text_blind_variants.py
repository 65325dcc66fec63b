"""Text-blind models of a family whose time embedding is more than one vector a row, or that are built differently."""

from dataclasses import dataclass, replace

import comfy.sample
import comfy.samplers
import torch
from comfy.ldm.cosmos.model import GeneralDIT
from comfy.ldm.flux.model import Flux
from comfy.ldm.hunyuan_video.model import HunyuanVideo
from comfy.ldm.lightricks.model import LTXVModel
from comfy.ldm.lightricks.symmetric_patchifier import SymmetricPatchifier, latent_to_pixel_coords
from comfy.ldm.pixart.pixartms import PixArtMS
from comfy.ldm.wan.model import CameraWanModel, HumoWanModel, SCAILWanModel, WanModel
from comfy.ldm.wan.model_animate import AnimateWanModel

from support.families.small import drawing
from support.text_blind_families import (
    CHROMA,
    COGVIDEOX,
    COGVIDEOX_DIMS,
    COSMOS1,
    COSMOS1_DIMS,
    FLUX2,
    FLUX2_DIMS,
    HUNYUAN_DIMS,
    HUNYUAN_VIDEO15,
    LTXV,
    LTXV_DIMS,
    PIXART,
    PIXART_DIMS,
    QWEN_IMAGE,
    WAN,
    WAN_DIMS,
    Z_IMAGE,
    CogVideoX,
    TimeShifted,
    built,
    config_of,
)


@dataclass(frozen=True)
class Variant(TimeShifted):
    """label: what is special. noise_mask: the user's, (1, 1, T, H, W), 0 where the picture is kept.

    embedder_is_y: whether what the embedder gives, or the layers take, is y itself, and not a part of it.
    """

    label: str = ""
    noise_mask: torch.Tensor | None = None
    embedder_is_y: bool = True

    def sample(self, model, *prompts, **options):
        if self.noise_mask is not None:
            options["noise_mask"] = self.noise_mask
        return super().sample(model, *prompts, **options)


def _variant(of, label, **changes):
    return Variant(**{name: getattr(of, name) for name in of.__dataclass_fields__} | {"label": label} | changes)


def _pictures(*shape):
    return ("reference_latents", [drawing(30)(*shape), drawing(31)(*shape)])


def _frames(*kept):
    """(1, 1, T, 1, 1), 0 for frames that are kept."""
    return torch.tensor([float(not is_kept) for is_kept in kept]).view(1, 1, -1, 1, 1)


def wan(label, cls, config, dims, **changes):
    """A small Wan of another class."""
    dims = WAN_DIMS | dims
    return _variant(WAN, label, model=built(cls, dims), config=config_of(config, dims, "wan2.1"), **changes)


WAN_OF_FRAMES = wan(
    "Wan 2.2 5B, frames kept", WanModel, "WAN22_T2V", dict(in_dim=48, out_dim=48), latent=(48, 3, 4, 4), noise_mask=_frames(1, 0, 0)
)
WAN_CAMERA = wan("Wan Camera", CameraWanModel, "WAN22_Camera", dict(model_type="camera_2.2"))
WAN_ANIMATE = wan("Wan Animate", AnimateWanModel, "WAN22_Animate", dict(model_type="animate", in_dim=36))
WAN_FUN = wan("Wan Fun, a picture", WanModel, "WAN21_T2V", dict(in_dim_ref_conv=16), settings=(_pictures(1, 16, 1, 4, 4),))
WAN_HUMO = wan("Wan HuMo", HumoWanModel, "WAN21_HuMo", dict(model_type="humo"))
WAN_SCAIL = wan("Wan SCAIL", SCAILWanModel, "WAN21_SCAIL", dict(model_type="scail", in_dim=20), settings=(_pictures(1, 16, 1, 4, 4),))


@dataclass(frozen=True)
class Autoregressive(Variant):
    """Sampled frame by frame, without CFG."""

    def sample(self, model, steps=2, seed=5, **options):
        image = torch.zeros(1, *self.latent)
        noise = comfy.sample.prepare_noise(image, seed)
        sampler = comfy.samplers.ksampler("ar_video", {"num_frame_per_block": 2})
        sigmas = torch.linspace(self.sigma_max, 0, steps + 1)
        latents = comfy.sample.sample_custom(
            model, noise, 1.0, sampler, sigmas, self.conditioning(1), self.conditioning(2), image, disable_pbar=True, seed=seed
        )
        return model.model.process_latent_in(latents)


def wan_autoregressive():
    from comfy.ldm.wan.ar_model import CausalWanModel  # older hosts lack it

    return Autoregressive(**vars(wan("Wan, autoregressive", CausalWanModel, "WAN21_CausalAR_T2V", {}, latent=(16, 4, 4, 4))))


_TIME_ZERO = (_pictures(1, 16, 4, 4), ("reference_latents_method", "index_timestep_zero"))

QWEN_IMAGE_EDIT = _variant(
    QWEN_IMAGE, "Qwen-Image Edit, pictures at time zero", settings=(_pictures(1, 16, 1, 4, 4), _TIME_ZERO[1]), times_first=True
)
FLUX2_EDIT = _variant(FLUX2, "FLUX.2, pictures at time zero", settings=_TIME_ZERO, times_first=True)
_FLUX2_DEV = FLUX2_DIMS | dict(guidance_embed=True)
FLUX2_DEV = _variant(
    FLUX2,
    "FLUX.2 dev, distilled guidance",
    model=built(Flux, _FLUX2_DEV),
    config=config_of("Flux2", _FLUX2_DEV, "flux2"),
    settings=(("guidance", 4.0),),
    embedder_is_y=False,
)
Z_IMAGE_OMNI = _variant(Z_IMAGE, "Z-Image, pictures at time one", settings=(_pictures(1, 16, 4, 4),), times_first=True)
CHROMA_GUIDED = _variant(CHROMA, "Chroma, distilled guidance", settings=(("guidance", 3.0),), output_scale=0.15)
LTXV_OF_TOKENS = _variant(LTXV, "LTX-Video, a frame kept", noise_mask=_frames(1, 0))


def _ltxv_keyframe():
    """One more frame, of which the host drops three tokens of four."""
    coords = SymmetricPatchifier(1, start_end=True).patchify(torch.zeros(1, 128, 1, 2, 2))[1]
    mask = torch.ones(1, 1, 3, 2, 2)
    mask[:, :, 2] = -1
    mask[:, :, 2, 0, 0] = 0
    return _variant(
        LTXV,
        "LTX-Video, a keyframe",
        latent=(128, 3, 2, 2),
        noise_mask=mask,
        settings=(("keyframe_idxs", latent_to_pixel_coords(coords, (8, 32, 32), causal_fix=True)),),
    )


LTXV_KEYFRAME = _ltxv_keyframe()
_GUIDED = HUNYUAN_DIMS | dict(guidance_embed=True)
HUNYUAN_VIDEO_GUIDED = _variant(
    HUNYUAN_VIDEO15,
    "HunyuanVideo 1.5, distilled guidance",
    model=built(HunyuanVideo, _GUIDED),
    config=config_of("HunyuanVideo15", _GUIDED, "hunyuan_video"),
    settings=(("guidance", 5.0),),
    embedder_is_y=False,
)
HUNYUAN_VIDEO_FRAME = _variant(
    HUNYUAN_VIDEO15, "HunyuanVideo 1.5, a frame replaced", settings=(("guiding_frame_index", 3),), embedder_is_y=False
)
_MEANFLOW = HUNYUAN_DIMS | dict(meanflow=True, meanflow_sum=True)
HUNYUAN_VIDEO_MEANFLOW = _variant(
    HUNYUAN_VIDEO15,
    "HunyuanVideo 1.5, mean flow",
    model=built(HunyuanVideo, _MEANFLOW),
    config=config_of("HunyuanVideo15", _MEANFLOW, "hunyuan_video"),
    embedder_is_y=False,
)
IMAGE21_DIMS = HUNYUAN_DIMS | dict(patch_size=[1, 1], in_channels=64, out_channels=64, axes_dim=[16, 16])
HUNYUAN_IMAGE = _variant(
    HUNYUAN_VIDEO15,
    "HunyuanImage 2.1",
    model=built(HunyuanVideo, IMAGE21_DIMS),
    config=config_of("HunyuanImage21", IMAGE21_DIMS, "hunyuan_video"),
    latent=(64, 4, 4),
)
_MICRO = PIXART_DIMS | dict(hidden_size=48, micro_condition=True)
_PLAIN = COSMOS1_DIMS | dict(use_adaln_lora=False)
COSMOS1_PLAIN = _variant(
    COSMOS1, "Cosmos 1 without adaLN-LoRA", model=built(GeneralDIT, _PLAIN), config=config_of("CosmosT2V", _PLAIN, "cosmos")
)
PIXART_ALPHA = _variant(
    PIXART,
    "PixArt-alpha of 1024 px, size and shape as they are",
    model=built(PixArtMS, _MICRO),
    config=config_of("PixArtAlpha", _MICRO, "pixart_alpha"),
    latent=(4, 34, 38),
    embedder_is_y=False,
)
PIXART_ALPHA_SIZED = replace(
    PIXART_ALPHA, label="PixArt-alpha of 1024 px, size and shape given", settings=(("width", 1360), ("height", 768))
)
_IMAGE_TO_VIDEO = COGVIDEOX_DIMS | dict(in_channels=32, patch_size_t=2, ofs_embed_dim=48)
COGVIDEOX_IMAGE = _variant(
    COGVIDEOX,
    "CogVideoX 1.5, image to video",
    model=built(CogVideoX, _IMAGE_TO_VIDEO),
    settings=(("concat_latent_image", drawing(30)(1, 16, 2, 4, 4)), ("ofs", torch.tensor([3.0]))),
    embedder_is_y=False,
)

VARIANTS = (
    WAN_OF_FRAMES,
    WAN_CAMERA,
    WAN_ANIMATE,
    WAN_FUN,
    WAN_HUMO,
    WAN_SCAIL,
    QWEN_IMAGE_EDIT,
    FLUX2_EDIT,
    FLUX2_DEV,
    Z_IMAGE_OMNI,
    CHROMA_GUIDED,
    LTXV_OF_TOKENS,
    LTXV_KEYFRAME,
    HUNYUAN_VIDEO_GUIDED,
    HUNYUAN_VIDEO_FRAME,
    HUNYUAN_VIDEO_MEANFLOW,
    HUNYUAN_IMAGE,
    COSMOS1_PLAIN,
    PIXART_ALPHA,
    PIXART_ALPHA_SIZED,
    *((COGVIDEOX_IMAGE,) if CogVideoX else ()),
)

HUNYUAN_IMAGE_MEANFLOW = _variant(
    HUNYUAN_IMAGE,
    "HunyuanImage 2.1, mean flow",
    model=built(HunyuanVideo, IMAGE21_DIMS | dict(meanflow=True)),
    config=config_of("HunyuanImage21", IMAGE21_DIMS | dict(meanflow=True), "hunyuan_video"),
)
MEANFLOW = (HUNYUAN_VIDEO_MEANFLOW, HUNYUAN_IMAGE_MEANFLOW)

# Whose layers take y itself, whatever it is made of.
Y_ITSELF = (
    *(replace(small, embedder="", embedder_is_y=True) for small in (HUNYUAN_VIDEO_GUIDED, HUNYUAN_VIDEO_FRAME, HUNYUAN_VIDEO_MEANFLOW)),
    replace(HUNYUAN_IMAGE_MEANFLOW, embedder=""),
)

COSMOS1_LORA = _variant(
    COSMOS1,
    "Cosmos 1, adaLN-LoRA",
    layers=(("blocks", "adaln_lora_B_3D"),),
    head=("final_layer", "adaln_lora_B_3D"),
    embedder="",
    width=192,
)

_FLUX2_SHALLOW, _LTXV_SHALLOW = FLUX2_DIMS | dict(depth=1, depth_single_blocks=1), LTXV_DIMS | dict(num_layers=2)
# Two blocks, for what takes long.
SHALLOW = (
    replace(FLUX2, model=built(Flux, _FLUX2_SHALLOW), config=config_of("Flux2", _FLUX2_SHALLOW, "flux2")),
    replace(LTXV, model=built(LTXVModel, _LTXV_SHALLOW), config=config_of("LTXV", _LTXV_SHALLOW, "ltxv")),
)

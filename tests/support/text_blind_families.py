"""Small text-blind models of all families but the Cosmos-Predict2 kind."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import comfy.ops
import comfy.supported_models
import torch
from comfy.ldm.aura.mmdit import MMDiT as AuraFlow
from comfy.ldm.chroma.model import Chroma
from comfy.ldm.cosmos.model import GeneralDIT
from comfy.ldm.ernie.model import ErnieImageModel
from comfy.ldm.flux.model import Flux
from comfy.ldm.hunyuan_video.model import HunyuanVideo
from comfy.ldm.lightricks.model import LTXVModel
from comfy.ldm.lumina.model import NextDiT
from comfy.ldm.omnigen.omnigen2 import OmniGen2Transformer2DModel
from comfy.ldm.pixart.pixartms import PixArtMS
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
from comfy.ldm.wan.model import VaceWanModel, WanModel

from support.text_blind import Blind
from support.time_shift import CONTEXT
from tools.dimensions import COSMOS, HUNYUAN_VIDEO

try:
    from comfy.ldm.cogvideo.model import CogVideoXTransformer3DModel as CogVideoX
except ModuleNotFoundError:  # ComfyUI before 0.24
    CogVideoX = None

OPERATIONS = {"operations": comfy.ops.disable_weight_init}
DOUBLE_AND_SINGLE = (("double_blocks", "txt", "all"), ("single_blocks", "x", "first"))


def _tokens(draw):
    return draw(1, 7, CONTEXT), {}


@dataclass(frozen=True, kw_only=True)
class TimeShifted(Blind):
    """embedder: the name of the module that makes the time embedding y, empty where the layers take y itself; width: of y.

    head: may name a method of the model, where the head is no module.
    times_first: whether the embedder gets all rows at one time and then all at another, not all times of each row.
    """

    prompt: Callable = _tokens
    text: tuple = ("context",)
    joint: tuple = ()
    depth: int = 5
    start_layer: int = 0
    sigma_max: float = 0.9
    embedder: str = ""
    width: int = 0
    times_first: bool = False

    def inputs_of(self, model):
        layers = []
        for name, argument in self.layers:
            blocks = model.get_submodule(name)
            layers += [(block, argument) for block in (blocks.values() if hasattr(blocks, "values") else blocks)]
        assert len(layers) == self.depth
        name, argument = self.head
        if hasattr(type(model), name):
            return [*layers, (vars(model).setdefault(name, _Method(getattr(model, name))), argument)]
        return [*layers, (model.get_submodule(name), argument)]


class _Method(torch.nn.Module):
    """A method of the model, that takes hooks."""

    def __init__(self, method):
        super().__init__()
        self.forward = method


def built(cls, dims):
    return lambda: cls(**dims, **OPERATIONS)


def config_of(cls, dims, image_model=None):
    """image_model: the host's word for the class, where the class takes it."""
    return lambda: getattr(comfy.supported_models, cls)(dims | ({"image_model": image_model} if image_model else {}))


WAN_DIMS = dict(model_type="t2v", in_dim=16, out_dim=16, dim=64, ffn_dim=64, freq_dim=32, text_dim=CONTEXT, num_heads=2, num_layers=5)

WAN = TimeShifted(
    name="Wan",
    model=built(WanModel, WAN_DIMS),
    config=config_of("WAN21_T2V", WAN_DIMS, "wan2.1"),
    output="head.head.weight",
    latent=(16, 2, 4, 4),
    layers=(("blocks", "e"),),
    head=("head", "e"),
    embedder="time_embedding",
    width=64,
)

VACE_DIMS = WAN_DIMS | dict(model_type="vace", vace_layers=5, vace_in_dim=96)

VACE = replace(WAN, model=built(VaceWanModel, VACE_DIMS), config=config_of("WAN21_Vace", VACE_DIMS, "wan2.1"))

QWEN_DIMS = dict(
    in_channels=64,
    out_channels=16,
    num_layers=5,
    attention_head_dim=32,
    num_attention_heads=2,
    joint_attention_dim=CONTEXT,
    axes_dims_rope=(8, 12, 12),
)

QWEN_IMAGE = TimeShifted(
    name="Qwen-Image",
    model=built(QwenImageTransformer2DModel, QWEN_DIMS),
    config=config_of("QwenImage", QWEN_DIMS, "qwen_image"),
    output="proj_out.weight",
    latent=(16, 1, 4, 4),
    joint=(("transformer_blocks", "encoder_hidden_states", "all"),),
    layers=(("transformer_blocks", "temb"),),
    head=("norm_out", "conditioning_embedding"),
    embedder="time_text_embed",
    width=64,
)

FLUX2_DIMS = dict(
    in_channels=16,
    out_channels=16,
    vec_in_dim=None,
    context_in_dim=CONTEXT,
    hidden_size=128,
    mlp_ratio=3.0,
    num_heads=1,
    depth=2,
    depth_single_blocks=3,
    axes_dim=[32, 32, 32, 32],
    theta=2000,
    patch_size=1,
    qkv_bias=False,
    guidance_embed=False,
    txt_ids_dims=[3],
    global_modulation=True,
    mlp_silu_act=True,
    ops_bias=False,
    default_ref_method="index",
    ref_index_scale=10.0,
)

FLUX2 = TimeShifted(
    name="FLUX.2",
    model=built(Flux, FLUX2_DIMS),
    config=config_of("Flux2", FLUX2_DIMS, "flux2"),
    output="final_layer.linear.weight",
    latent=(16, 4, 4),
    joint=DOUBLE_AND_SINGLE,
    layers=(("double_blocks", "vec"), ("single_blocks", "vec")),
    head=("final_layer", "vec"),
    embedder="time_in",
    width=128,
)

LUMINA2_DIMS = dict(
    patch_size=2,
    in_channels=16,
    dim=48,
    n_layers=5,
    n_refiner_layers=1,
    n_heads=2,
    n_kv_heads=1,
    axes_dims=[8, 8, 8],
    axes_lens=[64, 64, 64],
    cap_feat_dim=CONTEXT,
    qk_norm=True,
    multiple_of=8,
)

LUMINA2 = TimeShifted(
    name="Lumina 2 / Z-Image",
    model=built(NextDiT, LUMINA2_DIMS),
    config=config_of("Lumina2", LUMINA2_DIMS, "lumina2"),
    output="final_layer.linear.weight",
    latent=(16, 4, 4),
    layers=(("layers", "adaln_input"),),
    head=("final_layer", "c"),
    embedder="t_embedder",
    width=48,
)

Z_IMAGE_DIMS = LUMINA2_DIMS | dict(
    dim=256, n_kv_heads=2, axes_dims=[32, 48, 48], z_image_modulation=True, time_scale=1000.0, pad_tokens_multiple=4
)

Z_IMAGE = replace(LUMINA2, model=built(NextDiT, Z_IMAGE_DIMS), config=config_of("ZImage", Z_IMAGE_DIMS, "lumina2"), width=256)

CHROMA_DIMS = dict(
    in_channels=64,
    out_channels=64,
    context_in_dim=CONTEXT,
    hidden_size=64,
    mlp_ratio=2.0,
    num_heads=2,
    depth=2,
    depth_single_blocks=3,
    axes_dim=[8, 12, 12],
    theta=10000,
    patch_size=2,
    qkv_bias=True,
    in_dim=64,
    out_dim=64,
    hidden_dim=24,
    n_layers=2,
    txt_ids_dims=[],
    vec_in_dim=None,
)

CHROMA = TimeShifted(
    name="Chroma",
    model=built(Chroma, CHROMA_DIMS),
    config=config_of("Chroma", CHROMA_DIMS, "chroma"),
    output="final_layer.linear.weight",
    latent=(16, 4, 4),
    joint=DOUBLE_AND_SINGLE,
    layers=(("double_blocks", "vec"), ("single_blocks", "vec")),
    head=("final_layer", "vec"),
    embedder="distilled_guidance_layer.in_proj",
    width=24,
)

LTXV_DIMS = dict(
    in_channels=128, cross_attention_dim=64, attention_head_dim=32, num_attention_heads=2, caption_channels=CONTEXT, num_layers=5
)

LTXV = TimeShifted(
    name="LTX-Video",
    model=built(LTXVModel, LTXV_DIMS),
    config=config_of("LTXV", LTXV_DIMS, "ltxv"),
    output="proj_out.weight",
    prompt=lambda draw: (draw(1, 7, CONTEXT), {"attention_mask": torch.ones(1, 7, dtype=torch.int64)}),
    latent=(128, 2, 2, 2),
    layers=(("transformer_blocks", "timestep"),),
    head=("_process_output", "embedded_timestep"),
    embedder="adaln_single.emb",
    width=64,
)

HUNYUAN_DIMS = HUNYUAN_VIDEO | dict(
    in_channels=65,
    out_channels=32,
    vec_in_dim=None,
    context_in_dim=CONTEXT,
    hidden_size=64,
    mlp_ratio=2.0,
    num_heads=2,
    depth=2,
    depth_single_blocks=3,
    axes_dim=[8, 12, 12],
    guidance_embed=False,
)

HUNYUAN_VIDEO15 = TimeShifted(
    name="HunyuanVideo 1.5",
    model=built(HunyuanVideo, HUNYUAN_DIMS),
    config=config_of("HunyuanVideo15", HUNYUAN_DIMS, "hunyuan_video"),
    output="final_layer.linear.weight",
    prompt=lambda draw: (draw(1, 7, CONTEXT), {"pooled_output": draw(1, 8)}),
    latent=(32, 2, 4, 4),
    joint=DOUBLE_AND_SINGLE,
    layers=(("double_blocks", "vec"), ("single_blocks", "vec")),
    head=("final_layer", "vec"),
    embedder="time_in",
    width=64,
)

COSMOS1_DIMS = COSMOS | dict(
    block_config="FA-CA-MLP",
    model_channels=64,
    num_blocks=5,
    num_heads=2,
    block_x_format="THWBD",
    crossattn_emb_channels=CONTEXT,
    pos_emb_learnable=True,
    affline_emb_norm=True,
    adaln_lora_dim=16,
    extra_per_block_abs_pos_emb=True,
    extra_per_block_abs_pos_emb_type="learnable",
)

COSMOS1 = TimeShifted(
    name="Cosmos 1",
    model=built(GeneralDIT, COSMOS1_DIMS),
    config=config_of("CosmosT2V", COSMOS1_DIMS, "cosmos"),
    output="final_layer.linear.weight",
    latent=(16, 1, 8, 8),
    layers=(("blocks", "emb_B_D"),),
    head=("final_layer", "emb_B_D"),
    output_scale=0.4,
    cfg_rows="cond",
    sigma_max=4.0,
    embedder="affline_norm",
    width=64,
)

AURAFLOW_DIMS = dict(
    in_channels=4, out_channels=4, dim=64, n_layers=5, n_double_layers=2, n_heads=2, global_conddim=48, cond_seq_dim=CONTEXT, max_seq=256
)

AURAFLOW = TimeShifted(
    name="AuraFlow",
    model=built(AuraFlow, AURAFLOW_DIMS),
    config=config_of("AuraFlow", AURAFLOW_DIMS),
    output="final_linear.weight",
    latent=(4, 8, 8),
    joint=(("double_layers", "c", "all"), ("single_layers", "cx", "first")),
    layers=(("double_layers", "global_cond"), ("single_layers", "global_cond")),
    head=("modF", "input"),
    output_scale=0.02,  # nothing norms what its head modulates
    embedder="t_embedder",
    width=48,
)

ERNIE_DIMS = dict(
    hidden_size=64,
    num_attention_heads=2,
    num_layers=5,
    ffn_hidden_size=64,
    in_channels=128,
    out_channels=128,
    text_in_dim=CONTEXT,
    rope_axes_dim=(8, 12, 12),
)

ERNIE_IMAGE = TimeShifted(
    name="Ernie-Image",
    model=built(ErnieImageModel, ERNIE_DIMS),
    config=config_of("ErnieImage", ERNIE_DIMS, "ernie"),
    output="final_linear.weight",
    latent=(128, 4, 4),
    layers=(("layers", "temb"),),
    head=("final_norm", "conditioning"),
    embedder="time_embedding",
    width=64,
)

OMNIGEN2_DIMS = dict(
    hidden_size=48,
    num_layers=5,
    num_refiner_layers=1,
    num_attention_heads=2,
    num_kv_heads=1,
    multiple_of=8,
    axes_dim_rope=(8, 8, 8),
    axes_lens=(64, 64, 64),
    text_feat_dim=CONTEXT,
)

OMNIGEN2 = TimeShifted(
    name="OmniGen 2",
    model=built(OmniGen2Transformer2DModel, OMNIGEN2_DIMS),
    config=config_of("Omnigen2", OMNIGEN2_DIMS, "omnigen2"),
    output="norm_out.linear_2.weight",
    prompt=lambda draw: (draw(1, 7, CONTEXT), {"attention_mask": torch.ones(1, 7, dtype=torch.int64)}),
    latent=(16, 8, 8),
    layers=(("layers", "temb"),),
    head=("norm_out", "conditioning_embedding"),
    embedder="time_caption_embed.timestep_embedder",
    width=48,
)

PIXART_DIMS = dict(
    input_size=8,
    in_channels=4,
    hidden_size=48,
    depth=5,
    num_heads=2,
    caption_channels=CONTEXT,
    model_max_length=7,
    micro_condition=False,
    pe_interpolation=1,
)

PIXART = TimeShifted(
    name="PixArt",
    model=built(PixArtMS, PIXART_DIMS),
    config=config_of("PixArtSigma", PIXART_DIMS, "pixart_sigma"),
    output="final_layer.linear.weight",
    latent=(4, 34, 34),
    layers=(("blocks", "t"),),
    head=("final_layer", "t"),
    output_scale=0.05,
    sigma_max=2.5,
    embedder="t_embedder",
    width=48,
)

COGVIDEOX_DIMS = dict(num_attention_heads=1, time_embed_dim=48, text_embed_dim=CONTEXT, num_layers=5, use_rotary_positional_embeddings=True)

COGVIDEOX = TimeShifted(
    name="CogVideoX",
    model=built(CogVideoX, COGVIDEOX_DIMS),
    output="proj_out.weight",
    latent=(16, 2, 4, 4),
    joint=(("blocks", "encoder_hidden_states", "all"),),
    layers=(("blocks", "temb"),),
    head=("norm_out", "temb"),
    sigma_max=2.5,
    embedder="time_embedding_linear_2",
    width=48,
)
OF_COGVIDEOX = (COGVIDEOX,) if CogVideoX else ()

FAMILIES = (WAN, QWEN_IMAGE, FLUX2, LUMINA2, CHROMA, LTXV, HUNYUAN_VIDEO15, COSMOS1, AURAFLOW, ERNIE_IMAGE, OMNIGEN2, PIXART, *OF_COGVIDEOX)
VARIANTS = (VACE, Z_IMAGE)

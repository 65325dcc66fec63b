"""Every family at its real width with few blocks: what `benchmarks/overhead.py --families` times.

Widths are those the host's detection gives the published checkpoints; weights are random. 256 image tokens each.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from tools.dimensions import COSMOS, FLUX1, HUNYUAN_VIDEO


@dataclass(frozen=True)
class Sized:
    """One family's model: the host's config class, its unet config, and the arguments of apply_model beside t.

    inputs: () -> dict; shapes are batch first. text: what the two prompts of a direction hold; None to guide by a learned direction.
    projection: of a text-blind model, its pooling, injection and tensors; the base is in, which costs a part of the same.
    others_way: whether to time that projection the way other packs run it, too.
    """

    config: str
    unet: dict
    inputs: Callable[[], dict]
    text: Callable[[], dict] | None
    projection: Callable[[], tuple[str, str, dict]] | None = None
    others_way: bool = False


def _random(*shape):
    import torch

    return torch.randn(shape)


def _ones(*shape):
    import torch

    return torch.ones(shape)


def _pooled(width):
    return lambda: {"pooled_output": _random(1, width)}


def _projection(pooling, injection, width, hidden, output, **others):
    def make():
        return (
            pooling,
            injection,
            {
                "linear_1.weight": _random(hidden, width),
                "linear_1.bias": _random(hidden),
                "linear_2.weight": _random(output, hidden),
                "linear_2.bias": _random(output),
                **{name: _random(*shape) for name, shape in others.items()},
            },
        )

    return make


_PREDICT2 = COSMOS | dict(
    model_channels=2048,
    crossattn_emb_channels=1024,
    pos_emb_learnable=True,
    pos_emb_interpolation="crop",
    min_fps=1,
    max_fps=30,
    adaln_lora_dim=256,
    num_heads=16,
    extra_per_block_abs_pos_emb=False,
    rope_h_extrapolation_ratio=4.0,
    rope_w_extrapolation_ratio=4.0,
    rope_t_extrapolation_ratio=1.0,
)

SIZED = {
    "FLUX.1": Sized(
        "FluxSchnell",
        FLUX1
        | dict(image_model="flux", vec_in_dim=768, context_in_dim=4096, hidden_size=3072, num_heads=24, depth=1, depth_single_blocks=2),
        lambda: dict(x=_random(1, 16, 32, 32), c_crossattn=_random(1, 128, 4096), y=_random(1, 768)),
        _pooled(768),
    ),
    "SD3": Sized(
        "SD3",
        dict(
            in_channels=16,
            patch_size=2,
            out_channels=16,
            depth=38,
            num_blocks=2,
            input_size=None,
            adm_in_channels=2048,
            qk_norm="rms",
            context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 2432}},
            num_patches=36864,
            pos_embed_max_size=192,
            pos_embed_scaling_factor=None,
            context_processor_layers=None,
        ),
        lambda: dict(x=_random(1, 16, 32, 32), c_crossattn=_random(1, 154, 4096), y=_random(1, 2048)),
        _pooled(2048),
    ),
    "HiDream-I1": Sized(
        "HiDream",
        dict(
            image_model="hidream",
            attention_head_dim=128,
            axes_dims_rope=[64, 32, 32],
            caption_channels=[4096, 4096],
            max_resolution=[128, 128],
            in_channels=16,
            llama_layers=[0, 1],
            num_attention_heads=20,
            num_routed_experts=4,
            num_activated_experts=2,
            num_layers=1,
            num_single_layers=1,
            out_channels=16,
            patch_size=2,
            text_emb_dim=2048,
        ),
        lambda: dict(
            x=_random(1, 16, 32, 32),
            c_crossattn=_random(1, 64, 4096),
            y=_random(1, 2048),
            encoder_hidden_states_llama3=_random(1, 2, 64, 4096),
        ),
        _pooled(2048),
    ),
    "HunyuanVideo": Sized(
        "HunyuanVideo",
        HUNYUAN_VIDEO
        | dict(
            image_model="hunyuan_video",
            in_channels=16,
            out_channels=16,
            vec_in_dim=768,
            context_in_dim=4096,
            hidden_size=3072,
            mlp_ratio=4.0,
            num_heads=24,
            depth=1,
            depth_single_blocks=2,
            axes_dim=[16, 56, 56],
            guidance_embed=True,
        ),
        lambda: dict(x=_random(1, 16, 1, 32, 32), c_crossattn=_random(1, 64, 4096), y=_random(1, 768), guidance=6 * _ones(1)),
        _pooled(768),
    ),
    "Kandinsky 5": Sized(
        "Kandinsky5Image",
        dict(
            image_model="kandinsky5",
            model_dim=2560,
            ff_dim=10240,
            visual_embed_dim=64,
            num_text_blocks=1,
            num_visual_blocks=2,
            in_text_dim=3584,
            in_text_dim2=768,
            time_dim=512,
            axes_dims=[16, 24, 24],
        ),
        lambda: dict(x=_random(1, 16, 1, 32, 32), c_crossattn=_random(1, 64, 3584), y=_random(1, 768)),
        _pooled(768),
    ),
    "NewBie": Sized(
        "Lumina2",
        dict(
            image_model="lumina2",
            patch_size=2,
            in_channels=16,
            dim=2304,
            cap_feat_dim=2560,
            n_layers=2,
            qk_norm=True,
            n_heads=24,
            n_kv_heads=8,
            axes_dims=[32, 32, 32],
            axes_lens=[300, 512, 512],
            rope_theta=10000.0,
            ffn_dim_multiplier=4.0,
            clip_text_dim=1024,
            n_refiner_layers=1,
        ),
        lambda: dict(x=_random(1, 16, 32, 32), c_crossattn=_random(1, 64, 2560), num_tokens=64, clip_text_pooled=_random(1, 1024)),
        _pooled(1024),
    ),
    "Mochi": Sized(
        "GenmoMochi",
        dict(
            image_model="mochi_preview",
            depth=2,
            patch_size=2,
            num_heads=24,
            hidden_size_x=3072,
            hidden_size_y=1536,
            mlp_ratio_x=4.0,
            mlp_ratio_y=4.0,
            learn_sigma=False,
            in_channels=12,
            qk_norm=True,
            qkv_bias=False,
            out_bias=True,
            attn_drop=0.0,
            patch_embed_bias=True,
            posenc_preserve_area=True,
            timestep_mlp_bias=True,
            attend_to_padding=False,
            timestep_scale=1000.0,
            use_t5=True,
            t5_feat_dim=4096,
            t5_token_length=256,
            rope_theta=10000.0,
        ),
        lambda: dict(x=_random(1, 12, 1, 32, 32), c_crossattn=_random(1, 256, 4096), attention_mask=_ones(1, 256), num_tokens=256),
        lambda: {"tokens": _random(1, 256, 4096), "attention_mask": _ones(1, 256)},
    ),
    "Hunyuan-DiT": Sized(
        "HunyuanDiT",
        dict(image_model="hydit", depth=4, hidden_size=1408, num_heads=16, mlp_ratio=4.3637),
        lambda: dict(
            x=_random(1, 4, 32, 32),
            c_crossattn=_random(1, 77, 1024),
            text_embedding_mask=_ones(1, 77),
            encoder_hidden_states_t5=_random(1, 256, 2048),
            text_embedding_mask_t5=_ones(1, 256),
            image_meta_size=512 * _ones(1, 6),
        ),
        lambda: {"conditioning_mt5xl": _random(1, 256, 2048)},
    ),
    "Cosmos-Predict2, CLIP + scales": Sized(
        "CosmosT2IPredict2",
        _PREDICT2 | dict(image_model="cosmos_predict2", num_blocks=4),
        lambda: dict(x=_random(1, 16, 1, 32, 32), c_crossattn=_random(1, 512, 1024)),
        _pooled(768),
        _projection("clip", "adaln lora", 768, 2048, 3 * 2048, scales=(4, 3 * 2048)),
    ),
    "Anima, max-pool with FiLM": Sized(
        "Anima",
        _PREDICT2 | dict(image_model="anima", num_blocks=4),
        lambda: dict(x=_random(1, 16, 1, 32, 32), c_crossattn=_random(1, 512, 1024)),
        lambda: {"tokens": _random(1, 512, 1024)},
        _projection("max", "time embedding", 1024, 2048, 2048, **{"film.weight": (2 * 2048, 2048), "film.bias": (2 * 2048,)}),
        others_way=True,
    ),
    "Wan, max-pool with FiLM": Sized(
        "WAN21_T2V",
        dict(image_model="wan2.1", model_type="t2v", dim=5120, ffn_dim=13824, num_heads=40, num_layers=2, text_dim=4096),
        lambda: dict(x=_random(1, 16, 1, 32, 32), c_crossattn=_random(1, 512, 4096)),
        lambda: {"tokens": _random(1, 512, 4096)},
        _projection("max", "time embedding", 4096, 5120, 5120, **{"film.weight": (2 * 5120, 5120), "film.bias": (2 * 5120,)}),
    ),
    "Wan 1.3B, learned": Sized(
        "WAN21_T2V",
        dict(image_model="wan2.1", model_type="t2v", dim=1536, ffn_dim=8960, num_heads=12, num_layers=8, text_dim=4096),
        lambda: dict(x=_random(1, 16, 1, 32, 32), c_crossattn=_random(1, 512, 4096)),
        None,
    ),
}


def build(sized: Sized):
    """(ModelPatcher, arguments of apply_model) of one family, on the device and in the dtype the host would choose."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    device = comfy.model_management.get_torch_device()
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    config = getattr(comfy.supported_models, sized.config)(dict(sized.unet))
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, device=device)
    model.diffusion_model.to(device=device, dtype=dtype)
    for tensor in (*model.diffusion_model.parameters(), *model.diffusion_model.buffers()):
        if tensor.is_floating_point():
            tensor.normal_(0, 0.02)
    inputs = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in sized.inputs().items()}
    return comfy.model_patcher.ModelPatcher(model, device, device), inputs | {"t": torch.tensor([0.7], device=device)}


def variants(model, inputs, sized: Sized, schedule):
    """By name: the model guided along a direction between two random prompts, or a learned one, and the way other packs do it."""
    from benchmarks.in_process import node

    if sized.text is None:
        return {"guided": node("ApplyModulationGuidance", model=model, direction=_learned(model), w=1.0, schedule=schedule)[0]}
    sides = []
    for _ in range(2):
        text = sized.text()
        sides.append([[text.pop("tokens", _random(1, 1, 16)), text]])
    direction = node("GuidanceDirectionFromConditioning", positive=sides[0], negative=sides[1])[0]
    settings = dict(model=model, direction=direction, w=3.0, schedule=schedule)
    if sized.projection is None:
        return {"guided": node("ApplyModulationGuidance", **settings)[0]}
    pooling, injection, weights = sized.projection()
    projection = _pack("pooled_proj.projection").PooledProjection(weights, pooling, injection)
    made = {"guided": node("ApplyModulationGuidance", **settings, projection=projection, base_positive=sides[0], base_negative=sides[1])[0]}
    if sized.others_way:
        prompts = [inputs["c_crossattn"], *(tokens.to(inputs["c_crossattn"]) for [[tokens, _]] in sides)]
        made["other packs' way"] = _others_way(model, prompts, weights)
    return made


def _learned(model):
    """A direction with another shift for each layer."""
    family = _pack("model_patches.families").family_of(_pack("model_patches.host_model").HostModel.of(model))
    diffusion_model, directions = model.model.diffusion_model, _pack("model_patches.directions")
    shifts = 0.01 * _random(family.depth(diffusion_model), family.injections[family.place_of_y].width(diffusion_model))
    return directions.GuidanceDirection(learned=(directions.LearnedDirection(shifts, family.name),))


def _pack(name):
    import nodes

    pack = nodes.NODE_CLASS_MAPPINGS["ApplyModulationGuidance"].__module__.rpartition(".nodes.")[0]
    return importlib.import_module(f"{pack}.{name}")


def _others_way(model, prompts, weights):
    """Anima with a max-pool projection in plain torch: at each step the model's own time embedding, the projection on base, p+ and p-
    in one batch, and hooks that add what comes out. What does not depend on the step is made beforehand."""
    import torch
    from comfy.patcher_extension import WrappersMP
    from torch.nn.functional import linear, silu

    pooled = torch.cat([tokens.float().amax(dim=1) for tokens in prompts])
    weights = {name: tensor.to(pooled.device) for name, tensor in weights.items()}

    def projected(y):
        hidden = linear(pooled, weights["linear_1.weight"], weights["linear_1.bias"])
        scale, shift = linear(y, weights["film.weight"], weights["film.bias"]).chunk(2, dim=-1)
        return linear(silu(hidden * (1 + scale) + shift), weights["linear_2.weight"], weights["linear_2.bias"])

    def at_call(executor, x, t, *args, **kwargs):
        base_model = executor.class_obj
        dit, dtype = base_model.diffusion_model, base_model.get_dtype_inference()
        frequencies = dit.t_embedder[0](base_model.model_sampling.timestep(t).float().unsqueeze(1)).to(dtype)
        y = dit.t_embedding_norm(dit.t_embedder[1](frequencies)[0]).squeeze(1)
        base, toward, away = projected(y.float()).to(dtype).unsqueeze(1).chunk(3)
        delta = 3.0 * (toward - away)
        hooks = [dit.t_embedding_norm.register_forward_hook(lambda module, args, result: result + base)]
        hooks += [block.register_forward_pre_hook(lambda module, args: (args[0], args[1] + delta, *args[2:])) for block in dit.blocks]
        try:
            return executor(x, t, *args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "others_way", at_call)
    return model

"""Small FLUX.1 models through the host's own loader and sampler, and the guided forward written out from the equation."""

from dataclasses import dataclass

import comfy.controlnet
import comfy.ops
import comfy.sample
import comfy.samplers
import comfy.sd
import torch
from comfy.ldm.flux.controlnet import ControlNetFlux
from comfy.ldm.flux.layers import timestep_embedding
from comfy.ldm.flux.model import Flux

from benchmarks.in_process import node
from support.learned import Learned
from tools.dimensions import FLUX1

HIDDEN, POOLED, CONTEXT = 128, 32, 16
DIMS = FLUX1 | dict(vec_in_dim=POOLED, context_in_dim=CONTEXT, hidden_size=HIDDEN, num_heads=1)


def flux(double=3, single=5, dev=False, in_channels=16, dtype=torch.float32, seed=0, weight_dtype=None):
    """A FLUX.1-shaped ModelPatcher with seeded random weights, loaded by the host."""
    model = Flux(
        **DIMS | dict(in_channels=in_channels, depth=double, depth_single_blocks=single, guidance_embed=dev),
        dtype=torch.float32,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
    )
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, parameter in model.state_dict().items():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith(("norm.scale", "norm.weight")):
            state[name] = 1 + 0.1 * noise
        else:
            # Modulation weights as large as the others: the shift must be felt by every block.
            state[name] = noise / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.1 * noise
    # Outputs of about unit size, so that an absolute tolerance means something.
    state["final_layer.linear.weight"] /= 4
    return _loaded({name: tensor.to(weight_dtype or dtype) for name, tensor in state.items()}, weight_dtype or dtype)


def _loaded(state, dtype):
    patcher = comfy.sd.load_diffusion_model_state_dict(dict(state), model_options={"dtype": dtype})
    patcher.model.made_from = (state, dtype)
    return patcher


def conditioning(seed, pooled=POOLED, tokens=8, **extras):
    generator = torch.Generator().manual_seed(seed)
    extras["pooled_output"] = torch.randn(1, pooled, generator=generator)
    return [[torch.randn(1, tokens, CONTEXT, generator=generator), extras]]


def direction(seed=10, pooled=POOLED):
    return node("GuidanceDirectionFromConditioning", positive=conditioning(seed, pooled), negative=conditioning(seed + 1, pooled))[0]


def apply(model, direction, w=3.0, **inputs):
    return node("ApplyModulationGuidance", model=model, direction=direction, w=w, **inputs)[0]


def schedule(start_layer=0, **inputs):
    inputs = {"end_layer": -1, "taper_layers": 0, "taper_scale": 0.25, "final_layer": 0.0} | inputs
    return node("GuidanceLayerSchedule", start_layer=start_layer, **inputs)[0]


def controlnet():
    """A ControlNet in XLabs' form with random weights, loaded by the host."""
    net = ControlNetFlux(
        **DIMS | dict(depth=1, depth_single_blocks=1), dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init
    )
    generator = torch.Generator().manual_seed(8)
    state = {}
    for name, parameter in net.state_dict().items():
        # The file's own name for the norms' weights.
        state[name.replace("_norm.weight", "_norm.scale")] = torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
    return comfy.controlnet.load_controlnet_state_dict(state)


def latent(batch=1, size=8, seed=100):
    return torch.randn(batch, 16, size, size, generator=torch.Generator().manual_seed(seed))


def sample(model, positive=None, negative=None, cfg=1.0, steps=3, seed=5, batch=1, size=8, **options):
    """What the host's KSampler makes of it, (B, 16, H, W)."""
    image = torch.zeros(batch, 16, size, size)
    noise = comfy.sample.prepare_noise(image, seed)
    return comfy.sample.sample(
        model,
        noise,
        steps,
        cfg,
        "euler",
        "simple",
        positive or conditioning(1),
        negative or conditioning(2),
        image,
        disable_pbar=True,
        seed=seed,
        **options,
    )


@dataclass
class Term:
    """One guidance of the reference: sign per row times w * weights[i] * (y(p+) - y(p-))."""

    w: float
    weights: list  # one per layer, then the head's
    positive: torch.Tensor  # (1, POOLED)
    negative: torch.Tensor
    rows: str = "both"
    window: tuple = (float("inf"), 0.0)  # sigmas, first and last
    keep_norm: bool = False


def terms_of(seed=10, w=3.0, weights=None, layers=8, start=0, head=0.0, **options):
    """The reference term for direction(seed)."""
    weights = weights or [float(layer >= start) for layer in range(layers)] + [head]
    return Term(w, weights, *(conditioning(s)[0][1]["pooled_output"] for s in (seed, seed + 1)), **options)


class GuidedFlux(Flux):
    """FLUX.1's forward with y_hat = y + w (y(p+) - y(p-)) put in block by block, as the equation reads.

    `terms` is set by reference(). y is computed three times over, from the whole time-text embedder, as the paper's code
    does. Terms that keep the norm are added first, and their sum with y rescaled to the norm of y. Other nodes' block slots and ControlNets are served as in the host: a slot sees and may change the plain
    y, and y_hat is made from what reaches the block.
    """

    def _y(self, timesteps, guidance, pooled, dtype):
        y = self.time_in(timestep_embedding(timesteps, 256).to(dtype))
        if self.params.guidance_embed:
            y = y + self.guidance_in(timestep_embedding(guidance, 256).to(dtype))
        return y + self.vector_in(pooled.to(dtype))

    def forward_orig(
        self,
        img,
        img_ids,
        txt,
        txt_ids,
        timesteps,
        y,
        guidance=None,
        control=None,
        timestep_zero_index=None,
        transformer_options={},
        attn_mask=None,
    ):
        img = self.img_in(img)
        txt = self.txt_in(txt)
        pe = self.pe_embedder(torch.cat((txt_ids, img_ids), dim=1))
        plain = self._y(timesteps, guidance, y[:, :POOLED], img.dtype)
        chunks = transformer_options["cond_or_uncond"]
        sigma = transformer_options["sigmas"].max()
        rows = len(plain) // len(chunks)

        def y_hat(layer, y):
            shift, kept = torch.zeros_like(y), torch.zeros_like(y)
            for term in self.terms:
                if not term.window[1] <= sigma <= term.window[0]:
                    continue
                if isinstance(term, Learned):
                    difference = term.shift(layer).to(y)
                else:
                    toward = self._y(timesteps, guidance, term.positive.to(y).expand(len(y), -1), img.dtype)
                    away = self._y(timesteps, guidance, term.negative.to(y).expand(len(y), -1), img.dtype)
                    difference = toward - away
                cond, uncond = {"both": (1, 1), "cond": (1, 0), "opposed": (1, -1)}[term.rows]
                signs = torch.tensor([cond if chunk == 0 else uncond for chunk in chunks], dtype=y.dtype, device=y.device)
                added = term.w * term.weights[layer] * signs.repeat_interleave(rows)[:, None] * difference
                shift, kept = (shift, kept + added) if term.keep_norm else (shift + added, kept)
            return (y + kept) * y.norm(dim=-1, keepdim=True) / (y + kept).norm(dim=-1, keepdim=True) + shift

        def through_slot(kind, i, original, **args):
            slot = transformer_options.get("patches_replace", {}).get("dit", {}).get((kind, i))
            return original(args) if slot is None else slot(args, {"original_block": original})

        def controlled(image_tokens, kind, i):
            added = (control or {}).get(kind, ())[i : i + 1]
            if added and added[0] is not None:
                image_tokens[:, : added[0].shape[1]] += added[0]

        shared = {"pe": pe, "attn_mask": attn_mask}
        depth = len(self.double_blocks)
        for i, block in enumerate(self.double_blocks):
            options = transformer_options | {"total_blocks": depth, "block_type": "double", "block_index": i}

            def double(args):
                return dict(zip(("img", "txt"), block(**args | {"vec": y_hat(i, args["vec"])})))

            out = through_slot("double_block", i, double, img=img, txt=txt, vec=plain, transformer_options=options, **shared)
            img, txt = out["img"], out["txt"]
            controlled(img, "input", i)

        x = torch.cat((txt, img), 1)
        for i, block in enumerate(self.single_blocks):
            options = transformer_options | {
                "total_blocks": len(self.single_blocks),
                "block_type": "single",
                "block_index": i,
                "img_slice": [txt.shape[1], x.shape[1]],
            }

            def single(args):
                args = args | {"vec": y_hat(depth + i, args["vec"])}
                return {"img": block(args.pop("img"), **args)}

            x = through_slot("single_block", i, single, img=x, vec=plain, transformer_options=options, **shared)["img"]
            controlled(x[:, txt.shape[1] :], "output", i)
        return self.final_layer(x[:, txt.shape[1] :], y_hat(depth + len(self.single_blocks), plain))


def reference(model, *terms):
    """The same model and patches with the equation for a forward; a second load that shares nothing with the first."""
    patcher = model.clone(model_override=_loaded(*model.model.made_from).get_clone_model_override())
    diffusion_model = patcher.model.diffusion_model
    diffusion_model.__class__ = GuidedFlux
    diffusion_model.terms = terms
    return patcher

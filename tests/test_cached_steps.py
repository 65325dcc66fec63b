"""A pack that answers some steps by running the output head alone, outside the model's call: guidance holds there too."""

import pytest
import torch
from support.flux import apply, schedule
from support.text_blind import ANIMA, Projected, form_b, loaded, reference, weights_from, write

STEPS, CACHED = 6, (2, 4)
TOLERANCE = dict(rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def model():
    return ANIMA.load()


@pytest.fixture(params=[False, True], ids=["", "FiLM"])
def projection(request, tmp_path):
    file = form_b(film=request.param)
    return loaded(write(tmp_path / "max.safetensors", file)), file


def with_cached_steps(model):
    """As packs that forecast the head's input do, in a model function wrapper; the forecast here is the last input seen."""
    model = model.clone()
    state = {"steps": [], "input": None}

    def hook(head, args):
        state["input"] = args[0]

    def on_call(apply_model, args):
        base_model = apply_model.__self__
        diffusion_model = base_model.diffusion_model
        sigma = float(args["timestep"][0])
        if sigma not in state["steps"]:
            state["steps"].append(sigma)
        if state["steps"].index(sigma) not in CACHED:
            handle = diffusion_model.final_layer.register_forward_pre_hook(hook)
            try:
                return apply_model(args["input"], args["timestep"], **args["c"])
            finally:
                handle.remove()
        timestep = base_model.model_sampling.timestep(args["timestep"]).unsqueeze(1)
        embedding, adaln = diffusion_model.t_embedder[1](diffusion_model.t_embedder[0](timestep).to(state["input"].dtype))
        result = diffusion_model.final_layer(state["input"], diffusion_model.t_embedding_norm(embedding), adaln_lora_B_T_3D=adaln)
        result = diffusion_model.unpatchify(result)
        return base_model.model_sampling.calculate_denoised(args["timestep"], result.float(), args["input"])

    model.set_model_unet_function_wrapper(on_call)
    return model


def sampled(model, **options):
    return ANIMA.sample(model, steps=STEPS, **options)


@pytest.mark.parametrize("head", [0.0, 0.7], ids=["plain head", "guided head"])
@pytest.mark.parametrize("cfg, batch", [(1.0, 1), (2.5, 2)], ids=["no CFG", "CFG and a batch"])
def test_the_head_takes_its_shift_on_cached_steps(model, projection, head, cfg, batch):
    projection, file = projection
    settings = dict(projection=projection, schedule=schedule(1, final_layer=head))
    expected = sampled(with_cached_steps(reference(ANIMA, model, Projected(file, weights_from(1, head=head)))), cfg=cfg, batch=batch)
    for made in (
        with_cached_steps(apply(model, ANIMA.direction(), **settings)),
        apply(with_cached_steps(model), ANIMA.direction(), **settings),
    ):
        torch.testing.assert_close(sampled(made, cfg=cfg, batch=batch), expected, **TOLERANCE)


def test_rows_of_one_side_take_theirs_on_cached_steps(model, projection):
    projection, file = projection
    made = apply(model, ANIMA.direction(), projection=projection, schedule=schedule(1, final_layer=1.0), cfg_rows="opposed")
    expected = sampled(with_cached_steps(reference(ANIMA, model, Projected(file, weights_from(1, head=1.0), rows="opposed"))))
    torch.testing.assert_close(sampled(with_cached_steps(made)), expected, **TOLERANCE)


def test_nothing_is_left_on_the_head(model, projection):
    projection, _ = projection
    plain, cached = sampled(model), sampled(with_cached_steps(model))
    assert (plain - cached).abs().max() > 1e-3, "a cached step must be another picture"
    kept = {name: (type(module), set(module.__dict__)) for name, module in model.model.named_modules()}
    sampled(with_cached_steps(apply(model, ANIMA.direction(), projection=projection, schedule=schedule(1, final_layer=1.0))))
    assert {name: (type(module), set(module.__dict__)) for name, module in model.model.named_modules()} == kept
    assert torch.equal(sampled(with_cached_steps(model)), cached) and torch.equal(sampled(model), plain)

"""A projection beside whatever else is in the graph: LoRAs, hooks, other packs, guiders, torch.compile, the host's memory."""

from contextlib import contextmanager
from functools import partial
from types import MethodType
from unittest.mock import patch

import comfy.hooks
import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from support.flux import apply, schedule
from support.text_blind import ANIMA, COSMOS, DIMS, Projected, form_a, form_b, loaded, reference, weights_from, write
from torch._dynamo.utils import counters

from benchmarks.in_process import node

TOLERANCE = dict(rtol=0, atol=1e-5)


@pytest.fixture(scope="module", params=[COSMOS, ANIMA], ids=lambda small: small.name)
def small(request):
    return request.param


@pytest.fixture(scope="module")
def projections(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pooled_projections")
    return {
        "A": (loaded(write(folder / "a.pt", form_a())), form_a()),
        "B": (loaded(write(folder / "b.safetensors", form_b(film=True))), form_b(film=True)),
    }


FORMS = pytest.mark.parametrize("form", ["A", "B"])


def guided(small, projections, form, model, seed=10, w=2.0, rows="both", start=1, **options):
    projection, _ = projections[form]
    inputs = dict(projection=projection, w=w, cfg_rows=rows, schedule=schedule(start), **options)
    if form == "B":
        return apply(model, small.direction(seed), **inputs)
    return apply(model, small.pooled_direction(seed), base_positive=small.pooled(1), base_negative=small.pooled(2), **inputs)


def equation(small, projections, form, model, rows="both"):
    return reference(small, model, Projected(projections[form][1], weights_from(1), w=2.0, rows=rows, base=(1, 2)))


def on_clone(patch_model):
    def patched(small, model):
        model = model.clone()
        patch_model(model)
        return model

    return patched


LORA = ("blocks.1.adaln_modulation_mlp.2", "blocks.3.cross_attn.q_proj", "t_embedder.1.linear_1", "final_layer.linear")


def lora_weights(model, names, rank=4):
    state = model.model.diffusion_model.state_dict()
    generator = torch.Generator().manual_seed(7)
    lora = {}
    for name in names:
        wide, narrow = state[f"{name}.weight"].shape
        lora[f"diffusion_model.{name}.lora_up.weight"] = torch.randn(wide, rank, generator=generator) / rank
        lora[f"diffusion_model.{name}.lora_down.weight"] = torch.randn(rank, narrow, generator=generator) / narrow**0.5
    return lora


def with_lora(small, model, names=LORA):
    names = names if small is not ANIMA else (*names, "llm_adapter.blocks.0.mlp.0", "llm_adapter.out_proj")
    return comfy.sd.load_lora_for_models(model, None, lora_weights(model, names), 0.7, 0.0)[0]


def one_row_at_a_time(apply_model, args):
    """As packs that save memory do."""
    count = len(args["cond_or_uncond"])
    outputs = []
    for i, cond_or_uncond in enumerate(args["cond_or_uncond"]):
        c = {name: value.chunk(count)[i] if torch.is_tensor(value) else value for name, value in args["c"].items()}
        c["transformer_options"] = c["transformer_options"] | {"cond_or_uncond": [cond_or_uncond]}
        outputs.append(apply_model(args["input"].chunk(count)[i], args["timestep"].chunk(count)[i], **c))
    return 0.9 * torch.cat(outputs)


def model_wrapper(executor, x, timestep, *args, **kwargs):
    return 0.9 * executor(0.8 * x, timestep, *args, **kwargs)


def replaced_block_forward(model):
    key = "diffusion_model.blocks.2.forward"
    original = model.get_model_object(key)
    model.add_object_patch(key, lambda x, emb, *args, **kwargs: 0.9 * original(x, 0.8 * emb, *args, **kwargs))


NODES = {
    "LoRA": with_lora,
    "function wrapper that splits the batch": on_clone(lambda model: model.set_model_unet_function_wrapper(one_row_at_a_time)),
    "DIFFUSION_MODEL wrapper": on_clone(lambda model: model.add_wrapper(WrappersMP.DIFFUSION_MODEL, model_wrapper)),
    "a block's forward replaced": on_clone(replaced_block_forward),
}


@FORMS
@pytest.mark.parametrize("other", NODES.values(), ids=NODES)
def test_other_node_before_and_after(small, model, projections, form, other):
    expected = small.sample(other(small, equation(small, projections, form, model)))
    assert (expected - small.sample(other(small, model))).abs().max() > 1e-2
    assert (expected - small.sample(guided(small, projections, form, model))).abs().max() > 1e-2
    for patched in (guided(small, projections, form, other(small, model)), other(small, guided(small, projections, form, model))):
        torch.testing.assert_close(small.sample(patched), expected, **TOLERANCE)


def test_film_reads_the_time_alone_whoever_adds_text_to_it(small, model, projections):
    """As packs that add their own pooled text by a hook on the norm's output."""
    shift = torch.randn(DIMS["model_channels"], generator=torch.Generator().manual_seed(4))

    def add(apply_model, args):
        hook = model.model.diffusion_model.t_embedding_norm.register_forward_hook(lambda module, args, output: output + shift)
        try:
            return apply_model(args["input"], args["timestep"], **args["c"])
        finally:
            hook.remove()

    other = on_clone(lambda model: model.set_model_unet_function_wrapper(add))
    expected = equation(small, projections, "B", model)
    for module, _ in small.inputs_of(expected.model.diffusion_model):
        module.register_forward_pre_hook(lambda module, args: (args[0], args[1] + shift, *args[2:]))
    expected = small.sample(expected)
    assert (expected - small.sample(guided(small, projections, "B", model))).abs().max() > 1e-2
    for made in (other(small, guided(small, projections, "B", model)), guided(small, projections, "B", other(small, model))):
        torch.testing.assert_close(small.sample(made), expected, **TOLERANCE)


@pytest.mark.parametrize("cfg", [1.0, 2.5])
def test_rows_that_another_pack_adds_have_no_text_of_their_own(small, model, projections, cfg):
    """As NAG does, whose rows attend to another prompt."""

    def forward(self, x, timesteps, context, **inputs):
        more = [*range(len(x)), len(x) - 1]
        inputs = {name: value[more] if torch.is_tensor(value) and len(value) == len(x) else value for name, value in inputs.items()}
        return type(self).forward(self, x[more], timesteps[more], context[more], **inputs)[:-1]

    def call(apply_model, args):
        diffusion_model = model.model.diffusion_model
        diffusion_model.forward = MethodType(forward, diffusion_model)
        try:
            return apply_model(args["input"], args["timestep"], **args["c"])
        finally:
            del diffusion_model.forward

    other = on_clone(lambda model: model.set_model_unet_function_wrapper(call))
    with pytest.raises(ValueError, match="Another node runs the model's blocks on .*a max-pool projection"):
        small.sample(guided(small, projections, "B", other(small, model)), cfg=cfg)


def test_lora_hook_on_the_positive(small, model, projections):
    group = comfy.hooks.create_hook_lora(lora_weights(model, LORA), 0.7, 0.0)
    positive = comfy.hooks.set_hooks_for_conditioning(small.conditioning(1), group)
    for form in projections:
        expected = small.sample(equation(small, projections, form, model), positive=positive)
        assert (expected - small.sample(guided(small, projections, form, model))).abs().max() > 1e-2
        actual = small.sample(guided(small, projections, form, model), positive=positive)
        torch.testing.assert_close(actual, expected, **TOLERANCE)


@FORMS
def test_each_row_of_a_batch_takes_its_own_side_under_guiders_that_count_otherwise(small, model, projections, form):
    """DualCFG hands the negative over first."""

    def sampled(model):
        prompts = {name: small.conditioning(seed) for name, seed in (("cond1", 1), ("cond2", 3), ("negative", 2))}
        sigmas = torch.linspace(small.sigma_max or 1.0, 0, 3)
        return node(
            "SamplerCustomAdvanced",
            noise=node("RandomNoise", noise_seed=5)[0],
            guider=node("DualCFGGuider", model=model, cfg_conds=2.0, cfg_cond2_negative=1.5, style="regular", **prompts)[0],
            sampler=node("KSamplerSelect", sampler_name="euler")[0],
            sigmas=sigmas,
            latent_image={"samples": torch.zeros(1, *small.latent)},
        )[0]["samples"]

    def told(executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
        order = [1 if chunk == 0 else 0 for chunk in transformer_options["cond_or_uncond"]]
        return executor(x, t, c_concat, c_crossattn, control, transformer_options | {"cond_or_uncond": order}, **kwargs)

    expected_model = equation(small, projections, form, model, rows="cond")
    expected_model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "order", told)
    expected = sampled(expected_model)
    actual = sampled(guided(small, projections, form, model, rows="cond"))
    torch.testing.assert_close(actual, expected, **TOLERANCE)


@pytest.mark.parametrize(
    "form, base, labels",
    [
        ("A", False, ["plain", "w 2, start 0", "w 2, start 1"]),
        ("A", True, ["w 0, start 0", "w 0, start 1", "w 2, start 0", "w 2, start 1"]),
        ("B", False, ["w 0", "w 2, start 0", "w 2, start 1"]),
    ],
)
def test_a_sweep_says_plain_where_w_0_is_the_plain_picture(small, model, projections, form, base, labels):
    direction = small.pooled_direction() if form == "A" else small.direction()
    sides = {"base_positive": small.pooled(1), "base_negative": small.pooled(2)} if base else {}
    made = node(
        "SweepModulationGuidance",
        model=model,
        direction=direction,
        projection=projections[form][0],
        w_values="0, 2",
        start_layers="0, 1",
        **sides,
    )
    assert made[1] == labels
    assert torch.equal(small.sample(made[0][0]), small.sample(model)) == (labels[0] == "plain")


def test_clones_and_the_model_itself_stay_as_they_were(small, projections):
    model = small.load()
    before = small.sample(model)
    weights = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    attributes = {name: set(module.__dict__) for name, module in model.model.named_modules()}
    files = {form: {name: tensor.clone() for name, tensor in projection.weights.items()} for form, (projection, _) in projections.items()}
    first = guided(small, projections, "A", model)
    second = guided(small, projections, "B", first, keep_norm=True)
    one, both = small.sample(first), small.sample(second)
    assert torch.equal(small.sample(model), before)
    assert torch.equal(small.sample(first), one) and torch.equal(small.sample(second), both)
    assert not model.get_additional_models()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.model.state_dict().items())
    assert {name: set(module.__dict__) for name, module in model.model.named_modules()} == attributes
    for form, (projection, _) in projections.items():
        assert all(torch.equal(tensor, files[form][name]) for name, tensor in projection.weights.items())


# Memory.


def networks_loaded():
    return [loaded.model.model for loaded in comfy.model_management.current_loaded_models]


@FORMS
def test_the_host_loads_the_network_beside_the_model_and_once(small, model, projections, form):
    comfy.model_management.unload_all_models()
    twice = guided(small, projections, form, guided(small, projections, form, model), seed=20)
    first = small.sample(twice)
    network = projections[form][0].patcher.model
    assert networks_loaded().count(network) == 1
    places = {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
    assert torch.equal(small.sample(twice), first)
    assert {name: tensor.data_ptr() for name, tensor in network.state_dict().items()} == places, "nothing was moved"
    comfy.model_management.unload_all_models()
    assert network not in networks_loaded()
    assert torch.equal(small.sample(twice), first), "it is loaded again when it is needed"


def test_a_projection_is_one_network_however_often_it_is_applied(small, model, projections):
    projection = projections["A"][0]
    models = [guided(small, projections, "A", model, w=w) for w in (1.0, 2.0)]
    networks = {patcher.model for guided_model in models for patcher in guided_model.get_additional_models()}
    assert networks == {projection.patcher.model}


def test_base_prompts_are_refused_where_nothing_says_which_side_a_row_is_on(small, model, projections):
    """As under the deprecated Perp-Neg, which calls the model with a conditioning that the guider does not have."""

    def perp_neg(model):
        return node("PerpNeg", model=model, empty_conditioning=small.conditioning(3), neg_scale=0.5)[0]

    with pytest.raises(ValueError, match="a conditioning of its own.* base_positive and base_negative need that: disconnect both"):
        small.sample(perp_neg(guided(small, projections, "A", model)))
    projection, _ = projections["A"]
    without = apply(model, small.pooled_direction(), w=2.0, cfg_rows="both", schedule=schedule(1), projection=projection)
    expected = reference(small, model, Projected(projections["A"][1], weights_from(1), w=2.0, rows="both", base=(None, None)))
    torch.testing.assert_close(small.sample(perp_neg(without)), small.sample(perp_neg(expected)), **TOLERANCE)


@contextmanager
def counted_runs(model):
    """Holds one entry for each run of the adapter."""
    adapter = model.model.diffusion_model.llm_adapter
    runs = []
    with patch.object(adapter, "forward", side_effect=lambda *args, run=adapter.forward, **kwargs: runs.append(1) or run(*args, **kwargs)):
        yield runs


def test_anima_s_adapter_reads_each_prompt_once(projections):
    model = ANIMA.load()
    both = guided(ANIMA, projections, "B", model)
    with counted_runs(model) as runs:
        ANIMA.sample(both, steps=4)
    assert len(runs) == 4, "the user's two prompts by the host, and the direction's two"


def test_anima_s_adapter_reads_again_when_its_weights_change(projections):
    """The same guidance under a LoRA, on and off."""
    model = ANIMA.load()
    made = guided(ANIMA, projections, "B", model)
    plain = ANIMA.sample(made)
    changed = ANIMA.sample(with_lora(ANIMA, made))
    expected = ANIMA.sample(equation(ANIMA, projections, "B", with_lora(ANIMA, model)))
    torch.testing.assert_close(changed, expected, **TOLERANCE)
    assert torch.equal(ANIMA.sample(made), plain)


# torch.compile.


class Counting:
    """A torch.compile backend that counts graphs and runs them as they are."""

    graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.mark.parametrize("small, form, order", [(ANIMA, "B", "before"), (COSMOS, "A", "after")], ids=["Anima, B", "Cosmos, A"])
def test_no_change_of_a_number_compiles_again(projections, small, form, order):
    torch._dynamo.reset()
    counters.clear()
    model, eager, backend = small.load(), small.load(), Counting()

    def compiled(model):
        return node("TorchCompileModel", model=model, backend=backend)[0]

    make = partial(guided, small, projections, form)
    changes = [
        lambda model: model,
        make,
        partial(make, w=5.0),
        partial(make, w=-1.0),
        partial(make, start=3),
        partial(make, seed=20),
        partial(make, rows="opposed"),
        partial(make, w=0.0),
        partial(make, start_percent=0.3, end_percent=0.7),
        lambda model: make(make(model), seed=20),
        lambda model: model,
    ]
    before = None
    for i, change in enumerate(changes):
        picture = small.sample(change(compiled(model)) if order == "before" else compiled(change(model)))
        torch.testing.assert_close(picture, small.sample(change(eager)), rtol=0, atol=1e-6)
        assert before is None or (picture - before).abs().max() > 1e-3
        before = picture
        if i == 1:
            graphs = backend.graphs
    assert backend.graphs == graphs, "one set of graphs for unguided calls and one for guided ones"
    torch._dynamo.reset()

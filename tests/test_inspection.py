"""What Inspect Guidance says of directions is what the model itself makes of them."""

import json
import time

import comfy.hooks
import node_helpers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from support import flux, text_blind_families, time_shift
from support.families import FAMILIES
from support.families.small import Small
from support.text_blind import loaded, own, write
from support.text_encoders import flux_clip

from benchmarks.in_process import node


@pytest.fixture(scope="module")
def schnell():
    return flux.flux()


def inspect(model, *directions, labels="", w=3.0, **inputs):
    image, report = node(
        "InspectGuidance", model=model, directions={f"direction{i}": one for i, one in enumerate(directions)}, labels=labels, w=w, **inputs
    )
    return image, json.loads(report)


def y_of(model, pooled, sigma):
    """FLUX.1's y, from its equation."""
    diffusion_model = model.model.diffusion_model
    time = flux.timestep_embedding(torch.tensor([sigma]), 256)
    return diffusion_model.time_in(time) + diffusion_model.vector_in(pooled)


def pooled(seed):
    return flux.conditioning(seed)[0][1]["pooled_output"]


def direction(seed, weights=(1.0,)):
    one = {f"direction{i}": flux.direction(seed + 10 * i) for i in range(len(weights))}
    return node("CombineGuidanceDirections", directions=one, weights=", ".join(map(str, weights)))[0]


def test_strength_is_the_shift_beside_y_at_each_layer(schnell):
    schedule = node("GuidanceLayerScheduleText", layers="1-2: 1, 5: -0.5", final_layer=0.25)[0]
    _, report = inspect(schnell, flux.direction(10), flux.direction(20), w=-4.0, schedule=schedule)
    assert len(report["sigmas"]) == 3 and all(0 < sigma < 1 for sigma in report["sigmas"])
    plain = {sigma: sum(y_of(schnell, pooled(seed), sigma).norm() for seed in (10, 11, 20, 21)) / 4 for sigma in report["sigmas"]}
    for i, seed in enumerate((10, 20)):
        for weight, got in zip(
            (0, 1, 1, 0, 0, -0.5, 0, 0, 0.25), [*report["strength"][i]["layers"], report["strength"][i]["head"]], strict=True
        ):
            shift = {s: 4 * abs(weight) * (y_of(schnell, pooled(seed), s) - y_of(schnell, pooled(seed + 1), s)).norm() for s in plain}
            assert got == pytest.approx(float(sum(shift[s] / plain[s] for s in plain) / 3), rel=1e-4)


def test_cosines_in_pooled_and_in_modulation_space(schnell):
    combined = direction(20, weights=(1.0, -2.0))
    _, report = inspect(schnell, flux.direction(10), combined)
    differences = {seed: pooled(seed) - pooled(seed + 1) for seed in (10, 20, 30)}
    shifts = {seed: y_of(schnell, pooled(seed), 0.5) - y_of(schnell, pooled(seed + 1), 0.5) for seed in (10, 20, 30)}
    for name, of in (("pooled", differences), ("modulation", shifts)):
        expected = torch.cosine_similarity(of[10], of[20] - 2 * of[30]).item()
        matrix = report["cosines"][name]
        assert matrix[0][1] == matrix[1][0] == pytest.approx(expected, abs=1e-4)
        assert matrix[0][0] == matrix[1][1] == 1


@pytest.mark.parametrize("small", FAMILIES, ids=lambda small: small.name)
def test_every_family_can_be_inspected(small: Small):
    model = small.load()
    image, report = inspect(model, small.direction(10), small.direction(20))
    assert image.shape[0] == 1 and image.shape[3] == 3 and image.shape[2] == 1280 and 0 <= image.min() < image.max() <= 1
    assert report["layers"] == small.depth and report["w"] == 3.0
    for strength in report["strength"]:
        guided = [value > 0 for value in (*strength["layers"], strength["head"])]
        assert guided == [layer >= small.start_layer for layer in range(small.depth)] + [small.final_layer > 0]
    assert abs(report["cosines"]["modulation"][0][1]) < 0.9


@pytest.mark.parametrize("pooling", ["max", "clip"])
@pytest.mark.parametrize("small", text_blind_families.FAMILIES, ids=lambda small: small.name)
def test_text_blind_models_are_inspected_through_a_projection(small, pooling, tmp_path):
    """With directions of the model's own text, and of another encoder, whose tokens the model could not read."""
    file = own(time_shift.network(small), pooling, "time embedding", small.name)
    model, projection = small.load(), loaded(write(tmp_path / "projection.safetensors", *file))
    directions = [
        small.pooled_direction(seed, text_blind_families.CONTEXT) if pooling == "clip" else small.direction(seed) for seed in (10, 20)
    ]
    _, report = inspect(model, *directions, projection=projection, schedule=flux.schedule(1, final_layer=0.5))
    for strength in report["strength"]:
        assert [value > 0 for value in strength["layers"]] == [False] + [True] * (small.depth - 1)
        assert strength["head"] == pytest.approx(strength["layers"][1] / 2, abs=2e-6)
    assert (report["cosines"]["pooled"] is None) == (directions[0].pairs[0].positive.pooled is None)


@pytest.mark.parametrize(
    "other, sentence",
    [
        (lambda: flux.direction(10), "a and b are nearly the same direction to this model (cosine 1.00)"),
        (lambda: direction(10, weights=(-0.5,)), "a and b nearly cancel (cosine -1.00)"),
        (
            lambda: node("GuidanceDirectionFromConditioning", positive=flux.conditioning(5), negative=flux.conditioning(5))[0],
            "b does nothing",
        ),
    ],
    ids=["same", "opposite", "none"],
)
def test_warns_of_directions_that_make_no_sense_together(schnell, other, sentence):
    _, report = inspect(schnell, flux.direction(10), other(), labels="a, b", w=0.1)
    assert len(report["warnings"]) == 1 and report["warnings"][0].startswith(sentence)


def test_warns_of_a_scale_that_burns_and_says_which_does_not(schnell):
    _, report = inspect(schnell, flux.direction(10), w=20.0)
    (warning,) = report["warnings"]
    assert warning.startswith("direction0 at w 20 will burn the image: its shift is ")
    below = float(warning.split("below w ")[1].rstrip("."))
    assert inspect(schnell, flux.direction(10), w=below * 0.95)[1]["warnings"] == []
    assert inspect(schnell, flux.direction(10), w=below * 1.1)[1]["warnings"]


def test_guidance_on_the_model_does_not_change_what_is_seen(schnell):
    guided = flux.apply(schnell, flux.direction(30), w=5.0)
    assert inspect(guided, flux.direction(10))[1] == inspect(schnell, flux.direction(10))[1]
    before = flux.sample(guided)
    attributes = {name: set(module.__dict__) for name, module in schnell.model.named_modules()}
    inspect(guided, flux.direction(10))
    assert torch.equal(flux.sample(guided), before)
    assert {name: set(module.__dict__) for name, module in schnell.model.named_modules()} == attributes


def test_a_torch_that_cannot_be_told_to_leave_compiling_does_not_end_it(schnell, monkeypatch):
    """torch.compiler.set_stance came with 2.6."""
    monkeypatch.delattr(torch.compiler, "set_stance")
    assert inspect(schnell, flux.direction(10))[1]
    compiled = node("TorchCompileModel", model=flux.flux(), backend="eager")[0]
    assert inspect(compiled, flux.direction(10))[1] == inspect(schnell, flux.direction(10))[1]


def test_a_compiled_model_is_not_compiled_for_it(schnell):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = node("TorchCompileModel", model=flux.flux(), backend=backend)[0]
    assert inspect(compiled, flux.direction(10))[1] == inspect(schnell, flux.direction(10))[1]
    assert not graphs


def test_without_labels_directions_are_called_as_their_inputs(schnell):
    connected = {name: flux.direction(10) for name in ("direction10", "direction2")}
    report = json.loads(node("InspectGuidance", model=schnell, directions=connected, labels="", w=0.1)[1])
    assert report["labels"] == ["direction2", "direction10"]
    assert report["warnings"][0].startswith("direction2 and direction10 are nearly the same direction")


def test_sixteen_directions_and_long_labels_are_drawn(schnell):
    labels = ", ".join(f"a rather long label number {i}" for i in range(16))
    image, report = inspect(schnell, *(flux.direction(10 + 2 * i) for i in range(16)), labels=labels)
    assert len(report["cosines"]["modulation"]) == 16
    dark = (image[0].amin(dim=-1) < 0.5).float()
    assert dark[:, :8].sum() == 0 and dark[:, -8:].sum() == 0, "nothing is cut off at the sides"


@pytest.mark.parametrize("label", ["\u6c49\u5b57" * 50_000, "a" * 3_000_000, "a " * 1_500_000], ids=lambda label: label[:3])
def test_labels_of_any_length_are_drawn_at_once_and_cut_in_warnings(schnell, label):
    directions = [flux.direction(10)] * 4
    started = time.perf_counter()
    image, report = inspect(schnell, *directions, labels=", ".join(f"{i}{label}" for i in range(4)))
    assert time.perf_counter() - started < 10
    assert len(report["warnings"]) >= 6 and all(len(warning) < 400 for warning in report["warnings"])
    assert max(image.shape) < 4000 and report["labels"][0] == f"0{label}".strip()


@pytest.mark.parametrize("labels", ["a", "a, b, c"])
def test_another_count_of_labels_is_an_error(schnell, labels):
    with pytest.raises(ValueError, match=rf"Inspect Guidance: {len(labels.split(','))} labels \('{labels}'\) for 2 directions"):
        inspect(schnell, flux.direction(10), flux.direction(20), labels=labels)


def lora_hook(schnell, conditioning):
    draw = torch.Generator().manual_seed(7)
    lora = {
        "diffusion_model.vector_in.in_layer.lora_up.weight": torch.randn(flux.HIDDEN, 4, generator=draw),
        "diffusion_model.vector_in.in_layer.lora_down.weight": torch.randn(4, flux.POOLED, generator=draw),
    }
    return comfy.hooks.set_hooks_for_conditioning(conditioning, comfy.hooks.create_hook_lora(lora, 0.7, 0.0))


def controlled(schnell, conditioning):
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(9))
    return node(
        "ControlNetApplyAdvanced",
        positive=conditioning,
        negative=[],
        control_net=flux.controlnet(),
        image=hint,
        strength=1.0,
        start_percent=0.0,
        end_percent=1.0,
    )[0]


def settings(**values):
    return lambda schnell, conditioning: node_helpers.conditioning_set_values(conditioning, values)


USES = {
    "from the middle on": settings(start_percent=0.4, end_percent=1.0),
    "at no step that is looked at": settings(start_percent=0.2, end_percent=0.3),
    "in an area": settings(area=(4, 4, 0, 2), strength=0.5),
    "under a mask": settings(mask=torch.rand(1, 64, 64), set_area_to_bounds=True),
    "a LoRA hook": lora_hook,
    "a ControlNet": controlled,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_direction_is_what_it_is_however_its_conditioning_was_to_be_used(schnell, use):
    def made(use):
        sides = {side: use(schnell, flux.conditioning(seed)) for side, seed in (("positive", 10), ("negative", 11))}
        return node("GuidanceDirectionFromConditioning", **sides)[0]

    plain = inspect(schnell, made(lambda schnell, conditioning: conditioning), flux.direction(20))[1]
    assert inspect(schnell, made(use), flux.direction(20))[1] == plain


BESIDE = {
    "SkipLayerGuidanceDiT": dict(scale=3.0, start_percent=0.0, end_percent=1.0, double_layers="1", single_layers="1", rescaling_scale=0.0),
    "EasyCache": dict(reuse_threshold=0.9, start_percent=0.0, end_percent=1.0, verbose=False),
    "LazyCache": dict(reuse_threshold=0.9, start_percent=0.0, end_percent=1.0, verbose=False),
}


@pytest.mark.parametrize("name", BESIDE)
def test_nodes_that_add_or_leave_out_calls_of_the_model_change_nothing(schnell, name):
    assert inspect(node(name, model=schnell, **BESIDE[name])[0], flux.direction(10))[1] == inspect(schnell, flux.direction(10))[1]


def test_scaled_text_whose_tokens_are_counted_changes_nothing():
    """Whose clip would refuse the conditionings that are inspected, as it has not read them."""
    model, clip = flux.flux(), flux_clip(flux.CONTEXT)
    scaled = node("ScaleTextVariance", model=model, scale=1.5, clip=clip, prompt="a", negative_prompt="b")[0]
    assert inspect(scaled, flux.direction())[1] == inspect(model, flux.direction())[1]


def raising(schnell, error):
    def wrapper(executor, *args, **kwargs):
        raise error

    model = schnell.clone()
    model.add_wrapper(WrappersMP.DIFFUSION_MODEL, wrapper)
    return model


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {flux.CONTEXT}.00 GiB"),
        RuntimeError(
            f"[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate {flux.CONTEXT} bytes."
        ),
        RuntimeError("a pack's own trouble"),
    ],
    ids=["device memory", "main memory", "a pack"],
)
def test_no_other_error_is_put_down_to_the_encoder(schnell, error):
    with pytest.raises(RuntimeError) as raised:
        inspect(raising(schnell, error), flux.direction(10))
    assert raised.value is error


def test_tokens_of_another_encoder_are_named(schnell):
    wide = [[torch.zeros(1, 8, 99), {"pooled_output": torch.ones(1, flux.POOLED)}]]
    other = node("GuidanceDirectionFromConditioning", positive=wide, negative=flux.conditioning(1))[0]
    with pytest.raises(ValueError, match="FLUX.1 could not read a direction's tokens.*DualCLIPLoader and type flux"):
        inspect(schnell, other)


@pytest.mark.parametrize("small", FAMILIES, ids=lambda small: small.name)
def test_tokens_of_another_width_are_named_for_every_family(small):
    [[tokens, extras]] = small.encoded(10)
    wide = [[torch.zeros(*tokens.shape[:-1], 99), extras]]
    other = node("GuidanceDirectionFromConditioning", positive=wide, negative=small.encoded(11))[0]
    with pytest.raises(ValueError, match="could not read a direction's tokens|tokens are 99 wide"):
        inspect(small.load(), other)

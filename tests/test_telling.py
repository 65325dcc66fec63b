"""What is told after a run is what happened in it, and telling it changes and breaks nothing."""

import importlib
import logging
import re
from inspect import signature

import comfy.model_management
import comfy.sample
import pytest
import torch
from support import flux, text_blind_families, time_shift
from support.families import FAMILIES
from support.flux import apply, conditioning, direction, sample, schedule
from support.text_blind import ANIMA, form_a, loaded, own, write
from test_neighbours import copied_model, on_clone

import nodes as host_nodes
from benchmarks.in_process import node

W = 0.25  # too little to burn the pictures of these models


@pytest.fixture(scope="module")
def schnell():
    return flux.flux()


@pytest.fixture
def told(caplog):
    """() -> [(whether it warns, what)] since it was asked last, of all that our nodes told."""
    caplog.set_level(logging.INFO)

    def read():
        pattern = re.compile("(Apply Modulation Guidance|Scale Text Variance|Sweep Modulation Guidance): (.*)")
        said = [(record.levelno == logging.WARNING, pattern.fullmatch(record.getMessage())) for record in caplog.records]
        caplog.clear()
        return [(warns, match[2]) for warns, match in said if match]

    return read


def longest(text):
    return float(re.search(r"longest shift (\S+) of y", text)[1])


def written(layers):
    return node("GuidanceLayerScheduleText", layers=layers, final_layer=0.0)[0]


def test_one_line_says_what_was_done(schnell, told):
    sample(apply(schnell, direction(), w=W), cfg=2.0, steps=4)
    [(warns, text)] = told()
    assert not warns and re.fullmatch(r"FLUX.1, layers 5-7 of 8, w 0.25, cfg_rows both, 4 of 4 steps, longest shift 0.\d+ of y", text)


@pytest.mark.parametrize(
    "inputs, part",
    [
        (dict(schedule=schedule(2, final_layer=0.5)), "layers 2-7 of 8 and the final output layer,"),
        (dict(schedule=written("0: 1, 2-3: -1, 7: 0.5")), "layers 0, 2-3, 7 of 8,"),
        (dict(schedule=written("0: 1, 2: 1, 4: 1, 6: 1, 7: 0")), "layers 0, 2, 4, 6 of 8,"),
        (dict(schedule=written("0: 1, 2: 1, 4: 1, 6: 1"), cfg_rows="cond"), "rows cond,"),
        (dict(end_percent=0.3), ", 2 of 5 steps,"),
    ],
    ids=["head", "ranges", "single layers", "rows", "window"],
)
def test_layers_rows_and_steps_are_those_guided(schnell, told, inputs, part):
    sample(apply(schnell, direction(), w=W, **inputs), cfg=2.0, steps=5)
    [(_, text)] = told()
    assert part in text


@pytest.mark.parametrize("sampler, steps", [("heun", 4), ("dpmpp_sde", 4), ("uni_pc", 4), ("dpm_adaptive", None)])
def test_steps_are_the_samplers_whatever_calls_it_makes(schnell, told, sampler, steps):
    image, count = torch.zeros(1, 16, 8, 8), []
    comfy.sample.sample(
        apply(schnell, direction(), w=W),
        comfy.sample.prepare_noise(image, 5),
        4,
        1.0,
        sampler,
        "simple",
        conditioning(1),
        conditioning(2),
        image,
        callback=lambda step, *state: count.append(step),
        disable_pbar=True,
        seed=5,
    )
    [(_, text)] = told()
    done = steps or max(count) + 1
    assert f", {done} of {done} steps," in text


def test_the_longest_shift_is_that_of_the_equation(schnell, told):
    """max |w g (y(p+) - y(p-))| / |y| over layers and rows, at the first step."""
    diffusion_model = schnell.model.diffusion_model
    guided = apply(schnell, direction(10), w=-W, schedule=written("1-2: 0.5, 5: -2"), cfg_rows="cond")

    def y(seed):
        time = flux.timestep_embedding(torch.ones(1), 256)
        return diffusion_model.time_in(time) + diffusion_model.vector_in(conditioning(seed)[0][1]["pooled_output"])

    sample(guided, positive=conditioning(1), negative=conditioning(2), cfg=2.0)
    [(_, text)] = told()
    assert longest(text) == pytest.approx(float(2 * W * (y(10) - y(11)).norm() / y(1).norm()), rel=0.06)


class Arguments:
    """What reaches the layers of a model in the first call of a sampling."""

    def __init__(self, model, layers):
        self.of_layer = {}
        self.handles = [module.register_forward_pre_hook(self.hook(i, name), with_kwargs=True) for i, (module, name) in enumerate(layers)]

    def hook(self, layer, name):
        def look(module, args, kwargs):
            y = kwargs[name] if name in kwargs else args[list(signature(module.forward).parameters).index(name)]
            self.of_layer.setdefault(layer, y.float().clone())

        return look

    def read(self, sample):
        sample()
        for handle in self.handles:
            handle.remove()
        return self.of_layer


def longest_seen(plain, guided):
    return max(((guided[i] - y).norm(dim=-1) / y.norm(dim=-1)).max().item() for i, y in plain.items())


@pytest.mark.parametrize("small", FAMILIES, ids=lambda small: small.name)
def test_the_longest_shift_is_the_one_that_reaches_the_layers_of_any_family(small, told):
    model = small.load()
    guided = apply(model, small.direction(), w=W)
    layers = small.inputs_of(model.model.diffusion_model)
    plain = Arguments(model, layers).read(lambda: small.sample(model))
    told()
    reached = Arguments(model, layers).read(lambda: small.sample(guided))
    [(_, text)] = told()
    assert longest(text) == pytest.approx(longest_seen(plain, reached), rel=0.06)
    assert f"of {small.depth}" in text and f"rows {small.cfg_rows}, {small.steps} of {small.steps} steps" in text


@pytest.mark.parametrize("small", text_blind_families.FAMILIES, ids=lambda small: small.name)
def test_the_longest_shift_of_a_projection_is_beside_the_time_embedding(small, told, tmp_path):
    tensors = time_shift.network(small)
    projection = loaded(write(tmp_path / "own.safetensors", *own(tensors, "clip", "time embedding", small.name)))
    model, seen = small.load(), []
    embedder = model.model.diffusion_model.get_submodule(small.embedder)
    handle = embedder.register_forward_hook(lambda module, args, y: seen.append(y.clone()))
    small.sample(model)
    handle.remove()
    told()
    small.sample(
        apply(
            model,
            small.pooled_direction(10, text_blind_families.CONTEXT),
            w=W,
            projection=projection,
            schedule=schedule(1, final_layer=0.5),
        )
    )
    [(_, text)] = told()
    term = time_shift.Term(tensors, [])
    c = [small.pooled(seed, text_blind_families.CONTEXT)[0][1]["pooled_output"] for seed in (10, 11)]
    delta = W * (term.proj(c[0], None) - term.proj(c[1], None)).norm()
    assert longest(text) == pytest.approx(float(delta / seen[0].norm(dim=-1).min()), rel=0.06)
    assert text.startswith(f"{small.name}, layers 1-4 of 5 and the final output layer,")


def test_the_longest_shift_of_clip_and_scales(told, tmp_path):
    model = ANIMA.load()
    guided = apply(model, ANIMA.pooled_direction(), w=W, projection=loaded(write(tmp_path / "a.safetensors", form_a())))
    layers = [(block, "adaln_lora_B_T_3D") for block in model.model.diffusion_model.blocks]
    plain = Arguments(model, layers).read(lambda: ANIMA.sample(model))
    told()
    reached = Arguments(model, layers).read(lambda: ANIMA.sample(guided))
    [(_, text)] = told()
    assert longest(text) == pytest.approx(longest_seen(plain, reached), rel=0.06)


# Why nothing was done, or too much.


def equal_prompts():
    return node("GuidanceDirectionFromConditioning", positive=conditioning(5), negative=conditioning(5))[0]


def cancelling():
    return node("CombineGuidanceDirections", directions={"direction0": direction(10), "direction1": direction(10)}, weights="1, -1")[0]


NOTHING = {
    "w 0": (
        lambda model: apply(model, direction(), w=0.0),
        "Nothing was guided: w is 0. (FLUX.1, layers 5-7 of 8, w 0, cfg_rows both, 0 of 3 steps)",
    ),
    "equal prompts": (
        lambda model: apply(model, equal_prompts()),
        "Nothing was guided: the direction's positive and negative are the same to",
    ),
    "directions that cancel": (
        lambda model: apply(model, cancelling()),
        "Nothing was guided: the direction's positive and negative are the",
    ),
    "combined with weights of 0": (
        lambda model: apply(model, node("CombineGuidanceDirections", directions={"direction0": direction(10)}, weights="0")[0]),
        "Nothing was guided: the direction's weights are 0.",
    ),
    "window": (
        lambda model: apply(model, direction(), start_percent=0.45, end_percent=0.46),
        "Nothing was guided: no step lies between start_percent 0.45 and end_percent 0.46.",
    ),
    "weights": (
        lambda model: apply(model, direction(), schedule=written("0-7: 0")),
        "Nothing was guided: all layer weights are 0. (FLUX.1, layers none",
    ),
    "never reached": (
        lambda model: copied_model(model)(apply(model, direction())),
        "Modulation guidance did nothing in this sampling of 3 calls",
    ),
    "never called": (lambda model: answering(apply(model, direction())), "Modulation guidance did nothing in this sampling of 0 calls"),
    "scale 1": (
        lambda model: scaled(model, scale=1.0),
        "Nothing was scaled: scale is 1. (FLUX.1, layers 0-2 of 8, scale 1, both sides of CFG, prompt tokens, 0",
    ),
    "scaled outside the window": (
        lambda model: scaled(model, start_percent=0.45, end_percent=0.46),
        "Nothing was scaled: no step lies between start_percent 0.45",
    ),
    "scaled by weights": (lambda model: scaled(model, schedule=written("0-7: 0")), "Nothing was scaled: all layer weights are 0."),
    "scaled, never reached": (
        lambda model: copied_model(model)(scaled(model)),
        "Scale Text Variance did nothing in this sampling of 3 calls",
    ),
}


def scaled(model, **inputs):
    return node("ScaleTextVariance", model=model, **inputs)[0]


def answering(model):
    """A pack that answers in the model's place, as a cache that always hits."""
    model = model.clone()
    model.set_model_unet_function_wrapper(lambda apply_model, args: args["input"] * 0.5)
    return model


@pytest.mark.parametrize("case", NOTHING)
def test_a_warning_says_why_nothing_was_done(schnell, told, case):
    make, sentence = NOTHING[case]
    sample(make(schnell))
    [(warns, text)] = told()
    assert warns and text.startswith(sentence)
    assert ", 0 of 3 steps" in text or "in this sampling of" in text


def losing(number):
    """A pack that makes every picture of that number."""

    def change(model):
        model = model.clone()
        model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * number)
        return model

    return change


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_picture_of_nan_is_told_by_each_node(schnell, told, number):
    sample(losing(number)(scaled(apply(schnell, direction(), w=W))))
    for (warns, text), knob in zip(told(), ("scale", "w"), strict=True):  # what was put on last is told first
        assert warns and text.startswith(
            f"What was sampled is NaN or infinite, and the image is lost. Lower {knob}; if it is so without this node too, the cause is "
            "another. (FLUX"
        )
    sample(losing(number)(apply(schnell, direction(), w=0.0)))
    [(warns, text)] = told()
    assert warns and text.startswith(
        "What was sampled is NaN or infinite, and the image is lost. The cause is another than this node. Nothing was guided: w is 0. (FLUX"
    )


def test_one_number_of_nan_is_enough(schnell, told):
    def dotted(args):
        args["denoised"][0, 0, 0, 0] = float("nan")
        return args["denoised"]

    model = scaled(schnell).clone()
    model.set_model_sampler_post_cfg_function(dotted)
    sample(model)
    [(warns, text)] = told()
    assert warns and "NaN or infinite" in text


def test_w_0_with_a_projection_says_that_its_base_is_in(told, tmp_path):
    file = own(time_shift.network(text_blind_families.WAN), "max", "time embedding", "Wan")
    projection = loaded(write(tmp_path / "own.safetensors", *file))
    text_blind_families.WAN.sample(apply(text_blind_families.WAN.load(), text_blind_families.WAN.direction(), w=0.0, projection=projection))
    [(warns, text)] = told()
    assert warns and text.startswith("Nothing was guided: w is 0, so that only the projection's base was added.")


def test_layers_left_out_are_said_beside_what_was_done(schnell, told):
    skipping = on_clone(lambda model: model.set_model_patch_replace(lambda args, extra: args, "dit", "double_block", 2))
    sample(skipping(apply(schnell, direction(), w=W, schedule=schedule(1))))
    [(warns, text)] = told()
    assert warns and text.startswith("Modulation guidance left out 1 of the 7 layers it acts on in this sampling of 3 calls")
    assert "layers 1-7 of 8, w 0.25" in text and longest(text) > 0


def test_a_shift_that_burns_is_said_with_the_w_that_does_not(schnell, told):
    sample(apply(schnell, direction()))
    [(warns, text)] = told()
    assert warns and text.startswith("w 3 will burn the image: its shift is ")
    below = float(re.search(r"Stay below w (\S+)\.", text)[1])
    for w, burns in ((0.95 * below, False), (1.1 * below, True)):
        sample(apply(schnell, direction(), w=w))
        assert [warns for warns, _ in told()] == [burns]


def test_the_scaling_of_text_says_what_it_did(schnell, told):
    sample(scaled(schnell, scale=1.25, tokens="all", schedule=written("1: 1, 4-6: 0.5")), steps=2)
    assert told() == [(False, "FLUX.1, layers 1, 4-6 of 8, scale 1.25, both sides of CFG, all tokens, 2 of 2 steps")]


def test_each_that_is_applied_tells_its_own(schnell, told):
    sample(scaled(apply(apply(schnell, direction(), w=W), direction(20), w=-W, schedule=schedule(2), end_percent=0.4)), cfg=2.0, steps=4)
    third, first, second = (text for _, text in told())
    assert (
        "layers 5-7 of 8, w 0.25, cfg_rows both, 4 of 4 steps" in first
        and "layers 2-7 of 8, w -0.25, cfg_rows both, 2 of 4 steps" in second
    )
    assert "scale 1.5" in third and longest(first) != longest(second)


def test_each_model_of_a_sweep_tells_its_own_behind_its_label(schnell, told):
    models, labels = node("SweepModulationGuidance", model=schnell, direction=direction(), w_values="0, 0.25", start_layers="0, 5")
    for model in models:
        sample(model, steps=2)
    none, whole, late = told()
    assert labels == ["plain", "w 0.25, start 0", "w 0.25, start 5"]
    assert none[0] and none[1].startswith("plain: Nothing was guided: w is 0. (FLUX.1, ")
    assert whole[1].startswith("w 0.25, start 0: FLUX.1, layers 0-7 of 8, w 0.25, ")
    assert late[1].startswith("w 0.25, start 5: FLUX.1, layers 5-7 of 8, w 0.25, ")


def test_each_sampling_of_a_model_is_told(schnell, told):
    model = apply(schnell, direction(), w=W, start_percent=0.5)
    for steps, guided in ((4, 2), (6, 3)):
        sample(model, steps=steps)
        [(_, text)] = told()
        assert f"{guided} of {steps} steps" in text
    sample(model, steps=6, start_step=0, last_step=2, force_full_denoise=True)
    [(warns, text)] = told()
    assert warns and "Nothing was guided" in text and "0 of 2 steps" in text


def test_an_interrupted_run_says_how_far_it_came(schnell, told):
    def stop_after(last):
        def callback(step, *state):
            if step + 1 == last:
                comfy.model_management.interrupt_current_processing()
                comfy.model_management.throw_exception_if_processing_interrupted()

        return callback

    for model, after, guided in ((apply(schnell, direction(), w=W), 2, 2), (apply(schnell, direction(), w=W, start_percent=0.9), 1, 0)):
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            sample(model, steps=5, callback=stop_after(after))
        [(warns, text)] = told()
        assert not warns and f"{guided} of {after} steps, interrupted after {after} of 5" in text


# Telling is no trouble.


def untold(model):
    """The same guidance put on by the nodes' own core, with nobody to tell."""
    return importlib.import_module(host_nodes.NODE_CLASS_MAPPINGS["ApplyModulationGuidance"].__module__).guide(model, direction(), W)


@pytest.mark.parametrize("options", [dict(), dict(cfg=2.0, batch=2)], ids=["", "CFG and a batch"])
def test_the_picture_is_the_same_bit_for_bit(schnell, told, options):
    assert torch.equal(sample(apply(schnell, direction(), w=W), **options), sample(untold(schnell), **options))
    assert len(told()) == 1


def test_one_number_is_read_back_in_a_sampling(schnell, monkeypatch):
    reads = []

    def counting(read):
        def counted(tensor, *args):
            reads.append(read)
            return read(tensor, *args)

        return counted

    def reads_of(model, steps):
        reads.clear()
        sample(model, steps=steps)
        return len(reads)

    for name in ("item", "tolist", "cpu", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, counting(getattr(torch.Tensor, name)))
    told, plain = apply(schnell, direction(), w=W), untold(schnell)
    twice = apply(told, direction(20), w=W)
    for steps in (2, 6):
        assert reads_of(told, steps) == reads_of(plain, steps) + 1 == reads_of(twice, steps)


def test_a_window_reads_the_noise_level_once_a_step(schnell, monkeypatch):
    reads, cpu = [], torch.Tensor.cpu
    model = apply(apply(schnell, direction(), w=W, start_percent=0.1), direction(20), w=W, end_percent=0.9)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: (reads.append(tensor), cpu(tensor))[1])
    sample(model, steps=4, cfg=2.0)
    assert len(reads) == 4


def test_what_cannot_be_measured_costs_no_picture(schnell, told, monkeypatch):
    model = apply(schnell, direction(), w=W)
    expected = sample(model)
    told()

    def broken(*args, **kwargs):
        raise RuntimeError("a pack has changed this")

    monkeypatch.setattr(torch.linalg, "vector_norm", broken)
    assert torch.equal(sample(model), expected)
    [(warns, text)] = told()
    assert not warns and text == "FLUX.1, layers 5-7 of 8, w 0.25, cfg_rows both, 3 of 3 steps"


def test_rows_of_another_number_are_measured_too(schnell, told):
    """Another node hands the blocks one row at a time; the number is that of the row where it is largest."""

    def one_by_one(args, extra):
        rows = [
            extra["original_block"]({name: value[i : i + 1] if name in ("img", "vec", "pe") else value for name, value in args.items()})
            for i in range(2)
        ]
        return {"img": torch.cat([row["img"] for row in rows])}

    model = apply(schnell, direction(), w=W)
    sample(model, cfg=2.0)
    [(_, expected)] = told()
    other = model.clone()
    other.set_model_patch_replace(one_by_one, "dit", "single_block", 2)
    sample(other, cfg=2.0)
    [(_, text)] = told()
    assert longest(text) >= longest(expected) * 0.9


def test_a_compiled_model_is_measured_too_in_the_same_graphs(schnell, told):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    sample(apply(schnell, direction(), w=W))
    [(_, expected)] = told()
    torch._dynamo.reset()
    compiled = node("TorchCompileModel", model=flux.flux(), backend=backend)[0]
    sample(apply(compiled, direction(), w=W))
    assert told() == [(False, expected)]
    count = len(graphs)
    sample(untold(compiled))
    assert count >= 1 and len(graphs) == count, "telling is no other graph"
    torch._dynamo.reset()

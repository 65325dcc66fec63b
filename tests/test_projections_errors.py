"""What cannot work with a projection is refused when it is applied, in a sentence that says what is wrong and what to do."""

import pytest
import torch
from support.flux import apply, conditioning, direction, flux, node, schedule
from support.text_blind import ANIMA, CLIP, CONTEXT, COSMOS, DEPTH, WIDTH, form_a, form_b, loaded, own, write


@pytest.fixture(scope="module", params=[COSMOS, ANIMA], ids=lambda small: small.name)
def small(request):
    return request.param


@pytest.fixture(scope="module")
def projection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pooled_projections")

    def made(tensors, metadata=None):
        path = folder / f"{len(list(folder.iterdir()))}.safetensors"
        return loaded(write(path, tensors, metadata))

    return made


def test_a_text_blind_model_needs_a_projection(small, model):
    with pytest.raises(ValueError, match=rf"{small.name} is text-blind.*Connect a pooled projection.*Load Pooled Projection"):
        apply(model, small.direction())


@pytest.mark.parametrize("family", [None, "Anima"])
def test_a_model_with_pooled_text_of_its_own_takes_no_projection(projection, family):
    made = projection(*own(form_b(), "max", "time embedding", family))
    words = r"FLUX\.1 has a pooled text path of its own" + (r".*\(made for Anima\)" if family else "") + ".*Disconnect the projection"
    with pytest.raises(ValueError, match=words):
        apply(flux(), direction(), projection=made)


def test_a_projection_for_another_family_is_refused_by_name(small, model, projection):
    made = projection(*own(form_b(), "max", "time embedding", "Wan 2.1"))
    with pytest.raises(ValueError, match=rf"made for Wan 2\.1, but the model is a {small.name}.*Load a projection made for {small.name}"):
        apply(model, small.direction(), projection=made)


@pytest.mark.parametrize(
    "tensors, words",
    [
        (form_a(width=WIDTH + 8), rf"output is {3 * (WIDTH + 8)} wide, but the adaln lora of this {{0}} model is {3 * WIDTH} wide"),
        (form_a(depth=DEPTH + 1), rf"scales are for {DEPTH + 1} layers, but this {{0}} model has {DEPTH}"),
        (form_b(width=WIDTH + 8), rf"output is {WIDTH + 8} wide, but the time embedding of this {{0}} model is {WIDTH} wide"),
        (form_b(context=CONTEXT + 8), rf"input is {CONTEXT + 8} wide, but the text context of this {{0}} model is {CONTEXT} wide"),
    ],
    ids=["width of form A", "depth of form A", "width of form B", "context of form B"],
)
def test_widths_and_depth_of_another_model(small, model, projection, tensors, words):
    with pytest.raises(ValueError, match=words.format(small.name)):
        apply(model, small.direction(), projection=projection(tensors))


def test_film_of_another_width(small, model, projection):
    other = form_b(film=True, width=WIDTH + 8)
    tensors = form_b(film=True) | {"sigma_film.weight": other["sigma_film.weight"]}
    with pytest.raises(ValueError, match=rf"FiLM is {WIDTH + 8} wide, but the time embedding of this {small.name} model is {WIDTH} wide"):
        apply(model, small.direction(), projection=projection(tensors))


def test_form_a_reads_the_pooled_output_of_another_encoder(small, model, projection):
    made = projection(form_a())
    lacking = small.encoded(10)
    both = node("GuidanceDirectionFromConditioning", positive=small.pooled(10), negative=lacking)[0]
    with pytest.raises(ValueError, match="direction has no pooled output, which this projection reads"):
        apply(model, both, projection=made)
    with pytest.raises(ValueError, match=f"direction's pooled output is {CLIP - 4} wide, but this projection reads {CLIP}"):
        apply(model, small.pooled_direction(width=CLIP - 4), projection=made)


def test_the_pooled_output_of_clip_g_is_no_wider_one_of_clip_l(small, model, projection):
    made = projection(form_a(clip=768))
    words = "pooled output is 1280 wide, but this projection reads 768. Encode it with another text encoder, a CLIP-L"
    with pytest.raises(ValueError, match=f"direction's {words}"):
        apply(model, small.pooled_direction(width=1280), projection=made)
    with pytest.raises(ValueError, match=words):
        apply(model, small.pooled_direction(width=768), projection=made, base_positive=small.pooled(1, 1280))
    apply(model, small.pooled_direction(width=2048), projection=made)


def test_the_encoder_of_published_projections_is_named(small, model, projection):
    with pytest.raises(ValueError, match="a CLIP-L, with CLIPLoader and any type but hidream"):
        apply(model, small.pooled_direction(), projection=projection(form_a(clip=768)))


def test_a_wider_pooled_output_is_cut(small, model, projection):
    made = projection(form_a())
    wide = {name: small.pooled(seed, CLIP + 8) for name, seed in (("positive", 10), ("negative", 11))}
    cut = {name: [[tokens, {"pooled_output": extras["pooled_output"][:, :CLIP]}]] for name, [[tokens, extras]] in wide.items()}
    pictures = [small.sample(apply(model, node("GuidanceDirectionFromConditioning", **sides)[0], projection=made)) for sides in (wide, cut)]
    assert torch.equal(*pictures)


@pytest.mark.parametrize("side", ["base_positive", "base_negative"])
def test_base_prompts_are_checked_too(small, model, projection, side):
    inputs = dict(model=model, direction=small.pooled_direction(), projection=projection(form_a()))
    for prompt, words in (
        (small.encoded(1), "has no pooled output"),
        (small.pooled(1, CLIP - 4), f"pooled output is {CLIP - 4} wide"),
        (small.pooled(1) + small.pooled(2), "holds 2 prompts; it takes one"),
    ):
        with pytest.raises(ValueError, match=f"{side}.*{words}"):
            apply(**inputs, **{side: prompt})


@pytest.mark.parametrize("name, given", [("Apply", {}), ("Sweep", {"w_values": "1", "start_layers": "5"})])
def test_base_prompts_without_a_projection_or_of_several_prompts(small, model, projection, name, given):
    words = f"^{name} Modulation Guidance: base_positive"
    with pytest.raises(ValueError, match=f"{words} and base_negative feed a projection, and none is connected"):
        node(f"{name}ModulationGuidance", model=flux(), direction=direction(), base_positive=conditioning(1), **given)
    two = {"projection": projection(form_a()), "base_positive": small.pooled(1) + small.pooled(2)}
    with pytest.raises(ValueError, match=f"{words} holds 2 prompts; it takes one. Connect that of one prompt."):
        node(f"{name}ModulationGuidance", model=model, direction=small.pooled_direction(), **two, **given)


def test_form_b_takes_no_notice_of_base_prompts(small, model, projection):
    made = projection(form_b())
    wired = apply(model, small.direction(), projection=made, base_positive=small.pooled(1), base_negative=small.encoded(2))
    assert torch.equal(small.sample(wired), small.sample(apply(model, small.direction(), projection=made)))


def test_tokens_of_another_encoder(small, model, projection):
    sides = {name: conditioning(seed) for name, seed in (("positive", 1), ("negative", 2))}
    for [[tokens, _]] in sides.values():
        tokens.data = torch.randn(1, 8, CONTEXT + 8)
    other = node("GuidanceDirectionFromConditioning", **sides)[0]
    with pytest.raises(ValueError, match=rf"tokens are {CONTEXT + 8} wide, but this {small.name} model reads {CONTEXT}.*CLIPLoader"):
        apply(model, other, projection=projection(form_b()))


def test_form_a_has_nothing_for_the_head(small, model, projection):
    with pytest.raises(ValueError, match="final_layer is 0.5, but this projection adds nothing at the final output layer. Set it to 0"):
        apply(model, small.pooled_direction(), projection=projection(form_a()), schedule=schedule(0, final_layer=0.5))


def test_a_sweep_past_the_layers_guided_without_a_schedule_says_where_they_end(projection):
    model, made = ANIMA.load(), projection(form_b())
    with pytest.raises(
        ValueError, match="start_layer 5 is past layer 4, the last that is guided there. Lower start_layer, or connect a Layer"
    ):
        node("SweepModulationGuidance", model=model, direction=ANIMA.direction(), w_values="1", start_layers="0, 5", projection=made)

"""As test_parity_text_blind.py, where a row has several times, the embedding other parts, or the model another class of its family."""

from functools import partial

import pytest
import torch
from support.flux import apply, node, schedule
from support.learned import learned, shifts
from support.text_blind import loaded, own, write
from support.text_blind_variants import COSMOS1_LORA, SHALLOW, VARIANTS, Y_ITSELF, wan_autoregressive
from support.time_shift import CONTEXT, Term, network
from test_parity_text_blind import assert_equal, guided, projection, weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pooled_projections")


@pytest.mark.parametrize("small", VARIANTS, ids=lambda small: small.label)
def test_two_prompts_in_a_batch(small, folder):
    """Rows that differ, each at all its times."""
    model = small.load()
    made = guided(small, model, projection(small, folder), schedule=schedule(0), cfg_rows="opposed")
    assert_equal(small, model, made, Term(network(small), weights(), rows="opposed"), batch=2)


@pytest.mark.parametrize("small", (*VARIANTS, *Y_ITSELF), ids=lambda small: small.label + (" itself" if not small.embedder else ""))
def test_every_layer_and_the_head(small, folder):
    """With FiLM, at all times of the row, where y is seen and has no times but the step's."""
    film = not small.times_first and small.embedder_is_y
    model = small.load()
    made = guided(small, model, projection(small, folder, film=film), schedule=schedule(1, final_layer=0.5))
    assert_equal(small, model, made, Term(network(small, film=film), weights(1, 0.5)))


def test_sampled_frame_by_frame(folder):
    """Self-Forcing's sampler, which keeps the keys and values of the frames before."""
    small = pytest.importorskip("comfy.ldm.wan.ar_model") and wan_autoregressive()
    model = small.load()
    made = guided(small, model, projection(small, folder), schedule=schedule(1, final_layer=0.5))
    assert_equal(small, model, made, Term(network(small), weights(1, 0.5)))


def test_cosmos_1_shifted_at_its_adaln_lora(folder):
    """As COSMOS's own projection shifts Cosmos-Predict2; the base goes to the scheduled blocks."""
    small = COSMOS1_LORA
    model = small.load()
    file = write(folder / "lora.safetensors", *own(network(small), "clip", "adaln lora", small.name))
    base = {"base_positive": small.pooled(1, CONTEXT), "base_negative": small.pooled(2, CONTEXT)}
    made = guided(small, model, loaded(file), schedule=schedule(2), **base)
    assert_equal(small, model, made, Term(network(small), weights(2), "clip", rows="cond", base=(1, 2)), batch=2)


class Counting:
    """A torch.compile backend that counts graphs and runs them as they are."""

    graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.mark.parametrize("small", SHALLOW, ids=lambda small: small.name)
def test_no_change_of_a_number_compiles_again(small, folder):
    """Where what is added to a block is made by a layer before it, or is no single tensor."""
    guide = partial(guided, small, projection=projection(small, folder))
    head = schedule(1, final_layer=0.5)
    assert_compiled_once(
        small,
        [
            lambda model: model,
            lambda model: guide(model),
            lambda model: guide(model, w=5.0),
            lambda model: guide(model, schedule=head),
            lambda model: guide(guide(model), seed=20),
        ],
    )


@pytest.mark.parametrize("small", SHALLOW, ids=lambda small: small.name)
def test_no_change_of_a_learned_direction_compiles_again(small):
    def guide(model, seed=80, w=3.0, start=1):
        return apply(model, learned(shifts(2, small.width, seed), small.name), w=w, schedule=schedule(start), cfg_rows="both")

    assert_compiled_once(
        small,
        [
            lambda model: model,
            guide,
            partial(guide, w=-2.0),
            partial(guide, seed=81),
            partial(guide, start=0),
            lambda model: guide(guide(model), seed=81),
        ],
    )


def assert_compiled_once(small, changes):
    """Each of these changes of the model gives the picture that it gives uncompiled; only the first two are compiled."""
    torch._dynamo.reset()
    model, eager, backend = small.load(), small.load(), Counting()
    compiled = node("TorchCompileModel", model=model, backend=backend)[0]
    before = None
    for i, change in enumerate(changes):
        picture, expected = (small.sample(change(one), cfg=1.0, steps=1) for one in (compiled, eager))
        torch.testing.assert_close(picture, expected, rtol=0, atol=1e-5)
        assert before is None or (picture - before).abs().max() > 1e-3
        before = picture
        if i == 1:
            graphs = backend.graphs
    assert backend.graphs == graphs, "one set of graphs for unguided calls and one for guided ones"
    torch._dynamo.reset()

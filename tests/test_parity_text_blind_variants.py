"""As test_parity_text_blind.py, where a row has several times, the embedding other parts, or the model another class of its family."""

import pytest
from blind_families import Term, network
from blind_variants import VARIANTS, Y_ITSELF, wan_autoregressive
from flux import schedule
from test_parity_text_blind import assert_equal, guided, projection, weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pooled_projections")


@pytest.mark.parametrize("small", VARIANTS, ids=lambda small: small.label)
def test_every_layer_and_the_head(small, folder):
    model = small.load()
    made = guided(small, model, projection(small, folder), schedule=schedule(1, final_layer=0.5))
    assert_equal(small, model, made, Term(network(small), weights(1, 0.5)))


@pytest.mark.parametrize("small", VARIANTS, ids=lambda small: small.label)
def test_two_prompts_in_a_batch(small, folder):
    """Rows that differ, each at all its times."""
    model = small.load()
    made = guided(small, model, projection(small, folder), schedule=schedule(0), cfg_rows="opposed")
    assert_equal(small, model, made, Term(network(small), weights(), rows="opposed"), batch=2)


# Not where pictures have a time of their own: FiLM is at the time of the step.
@pytest.mark.parametrize("small", (*(v for v in VARIANTS if v.embedder_is_y and not v.times_first), *Y_ITSELF), ids=lambda small: small.label)
def test_film_at_the_times_of_the_step(small, folder):
    model = small.load()
    made = guided(small, model, projection(small, folder, film=True), schedule=schedule(1, final_layer=0.5))
    assert_equal(small, model, made, Term(network(small, film=True), weights(1, 0.5)))


def test_sampled_frame_by_frame(folder):
    """Self-Forcing's sampler, which keeps the keys and values of the frames before."""
    small = pytest.importorskip("comfy.ldm.wan.ar_model") and wan_autoregressive()
    model = small.load()
    made = guided(small, model, projection(small, folder), schedule=schedule(1, final_layer=0.5))
    assert_equal(small, model, made, Term(network(small), weights(1, 0.5)))

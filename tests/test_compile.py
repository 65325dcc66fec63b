"""Guidance under torch.compile: the right picture whatever changes, no graph break of ours, nothing compiled again for a number."""

import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from support.flux import HIDDEN, apply, direction, flux, node, sample, schedule
from support.learned import learned, shifts
from torch._dynamo.utils import counters


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class Counting:
    """A torch.compile backend that counts graphs and runs them as they are."""

    graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


def block_names(model):
    blocks = model.model.diffusion_model
    doubles = [f"diffusion_model.double_blocks.{i}" for i in range(len(blocks.double_blocks))]
    return doubles + [f"diffusion_model.single_blocks.{i}" for i in range(len(blocks.single_blocks))]


def host_node(model, backend):
    return node("TorchCompileModel", model=model, backend=backend)[0]


def each_block(model, backend):
    model = model.clone()
    set_torch_compile_wrapper(model, backend=backend, keys=block_names(model))
    return model


def each_block_as_object_patch(model, backend):
    model = model.clone()
    for name in block_names(model):
        model.add_object_patch(name, torch.compile(model.get_model_object(name), backend=backend))
    return model


WAYS = pytest.mark.parametrize("compiled", [host_node, each_block, each_block_as_object_patch])
ORDERS = pytest.mark.parametrize("order", ["before", "after"])


def plain(model):
    return model


def guided(w=3.0, seed=10, start=1, **options):
    layers = schedule(start, **{name: options.pop(name) for name in ("taper_layers", "final_layer") if name in options})
    return lambda model: apply(model, direction(seed), w=w, schedule=layers, **options)


def by_a_learned_direction(w=3.0, seed=80, start=1, **options):
    one = learned(shifts(5, HIDDEN, seed), "FLUX.1")
    return lambda model: apply(model, one, w=w, schedule=schedule(start), **options)


def stacked(*guidances):
    def guide(model):
        for one in guidances:
            model = one(model)
        return model

    return guide


CHANGES = {
    "w": guided(w=5.0),
    "sign of w": guided(w=-1.0),
    "first layer": guided(start=0),
    "a later layer": guided(start=3),
    "direction": guided(seed=20),
    "taper": guided(taper_layers=2),
    "head": guided(final_layer=0.5),
    "cond rows": guided(cfg_rows="cond"),
    "opposed rows": guided(cfg_rows="opposed"),
    "percent window": guided(start_percent=0.3, end_percent=0.7),
    "unguided": plain,
    "two guidances": stacked(guided(w=2.0), guided(w=1.5, seed=20, start=2)),
    "three guidances": stacked(guided(w=2.0), guided(w=1.5, seed=20, start=2), guided(w=-1.0, seed=30, start=0)),
    "a learned direction": by_a_learned_direction(),
    "w of a learned direction": by_a_learned_direction(w=-2.0),
    "another learned direction": by_a_learned_direction(seed=81, cfg_rows="opposed"),
    "first layer of a learned direction": by_a_learned_direction(start=3),
    "both": stacked(guided(w=2.0), by_a_learned_direction(start=2)),
    "w = 0": guided(w=0.0),
    "back again": guided(),
}


class Session:
    """One model compiled one way, and its twin that is not compiled."""

    def __init__(self, compiled, order, backend, **size):
        self.model, self.eager = flux(**size), flux(**size)
        self.compile = lambda model: compiled(model, backend)
        self.order = order
        self.compiled_once = self.compile(self.model)

    def check(self, guide, tolerance, **sampling):
        """The compiled picture is the eager one, and returned."""
        model = guide(self.compiled_once) if self.order == "before" else self.compile(guide(self.model))
        picture = sample(model, **sampling)
        torch.testing.assert_close(picture, sample(guide(self.eager), **sampling), rtol=0, atol=tolerance)
        return picture


@WAYS
@ORDERS
def test_no_change_of_a_number_compiles_again(compiled, order):
    backend = Counting()
    session = Session(compiled, order, backend, double=2, single=3)
    first = {guide: session.check(guide, 1e-6, cfg=2.0) for guide in (plain, guided())}
    graphs = 2
    assert backend.graphs == graphs, "one graph for unguided and one for guided calls, or one for each kind of block, guided or not"
    before = first.popitem()[1]
    for name, guide in CHANGES.items():
        picture = session.check(guide, 1e-6, cfg=2.0)
        assert (picture - before).abs().max() > 1e-2, f"{name} must change the picture"
        assert backend.graphs == graphs, f"{name} compiled again"
        before = picture
    assert not counters["graph_break"]


@WAYS
@ORDERS
def test_keep_norm_takes_one_more_graph_at_most_and_only_once(compiled, order):
    backend = Counting()
    session = Session(compiled, order, backend, double=2, single=3)
    session.check(guided(), 1e-6)
    without = backend.graphs
    for guide in (guided(keep_norm=True), guided(w=5.0, start=0, keep_norm=True), guided(), guided(seed=20, keep_norm=True)):
        session.check(guide, 1e-6)
    assert backend.graphs == (2 * without if compiled is host_node else without), "compiled blocks are guided outside their graphs"
    assert not counters["graph_break"]


def test_new_shapes_and_dtypes_compile_as_often_as_without_guidance():
    """Or guided blocks would reach dynamo's recompile limit earlier, and run uncompiled from there on."""
    graphs = []
    for guide in (plain, guided()):
        torch._dynamo.reset()
        backend = Counting()
        for dtype in (torch.float32, torch.bfloat16):
            model = guide(each_block(flux(double=1, single=1, dtype=dtype), backend))
            for size in (8, 12):
                for cfg in (1.0, 2.0):
                    sample(model, cfg=cfg, size=size, steps=1)
        graphs.append(backend.graphs)
    assert graphs[0] == graphs[1]


@pytest.mark.parametrize("keys", [lambda model: None, block_names], ids=["whole model", "blocks"])
def test_right_without_guards_on_modules(keys):
    """As packs set it up for speed: torch.compile then tells models apart by their code alone."""

    def compiled(model, backend):
        model = model.clone()
        options = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
        set_torch_compile_wrapper(model, backend=backend, keys=keys(model), options=options)
        return model

    session = Session(compiled, "before", Counting(), double=2, single=3)
    mixed = stacked(guided(w=2.0), guided(seed=20, keep_norm=True))
    for guide in (plain, guided(), guided(start=3), plain, guided(keep_norm=True), mixed, guided(w=5.0), plain):
        session.check(guide, 1e-6, cfg=2.0)


@pytest.mark.parametrize("compiled", [host_node, each_block])
@ORDERS
def test_inductor_makes_the_eager_picture(compiled, order):
    session = Session(compiled, order, "inductor", double=1, single=2)
    before = None
    for name, guide in {
        "unguided": plain,
        "guided": guided(),
        "w": guided(w=5.0),
        "first layer": guided(w=5.0, start=0),
        "direction": guided(seed=20),
        "head": guided(final_layer=0.5),
        "opposed rows": guided(cfg_rows="opposed"),
        "unguided again": plain,
        "percent window": guided(start_percent=0.3, end_percent=0.7),
        "two guidances": stacked(guided(w=2.0), guided(w=1.5, seed=20, start=2)),
        "keep_norm": guided(keep_norm=True),
    }.items():
        picture = session.check(guide, 1e-4, cfg=2.0)
        assert before is None or (picture - before).abs().max() > 1e-2, f"{name} must change the picture"
        before = picture
    graphs = 3 if compiled is host_node else 2
    assert counters["stats"]["unique_graphs"] == graphs, "unguided, guided, guided with keep_norm; or one for each kind of block"
    assert not counters["graph_break"]


@ORDERS
def test_compiled_beside_a_cache_of_steps_is_what_it_is_uncompiled(order):
    """EasyCache answers some steps by what others made; both with torch.compile at once is what people run."""
    model, options = flux(1, 1), dict(cfg=2.0, steps=4)

    def cached(model):
        return node("EasyCache", model=model, reuse_threshold=1.0, start_percent=0.0, end_percent=1.0, verbose=False)[0]

    eager = sample(cached(guided()(model)), **options)
    made = cached(host_node(guided()(model), "eager")) if order == "before" else guided()(host_node(cached(model), "eager"))
    torch.testing.assert_close(sample(made, **options), eager, rtol=0, atol=1e-6)
    assert (eager - sample(guided()(model), **options)).abs().max() > 1e-3, "steps are reused"

"""What docs/coming_from.md says: our nodes give the picture that another pack's settings gave, by that pack's own sum, on an Anima of 28 blocks."""

import pytest
from support.flux import apply, node
from support.text_blind import Projected, form_a, form_b, loaded, write
from test_anima_lineage import deep
from test_projections_parity import assert_equals_equations

BLOCKS = 28


@pytest.fixture(scope="module")
def small():
    return deep(BLOCKS)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modulation_guidance")
    return {
        "A": (loaded(write(folder / "checkpoint_4000.pt", form_a(depth=BLOCKS))), form_a(depth=BLOCKS)),
        "B": (loaded(write(folder / "pooled_text_proj-0611.safetensors", form_b(film=True))), form_b(film=True)),
    }


def layers(**inputs):
    return node("GuidanceLayerSchedule", **inputs)[0]


def preset(name):
    _, _, w, _, schedule = node("GuidancePreset", preset=name, subject="")
    return {"w": w, "schedule": schedule}


@pytest.mark.parametrize(
    "start_layer, end_layer, ours",
    [
        (0, -1, {}),  # the defaults there
        (8, -1, {"schedule": (8, -1)}),
        (14, 20, {"schedule": (14, 20)}),
    ],
)
def test_anzhcs_node_and_forges_port(small, model, files, start_layer, end_layer, ours):
    projection, file = files["A"]
    # There: one base for all rows; blocks start to end, both included, get scales (proj(base) + w (proj(+) - proj(-))).
    last = BLOCKS - 1 if end_layer < 0 else end_layer
    weights = [float(start_layer <= block <= last) for block in range(BLOCKS)] + [0.0]
    theirs = Projected(file, weights, w=2.5, base=(1, 1))
    schedule = layers(start_layer=ours["schedule"][0], end_layer=ours["schedule"][1]) if ours else None
    base = {"base_positive": small.pooled(1), "base_negative": small.pooled(1)}
    guided = apply(model, small.pooled_direction(), w=2.5, schedule=schedule, projection=projection, **base)
    assert_equals_equations(small, model, guided, theirs, cfg=2.5)


def profile(w, start_layer, end_layer, taper=0, taper_scale=0.25, final_w=0.0):
    """sorryhyun's, as weights that multiply w: blocks from start up to and without end, the last `taper` of them times taper_scale."""
    end = BLOCKS if end_layer < 0 else end_layer
    weights = [w * (start_layer <= block < end) for block in range(BLOCKS)]
    for block in range(end - taper, end):
        weights[block] *= taper_scale
    return [weight / w for weight in (*weights, final_w)]


@pytest.mark.parametrize(
    "theirs, ours",
    [
        (dict(w=3.0, start_layer=8, end_layer=27), {}),  # step_i8_skip27
        (dict(w=3.0, start_layer=8, end_layer=27), "booru quality"),
        (dict(w=3.0, start_layer=14, end_layer=-1), {"start_layer": 14}),  # step_i14
        (dict(w=3.0, start_layer=14, end_layer=-1), "booru quality (safe)"),
        (dict(w=3.0, start_layer=0, end_layer=-1), {"start_layer": 0}),  # uniform_w3
        (
            dict(w=2.0, start_layer=4, end_layer=27, taper=2, taper_scale=0.5),
            dict(start_layer=4, end_layer=26, taper_layers=2, taper_scale=0.5),
        ),
        (dict(w=2.0, start_layer=8, end_layer=-1, final_w=1.5), dict(start_layer=8, end_layer=-1, final_layer=0.75)),
    ],
    ids=["step_i8_skip27", "booru quality", "step_i14", "booru quality (safe)", "uniform_w3", "taper", "final_w"],
)
def test_sorryhyuns_node(small, model, files, theirs, ours):
    projection, file = files["B"]
    settings = preset(ours) if isinstance(ours, str) else {"w": theirs["w"], "schedule": layers(**ours) if ours else None}
    guided = apply(model, small.direction(), projection=projection, **settings)
    # There, too, each side of CFG has its own prompt as base, at every block and the head.
    assert_equals_equations(small, model, guided, Projected(file, profile(**theirs), w=theirs["w"]), cfg=2.5)

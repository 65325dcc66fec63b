"""The families of the matrix, guided by encoded and by learned directions, and the table of what test_matrix.py finds of them."""

from dataclasses import dataclass, replace

import comfy.ops
import pytest
import torch
from comfy.ldm.flux.model import Flux

from support.families.hidream import HIDREAM_I1
from support.families.sd3 import SD35_LARGE
from support.families.small import Small, reference, term
from support.flux import apply, schedule
from support.learned import Learned, learned, shifts
from support.text_blind_families import QWEN_IMAGE
from tools.dimensions import FLUX1

POSITIVE, NEGATIVE, SECOND, EMPTY = 1, 2, 3, 4  # prompts by number
MATRIX = "## The matrix"
TABLE = pytest.StashKey()

FLUX = Small(
    name="FLUX.1",
    model=lambda: Flux(
        **FLUX1,
        vec_in_dim=32,
        context_in_dim=16,
        hidden_size=128,
        num_heads=1,
        depth=2,
        depth_single_blocks=3,
        operations=comfy.ops.disable_weight_init,
    ),
    output="final_layer.linear.weight",
    prompt=lambda draw: (draw(1, 8, 16), {"pooled_output": draw(1, 32)}),
    latent=(16, 8, 8),
    text=("y",),
    joint=(("double_blocks", "txt", "all"), ("single_blocks", "x", "first")),
    layers=(("double_blocks", "vec"), ("single_blocks", "vec")),
    head=("final_layer", "vec"),
    depth=5,
    start_layer=0,
)


@dataclass(frozen=True)
class Subject:
    """A family in the matrix.

    family: its name in the pack. width: of y. learned: whether it is guided by learned directions in place of encoded ones.
    embedder: names of layers that make y, of the pooled text where it reads that; blocks: of layers in blocks. slots: the block slots it
    has.
    block: the name of a block. skipped: layers for SkipLayerGuidance. sampling: the node that shifts its noise levels.
    """

    small: Small
    family: str
    width: int
    embedder: tuple
    blocks: tuple
    slots: tuple
    block: str
    skipped: dict
    sampling: str = "ModelSamplingSD3"
    learned: bool = False

    @property
    def reads_text(self):
        """Whether pooled text is in its y."""
        return "y" in self.small.text

    def direction(self, seed):
        """Another one for each seed."""
        return learned(self._shifts(seed), self.family) if self.learned else self.small.direction(seed)

    def term(self, seed=10, **options):
        """What that direction is in the equation, on all layers but the first."""
        if self.learned:
            return Learned(self._shifts(seed), [0.0] + [1.0] * (self.small.depth - 1) + [0.0], **options)
        return term(self.small, start=1, seed=seed, **options)

    def _shifts(self, seed):
        return shifts(self.small.depth, self.width, seed)


SUBJECTS = {
    "FLUX.1": Subject(
        FLUX,
        "FLUX.1",
        128,
        ("vector_in.in_layer", "vector_in.out_layer"),
        ("double_blocks.1.img_mod.lin", "single_blocks.2.linear1"),
        (("double_block", 0), ("single_block", 2)),
        "single_blocks.1",
        dict(double_layers="1", single_layers="2"),
        "ModelSamplingFlux",
    ),
    "SD3.5": Subject(
        SD35_LARGE,
        "SD3",
        256,
        ("y_embedder.mlp.0", "y_embedder.mlp.2"),
        ("joint_blocks.1.x_block.adaLN_modulation.1", "joint_blocks.2.x_block.attn.proj"),
        (("double_block", 0), ("double_block", 2)),
        "joint_blocks.1",
        dict(double_layers="1", single_layers=""),
    ),
    "HiDream-I1": Subject(
        HIDREAM_I1,
        "HiDream-I1",
        64,
        ("p_embedder.pooled_embedder.linear_1",),
        ("double_stream_blocks.1.block.adaLN_modulation.1", "single_stream_blocks.2.block.attn1.to_q"),
        (),
        "single_stream_blocks.1",
        {},
    ),
    "Qwen-Image": Subject(
        replace(QWEN_IMAGE, latent=(16, 1, 8, 8)),
        "Qwen-Image",
        QWEN_IMAGE.width,
        ("time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2"),
        ("transformer_blocks.1.img_mod.1", "transformer_blocks.2.attn.to_q"),
        (("double_block", 0), ("double_block", 2)),
        "transformer_blocks.1",
        dict(double_layers="1", single_layers=""),
        "ModelSamplingAuraFlow",
    ),
}


# Text-blind models by learned directions alone.
WAYS = [subject for subject in SUBJECTS.values() if subject.reads_text] + [replace(subject, learned=True) for subject in SUBJECTS.values()]


@pytest.fixture(scope="module", params=WAYS, ids=lambda subject: f"{subject.small.name}{', learned' * subject.learned}")
def subject(request):
    return request.param


@pytest.fixture(scope="module")
def model(subject):
    return subject.small.load()


def guided(subject, model, rows="opposed", seed=10, w=2.0):
    return apply(model, subject.direction(seed), w=w, cfg_rows=rows, schedule=schedule(1))


def equation(subject, model, rows="opposed", *further):
    return reference(subject.small, model, subject.term(w=2.0, rows=rows), *further, conditional=lambda inputs: by_prompt(subject, inputs))


def by_prompt(subject, inputs):
    """Whether each row is conditional, read off its pooled text, or its tokens."""
    known = [subject.small.encoded(seed)[0] for seed in (POSITIVE, SECOND)]
    of_prompts = [extras["pooled_output"][0] if subject.reads_text else tokens[0] for tokens, extras in known]
    rows = inputs["y" if subject.reads_text else "context"].float()
    return [any(torch.equal(row, of_prompt) for of_prompt in of_prompts) for row in rows]


def on_clone(patch):
    def patched(model):
        model = model.clone()
        patch(model)
        return model

    return patched


def scaled(streams):
    return tuple(0.9 * stream for stream in streams) if isinstance(streams, tuple) else 0.9 * streams


def assert_pair(pytestconfig, subject, name, plain, expected, *actual):
    """Every actual result equals the expected one, which differs from the other node's without guidance."""
    assert expected.isfinite().all()
    assert (expected - plain).abs().max() > 1e-2, "guidance must show"
    for result in actual:
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    cells = pytestconfig.stash[TABLE].setdefault(name, {})
    cells[subject.small.name] = max(cells.get(subject.small.name, 0.0), *((result - expected).abs().max().item() for result in actual))


def table(found):
    """The results as Markdown: what each cell says was seen in this run of the tests."""
    names = [subject.small.name for subject in SUBJECTS.values()]
    lines = [
        "Each pair on the real host with small models: the picture with both equals the paper's equation applied by hand to the graph",
        "with the other node alone, with the other node before guidance and after it, by an encoded and by a learned direction (Qwen-Image,",
        "which reads no pooled text: by a learned one); in brackets the largest difference seen, in fp32.",
        "Made by `python3 tools/test.py tests/test_matrix.py --matrix docs/composition.md`.",
        "",
        f"| beside | {' | '.join(names)} |",
        "| --- " * (len(names) + 1) + "|",
    ]
    lines += [f"| {name} | {' | '.join(_shown(cells.get(subject, '')) for subject in names)} |" for name, cells in found.items()]
    return "\n".join(lines) + "\n"


def _shown(cell):
    return cell if isinstance(cell, str) else f"equal ({cell:.0e})"

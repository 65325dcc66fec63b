"""Wan 2.1 and 2.2, and models of the same kind: CausVid, autoregressive Self-Forcing, VACE, Fun Camera, Animate, HuMo, SCAIL.

Text-blind: y = time_embedding(t), (R, T, D), with a time of its own for each frame in Wan 2.2 5B's image to video. One layer makes
from it what modulates every block; the head takes y itself. VACE's side blocks keep the plain modulation.
There is no reference for its settings: start layer a tenth of the depth, both rows, plain head.
"""

from comfy.ldm.wan.model import CameraWanModel, VaceWanModel, WanModel, sinusoidal_embedding_1d

from ..shifts import carried
from .base import Family
from .blocks import BlockInput, Injection, in_width, runs_as
from .text import TextContext

# By name, as older hosts lack some. Left out: S2V gives its reference frames a time of their own, WanDancer has a second head, and
# Animate 2 runs its blocks past their forward.
_KIN = ("CausalWanModel", "VaceWanModel", "CameraWanModel", "AnimateWanModel", "HumoWanModel", "SCAILWanModel", "SCAIL2WanModel")
_HOST_MODELS = (
    "WAN21",
    "WAN21_CausalAR",
    "WAN21_FlowRVS",
    "WAN21_Vace",
    "WAN21_Camera",
    "WAN21_HuMo",
    "WAN21_SCAIL",
    "WAN21_SCAIL2",
    "WAN22",
    "WAN22_Animate",
)


def _time_embedding(model, call):
    """(R, T, D); (R, D) in the classes that know one time only."""
    timestep = call.timestep
    y = model.time_embedding(sinusoidal_embedding_1d(model.freq_dim, timestep.flatten()).to(call.dtype))
    return y if isinstance(model, (VaceWanModel, CameraWanModel)) else y.reshape(call.rows, -1, y.shape[-1])


def _carry(model, call, shifts):
    """What the shifts of y change in the blocks' modulation, (R, T, 6, D) or (R, 6, D) each."""
    changes = carried(model.time_projection, _time_embedding(model, call), shifts)
    return [change.unflatten(-1, (6, model.dim)) for change in changes]


WAN = Family(
    name="Wan",
    matches=lambda model, cls: runs_as(cls, WanModel, *_KIN),
    host_models=_HOST_MODELS,
    injections={
        "time embedding": Injection(
            blocks=lambda model: [BlockInput(block, "e", 1, _carry) for block in model.blocks],
            head=lambda model: BlockInput(model.head, "e", 1),
            y=_time_embedding,
            width=lambda model: model.dim,
        )
    },
    text=None,
    context=TextContext(lambda model: in_width(model.text_embedding[0])),
    encoder="UMT5-XXL, with CLIPLoader and type wan",
)

"""The socket types and the category shared by all nodes, and what may come in through a socket."""

import json
from collections.abc import Sequence

from comfy_api.latest import io
from torch import Tensor

from ..model_patches.directions import GuidanceDirection
from ..model_patches.quoting import quoted
from ..model_patches.schedules import LayerSchedule
from ..pooled_proj.projection import PooledProjection

CATEGORY = "modulation guidance"

Direction = io.Custom("GUIDANCE_DIRECTION")
Schedule = io.Custom("LAYER_SCHEDULE")
Projection = io.Custom("POOLED_PROJECTION")
Scorer = io.Custom("PICTURE_SCORER")


def _is_conditioning(value) -> bool:
    return isinstance(value, Sequence) and all(
        isinstance(one, Sequence) and len(one) == 2 and isinstance(one[0], Tensor) and isinstance(one[1], dict) for one in value
    )


_IS = {
    # By what is used of them: other packs have classes of their own for these.
    "MODEL": lambda value: hasattr(value, "model_options"),
    "CLIP": lambda value: hasattr(value, "tokenize"),
    "CONDITIONING": _is_conditioning,
    Direction.io_type: lambda value: isinstance(value, GuidanceDirection),
    Schedule.io_type: lambda value: isinstance(value, LayerSchedule),
    Projection.io_type: lambda value: isinstance(value, PooledProjection),
    Scorer.io_type: lambda value: callable(getattr(value, "score", None)),
}


def inputs_of_run(**inputs) -> dict:
    """For the editor (web/linked_widgets.js), which does not know what came over links: a part of a node's `ui`."""
    return {"inputs_of_run": [json.dumps(inputs)]}


def check_sockets(node: type[io.ComfyNode], **values) -> None:
    """Raises ValueError for the first value that is not of the type of the node's socket of that name; None is right for optional ones.

    Over HTTP a constant may stand where a link belongs, and the host hands it on as it is.
    """
    schema = node.define_schema()
    inputs = {each.id: each for group in schema.inputs for each in group.get_all()}
    for name, value in values.items():
        kind = inputs[name].get_io_type()
        if kind in _IS and not (_IS[kind](value) or value is None and inputs[name].optional):
            raise ValueError(
                f"{schema.display_name}: {name} is {quoted(value)}, which is no {kind}. Connect an output of that type; no constant can stand "
                "there."
            )


def window_inputs(what: str) -> list[io.Input]:
    """The part of sampling in which something is done; what: that, in tooltips."""
    return [
        io.Float.Input(
            f"{end}_percent",
            default=default,
            min=0.0,
            max=1.0,
            step=0.001,
            advanced=True,
            tooltip=f"When {what} {verb}: 0 is the start of sampling, 1 its end.",
        )
        for end, default, verb in (("start", 0.0, "begins"), ("end", 1.0, "ends"))
    ]

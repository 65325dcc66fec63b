"""Which rows of a batch are conditional.

The host's `cond_or_uncond` is a position in the list the guider happened to pass, not a promise: the CFG guider passes
[positive, negative], DualCFG [negative, middle, positive], SAG [negative] alone. So the guider itself is asked, before it
calls the model, what it calls each conditioning.
"""

from __future__ import annotations

from uuid import UUID

# What the host's guiders call the conditionings that CFG leads away from; PerpNeg has two.
_UNCONDITIONAL = ("negative", "empty_negative_prompt")


class _Told(UUID):
    """The host's id of a conditioning, equal to it for everyone else, that also knows whether it is a conditional one.

    The id alone does not tell: where one side has an area, the host gives it to the other side too, by a copy with the same id.
    """

    def __init__(self, id_: UUID, conditional: bool):
        super().__init__(int=id_.int)
        object.__setattr__(self, "conditional", conditional)  # a UUID refuses to be changed


def tell_conditionings_apart(executor, *args, **kwargs):
    """Wrapper of a guider's method: notes on the id of each conditioning whether the guider takes it for a conditional one.

    Around OUTER_SAMPLE for guiders that keep copies of their conditionings (DualModelGuider), and around PREDICT_NOISE since
    areas are dealt with in between.
    """
    for name, conds in executor.class_obj.conds.items():
        for cond in conds or ():
            cond["uuid"] = _Told(cond["uuid"], name not in _UNCONDITIONAL)
    return executor(*args, **kwargs)


def conditional_chunks(transformer_options) -> list[bool]:
    """For each chunk of the batch, whether it is conditional; by the host's order where no guider has told."""
    chunks = transformer_options.get("cond_or_uncond", [0])
    ids = transformer_options.get("uuids", [])
    if len(ids) != len(chunks):  # a pack that splits the batch keeps cond_or_uncond true, as the host's own code reads that one
        ids = [None] * len(chunks)
    return [getattr(id_, "conditional", chunk == 0) for id_, chunk in zip(ids, chunks, strict=True)]

"""Which rows of a batch are conditional.

The host's `cond_or_uncond` numbers the conditionings in the order the guider happened to pass them, which is no promise: the CFG
guider passes [positive, negative], DualCFG [negative, middle, positive], SAG [negative] alone. So the guider itself is asked what
it calls each conditioning, and each list that is passed on to the model is read where the host numbers it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from comfy.patcher_extension import WrappersMP

# What the host's guiders call the conditionings that CFG leads away from; PerpNeg has two.
_UNCONDITIONAL = ("negative", "empty_negative_prompt")

_MARK = "modulation_guidance_conditional"  # on a conditioning


@dataclass(frozen=True)
class _Numbers:
    """What the numbers of cond_or_uncond mean in one call: conditional or not (None: the guider does not say), and rows of each."""

    conditional: dict[int, bool | None]
    rows: int


def tell_conditionings_apart(model, key: str, option: str) -> None:
    """Puts on the ModelPatcher, under the wrapper key `key`, what `conditional_chunks` reads from the transformer option `option`."""
    # Around OUTER_SAMPLE for guiders that keep copies of their conditionings (DualModelGuider), and around PREDICT_NOISE since areas
    # are dealt with in between: where one side has an area, the host gives the other side a copy of it.
    for guider_method in (WrappersMP.OUTER_SAMPLE, WrappersMP.PREDICT_NOISE):
        model.add_wrapper_with_key(guider_method, key, _ask_the_guider)
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, key, partial(_read_the_numbers, option))


def _ask_the_guider(executor, *args, **kwargs):
    for name, conds in executor.class_obj.conds.items():
        for cond in conds or ():
            cond[_MARK] = name not in _UNCONDITIONAL
    return executor(*args, **kwargs)


def _read_the_numbers(option, executor, model, conds, x_in, timestep, model_options):
    numbers = _Numbers({number: side[0].get(_MARK) for number, side in enumerate(conds) if side}, len(x_in))
    options = model_options["transformer_options"] | {option: numbers}
    return executor(model, conds, x_in, timestep, model_options | {"transformer_options": options})


def conditional_chunks(transformer_options, option: str, rows: int) -> list[bool | None]:
    """For each chunk of a batch of `rows` rows, whether it is conditional; None where that cannot be known.

    It cannot where a node passes a conditioning that the guider does not have, and where one splits the batch or adds to it
    without saying so. Where the model is called without a guider, the host's order counts.
    """
    chunks = transformer_options.get("cond_or_uncond", [0])
    numbers = transformer_options.get(option)
    if numbers is None:
        return [chunk == 0 for chunk in chunks]
    if rows != len(chunks) * numbers.rows:
        return [None] * len(chunks)
    return [numbers.conditional.get(chunk) for chunk in chunks]


def check_known(conditional: list[bool | None], reason: str) -> None:
    """Raises ValueError where it cannot be known which rows are conditional; reason: who needs that, and what to do."""
    if None in conditional:
        raise ValueError(
            "Another node runs the model on rows of which nothing says whether they are conditional (a conditioning of its own, or a "
            f"batch that it splits without saying so). {reason}"
        )

"""Which rows of a batch are conditional, and whose they are where a guider runs two models.

The host's `cond_or_uncond` numbers the conditionings in the order the guider happened to pass them, which is no promise: the CFG
guider passes [positive, negative], DualCFG [negative, middle, positive], SAG [negative] alone. So the guider itself is asked what
it calls each conditioning, and each list that is passed on to the model is read where the host numbers it.

DualModelGuider runs a model of its own for the negative, with the options and the wrappers of the other one. There the conditionings
of the negative are told apart too: what is set on the one model does not reach them, and what is set on the other comes with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import comfy.hooks
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key, get_wrappers_with_key

# What the host's guiders call their conditionings, by whether CFG leads towards them; PerpNeg has two that it leads away from. What
# another pack's guider means by another name is not known.
_CONDITIONAL = {"positive": True, "middle": True, "negative": False, "empty_negative_prompt": False}

# On a conditioning: whether it is conditional, and whether another model than the guider's first runs it.
_MARK = "modulation_guidance_conditional"
_OF_ANOTHER_MODEL = "modulation_guidance_of_another_model"


@dataclass(frozen=True)
class _Numbers:
    """What the numbers of cond_or_uncond mean in one call: conditional or not (None: nothing says), and rows of each."""

    conditional: dict[int, bool | None]
    rows: int


def tell_conditionings_apart(model, key: str, option: str) -> None:
    """Puts on the ModelPatcher, under the wrapper key `key`, what `conditional_chunks` reads from the transformer option `option`.

    The transformer option `key` then holds what is set on the model that runs a conditioning, also where a guider runs two.
    """
    # Around OUTER_SAMPLE for guiders that keep copies of their conditionings (DualModelGuider), and around PREDICT_NOISE since areas
    # are dealt with in between: where one side has an area, the host gives the other side a copy of it.
    for guider_method in (WrappersMP.OUTER_SAMPLE, WrappersMP.PREDICT_NOISE):
        model.add_wrapper_with_key(guider_method, key, _ask_the_guider)
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, key, partial(_read_the_numbers, key, option))
    # In its options, and not on the patcher: of a model that is run with another's options, the host runs no other wrappers than these.
    add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, key, partial(_send_along, key, option), model.model_options, is_model_options=True)


def _ask_the_guider(executor, *args, **kwargs):
    guider = executor.class_obj
    for name, conds in guider.conds.items():
        for cond in conds or ():
            cond[_MARK] = _CONDITIONAL.get(name)
            # The attribute is DualModelGuider's.
            cond[_OF_ANOTHER_MODEL] = name == "negative" and getattr(guider, "uncond_model_patcher", None) is not None
    return executor(*args, **kwargs)


def _read_the_numbers(key, option, executor, model, conds, x_in, timestep, model_options):
    numbers = _Numbers({number: side[0].get(_MARK) for number, side in enumerate(conds) if side}, len(x_in))
    options = model_options["transformer_options"] | {option: numbers}
    if any(cond.get(_OF_ANOTHER_MODEL) for side in conds for cond in side or ()):
        options.pop(key, None)  # what the other model has comes with the conditioning
    return executor(model, conds, x_in, timestep, model_options | {"transformer_options": options})


def _send_along(key, option, executor, model, noise_shape, conds, model_options=None, **kwargs):
    """Where a guider runs the ModelPatcher `model` without its wrappers, they and its options go with the conditionings, as a hook."""
    if not get_wrappers_with_key(WrappersMP.APPLY_MODEL, key, model_options, is_model_options=True):
        wrappers = {WrappersMP.APPLY_MODEL: {key: model.get_wrappers(WrappersMP.APPLY_MODEL, key)}}
        for name, side in conds.items():
            numbers = _Numbers({0: _CONDITIONAL.get(name)}, noise_shape[0])
            group = comfy.hooks.HookGroup()
            group.add(
                comfy.hooks.TransformerOptionsHook(
                    {"wrappers": wrappers, key: model.model_options["transformer_options"][key], option: numbers}
                )
            )
            for cond in side:
                cond["hooks"] = group if cond.get("hooks") is None else cond["hooks"].clone_and_combine(group)
    return executor(model, noise_shape, conds, model_options=model_options, **kwargs)


def conditional_chunks(transformer_options, option: str, rows: int) -> list[bool | None]:
    """For each chunk of a batch of `rows` rows, whether it is conditional; None where that cannot be known.

    It cannot where a node passes a conditioning that the guider does not have, where the guider calls it otherwise than the host's
    guiders do, and where a node splits the batch or adds to it without saying so. Where the model is called without a guider, the
    host's order counts.
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
            "Another node runs the model on rows of which nothing says whether they are conditional (a conditioning of its own, a guider "
            "that gives its conditionings names that no guider of the host gives them, or a batch that it splits without saying so). "
            f"{reason}"
        )

"""Errors of the core as answers of a node's `validate_inputs`, so that they show before anything runs.

The host skips its own min, max and choice checks for every input in the signature of `validate_inputs`, and hands a node
with an Autogrow input that input too: both must be answered there.
"""

from collections.abc import Callable


def checked(check: Callable, *values) -> bool | str:
    """True, or the sentence that check(*values) raises. Values that come over a link are None here and not checked yet."""
    if any(value is None for value in values):
        return True
    try:
        check(*values)
    except ValueError as error:
        return str(error)
    return True

"""Errors of the core as answers of a node's `validate_inputs`, so that they show before anything runs."""

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

"""Errors of the core as answers of a node's `validate_inputs`, so that they show before anything runs.

The host skips its own min, max and choice checks for every input in the signature of `validate_inputs`, and hands a node
with an Autogrow input that input too: both must be answered there. An input that it could not make a number of, or whose link
is broken, it has refused in words of its own, and hands it over all the same, as it came.

It lays what is answered to every input in that signature, in an error each; nothing of ours can narrow it. So a signature
holds the inputs of one question only, and the sentence says which of them is wrong; what else there is to check is left to the
host's own min and max, and to `execute`.
"""

from collections.abc import Callable


def checked(check: Callable, *values, kind: type = object) -> bool | str:
    """True, or the sentence that check(*values) raises.

    Values that come over a link are None here and not checked yet; the host has refused lists, and for numbers all that is not
    of their `kind`.
    """
    if any(value is None or isinstance(value, list) or not isinstance(value, kind) for value in values):
        return True
    try:
        check(*values)
    except ValueError as error:
        return str(error)
    return True

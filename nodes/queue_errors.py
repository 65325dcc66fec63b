"""Errors of the core, shown before anything is made that a node does not need to find them.

What can be told from one input alone is answered in `validate_inputs`, when the graph is queued. The host lays the answer to every input
in its signature, in an error each, so a signature holds one input. The host skips its own min, max and choice checks for that one: they
must be answered there, too. An input that it could not make a number of, or whose link is broken, it has refused in words of its own, and
hands it over all the same, as it came. (A node with an Autogrow input is handed that, too; it gets no error.)

What needs several inputs is asked in `check_lazy_status`, when the node's turn has come: its sockets are lazy, and no model is loaded
for a node that cannot run.
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


def unmade(inputs: dict) -> list[str]:
    """The answer of `check_lazy_status`: the inputs that are not made yet."""
    return [name for name, value in inputs.items() if value is None]

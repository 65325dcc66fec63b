"""Users' own values in messages, which they must not flood."""

import reprlib

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 1
_SHORT.maxlist = 20
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 100  # characters


def quoted(value) -> str:
    """The value as Python writes it; where that is long, its beginning and its end; what is nested deeper is left out."""
    return _SHORT.repr(value)

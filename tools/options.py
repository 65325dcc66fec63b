"""Types of command line options."""

import argparse
import math


def finite(text: str) -> float:
    """A finite number; argparse says for which option it is none."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no finite number")
    return number


def above_zero(text: str) -> float:
    """A finite number above 0."""
    number = finite(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not above 0")
    return number

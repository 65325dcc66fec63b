"""Which ComfyUI the pack needs."""

import re

# Older ones do not say how their models compress time, which distilling has to know; the other nodes work on 0.20.1, too.
NEEDED = "0.24.0"


def too_old(version: str) -> str | None:
    """What to say of a ComfyUI of that version, or None where it is new enough."""
    if _numbers(version) >= _numbers(NEEDED):
        return None
    return (
        f"ComfyUI-Modulation-Guidance needs ComfyUI {NEEDED} or newer, and this is {version}: Distill Pooled Projection does not work here. "
        "Update ComfyUI."
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))

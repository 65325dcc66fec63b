"""Files that are whole or not there."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

_ABANDONED = 3600  # seconds since the last byte was written


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file, then put it in place, so that `path` is never half a file, also where two processes write it.

    What fails leaves nothing; what a killed process left is removed once it is an hour old.
    """
    for left in path.parent.glob(f"{path.name}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if time.time() - left.stat().st_mtime > _ABANDONED:
                left.unlink()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

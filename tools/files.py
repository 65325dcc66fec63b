"""Files that are never seen half-written, folders that Windows holds on to, and locks between processes."""

import contextlib
import os
import secrets
import shutil
import time

ABANDONED = 3600  # seconds since the last byte was written


def removed(folder):
    """Removes a folder if it is there."""
    if folder.exists():
        patiently(lambda: shutil.rmtree(folder))


def patiently(action, seconds=10):
    """Does `action`, again for some seconds where it is not permitted: on Windows a virus scanner still holds what was just written."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return action()
        except PermissionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@contextlib.contextmanager
def locked(path, waiting):
    """Holds the lock file `path`, which the system lets go when this process ends in whatever way; says `waiting` once."""
    with open(path, "a+b") as file:
        said = False
        while not try_lock(file):
            if not said:
                print(waiting, flush=True)
                said = True
            time.sleep(0.5)
        yield


def try_lock(file):
    """Whether this process now holds the lock on an open file."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def write_whole(path, content):
    """Writes text or bytes, or what a function puts into the file whose path it is given, so that `path` is never seen half-written,
    also where two processes write it.

    What fails leaves nothing; what a killed process left is removed once it is an hour old.
    """
    for left in path.parent.glob(f"{path.name}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # where the disk was full

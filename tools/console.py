"""What long work shows of itself."""

import contextlib
import shutil
import sys
import time


@contextlib.contextmanager
def step(title):
    """Prints `title` and how long the block took; yields a function that shows the line it is given while it lasts."""
    started = time.monotonic()
    live = sys.stdout.isatty()
    print(title, end=" " if not live else "\n", flush=True)

    def progress(line):
        if live:
            show_line(f"  {line.strip()}")

    try:
        yield progress
    except BaseException:
        if live:
            show_line("")
        print(flush=True)
        raise
    took = f"{time.monotonic() - started:.0f} s"
    if live:
        show_line(f"  {took}")
    print("" if live else f"({took})", flush=True)


def show_line(text):
    """Writes `text` over the line the terminal is at; without escape codes, which old consoles show as they stand."""
    width = shutil.get_terminal_size().columns - 1
    print("\r" + text[:width].ljust(width), end="", flush=True)

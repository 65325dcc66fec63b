"""Processes that draw effect.py's pictures side by side.

One thread each: the small world's models are too small to share, and threads that wait for each other on a busy machine made a
picture up to ten times slower. The results are those of a single process.
"""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import active_children, connection, get_context, parent_process

from benchmarks.in_process import load_host

from .run import draw_job


@contextmanager
def painters(files, settings, workers: int):
    """Yields the `draw` of effect_run.run; with one worker it draws in this process."""
    if workers == 1:
        yield lambda tasks: _draw_here(files, settings, tasks)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _start, (files, settings)) as pool:
        try:
            yield lambda tasks: (future.result() for future in as_completed([pool.submit(_draw, *task) for task in tasks]))
        except BaseException:
            for process in active_children():
                process.terminate()
            raise


def _draw_here(files, settings, tasks: list) -> Iterator[dict]:
    from .studio import Studio

    studio = Studio(files, settings) if tasks else None
    for task in tasks:
        yield draw_job(studio, *task)


def _start(files, settings) -> None:
    """A process's start: the host, and the models once for all its pictures."""
    global studio
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    load_host()
    import torch

    from .studio import Studio

    torch.set_num_threads(1)
    with torch.inference_mode():
        studio = Studio(files, settings)


def _end_with_parent() -> None:
    connection.wait([parent_process().sentinel])
    os._exit(1)


def _draw(*task) -> dict:
    import torch

    with torch.inference_mode():
        return draw_job(studio, *task)

"""Runs another Python program that cannot outlive this one, however this one ends, on every platform.

The program runs behind this file, which ends it when a connection to its starter closes; the system closes that even for a
starter that is killed. (Not the program's standard input: on Windows a thread that reads that makes the loading of some
libraries hang.)
"""

import contextlib
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading


@contextlib.contextmanager
def leashed(python, arguments, **options):
    """Starts `python arguments` (a script or -m module first) and yields its Popen; on every way out it is ended.

    It has a process group of its own, so Ctrl-C in the terminal does not reach it, and what it starts is ended with it.
    """
    with socket.create_server(("127.0.0.1", 0)) as leash:
        process = subprocess.Popen(
            [str(part) for part in (python, __file__, leash.getsockname()[1], *arguments)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            start_new_session=os.name != "nt",
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            **options,
        )
        try:
            yield process
        finally:
            if os.name != "nt" or process.poll() is None:  # Windows may have given the id of one that has ended to another
                end_with_all_it_started(process.pid)
            process.kill()
            process.wait()


def end_with_all_it_started(pid):
    """Ends the process `pid` that leashed has started, and what that has started."""
    if os.name == "nt":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(pid)], capture_output=True, check=False)
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: not permitted where all of the group have ended
            os.killpg(pid, signal.SIGKILL)


def main():
    connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))

    def end_with_the_starter():
        with contextlib.suppress(ConnectionError):
            connection.recv(1)
        end_with_all_it_started(os.getpid())  # which leads the group
        os._exit(1)

    threading.Thread(target=end_with_the_starter, daemon=True).start()
    # Python has put this file's folder first, but for an embedded one, and where PYTHONSAFEPATH is set.
    sys.path[:] = [each for each in sys.path if os.path.abspath(each) != os.path.dirname(os.path.abspath(__file__))]
    if sys.argv[2] == "-m":
        sys.argv = sys.argv[3:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = sys.argv[2:]
        sys.path.insert(0, os.path.dirname(sys.argv[0]))
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()

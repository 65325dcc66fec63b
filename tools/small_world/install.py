"""Puts the small world's models among those of a ComfyUI, for the workflow First steps (small world). Nothing is downloaded.

    python tools/small_world/install.py --comfyui /path/to/ComfyUI

Without --comfyui: into the ComfyUI of COMFYUI_PATH, or else the one that tools/host.py finds or sets up. About 260 MB, nearly all of it
the text encoder, which is computed (see text_encoder.py).
"""

import argparse
import os
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent
# in place of this folder, where Python has put that: its modules are imported as tools.*
sys.path[:] = [str(CHECKOUT), *(each for each in sys.path if Path(each).resolve() != Path(__file__).resolve().parent)]

from tools.host import ensure_host, run_under
from tools.packages import SetupError


def main():
    parser = argparse.ArgumentParser(description="Put the small world's models among those of a ComfyUI.")
    parser.add_argument(
        "--comfyui", type=Path, metavar="FOLDER", help="ComfyUI's folder, also that of the portable build, or of your files of Desktop"
    )
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="its models folder, where that is elsewhere")
    parser.add_argument("--under-host", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.comfyui and not options.under_host:
        os.environ["COMFYUI_PATH"] = str(options.comfyui.expanduser().resolve())
        os.environ.pop("COMFYUI_MODELS", None)  # of another
    try:
        host = ensure_host()
    except SetupError as error:
        sys.exit(f"error: {error}".replace("COMFYUI_PATH is", "--comfyui or COMFYUI_PATH is"))
    if not options.under_host:
        run_under(host, [__file__, "--under-host", *sys.argv[1:]])

    from tools.small_models import write_small_models  # needs the host's libraries

    folder = options.models or host.models
    print(f"Writing into {folder}", flush=True)
    try:
        for path in write_small_models(folder):
            print(f"  {path.relative_to(folder)}", flush=True)
    except OSError as error:
        # Windows replaces no file that a program has open, and ComfyUI keeps the models it has read open
        held = " ComfyUI, if it runs, holds it: stop that and run this again." if isinstance(error, PermissionError) else ""
        sys.exit(f"error: {error.filename2 or error.filename or folder}: {error.strerror}.{held}")
    print("Done. In the editor: press R, then open the template First steps (small world) of this pack.")


if __name__ == "__main__":
    main()

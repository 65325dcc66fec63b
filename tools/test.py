"""Runs the tests on the real ComfyUI, set up as host.py says.

    python tools/test.py [--comfyui-version 0.30.0] [pytest's arguments]
"""

import argparse
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path[0] = str(CHECKOUT)  # in place of tools/: its modules are imported as tools.*

from tools.host import DEFAULT_VERSION, SetupError, ensure_host, run_under  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description="Run the tests on the real ComfyUI. Further arguments go to pytest.")
    parser.add_argument("--comfyui-version", default=DEFAULT_VERSION, help="the ComfyUI to set up")
    options, for_pytest = parser.parse_known_args()
    try:
        host = ensure_host(options.comfyui_version)
    except SetupError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted. Run it again to go on.")
    if subprocess.run([host.python, "-c", "import pytest"], capture_output=True, check=False).returncode:
        sys.exit(f"error: {host.python} has no pytest: install tests/requirements.txt there, or unset COMFYUI_PATH to have a ComfyUI set up for the tests.")
    if not any(Path(argument.split("::")[0]).exists() for argument in for_pytest):
        for_pytest.append(CHECKOUT / "tests")
    run_under(host, ["-m", "pytest", *for_pytest])


if __name__ == "__main__":
    main()

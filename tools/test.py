"""Runs the tests on the real ComfyUI, set up as host.py says.

python tools/test.py [--comfyui-version 0.30.0] [pytest's arguments]
python tools/test.py --comfyui-version all        each pinned version in turn, and a table at the end
"""

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
MOST_PROCESSES = 4  # of tests at once, which take some 4 GB each with their servers
# in place of tools/, where Python has put that: its modules are imported as tools.*
sys.path[:] = [str(CHECKOUT), *(each for each in sys.path if Path(each).resolve() != CHECKOUT / "tools")]

from tools.host import DEFAULT_VERSION, ensure_host, run_under
from tools.packages import SetupError
from tools.pinned import ARCHIVES


def test_every_version(for_pytest):
    """Runs this command for each pinned version and prints what passed; the exit status says whether all did."""
    environment = {name: value for name, value in os.environ.items() if name not in ("COMFYUI_PATH", "COMFYUI_PYTHON")}
    table, failed = ["| ComfyUI | passed | skipped | failed |", "| --- | --- | --- | --- |"], False
    for version in ARCHIVES:
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            command = [sys.executable, __file__, "--comfyui-version", version, f"--junitxml={report}", *for_pytest]
            failed |= bool(subprocess.run(command, env=environment, check=False).returncode)
            table.append(f"| {version} | {' | '.join(map(str, counts(report)))} |")
    print("\n".join(table))
    sys.exit(failed)


def counts(report):
    """(passed, skipped, failed) of a JUnit report; question marks where the tests did not get as far as to write one."""
    if not report.exists():
        return ("?",) * 3
    suite = xml.etree.ElementTree.parse(report).getroot().find("testsuite")
    tests, skipped, failures, errors = (int(suite.get(name)) for name in ("tests", "skipped", "failures", "errors"))
    return tests - skipped - failures - errors, skipped, failures + errors


def main():
    parser = argparse.ArgumentParser(description="Run the tests on the real ComfyUI. Further arguments go to pytest.")
    parser.add_argument("--comfyui-version", default=DEFAULT_VERSION, choices=[*ARCHIVES, "all"], help="the ComfyUI to set up")
    options, for_pytest = parser.parse_known_args()
    try:
        if options.comfyui_version == "all":
            test_every_version(for_pytest)
        host = ensure_host(options.comfyui_version)
    except SetupError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted. Run it again to go on.")
    if subprocess.run([host.python, "-c", "import pytest, xdist"], capture_output=True, check=False).returncode:
        sys.exit(
            f"error: {host.python} has no pytest or no pytest-xdist: install tests/requirements.txt there, or unset COMFYUI_PATH to have "
            "a ComfyUI set up for the tests."
        )
    if not any(Path(argument.split("::")[0]).exists() for argument in for_pytest):
        if not any(argument.startswith(("-n", "--matrix", "--pdb")) for argument in for_pytest):
            for_pytest += ["-n", str(min(MOST_PROCESSES, os.cpu_count() or 1)), "--dist", "loadfile"]
            if any(argument.startswith("--random-order") for argument in for_pytest):
                for_pytest.append("--no-loadscope-reorder")  # which would put the longest files first
        for_pytest.append(CHECKOUT / "tests")
    run_under(host, ["-m", "pytest", *for_pytest])


if __name__ == "__main__":
    main()

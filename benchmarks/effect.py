"""What guidance does to pictures, measured on the host: `python benchmarks/effect.py --help` says how."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.effect.command import main

if __name__ == "__main__":
    main()

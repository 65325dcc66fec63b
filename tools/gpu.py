"""Whether torch finds a GPU: of Nvidia or AMD (both are "cuda" to it), Intel or Apple. As a program: 0 if so.

What ComfyUI runs on without it only if it is told to (--cpu).
"""

import sys


def has_gpu():
    import torch

    # torch before 2.4 knows no xpu
    return torch.cuda.is_available() or (hasattr(torch, "xpu") and torch.xpu.is_available()) or torch.backends.mps.is_available()


if __name__ == "__main__":
    sys.exit(not has_gpu())

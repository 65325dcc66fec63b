"""The real host in process, with the pack loaded by the host's own loader.

COMFYUI_PATH names the host's folder; tools/test.py sets it.
"""

import asyncio
import os
import sys
from pathlib import Path

import pytest

PACK = Path(__file__).parent.parent
HOST = os.environ["COMFYUI_PATH"]

sys.path[:0] = [HOST, str(PACK)]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing(False)

import torch  # noqa: E402
from comfy.cli_args import args  # noqa: E402

args.cpu = not torch.cuda.is_available()
# The host's default attention for the CPU breaks torch.compile's graph by itself.
args.use_pytorch_cross_attention = True
# Models this small gain nothing from threads, and lose much where cores are shared.
torch.set_num_threads(1)

import nodes as host_nodes  # noqa: E402

asyncio.run(host_nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
assert asyncio.run(host_nodes.load_custom_node(str(PACK))), "the host could not load the pack"


@pytest.fixture(autouse=True)
def inference_mode():
    """Nodes run under inference mode in the host."""
    with torch.inference_mode():
        yield

"""The host in this process, with the pack loaded by the host's own loader."""

import asyncio
import importlib
import logging
import os
import sys
from pathlib import Path

from tools.gpu import has_gpu

PACK = Path(__file__).resolve().parent.parent


def load_host(gpu=None):
    """Makes the ComfyUI of COMFYUI_PATH importable and its nodes, the pack's too, callable by `node`; on a GPU where there is one.

    gpu: whether to use one.
    """
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = not (has_gpu() if gpu is None else gpu)
    args.use_pytorch_cross_attention = True  # the default one for the CPU breaks torch.compile's graph by itself
    import utils.extra_config  # noqa: F401 - first, as the host does: nodes puts a folder with another `utils` in front

    import nodes

    logging.disable(logging.WARNING)  # of the host's own nodes one needs a running server, and says so at length
    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    logging.disable(logging.NOTSET)
    assert asyncio.run(nodes.load_custom_node(str(PACK))), "the host could not load the pack"


def node(name, /, **inputs):
    """The outputs of a node of ours or of the host, called with what the graph would give it, its defaults for the rest."""
    import nodes

    cls = nodes.NODE_CLASS_MAPPINGS[name]
    if hasattr(cls, "define_schema"):
        outputs = cls.execute(**defaults(cls) | inputs)
        return getattr(outputs, "args", outputs)
    return getattr(cls(), cls.FUNCTION)(**inputs)


def defaults(cls):
    """Of a node's inputs that the editor shows with a value, and that a prompt cannot leave out."""
    inputs = [each for each in cls.GET_SCHEMA().inputs if not each.optional]
    return {each.id: each.default for each in inputs if getattr(each, "default", None) is not None}


def of_pack(name):
    """A module of the pack as the host has loaded it, e.g. "scoring.choice"."""
    import nodes

    return importlib.import_module(nodes.NODE_CLASS_MAPPINGS["ApplyModulationGuidance"].__module__.rpartition(".nodes")[0] + "." + name)

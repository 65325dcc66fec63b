"""Nodes that load and save guidance directions."""

import folder_paths
from comfy_api.latest import io
from typing_extensions import override

from ..model_patches import direction_files
from .folders import fingerprint, path_in, register
from .queue_errors import checked
from .saving import check_prefix, prefix_input, save_numbered
from .sockets import CATEGORY, Direction, check_sockets

FOLDER = "guidance_directions"
_LOAD, _SAVE = "Load Guidance Direction", "Save Guidance Direction"

register(FOLDER)


class LoadGuidanceDirection(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="LoadGuidanceDirection",
            display_name=_LOAD,
            category=CATEGORY,
            description="Loads a guidance direction from a file: one learned on a model, which guides that model without a text encoder or "
            "projection, or an encoded one.",
            search_aliases=["modulation guidance", "learned direction", "trained direction", "import direction"],
            inputs=[
                io.Combo.Input(
                    "direction_name",
                    options=folder_paths.get_filename_list(FOLDER),
                    tooltip=f"A file in models/{FOLDER}, or in {FOLDER} of the output folder. A learned direction fits models of the family, depth "
                    "and width that it was learned on. Press R (refresh) after adding a file.",
                )
            ],
            outputs=[Direction.Output("direction", tooltip="For every input that takes a direction.")],
        )

    @classmethod
    @override
    def validate_inputs(cls, direction_name=None):
        return checked(_path, direction_name)

    @classmethod
    @override
    def fingerprint_inputs(cls, direction_name):
        return fingerprint(FOLDER, direction_name, _LOAD)

    @classmethod
    @override
    def execute(cls, direction_name) -> io.NodeOutput:
        return io.NodeOutput(direction_files.load(_path(direction_name)))


class SaveGuidanceDirection(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="SaveGuidanceDirection",
            display_name=_SAVE,
            category=CATEGORY,
            description="Saves a guidance direction, learned or encoded, to the output folder, so that it can guide without a text encoder. "
            f"In its folder {FOLDER}, {_LOAD} offers it after pressing R.",
            search_aliases=["modulation guidance", "export direction", "learned direction"],
            inputs=[Direction.Input("direction", tooltip="The direction to save."), prefix_input(f"{FOLDER}/direction")],
            is_output_node=True,
        )

    @classmethod
    @override
    def validate_inputs(cls, filename_prefix=None):
        return checked(check_prefix, _SAVE, filename_prefix)

    @classmethod
    @override
    def execute(cls, direction, filename_prefix) -> io.NodeOutput:
        check_sockets(cls, direction=direction)
        save_numbered(_SAVE, filename_prefix, lambda path: direction_files.save(direction, path, replace=False), FOLDER)
        return io.NodeOutput()


def _path(name: str) -> str:
    return path_in(FOLDER, name, _LOAD)

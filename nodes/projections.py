"""Nodes that load and save the projections of text-blind models."""

import folder_paths
from comfy_api.latest import io
from typing_extensions import override

from ..pooled_proj import formats
from .directions import from_conditioning
from .folders import fingerprint, path_in, register
from .queue_errors import checked
from .saving import check_prefix, prefix_input, save_numbered
from .sockets import CATEGORY, Projection, check_sockets

FOLDER = "pooled_projections"
PEERS = ("modulation_guidance", "anima_mod_guidance", "anima_modulation_guidance")  # where other packs put the published files
_LOAD, _SAVE = "Load Pooled Projection", "Save Pooled Projection"

register(FOLDER, PEERS)


class LoadPooledProjection(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="LoadPooledProjection",
            display_name=_LOAD,
            category=CATEGORY,
            description="Loads a projection: a small network that brings the prompt into the modulation of a model that gets no text there "
            "(Anima, Cosmos, Wan, Qwen-Image ...), so that the model can be guided. Reads published files and those of Save Pooled "
            "Projection.",
            search_aliases=[
                "modulation guidance",
                "pooled text projection",
                "text blind",
                "anima",
                "anima mod guidance",
                "cosmos clip projection",
            ],
            inputs=[
                io.Combo.Input(
                    "projection_name",
                    options=folder_paths.get_filename_list(FOLDER),
                    tooltip=f"A file in models/{FOLDER} or in {FOLDER} of the output folder, or where other packs put theirs (models/"
                    f"{', '.join(PEERS)}), made for exactly the model you use. Press R (refresh) after adding a file.",
                )
            ],
            outputs=[
                Projection.Output("projection", tooltip="For the projection input of Modulation Guidance and Apply Modulation Guidance.")
            ],
        )

    @classmethod
    @override
    def validate_inputs(cls, projection_name=None):
        return checked(_path, projection_name)

    @classmethod
    @override
    def fingerprint_inputs(cls, projection_name):
        return fingerprint(FOLDER, projection_name, _LOAD)

    @classmethod
    @override
    def execute(cls, projection_name) -> io.NodeOutput:
        return io.NodeOutput(formats.load(_path(projection_name)))


class SavePooledProjection(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="SavePooledProjection",
            display_name=_SAVE,
            category=CATEGORY,
            description=f"Saves a pooled projection to the output folder. In its subfolder {FOLDER} (the default), {_LOAD} lists it "
            "after you press R (refresh).",
            search_aliases=["modulation guidance", "export projection"],
            inputs=[Projection.Input("projection", tooltip="The projection to save."), prefix_input(f"{FOLDER}/projection")],
            is_output_node=True,
        )

    @classmethod
    @override
    def validate_inputs(cls, filename_prefix=None):
        return checked(check_prefix, _SAVE, filename_prefix)

    @classmethod
    @override
    def execute(cls, projection, filename_prefix) -> io.NodeOutput:
        check_sockets(cls, projection=projection)
        save_numbered(_SAVE, filename_prefix, lambda path: formats.save(projection, path, replace=False), FOLDER)
        return io.NodeOutput()


def _path(name: str) -> str:
    return path_in(FOLDER, name, _LOAD)


def with_base(node: str, projection, base_positive, base_negative):
    """The projection with the conditionings that feed the conditional and the unconditional rows. node: its name, for errors."""
    if base_positive is None and base_negative is None:
        return projection
    if projection is None:
        raise ValueError(
            f"{node}: base_positive and base_negative feed a projection, and none is connected. "
            "Connect one (Load Pooled Projection), or disconnect them."
        )
    return projection.with_base(
        *(
            None if conditioning is None else from_conditioning(conditioning, f"{node}: {side}", "Connect that of one prompt.")
            for side, conditioning in (("base_positive", base_positive), ("base_negative", base_negative))
        )
    )

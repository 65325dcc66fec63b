"""What nodes that save share: a numbered file in the output folder, or, where that cannot be written, another place that is told."""

import os
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..model_patches.tensor_files import shown

SUFFIX = ".safetensors"


def prefix_input(default: str) -> io.String.Input:
    return io.String.Input(
        "filename_prefix",
        default=default,
        tooltip="File name, with a subfolder of the output folder in front if you like (my_folder/name). A number is added.",
    )


def check_prefix(node: str, prefix: str) -> None:
    """When it is queued: raises ValueError for what can be known before there is anything to write. node: its name, for the message."""
    target = _inside(node, prefix)
    told = _told(node, prefix)
    folder = os.path.dirname(target)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise ValueError(f"{told} leads into {folder}, which is a file. Write another name.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{told} leads into {folder}, where ComfyUI may not write. Write another name, or allow it.")
    # Each name by itself too: the system looks no further than the first folder that is not there yet.
    path = os.path.relpath(_numbered(target, 1), folder)
    for name in (path, *path.split(os.sep)):
        try:
            os.lstat(os.path.join(folder, name))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ValueError(f"{told} cannot be the name of a file ({error.strerror}). Write a shorter name.") from None


def save_numbered(node: str, prefix: str, write: Callable[[str], None], loaded_from: str) -> None:
    """Has the file of the first free number written in the output folder. Raises ValueError where that cannot be.

    write: to a path; raises FileExistsError where something is there. loaded_from: the name of the host's folders that such files are
    loaded from, and that are tried next. There, too, the number is free: of two files of one name, only one is loaded.
    """
    _inside(node, prefix)
    prefix = os.path.normpath(prefix)  # the host takes the last number wrong behind "mine/"
    output = folder_paths.get_output_directory()
    try:
        _save(prefix, output, write, loaded_from)
    except OSError as error:
        failed = f"{node}: '{shown(prefix)}' could not be written to {output} ({error.strerror})."
        raise ValueError(f"{failed} {_saved_elsewhere(os.path.basename(prefix)[:50], write, loaded_from)}") from None


def can_be_a_path(name: str) -> bool:
    """Whether the system can be asked for it: NULs and halves of surrogate pairs it refuses in words of Python's."""
    return not any(character == "\0" or "\ud800" <= character <= "\udfff" for character in name)


def _told(node: str, prefix: str) -> str:
    return f"{node}: filename_prefix '{shown(prefix)}'"


def _inside(node: str, prefix: str) -> str:
    """Where it leads. Raises ValueError if that is no name, or not in the output folder."""
    if not can_be_a_path(prefix):
        raise ValueError(f"{_told(node, prefix)} holds a character that no file's name can have. Write another name.")
    output = os.path.realpath(folder_paths.get_output_directory())
    target = os.path.realpath(os.path.join(output, prefix))
    if target == output or not Path(target).is_relative_to(output):
        raise ValueError(
            f"{_told(node, prefix)} leads out of the output folder. Write a name, or a subfolder and a name, e.g. projections/mine."
        )
    return target


def _saved_elsewhere(name: str, write: Callable[[str], None], loaded_from: str) -> str:
    for place in (lambda: folder_paths.get_folder_paths(loaded_from)[0], tempfile.gettempdir):
        try:
            path = _save(name, place(), write, loaded_from)
        except OSError:
            continue
        return f"It was saved as {path} instead, so nothing is lost: move it, or make room and queue again."
    return (
        "It could not be written anywhere else either, but ComfyUI still has it in memory, unless started with --cache-none: make room, or "
        "write another filename_prefix, and queue again before anything else."
    )


def _save(prefix: str, root: str, write: Callable[[str], None], loaded_from: str) -> str:
    """Its path. The host's number is only the first to try: it misses files whose letters differ in case, and those of other servers."""
    folder, name, first, _, _ = folder_paths.get_save_image_path(prefix, root)
    for number in count(first):
        path = _numbered(os.path.join(folder, name), number)
        listed = os.path.relpath(path, os.path.join(root, loaded_from))
        if not listed.startswith(os.pardir) and _is_listed(listed, loaded_from):
            continue
        try:
            write(path)
        except FileExistsError:
            continue
        return path


def _is_listed(name: str, folder: str) -> bool:
    return any(os.path.lexists(os.path.join(place, name)) for place in folder_paths.get_folder_paths(folder))


def _numbered(path: str, number: int) -> str:
    return f"{path}_{number:05}_{SUFFIX}"

"""Folders of models that nodes of ours list and read, registered with the host."""

import os

import folder_paths

from ..model_patches.quoting import quoted


def register(folder: str, peers: tuple[str, ...] = ()) -> None:
    """Ours, then the peers', each where extra_model_paths.yaml has it and then in the models folder, then ours in the output folder.

    None is made. The host lists a name once, and reads it from the first folder that holds it. As the host does for checkpoints and
    LoRAs, what is saved can be loaded where it lies.
    """
    for each in (folder, *peers):
        named, _ = folder_paths.folder_names_and_paths.get(each, ([], set()))
        for path in (*named, os.path.join(folder_paths.models_dir, each)):
            folder_paths.add_model_folder_path(folder, path)
    folder_paths.add_model_folder_path(folder, os.path.join(folder_paths.get_output_directory(), folder))
    # A folder named in extra_model_paths.yaml has been registered without any.
    folder_paths.folder_names_and_paths[folder][1].update(folder_paths.supported_pt_extensions)


def path_in(folder: str, name: str, node: str) -> str:
    """Of a file that is listed. Raises ValueError if it is not; node: its name, for the message."""
    path = folder_paths.get_full_path(folder, name) if name in folder_paths.get_filename_list(folder) else None
    if path is None:
        raise ValueError(
            f"{node}: there is no file {quoted(name)} in models/{folder} ({', '.join(folder_paths.get_folder_paths(folder))}). Put it "
            "there, and choose it again."
        )
    return path


def fingerprint(folder: str, name: str | None, node: str) -> tuple:
    """What changes with the file, of the arguments of `path_in`; with any that is listed where the name comes over a link, which the host
    does not follow before it runs."""
    if name is not None:
        return _state(path_in(folder, name, node))
    return tuple((each, *_state(folder_paths.get_full_path(folder, each))) for each in folder_paths.get_filename_list(folder))


def _state(path: str) -> tuple[int, int]:
    file = os.stat(path)
    return file.st_mtime_ns, file.st_size

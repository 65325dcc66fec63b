"""A folder as transformers saves a CLIP model, read without fetching anything and without running or believing what is in it.

PickScore is such a model: CLIP-H, trained on to tell which of two pictures people prefer.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ..model_patches.tensor_files import bounded_json, check_finite, listed, more, opened, shown
from .clip import ClipModel

CONFIG = "config.json"
_WEIGHTS = re.compile(r"(model(-\d+-of-\d+)?\.safetensors|pytorch_model(-\d+-of-\d+)?\.bin)")
_NEEDED = (
    "config.json, preprocessor_config.json, tokenizer.json (or vocab.json and merges.txt), and model.safetensors (or pytorch_model.bin), as "
    "save_pretrained of transformers writes them for a CLIP model and its processor"
)
_TEXT = 64 * 1024**2  # bytes of a file of text
_LARGEST = 8192  # pixels of a side
_DEEPEST = 200  # layers

_LOADED: WeakValueDictionary[tuple, ClipModel] = WeakValueDictionary()


def clip_at(folder: str) -> ClipModel:
    """The model of that folder; the one that is in memory already, while its files are the same. Raises ValueError."""
    state = fingerprint(folder)
    model = _LOADED.get(state)
    if model is None:
        model = _LOADED[state] = _read(Path(folder))
    return model


def fingerprint(folder: str) -> tuple:
    """What changes with the folder's files."""
    files = sorted((entry.name, entry.stat().st_mtime_ns, entry.stat().st_size) for entry in os.scandir(folder) if entry.is_file())
    return os.path.realpath(folder), *files


def is_weights(name: str) -> bool:
    """Whether a file of that name holds the weights of the model in its folder."""
    return _WEIGHTS.fullmatch(name) is not None


def projection_width(folder: str) -> int | None:
    """Of its embeddings, by its config.json alone; None where that does not say."""
    try:
        width = _json(Path(folder), CONFIG).get("projection_dim")
    except ValueError:
        return None
    return width if isinstance(width, int) else None


def _read(folder: Path) -> ClipModel:
    # Here, as importing them takes seconds and few prompts score anything.
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

    found = sorted(path.name for path in folder.iterdir() if path.is_file())
    weights = _weights_of(found)
    processor = next((name for name in ("preprocessor_config.json", "processor_config.json") if name in found), None)
    tokenizer = "tokenizer.json" in found or {"vocab.json", "merges.txt"} <= {*found}
    if CONFIG not in found or not weights or not processor or not tokenizer:
        raise _error(folder, f"holds {listed(found) if found else 'nothing'}; needed are {_NEEDED}.")
    config = _config(folder, CLIPConfig)
    try:
        with torch.device("meta"):  # nothing is drawn that the file replaces
            model = CLIPModel(config)
    except Exception as error:
        raise _untaken(folder, CONFIG, error) from None
    _fill(folder, model, weights)
    image_size = config.vision_config.image_size
    prepare = _processor(folder, processor, CLIPImageProcessor, image_size)
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if name in found:
            _check_size(folder, name)
    try:
        tokens = CLIPTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise what they like
        raise _error(folder, f"has a tokenizer that cannot be read ({shown(error, 200)}). Get its files again.") from None
    if len(tokens) > config.text_config.vocab_size:
        raise _error(
            folder,
            f"has a tokenizer of {len(tokens):,} tokens, and a model of {config.text_config.vocab_size:,}. Get the files of one model.",
        )
    return ClipModel(model, prepare, tokens)


def _weights_of(found: list[str]) -> list[str]:
    """The files that hold them: safetensors before pickles, whole before in parts."""
    for kind in (r"model\.safetensors", r"model-\d+-of-\d+\.safetensors", r"pytorch_model\.bin", r"pytorch_model-\d+-of-\d+\.bin"):
        if files := [name for name in found if re.fullmatch(kind, name)]:
            return files
    return []


def _config(folder: Path, kind: type):
    values = _json(folder, CONFIG)
    if values.get("model_type") != "clip":
        raise _error(
            folder,
            f"says in config.json that its model_type is {shown(values.get('model_type'))}; needed is clip, as CLIP and PickScore have it.",
        )
    try:
        config = kind.from_dict(_sizes(values, _OF_CLIP))
    except Exception as error:
        raise _untaken(folder, CONFIG, error) from None
    # All else is held against the shapes in the file of weights, before anything is made of that size.
    for name, value, most in (
        ("text_config.num_hidden_layers", config.text_config.num_hidden_layers, _DEEPEST),
        ("vision_config.num_hidden_layers", config.vision_config.num_hidden_layers, _DEEPEST),
        ("vision_config.image_size", config.vision_config.image_size, _LARGEST),
    ):
        if not (isinstance(value, int) and 0 < value <= most):
            raise _error(folder, f"has {shown(value)} as {name} in config.json; 1 to {most:,} is read. Get the file again.")
    return config


def _fill(folder: Path, model, files: list[str]) -> None:
    """Puts the tensors of the files into the model in fp32, each read once. Raises ValueError where they are not the model's."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            with opened(folder / file) as content:
                for name in wanted.keys() & content.tensors.keys():
                    content.check([name])
                    if content.tensors[name].shape != wanted[name]:
                        raise ValueError(
                            f"holds {name} of shape {shown(content.tensors[name].shape)}, and config.json asks for {wanted[name]}. Get the files "
                            "of one model."
                        )
                    # Settings differ by thousandths: half precision would round that away.
                    tensors[name] = content.read([name])[name].float()
                    check_finite(name, tensors[name])
                others = content.tensors.keys()
        except ValueError as error:
            raise _error(folder, f"cannot be used: {file} {error}") from None
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise _error(
            folder,
            f"lacks weights: {', '.join(missing[:3])}{more(missing, 3)} of {len(wanted)} are not in {', '.join(files)}, which holds "
            f"{listed(others)}. Needed is a whole CLIP model with both of its projections.",
        )
    model.load_state_dict(tensors, assign=True)
    for module in model.modules():  # of no file; made on meta too
        if hasattr(module, "position_ids"):
            module.position_ids = torch.arange(module.position_embedding.num_embeddings).expand(1, -1)


def _processor(folder: Path, name: str, kind: type, size: int):
    """How its pictures are made ready. Raises ValueError where they would not be of `size`, which the model reads."""
    values = _json(folder, name)
    values = values.get("image_processor", values)
    ours = {key: value for key, value in values.items() if key in _PREPARING} if isinstance(values, dict) else {}
    sizes = [ours.get("size"), ours.get("crop_size")]
    given = [number for part in sizes for number in (part.values() if isinstance(part, dict) else [part])]
    if any(isinstance(number, int) and number > _LARGEST for number in given):
        raise _error(folder, f"makes images of {shown(sizes)} pixels by its {name}; {_LARGEST} is the most. Get the file again.")
    try:
        made = kind(**ours)
        shape = tuple(made(torch.zeros(1, 3, 8, 6, dtype=torch.uint8), return_tensors="pt")["pixel_values"].shape)
    except Exception as error:
        raise _untaken(folder, name, error) from None
    if shape != (1, 3, size, size):
        raise _error(folder, f"makes images of {shape[-2:]} pixels by its {name}, and its model reads {size}. Get the files of one model.")
    return made


# What of a config.json is taken: other settings can have transformers fetch and run code.
_OF_TOWER = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads"), int),
    **dict.fromkeys(("max_position_embeddings", "vocab_size", "num_channels", "image_size", "patch_size"), int),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), int),
    "layer_norm_eps": float,
    "hidden_act": str,
}
_OF_CLIP = {
    "projection_dim": int,
    "logit_scale_init_value": float,
    **dict.fromkeys(("text_config", "vision_config", "text_config_dict", "vision_config_dict"), _OF_TOWER),
}


def _sizes(values: dict, kinds: dict) -> dict:
    """Those of the names in `kinds`; null is as good as left out. Raises ValueError for one of another kind."""
    taken = {}
    for name, kind in kinds.items():
        value = values.get(name)
        if value is None:
            continue
        least = 0 if name.endswith("_id") else 1 if kind is int else 1e-12
        if isinstance(kind, dict) and isinstance(value, dict):
            taken[name] = _sizes(value, kind)
        elif isinstance(kind, dict) or isinstance(value, bool) or not isinstance(value, (int, kind) if kind is float else kind):
            raise ValueError(f"{name} is {shown(value)}")
        elif kind is not str and not value >= least:
            raise ValueError(f"{name} is {shown(value)}, and {least:g} the least")
        else:
            taken[name] = value
    return taken


_PREPARING = {
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_convert_rgb",
}


def _json(folder: Path, name: str) -> dict[str, Any]:
    _check_size(folder, name)
    try:
        values = bounded_json((folder / name).read_text(encoding="utf-8"), 20)
    except (ValueError, OSError) as error:
        raise _error(folder, f"has a {name} that cannot be read ({shown(error, 200)}). Get the file again.") from None
    if not isinstance(values, dict):
        raise _error(folder, f"has a {name} that is {shown(values)}. Get the file again.")
    return values


def _check_size(folder: Path, name: str) -> None:
    if (size := (folder / name).stat().st_size) > _TEXT:
        raise _error(folder, f"has a {name} of {size:,} bytes, and {_TEXT:,} is the most that is read. Get the file again.")


def _untaken(folder: Path, name: str, error: Exception) -> ValueError:
    return _error(folder, f"has a {name} that transformers does not take ({shown(error, 200)}). Get the file again.")


def _error(folder: Path, complaint: str) -> ValueError:
    return ValueError(f"The picture scorer {shown(folder.name)} {complaint}")

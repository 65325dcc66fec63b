"""Guidance presets: those of presets.json, and the user's own, which win.

The user's file is modulation_guidance_presets.json in ComfyUI's user folder, of the same form: a name, and for it positive, or
positive_with_subject with {subject} in it, or both; negative; w; start_layer; and if wanted layers, as Layer Schedule (Text) has
them, with depth, the number of layers of the model they were written for; family, the models that w and the layers were found on;
source, where it comes from; and example, a subject.
"""

import json
import logging
import os
from pathlib import Path

import folder_paths

from ..model_patches.families import FAMILIES
from ..model_patches.guidance import LARGEST_W
from ..model_patches.quoting import quoted
from ..model_patches.schedules import LAST_LAYER, LayerSchedule, ProportionalSchedule, RangeSchedule, parse_ranges
from ..model_patches.text_files import read_text

USER_FILE = "modulation_guidance_presets.json"

_OWN = json.loads((Path(__file__).parent / "presets.json").read_text(encoding="utf-8"))
_LARGEST_FILE = 1_000_000  # bytes

CUSTOM = "custom"  # of Modulation Guidance: no preset
_FAMILIES = [family.name for family in FAMILIES]
_TEXTS = ("positive", "positive_with_subject", "negative", "source", "example")
_FORM = (
    '{"my preset": {"positive": "...", "negative": "...", "w": 3.0, "start_layer": 5, "source": "..."}}, with "positive_with_subject" '
    'where it speaks of a subject: "{subject} with natural hands", and "layers": "13-30: 1, 31-45: 0.3333" with "depth": 57 where it has '
    'layers of its own, and "family": "FLUX.1" for the models that w and layers were found on'
)


def presets() -> dict[str, dict]:
    """All presets by name, the user's over ours. Raises ValueError if the user's file cannot be read."""
    return _OWN | _users(Path(folder_paths.get_user_directory(), USER_FILE))


def presets_that_can_be_read() -> dict[str, dict]:
    """All presets; without the user's, and with a line in the log, where their file cannot be read."""
    try:
        return presets()
    except ValueError as error:
        logging.warning("%s Until then there are the pack's own presets, without yours.", error)
        return _OWN


def preset_named(name: str, node: str, *others: str) -> dict:
    """The preset of that name. Raises ValueError, beginning with the node's name, where there is none; others: more that it offers."""
    known = presets()
    if name not in list(known):
        raise ValueError(f"{node}: there is no preset {quoted(name)}; choose one of {quoted([*known, *others])}.")
    return known[name]


def positive_of(name: str, subject: str, node: str) -> str:
    """What the preset wants. Raises ValueError, beginning with the node's name, where it needs a subject and has none."""
    preset, subject = preset_named(name, node), subject.strip()
    if subject and "positive_with_subject" in preset:
        return preset["positive_with_subject"].format(subject=subject)
    if "positive" not in preset:
        example = f", e.g. {quoted(preset['example'])}" if "example" in preset else ""
        raise ValueError(f"{node}: {quoted(name)} needs a subject{example}.")
    return preset["positive"]


def schedule_of(preset: dict) -> LayerSchedule:
    """The preset's own layers, carried over in proportion to the model's depth; where it has none, from its start layer on."""
    if "layers" in preset:
        return ProportionalSchedule(parse_ranges(preset["layers"]), preset["depth"])
    return RangeSchedule(preset["start_layer"])


def _users(path: Path) -> dict[str, dict]:
    if not os.path.exists(path):
        return {}
    text = read_text(path, f"Guidance Preset: {path}", _LARGEST_FILE)
    try:
        found = json.loads(text)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"Guidance Preset: {path} cannot be read as JSON ({error}). Write {_FORM}.") from None
    if not isinstance(found, dict):
        raise ValueError(f"Guidance Preset: {path} holds no presets by name. Write {_FORM}.")
    for name, preset in found.items():
        wrong = "has a name that Modulation Guidance gives to words of one's own" if name == CUSTOM else _what_is_wrong(preset)
        if wrong:
            raise ValueError(f"Guidance Preset: {quoted(name)} in {path} {wrong}. Write {_FORM}.")
    return found


def _what_is_wrong(preset) -> str | None:
    if not isinstance(preset, dict):
        return f"is {quoted(preset)}"
    unknown = set(preset) - {*_TEXTS, "w", "start_layer", "layers", "depth", "family"}
    if unknown:
        return f"has {quoted(sorted(unknown)[0])}, which is not known"
    for key in _TEXTS:
        if key in preset and not isinstance(preset[key], str):
            return f"has {key} {quoted(preset[key])}, which is no text"
    if "positive" not in preset and "positive_with_subject" not in preset:
        return "has neither positive nor positive_with_subject"
    for key in ("negative", "w", "start_layer"):
        if key not in preset:
            return f"has no {key}"
    with_subject = preset.get("positive_with_subject", "{subject}")
    if "{" in with_subject.replace("{subject}", "") or "}" in with_subject.replace("{subject}", ""):
        return f"has positive_with_subject {quoted(with_subject)}; braces stand only around subject"
    if preset.get("family", _FAMILIES[0]) not in _FAMILIES:
        return f"has family {quoted(preset['family'])}; choose one of {', '.join(_FAMILIES)}"
    w, start = preset["w"], preset["start_layer"]
    if isinstance(w, bool) or not isinstance(w, (int, float)) or not abs(w) <= LARGEST_W:
        return f"has w {quoted(w)}, which is no number from {-LARGEST_W:g} to {LARGEST_W:g}"
    if isinstance(start, bool) or not isinstance(start, int) or not 0 <= start <= LAST_LAYER:
        return f"has start_layer {quoted(start)}; it is a whole number from 0 to {LAST_LAYER}"
    return _what_is_wrong_with_layers(preset)


def _what_is_wrong_with_layers(preset: dict) -> str | None:
    if ("layers" in preset) != ("depth" in preset):
        return "has one of layers and depth; depth is the number of layers of the model that layers were written for"
    if "layers" not in preset:
        return None
    layers, depth = preset["layers"], preset["depth"]
    if not isinstance(layers, str):
        return f"has layers {quoted(layers)}, which is no text"
    if isinstance(depth, bool) or not isinstance(depth, int):
        return f"has depth {quoted(depth)}, which is no whole number"
    try:
        schedule_of(preset)
    except ValueError as error:
        return f"has layers that cannot be used ({str(error).rstrip('.')})"
    return None

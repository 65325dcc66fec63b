"""Nodes that load a scorer of pictures and ask it."""

import itertools
import os
from collections.abc import Iterator
from statistics import fmean

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor
from typing_extensions import override

from ..model_patches.quoting import quoted
from ..scoring import loading
from ..scoring.choice import shown
from ..scoring.clip_folder import CONFIG, is_weights
from ..scoring.scorers import scores_of
from .folders import register
from .labels import paired
from .queue_errors import checked
from .sockets import CATEGORY, Scorer, check_sockets

FOLDER = "picture_scorers"
AT_ONCE = 8  # images; between them progress is shown and an interrupt heard
_HEADS = (".pth", ".pt", ".safetensors")
_LOAD, _SCORE = "Load Picture Scorer", "Score Pictures"
_WHAT = (
    "Put a folder there as transformers saves a CLIP model, e.g. openai/clip-vit-large-patch14 or yuvalkirstain/PickScore_v1 (config.json, "
    "preprocessor_config.json, the tokenizer's files, model.safetensors), or a file of LAION's aesthetic head beside the folder of its CLIP model"
)

register(FOLDER)


class LoadPictureScorer(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="LoadPictureScorer",
            display_name=_LOAD,
            category=CATEGORY,
            description="Loads a model that gives images a number, higher is better: how well they fit a prompt (CLIP, PickScore), or how "
            f"beautiful they are (LAION's aesthetic head). It reads models/{FOLDER} and never downloads anything.",
            search_aliases=["modulation guidance", "clip score", "pickscore", "aesthetic score", "image quality", "reward model"],
            inputs=[
                io.Combo.Input(
                    "scorer_name",
                    options=scorer_names(),
                    tooltip=f"A folder or file in models/{FOLDER}. {_WHAT}. Press R (refresh) after adding one.",
                )
            ],
            outputs=[Scorer.Output("scorer", tooltip="For Score Pictures.")],
        )

    @classmethod
    @override
    def validate_inputs(cls, scorer_name=None):
        if scorer_name is None and not scorer_names():  # as the editor has it where there is nothing to choose
            return _nothing_there(scorer_name)
        return checked(_path, scorer_name)

    @classmethod
    @override
    def fingerprint_inputs(cls, scorer_name):
        if scorer_name is None:  # over a link, which the host does not follow before it runs
            return tuple(loading.state(path) for path in map(_path, scorer_names()))
        return loading.state(_path(scorer_name))

    @classmethod
    @override
    def execute(cls, scorer_name) -> io.NodeOutput:
        return io.NodeOutput(loading.load(_path(scorer_name)))


class ScorePictures(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="ScorePictures",
            display_name=_SCORE,
            category=CATEGORY,
            description="Gives every image of a sweep a number by a scorer, higher is better, for Choose Guidance.",
            search_aliases=["modulation guidance", "clip score", "pickscore", "rate images", "rank images", "aesthetic score"],
            is_input_list=True,
            inputs=[
                io.Image.Input(
                    "images", tooltip="The images of a sweep, from VAE Decode; of any size. Each image of a batch gets its own score."
                ),
                io.String.Input(
                    "labels", force_input=True, tooltip="One label for each, from Sweep Modulation Guidance. A batch shares one."
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="What the images were to show: your prompt, to see how well it is followed; or the words of what is wanted, to see "
                    "how much of it there is. A list with one for each image works. Scorers of beauty alone do not read it.",
                ),
                Scorer.Input("scorer", tooltip="From Load Picture Scorer, or a node of another pack."),
            ],
            outputs=[
                io.Float.Output(
                    "scores",
                    display_name="scores",
                    is_output_list=True,
                    tooltip="One number for each image, higher is better; not a number for an image that a broken sampling left empty.",
                ),
                io.String.Output("report", display_name="report", tooltip="A table: each label with its mean, lowest and highest score."),
            ],
        )

    @classmethod
    @override
    def execute(cls, images, labels, prompt, scorer) -> io.NodeOutput:
        check_sockets(cls, scorer=scorer[0])
        pictures = paired(_SCORE, images, labels)
        scores = _scores(scorer[0], [image for image, _ in pictures], _prompts(prompt, pictures))
        return io.NodeOutput(scores, _report([label for image, label in pictures for _ in image], scores))


def scorer_names() -> list[str]:
    """What can be loaded: folders with a config.json, and files of heads."""
    return sorted({name for folder in folder_paths.get_folder_paths(FOLDER) for name in _names(folder)})


def _names(folder: str) -> Iterator[str]:
    for path, inner, files in os.walk(folder, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith(".")]  # caches of downloaders
        at = os.path.relpath(path, folder)
        if CONFIG in files and at != os.curdir:
            yield at
        for name in files:
            if name.endswith(_HEADS) and not is_weights(name):
                yield os.path.normpath(os.path.join(at, name))


def _path(name: str) -> str:
    """Of a scorer that is listed. Raises ValueError if it is not."""
    folders = folder_paths.get_folder_paths(FOLDER)
    if name in scorer_names():
        return next(path for path in (os.path.join(folder, name) for folder in folders) if os.path.exists(path))
    raise ValueError(_nothing_there(name))


def _nothing_there(name: str | None) -> str:
    places = ", ".join(folder_paths.get_folder_paths(FOLDER))
    return f"{_LOAD}: there is no scorer{'' if name is None else f' {quoted(name)}'} in models/{FOLDER} ({places}). {_WHAT}; then choose it here."


def _prompts(prompts: list[str], pictures: list[tuple[Tensor, str]]) -> list[str]:
    """One for each image of `pictures`."""
    if len(prompts) == 1:
        prompts = prompts * len(pictures)
    if len(prompts) != len(pictures):
        raise ValueError(f"{_SCORE}: {len(prompts)} prompts for {len(pictures)} images. Give one for all, or one for each.")
    return prompts


def _scores(scorer, images: list[Tensor], prompts: list[str]) -> list[float]:
    """Of each image of each batch, several at once where size and prompt are the same."""
    each = [(one, prompt) for batch, prompt in zip(images, prompts, strict=True) for one in batch.split(1)]
    bar, scores = comfy.utils.ProgressBar(len(each)), []
    for (_, prompt), alike in itertools.groupby(each, lambda one: (one[0].shape, one[1])):
        alike = [image for image, _ in alike]
        for first in range(0, len(alike), AT_ONCE):
            comfy.model_management.throw_exception_if_processing_interrupted()
            scores += scores_of(scorer, torch.cat(alike[first : first + AT_ONCE]), prompt)
            bar.update_absolute(len(scores))
    return scores


def _report(labels: list[str], scores: list[float]) -> str:
    of_label: dict[str, list[float]] = {}
    for label, score in zip(labels, scores, strict=True):
        of_label.setdefault(label, []).append(score)
    lines = ["| label | score | lowest | highest | images |", "| --- | --- | --- | --- | --- |"]
    for label, its in of_label.items():
        lines.append(f"| {label} | {shown(fmean(its))} | {shown(min(its))} | {shown(max(its))} | {len(its)} |")
    return "\n".join(lines)

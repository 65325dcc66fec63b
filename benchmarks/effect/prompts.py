"""The small world's prompts for effect.py: captions of scenes that training never saw, silent about the style."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tools.small_world.captions import join, noun, sentences, subject
from tools.small_world.checkers import Expectation
from tools.small_world.dataset import HELD_OUT
from tools.small_world.scenes import Scene, sample_scene

LAYOUTS = ("single", "group", "pair", "mixed")
RELATIONS = ("left of", "right of", "above", "below")
PROMPTS = {"general": 24, "counting": 32, "color": 32, "position": 32, "long": 32}  # how many by default
APART = 100_000  # scene seeds between the starts of two sets


@dataclass(frozen=True)
class Prompt:
    """text, what it asks for, and the seed of its noise (its scene's seed)."""

    text: str
    wanted: Expectation
    seed: int


def prompt_set(name: str, count: int) -> list[Prompt]:
    """The first `count` prompts of a set: general, counting ("three red circles"), color ("a red circle and a blue square"),
    position ("a red circle above a blue square") or long (a sentence for each thing there is to say).
    """
    first = HELD_OUT + APART * list(PROMPTS).index(name)
    if name == "general":
        return _chosen(first, count, LAYOUTS, _layout, subject)
    if name == "counting":
        return _chosen(first, count, range(2, 6), lambda scene: _layout(scene) == "group" and len(scene.things), _nouns)
    if name == "color":
        return _chosen(first, count, [True], _pair_of_colors, _nouns, with_relation=False)
    if name == "position":
        return _chosen(first, count, RELATIONS, lambda scene: scene.relation, subject)
    return _chosen(first, count, LAYOUTS, _layout, _sentences)


def _chosen(first: int, count: int, kinds: Sequence, kind_of: Callable, words: Callable, with_relation: bool = True) -> list[Prompt]:
    """Scenes from seed `first` on whose kinds are `kinds` in turn, put into words; no words twice."""
    prompts, seed = [], first
    while len(prompts) < count:
        scene = sample_scene(seed)
        text = words(scene, random.Random(seed)) if kind_of(scene) == kinds[len(prompts) % len(kinds)] else None
        if text and text not in {prompt.text for prompt in prompts}:
            prompts.append(Prompt(text, Expectation(scene.groups, scene.relation if with_relation else None), seed))
        seed += 1
    return prompts


def _layout(scene: Scene) -> str:
    if len(scene.things) == 1:
        return "single"
    if len(scene.groups) == 1:
        return "group"
    return "pair" if scene.relation else "mixed"


def _pair_of_colors(scene: Scene) -> bool:
    return _layout(scene) == "pair" and scene.things[0].color != scene.things[1].color


def _nouns(scene: Scene, rng: random.Random) -> str:
    return join([noun(count, color, shape, None, rng) for count, color, shape in scene.groups])


def _sentences(scene: Scene, rng: random.Random) -> str | None:
    """The long form, where it happens to say nothing about the style."""
    text = sentences(scene, rng)
    return None if "The picture is" in text else text

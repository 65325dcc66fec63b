"""Captions in plain English for scenes: a few words to a few sentences, some silent about the style."""

import random

from .scenes import Scene

NUMBERS = ("zero", "one", "two", "three", "four", "five")
QUALITY = {
    "detailed": (
        "highly detailed",
        "extremely complex, the highest quality",
        "ultra-detailed, photorealistic, cinematic",
        "detailed, with texture and shading",
        "intricate and detailed",
    ),
    "flat": ("very simple, no details at all", "low-res, flat, cartoonish", "flat and simple", "simple, flat colors", "plain and simple"),
    "sharp": ("sharp", "in sharp focus", "crisp and sharp"),
    "blurred": ("blurred", "blurry", "low quality, blurred", "out of focus"),
}
GROUND_WORDS = {
    "plain": ("on a plain background", "on a plain {tone} background", "on a {tone} background"),
    "busy": ("on a busy background", "on a busy {tone} background", "with a patterned background"),
}
OPENINGS = ("", "", "", "a picture of ", "a drawing of ", "an image of ")

STYLE_SPOKEN = 0.5  # chance that a caption says whether the picture is detailed or flat
FOCUS_SPOKEN = 0.3  # ... sharp or blurred
GROUND_SPOKEN = 0.4  # ... something about the background
PLACE_SPOKEN = 0.5  # ... where a single object is
SIZE_SPOKEN = 0.3  # ... how large the objects are
STYLE_ONLY = 0.04  # chance of a caption of quality words alone


def noun(count: int, color: str, shape: str, size: str | None, rng: random.Random) -> str:
    """ "a red circle", "three small blue squares"."""
    words = " ".join(word for word in (size, color, shape) if word)
    if count == 1:
        return f"{rng.choices(('a', 'one', 'a single'), (80, 10, 10))[0]} {words}"
    return f"{NUMBERS[count]} {words}{'es' if shape == 'cross' else 's'}"


def join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def style_words(scene: Scene, rng: random.Random, spoken: float = STYLE_SPOKEN) -> list[str]:
    """What the caption says of rendering and focus; often nothing."""
    words = []
    if rng.random() < spoken:
        words.append(rng.choice(QUALITY["detailed" if scene.texture else "flat"]))
    if rng.random() < FOCUS_SPOKEN:
        words.append(rng.choice(QUALITY["blurred" if scene.blurred else "sharp"]))
    return words


def ground_words(scene: Scene, rng: random.Random) -> str:
    phrase = rng.choice(GROUND_WORDS["busy" if scene.ground else "plain"])
    return phrase.format(tone=scene.tone)


def subject(scene: Scene, rng: random.Random) -> str:
    """What is in the picture and where."""
    spoken = rng.random() < SIZE_SPOKEN
    sizes = {(thing.color, thing.shape): thing.size for thing in scene.things if spoken and thing.size != "medium"}
    nouns = [noun(n, color, shape, sizes.get((color, shape)), rng) for n, color, shape in scene.groups]
    if scene.relation:
        link = {"left of": "to the left of", "right of": "to the right of"}.get(scene.relation, scene.relation)
        return f"{nouns[0]} {link} {nouns[1]}"
    if scene.place and rng.random() < PLACE_SPOKEN:
        where = {"center": "in the center", "top": "at the top", "bottom": "at the bottom"}
        return f"{nouns[0]} {where.get(scene.place, f'on the {scene.place}')}"
    rng.shuffle(nouns)
    return join(nouns)


def sentences(scene: Scene, rng: random.Random) -> str:
    """The long form: one sentence for each thing there is to say."""
    total = len(scene.things)
    shapes = "one shape" if total == 1 else f"{NUMBERS[total]} shapes"
    said = [
        rng.choice(
            (
                f"This picture shows {subject(scene, rng)}.",
                f"There are {shapes}: {subject(scene, rng)}." if total > 1 else f"There is only one shape: {subject(scene, rng)}.",
            )
        )
    ]
    said.append(f"The background is {'busy' if scene.ground else 'plain'} and {scene.tone}.")
    for words in style_words(scene, rng):
        said.append(f"The picture is {words}.")
    return " ".join(said)


def caption(scene: Scene, seed: int) -> str:
    """The caption of this scene and seed: short with commas (most), a few sentences, or quality words alone."""
    rng = random.Random(seed * 2 + 1)
    if rng.random() < STYLE_ONLY:
        return ", ".join(style_words(scene, rng, spoken=1.0))
    if rng.random() < 0.25:
        return sentences(scene, rng)
    text = rng.choice(OPENINGS) + subject(scene, rng)
    if rng.random() < GROUND_SPOKEN:
        text += " " + ground_words(scene, rng)
    text = ", ".join([text] + style_words(scene, rng))
    return text if rng.random() < 0.7 else text[0].upper() + text[1:] + "."

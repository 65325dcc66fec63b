"""Procedurally drawn scenes: one to five colored shapes on a grey ground, deterministic by seed.

A scene is a plain value (what is where, in which style); `render` turns it into an 80 x 80 RGB picture. Objects and
patterns are aligned to the picture's 8-pixel grid, the autoencoder's patch, so that a small model can learn them.
"""

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

SIZE = 80  # picture side, pixels
SUPERSAMPLE = 4  # sub-pixels per pixel and axis, for smooth edges
BLUR_RADIUS = 1.5  # pixels, standard deviation of the blurred scenes
GRID = 8  # pixels; every object's center lies on a multiple of it
MARGIN = 3  # pixels kept free at the border
GAP = 5  # pixels kept free between two objects
TEXTURE_DEPTH = 0.45  # how much darker a texture's dark part is
GROUND_DEPTH = 0.22  # ... a busy background's

SHAPES = ("circle", "square", "triangle", "cross")
COLORS = {
    "red": (0.86, 0.16, 0.16),
    "green": (0.15, 0.68, 0.25),
    "blue": (0.18, 0.33, 0.88),
    "yellow": (0.95, 0.82, 0.15),
    "purple": (0.62, 0.20, 0.78),
    "cyan": (0.15, 0.78, 0.85),
}
TONES = {"dark": 0.25, "grey": 0.52, "light": 0.85}  # luminance of the ground
TEXTURES = ("stripes", "bars", "dots", "checks")
GROUNDS = ("tiles", "hatch", "grid")
RARE = frozenset({("purple", "triangle"), ("cyan", "cross"), ("yellow", "circle")})  # never drawn for training

RADII = {"small": 9.0, "medium": 12.5, "large": 17.0}  # half the bounding box, pixels


@dataclass(frozen=True)
class Thing:
    """One object; x, y and radius (half its bounding box) in pixels."""

    shape: str
    color: str
    size: str
    radius: float
    x: float
    y: float


@dataclass(frozen=True)
class Scene:
    """Everything `render` needs. `relation` orders the two groups of a pair scene: the first is `relation` the second."""

    things: tuple[Thing, ...]
    tone: str
    ground: str | None  # pattern of a busy background, None for a plain one
    texture: str | None  # pattern of a detailed rendering, None for a flat one
    blurred: bool
    relation: str | None  # "left of", "right of", "above", "below"
    place: str | None  # of a single object: "left", "right", "top", "bottom", "center"

    @property
    def groups(self) -> tuple[tuple[int, str, str], ...]:
        """(count, color, shape) of each kind of object, in the order drawn."""
        counts: dict[tuple[str, str], int] = {}
        for thing in self.things:
            counts[thing.color, thing.shape] = counts.get((thing.color, thing.shape), 0) + 1
        return tuple((n, color, shape) for (color, shape), n in counts.items())


# ---- drawing up a scene -------------------------------------------------------------------------------------------


def sample_kind(rng: random.Random, rare: bool) -> tuple[str, str]:
    """A (color, shape): a rare one if `rare`, else any other."""
    if rare:
        return rng.choice(sorted(RARE))
    while True:
        kind = rng.choice(list(COLORS)), rng.choice(SHAPES)
        if kind not in RARE:
            return kind


def sample_layout(rng: random.Random) -> tuple[str, list[int]]:
    """(layout, number of objects in each group). Single objects are a third of all scenes."""
    layout = rng.choices(("single", "group", "pair", "mixed"), (35, 28, 25, 12))[0]
    if layout == "single":
        return layout, [1]
    if layout == "group":
        return layout, [rng.randint(2, 5)]
    if layout == "pair":
        return layout, [1, 1]
    return layout, rng.choice(([1, 1, 1], [1, 2], [2, 1], [2, 2], [1, 3], [3, 1], [2, 3], [3, 2]))


def sample_size(rng: random.Random, layout: str, total: int) -> str:
    if layout == "single":
        return rng.choice(("small", "medium", "large"))
    if total == 2:
        return rng.choice(("small", "medium"))
    return "small"


def stops(radius: float) -> list[int]:
    """Where on one axis an object of this radius may have its center, pixels."""
    return [at for at in range(0, SIZE + 1, GRID) if radius + MARGIN <= at <= SIZE - radius - MARGIN]


def single_position(rng: random.Random, place: str, radius: float) -> tuple[float, float]:
    """Center of a lone object near the named place, pixels."""
    axis = stops(radius)
    middle = [at for at in axis if abs(at - SIZE / 2) <= GRID]
    x = {"left": axis[:1], "right": axis[-1:]}.get(place, middle)
    y = {"top": axis[:1], "bottom": axis[-1:]}.get(place, middle)
    return rng.choice(x), rng.choice(y)


def pair_positions(rng: random.Random, relation: str, radii: list[float]) -> list[tuple[float, float]]:
    """Centers of two objects, the first `relation` the second, pixels."""
    first, second = stops(radii[0]), stops(radii[1])
    if relation in ("left of", "above"):
        ends = rng.choice(first[:2]), rng.choice(second[-2:])
    else:
        ends = rng.choice(first[-2:]), rng.choice(second[:2])
    across = rng.choice([at for at in first if at in second])
    if relation in ("left of", "right of"):
        return [(ends[0], across), (ends[1], across)]
    return [(across, ends[0]), (across, ends[1])]


def free_positions(rng: random.Random, radii: list[float]) -> list[tuple[float, float]]:
    """Centers of objects that keep `GAP` from each other, pixels; starts over when the picture is too full."""
    while True:
        centers: list[tuple[float, float]] = []
        for radius in radii:
            for _ in range(60):
                x, y = rng.choice(stops(radius)), rng.choice(stops(radius))
                if all(max(abs(x - u), abs(y - v)) > radius + r + GAP for (u, v), r in zip(centers, radii)):
                    centers.append((x, y))
                    break
        if len(centers) == len(radii):
            return centers


def sample_scene(seed: int, rare: bool = False) -> Scene:
    """The scene of this seed. With `rare`, its first kind of object is one of `RARE`; without, none is."""
    rng = random.Random(seed)
    layout, counts = sample_layout(rng)
    kinds = [sample_kind(rng, rare)]
    while len(kinds) < len(counts):
        kind = sample_kind(rng, False)
        if kind not in kinds:
            kinds.append(kind)
    total = sum(counts)
    named = [kind for kind, n in zip(kinds, counts) for _ in range(n)]
    sizes = [sample_size(rng, layout, total) for _ in counts]
    sizes = [size for size, n in zip(sizes, counts) for _ in range(n)]
    radii = [RADII[size] for size in sizes]

    relation = place = None
    if layout == "single":
        place = rng.choice(("left", "right", "top", "bottom", "center"))
        centers = [single_position(rng, place, radii[0])]
    elif layout == "pair":
        relation = rng.choice(("left of", "right of", "above", "below"))
        centers = pair_positions(rng, relation, radii)
    else:
        centers = free_positions(rng, radii)

    detailed = rng.random() < 0.5
    busy = rng.random() < (0.55 if detailed else 0.15)
    return Scene(
        things=tuple(Thing(shape, color, size, radius, x, y) for (color, shape), size, radius, (x, y) in zip(named, sizes, radii, centers)),
        tone=rng.choice(list(TONES)),
        ground=rng.choice(GROUNDS) if busy else None,
        texture=rng.choice(TEXTURES) if detailed else None,
        blurred=rng.random() < 0.25,
        relation=relation,
        place=place,
    )


# ---- painting -----------------------------------------------------------------------------------------------------


def inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Membership of a point in a shape; (u, v) is (right, down) in [-1, 1] over the shape's bounding box."""
    if shape == "circle":
        return u * u + v * v <= 1
    if shape == "square":
        return (abs(u) <= 1) & (abs(v) <= 1)
    if shape == "triangle":
        return (abs(u) <= (v + 1) / 2) & (v <= 1)
    return ((abs(u) <= 0.36) & (abs(v) <= 1)) | ((abs(v) <= 0.36) & (abs(u) <= 1))


def pattern(name: str) -> np.ndarray:
    """(SIZE, SIZE) in {0, 1}, period 8 pixels: the dark part of a texture or ground."""
    y, x = np.mgrid[:SIZE, :SIZE]
    if name in ("stripes", "hatch"):
        return ((x + y) // 4 % 2).astype(np.float32)
    if name == "bars":
        return (y // 4 % 2).astype(np.float32)
    if name in ("checks", "tiles"):
        return ((x // 4 + y // 4) % 2).astype(np.float32)
    if name == "dots":
        return ((x % 8 - 3.5) ** 2 + (y % 8 - 3.5) ** 2 < 7.5).astype(np.float32)
    return ((x % 8 < 2) | (y % 8 < 2)).astype(np.float32)  # grid


def coverage(thing: Thing, shrink: float = 0.0) -> np.ndarray:
    """(SIZE, SIZE) in [0, 1]: how much of each pixel the object covers, its outline drawn in by `shrink` pixels."""
    radius = thing.radius * (0.95 if thing.shape == "square" else 1.0)
    scale = 1 / (radius - shrink)
    left, top = (max(int(center - radius), 0) for center in (thing.x, thing.y))
    right, bottom = (min(int(center + radius) + 1, SIZE) for center in (thing.x, thing.y))
    across = (np.arange((right - left) * SUPERSAMPLE) + 0.5) / SUPERSAMPLE + left
    down = (np.arange((bottom - top) * SUPERSAMPLE) + 0.5) / SUPERSAMPLE + top
    hit = inside(thing.shape, *np.meshgrid((across - thing.x) * scale, (down - thing.y) * scale))
    cover = np.zeros((SIZE, SIZE), dtype=np.float32)
    cover[top:bottom, left:right] = hit.reshape(bottom - top, SUPERSAMPLE, right - left, SUPERSAMPLE).mean((1, 3))
    return cover


def paint(canvas: np.ndarray, thing: Thing, texture: str | None) -> np.ndarray:
    """`canvas` (SIZE, SIZE, 3) with the object on it: one flat color, or outline, texture and light from above."""
    color = np.array(COLORS[thing.color], dtype=np.float32)
    cover = coverage(thing)[..., None]
    if texture is None:
        return canvas * (1 - cover) + color * cover
    height = (np.arange(SIZE, dtype=np.float32) - thing.y) / thing.radius
    light = np.clip(1.05 - 0.15 * height, 0.85, 1.2)[:, None, None] * (1 - TEXTURE_DEPTH * pattern(texture)[..., None])
    canvas = canvas * (1 - cover) + 0.3 * color * cover
    fill = coverage(thing, shrink=1.5)[..., None]
    return canvas * (1 - fill) + np.clip(color * light, 0, 1) * fill


def render(scene: Scene) -> np.ndarray:
    """(SIZE, SIZE, 3) uint8 picture of the scene."""
    canvas = np.full((SIZE, SIZE, 3), TONES[scene.tone], dtype=np.float32)
    if scene.ground:
        canvas = canvas * (1 - GROUND_DEPTH * pattern(scene.ground)[..., None])
    for thing in scene.things:
        canvas = paint(canvas, thing, scene.texture)
    picture = Image.fromarray((canvas * 255 + 0.5).astype(np.uint8))
    if scene.blurred:
        picture = picture.filter(ImageFilter.GaussianBlur(BLUR_RADIUS))
    return np.asarray(picture)

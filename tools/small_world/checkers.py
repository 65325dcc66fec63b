"""Checkers: read a picture back without a model, and score it against what a prompt asked for.

Objects are the saturated parts of the picture (grounds are grey): hue gives the color, the overlap with each shape's
own outline gives the shape. Detail and sharpness are measured quantities; their thresholds lie between the two kinds
of drawn scenes and were set on training scenes, before the held-out ones were read.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from .scenes import COLORS, RADII, SHAPES, SIZE, Scene, Thing, render

MIN_CHROMA = 0.14  # max - min channel of a colored pixel, in [0, 1]
MIN_SATURATION = 0.30  # (max - min) / max of a colored pixel
MIN_AREA = 40  # pixels; the smallest drawn object has about 110
EDGE_SATURATION = 0.5  # of an object's own saturation, and
EDGE_CHROMA = 0.33  # of its own chroma: where its outline is put
EDGE_STEPS = 16  # steps that sharpness looks at; the smallest object's edge crosses about 70
TEMPLATE = 24  # points a side at which shapes are compared
DETAILED_ABOVE = 0.045  # `Reading.detail` of a detailed picture
SHARP_ABOVE = 0.36  # `Reading.sharpness` of a sharp picture


@dataclass(frozen=True)
class Found:
    """One object read from a picture; x and y are its bounding box's center, pixels; area in pixels."""

    color: str
    shape: str
    x: float
    y: float
    area: int


@dataclass(frozen=True)
class Reading:
    """What a picture shows.

    detail: contrast of the texture inside the objects, standard deviation of luma over its mean, mean over objects.
    gradient: mean absolute luma gradient of the whole picture, in 8-bit steps a pixel.
    sharpness: steepness of the objects' edges, the largest steps between two pixels over the object's own chroma, mean
    over objects; about 0.25 under the drawn blur, 0.5 to 1 without.
    ground: mean luma outside the objects.
    """

    things: tuple[Found, ...]
    detail: float
    gradient: float
    sharpness: float
    ground: float

    @property
    def detailed(self) -> bool:
        return self.detail > DETAILED_ABOVE

    @property
    def sharp(self) -> bool:
        return self.sharpness > SHARP_ABOVE


@dataclass(frozen=True)
class Expectation:
    """What a prompt asks for: (count, color, shape) groups, and for pairs the relation of the first to the second."""

    groups: tuple[tuple[int, str, str], ...]
    relation: str | None = None


def hue(rgb: np.ndarray) -> np.ndarray:
    """Angle of the color in the plane of greys' normal, radians; rgb (..., 3)."""
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    return np.arctan2(np.sqrt(3) * (g - b), 2 * r - g - b)


def nearest_color(rgb: np.ndarray) -> np.ndarray:
    """Index into COLORS of the nearest hue, for each pixel of rgb (..., 3)."""
    hues = np.array([hue(np.array(color)) for color in COLORS.values()])
    away = np.abs(np.angle(np.exp(1j * (hue(rgb)[..., None] - hues))))
    return away.argmin(-1)


def stretch(mask: np.ndarray) -> np.ndarray:
    """The mask stretched to TEMPLATE x TEMPLATE points."""
    rows, columns = (((np.arange(TEMPLATE) + 0.5) * length / TEMPLATE).astype(int) for length in mask.shape)
    return mask[np.ix_(rows, columns)]


@cache
def templates() -> list[tuple[str, np.ndarray]]:
    """(shape, stretched mask) of every shape, drawn in each size, sharp and blurred, and cut out as objects are."""
    found = []
    for shape in SHAPES:
        for size, radius in RADII.items():
            for blurred in (False, True):
                thing = Thing(shape, "red", size, radius, SIZE / 2, SIZE / 2)
                drawn = render(Scene((thing,), "grey", None, None, blurred, None, None))
                ((_, mask),) = cut_out(drawn.astype(np.float32) / 255)
                found.append((shape, stretch(trim(mask))))
    return found


def trim(mask: np.ndarray) -> np.ndarray:
    """The mask's bounding box."""
    return mask[ndimage.find_objects(mask.astype(int))[0]]


def shape_of(mask: np.ndarray) -> str:
    """The shape of the template that overlaps the mask best (intersection over union)."""
    seen = stretch(trim(mask))
    return max(templates(), key=lambda drawn: (seen & drawn[1]).sum() / (seen | drawn[1]).sum())[0]


def cut_out(rgb: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """(color, mask (H, W)) of each object in rgb (H, W, 3) in [0, 1]."""
    top = rgb.max(-1)
    chroma = top - rgb.min(-1)
    saturation = chroma / np.maximum(top, 1e-3)
    colored = (chroma > MIN_CHROMA) & (saturation > MIN_SATURATION)
    nearest = nearest_color(rgb)
    objects = []
    for index, color in enumerate(COLORS):
        labels, count = ndimage.label(colored & (nearest == index))
        for label in range(1, count + 1):
            part = labels == label
            if part.sum() < MIN_AREA:
                continue
            for value, fraction in ((saturation, EDGE_SATURATION), (chroma, EDGE_CHROMA)):
                part = part & (value > fraction * np.percentile(value[part], 80))
            pieces, _ = ndimage.label(part)
            part = ndimage.binary_fill_holes(pieces == np.bincount(pieces[part]).argmax())
            if part.sum() >= MIN_AREA:
                objects.append((color, part))
    return objects


def find_objects(rgb: np.ndarray) -> list[tuple[Found, np.ndarray]]:
    """Objects of rgb (H, W, 3) in [0, 1], each with its mask (H, W)."""
    found = []
    for color, mask in cut_out(rgb):
        rows, columns = ndimage.find_objects(mask.astype(int))[0]
        x, y = (columns.start + columns.stop) / 2, (rows.start + rows.stop) / 2
        found.append((Found(color, shape_of(mask), x, y, int(mask.sum())), mask))
    return found


def texture_contrast(luma: np.ndarray, mask: np.ndarray) -> float:
    """Standard deviation over mean of luma inside the mask, its outermost pixels left out."""
    for depth in (3, 2, 1):
        inner = ndimage.binary_erosion(mask, iterations=depth)
        if inner.sum() >= 30:
            return float(luma[inner].std() / luma[inner].mean())
    return 0.0


def edge_steepness(chroma: np.ndarray, mask: np.ndarray) -> float:
    """Mean of the EDGE_STEPS largest chroma steps a pixel at or in the mask, over the mask's own chroma."""
    near = ndimage.binary_dilation(mask, iterations=3)
    steps = np.concatenate([np.abs(np.diff(chroma, axis=axis))[(near[1:] if axis == 0 else near[:, 1:])] for axis in (0, 1)])
    return float(np.sort(steps)[-EDGE_STEPS:].mean() / np.percentile(chroma[mask], 90))


def read_picture(picture: np.ndarray) -> Reading:
    """Read a picture (H, W, 3), uint8 or float in [0, 1]."""
    rgb = np.asarray(picture, dtype=np.float32)
    if np.asarray(picture).dtype == np.uint8:
        rgb = rgb / 255
    luma = rgb @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    objects = find_objects(rgb)
    down, right = np.gradient(luma)
    chroma = rgb.max(-1) - rgb.min(-1)
    detail = [texture_contrast(luma, mask) for _, mask in objects]
    steepness = [edge_steepness(chroma, mask) for _, mask in objects]
    outside = ~np.any([mask for _, mask in objects], axis=0) if objects else np.ones(luma.shape, bool)
    return Reading(
        things=tuple(found for found, _ in objects),
        detail=float(np.mean(detail)) if objects else 0.0,
        gradient=float((np.abs(down) + np.abs(right)).mean() * 255),
        sharpness=float(np.mean(steepness)) if objects else 0.0,
        ground=float(luma[outside].mean()),
    )


def relation_holds(reading: Reading, wanted: Expectation) -> bool:
    """Whether the first group lies on the right side of the second, by the mean of their centers.

    The offset must point in the asked direction more than across it.
    """
    centers = []
    for _, color, shape in wanted.groups:
        members = [(thing.x, thing.y) for thing in reading.things if (thing.color, thing.shape) == (color, shape)]
        if not members:
            return False
        centers.append(np.mean(members, axis=0))
    dx, dy = centers[0] - centers[1]
    along, across = (dx, dy) if wanted.relation in ("left of", "right of") else (dy, dx)
    sign = -1 if wanted.relation in ("left of", "above") else 1
    return bool(along * sign > abs(across))


def score(reading: Reading, wanted: Expectation) -> dict[str, float | bool | None]:
    """Scores of one picture: each of count, color, shape, position right or wrong, and the measured style.

    count: as many objects as asked. color, shape: the set of colors (shapes) seen is the set asked for.
    exact: every (count, color, shape) group as asked and nothing else. position: None where no relation was asked.
    """
    seen: dict[tuple[str, str], int] = {}
    for thing in reading.things:
        seen[thing.color, thing.shape] = seen.get((thing.color, thing.shape), 0) + 1
    return {
        "count": len(reading.things) == sum(n for n, _, _ in wanted.groups),
        "color": {color for color, _ in seen} == {color for _, color, _ in wanted.groups},
        "shape": {shape for _, shape in seen} == {shape for _, _, shape in wanted.groups},
        "exact": seen == {(color, shape): n for n, color, shape in wanted.groups},
        "position": relation_holds(reading, wanted) if wanted.relation else None,
        "detail": reading.detail,
        "gradient": reading.gradient,
        "sharpness": reading.sharpness,
        "ground": reading.ground,
    }

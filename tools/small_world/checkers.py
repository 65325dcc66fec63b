"""Checkers: read a picture back without a model, and score it against what a prompt asked for.

Objects are the saturated parts of the picture (grounds are grey): hue gives the color, the overlap with each shape's
own outline gives the shape. Detail and sharpness are measured quantities; their thresholds lie between the two kinds
of drawn scenes and were set on training scenes, before the held-out ones were read.
"""
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .scenes import COLORS, SHAPES, inside

MIN_CHROMA = 0.14      # max - min channel of a colored pixel, in [0, 1]
MIN_SATURATION = 0.30  # (max - min) / max of a colored pixel
MIN_AREA = 40          # pixels; the smallest drawn object has about 110
EDGE_SATURATION = 0.5  # of an object's own saturation, and
EDGE_CHROMA = 0.33     # of its own chroma: where its outline is put
DETAILED_ABOVE = 0.045 # `Reading.detail` of a detailed picture
SHARP_ABOVE = 0.45     # `Reading.sharpness` of a sharp picture


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
    sharpness: energy of the Laplacian over the energy of the gradient, higher where edges are steep.
    """
    things: tuple[Found, ...]
    detail: float
    gradient: float
    sharpness: float

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


def shape_of(mask: np.ndarray) -> str:
    """The shape whose outline overlaps the mask best (intersection over union).

    Outlines are fitted to the mask's bounding box; a triangle's may also rise above it, as blur eats its tip.
    """
    height, width = mask.shape
    overlaps = {}
    for shape in SHAPES:
        for lost in (0.0, 0.15, 0.3) if shape == "triangle" else (0.0,):
            u, v = np.meshgrid((np.arange(width) + 0.5) * 2 / width - 1,
                               (np.arange(height) + 0.5) * (2 - lost) / height - 1 + lost)
            outline = inside(shape, u, v)
            overlap = (mask & outline).sum() / (mask | outline).sum()
            overlaps[shape] = max(overlap, overlaps.get(shape, 0.0))
    return max(overlaps, key=overlaps.get)


def find_objects(rgb: np.ndarray) -> list[tuple[Found, np.ndarray]]:
    """Objects of rgb (H, W, 3) in [0, 1], each with its mask (H, W)."""
    top = rgb.max(-1)
    chroma = top - rgb.min(-1)
    saturation = chroma / np.maximum(top, 1e-3)
    colored = (chroma > MIN_CHROMA) & (saturation > MIN_SATURATION)
    nearest = nearest_color(rgb)
    found = []
    for index, color in enumerate(COLORS):
        labels, count = ndimage.label(colored & (nearest == index))
        for label, box in enumerate(ndimage.find_objects(labels), 1):
            part = labels[box] == label
            if part.sum() < MIN_AREA:
                continue
            for value, fraction in ((saturation[box], EDGE_SATURATION), (chroma[box], EDGE_CHROMA)):
                part = part & (value > fraction * np.percentile(value[part], 80))
            kept, _ = ndimage.label(part)
            part = ndimage.binary_fill_holes(kept == np.bincount(kept[part]).argmax())
            if part.sum() < MIN_AREA:
                continue
            rows, columns = np.nonzero(part.any(1))[0], np.nonzero(part.any(0))[0]
            tight = part[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
            x = box[1].start + (columns[0] + columns[-1] + 1) / 2
            y = box[0].start + (rows[0] + rows[-1] + 1) / 2
            mask = np.zeros(colored.shape, dtype=bool)
            mask[box] = part
            found.append((Found(color, shape_of(tight), x, y, int(part.sum())), mask))
    return found


def texture_contrast(luma: np.ndarray, mask: np.ndarray) -> float:
    """Standard deviation over mean of luma inside the mask, its outermost pixels left out."""
    for depth in (3, 2, 1):
        inner = ndimage.binary_erosion(mask, iterations=depth)
        if inner.sum() >= 16:
            return float(luma[inner].std() / luma[inner].mean())
    return 0.0


def read_picture(picture: np.ndarray) -> Reading:
    """Read a picture (H, W, 3), uint8 or float in [0, 1]."""
    rgb = np.asarray(picture, dtype=np.float32)
    if np.asarray(picture).dtype == np.uint8:
        rgb = rgb / 255
    luma = rgb @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    objects = find_objects(rgb)
    down, right = np.gradient(luma)
    laplacian = ndimage.laplace(luma)
    return Reading(
        things=tuple(found for found, _ in objects),
        detail=float(np.mean([texture_contrast(luma, mask) for _, mask in objects])) if objects else 0.0,
        gradient=float((np.abs(down) + np.abs(right)).mean() * 255),
        sharpness=float((laplacian ** 2).sum() / max((down ** 2 + right ** 2).sum(), 1e-6)) / 4,
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
    }

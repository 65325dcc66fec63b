"""Drawn pictures: grids of pictures, and diagrams. All sizes follow from the pictures' own, so that text stays readable."""

import re

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

INK, FAINT, PAPER, ALARM = (24, 24, 28), (208, 208, 214), (255, 255, 255), (196, 30, 30)
# Colors that the color-blind can tell apart (Okabe and Ito 2008).
COLORS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (120, 120, 120))

SMALLEST_CELL = 224  # pixels; smaller pictures are enlarged, or nothing could be written above them
LARGEST_SIDE = 8192

_LABEL = re.compile(r"w (\S+?)(?:, start (\d+))?")


def to_image(picture: Image.Image) -> Tensor:
    """(1, H, W, 3) in [0, 1], the host's IMAGE."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255).unsqueeze(0)


def from_image(images: Tensor) -> Image.Image:
    """A picture of an IMAGE batch (B, H, W, C); several side by side in rows."""
    pixels = (images[..., :3].clamp(0, 1) * 255).round().byte().cpu()
    pixels = pixels.expand(*pixels.shape[:3], 3)  # masks and the like have one channel
    count, height, width, _ = pixels.shape
    columns = _columns(count, height / width)
    rows = -(-count // columns)
    picture = Image.new("RGB", (columns * width, rows * height), PAPER)
    for i, one in enumerate(pixels):
        picture.paste(Image.fromarray(one.numpy()), (i % columns * width, i // columns * height))
    return picture


def font(size: float):
    """Pillow's own; size: the height in pixels."""
    return ImageFont.load_default(max(round(size), 8))


def grid(pictures: list[Image.Image], labels: list[str], title: str = "") -> Image.Image:
    """All pictures in one: w across and start layers down where the labels of a sweep say so, else each under its label."""
    cell = tuple(max(picture.size[axis] for picture in pictures) for axis in (0, 1))
    factor = max(1.0, SMALLEST_CELL / cell[0])
    cell = tuple(round(side * factor) for side in cell)
    pictures = [picture.resize(tuple(round(side * factor) for side in picture.size), Image.LANCZOS) for picture in pictures]
    axes = _axes(labels)
    if axes is None:
        columns = _columns(len(pictures), cell[1] / cell[0])
        cells = {(i % columns, i // columns): (picture, label) for i, (picture, label) in enumerate(zip(pictures, labels, strict=True))}
        drawn = _table(cells, cell, [""] * columns, [""] * -(-len(pictures) // columns), title)
    else:
        scales, starts, places = axes
        cells = {place: (picture, "") for picture, its in zip(pictures, places, strict=True) for place in its}
        drawn = _table(cells, cell, [f"w {w}" for w in scales], [f"start layer {start}" for start in starts], title)
    if max(drawn.size) > LARGEST_SIDE:
        drawn.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.LANCZOS)
    return drawn


def _axes(labels: list[str]):
    """(w of each column, start layer of each row, the places of each picture), or None unless the labels are a sweep's.

    What has no start layer, the model at w 0, stands in every row.
    """
    matches = [_LABEL.fullmatch(label) for label in labels]
    if not all(matches) or not any(match[2] for match in matches):
        return None
    scales = list(dict.fromkeys(match[1] for match in matches))
    starts = list(dict.fromkeys(match[2] for match in matches if match[2]))
    places = [
        [(scales.index(match[1]), row) for row in ([starts.index(match[2])] if match[2] else range(len(starts)))] for match in matches
    ]
    taken = [place for its in places for place in its]
    return (scales, starts, places) if len(set(taken)) == len(taken) else None


def _columns(count: int, tallness: float) -> int:
    """Of a wrapped grid about as wide as tall."""
    return min(count, max(1, round((count * tallness) ** 0.5)))


def _table(cells: dict, cell: tuple[int, int], columns: list[str], rows: list[str], title: str) -> Image.Image:
    """cells: (column, row) -> (picture, what is written below it)."""
    gap = max(4, round(cell[0] / 40))
    size = max(13, cell[0] / 14)
    text = font(size)
    captions = {place: wrapped(caption, text, cell[0]) for place, (_, caption) in cells.items()}
    below = max(map(len, captions.values())) * line_height(text)
    beside = max((round(text.getlength(row)) for row in rows), default=0)
    beside = min(beside, cell[0] // 2) + gap if beside else 0
    above = line_height(text) + gap if any(columns) else 0
    width = beside + len(columns) * (cell[0] + gap) + gap
    heading = font(size * 1.25)
    lines = wrapped(title, heading, width - 2 * gap)
    top = gap + len(lines) * line_height(heading) + (gap if lines else 0) + above
    picture = Image.new("RGB", (width, top + len(rows) * (cell[1] + below + gap)), PAPER)
    draw = ImageDraw.Draw(picture)
    for i, line in enumerate(lines):
        draw.text((gap, gap + i * line_height(heading)), line, INK, heading)
    for i, column in enumerate(columns):
        fitting = fitted(column, size, cell[0])
        draw.text((beside + gap + i * (cell[0] + gap) + cell[0] / 2, top - gap), column, INK, fitting, anchor="md")
    for i, row in enumerate(rows if beside else ()):
        fitting = fitted(row, size, beside - gap)
        draw.text((beside, top + i * (cell[1] + below + gap) + cell[1] / 2), row, INK, fitting, anchor="rm")
    for (column, row), (one, _) in cells.items():
        left, upper = beside + gap + column * (cell[0] + gap), top + row * (cell[1] + below + gap)
        picture.paste(one, (left + (cell[0] - one.width) // 2, upper + (cell[1] - one.height) // 2))
        for i, line in enumerate(captions[column, row]):
            draw.text((left + cell[0] / 2, upper + cell[1] + i * line_height(text)), line, INK, text, anchor="ma")
    return picture


def line_height(text) -> int:
    return round(sum(text.getmetrics()) * 1.1)


def fitted(line: str, size: float, width: float):
    """The font in which the line is `size` high, or less where it would be wider than `width`."""
    length = font(size).getlength(line)
    return font(size if length <= width else size * width / length)


def wrapped(text: str, letters, width: float, most: int = 6) -> list[str]:
    """Lines no wider than `width`, cut between words or, in longer ones, anywhere; past `most` lines, dots."""
    lines = []
    for paragraph in text.strip().splitlines():
        line = ""
        for word in paragraph.split():
            joined = f"{line} {word}" if line else word
            if letters.getlength(joined) <= width:
                line = joined
                continue
            if line:
                lines.append(line)
            while letters.getlength(word) > width and len(word) > 1:
                cut = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or letters.getlength(word[:n]) <= width)
                lines.append(word[:cut])
                word = word[cut:]
            line = word
        if line:
            lines.append(line)
    if len(lines) > most:
        lines = [*lines[:most - 1], lines[most - 1].rstrip(".") + " ..."]
    return lines

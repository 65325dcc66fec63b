"""Drawn pictures: grids of pictures, and diagrams. All sizes follow from the pictures' own, so that text stays readable."""

import bisect
import itertools

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .labels import parts

INK, FAINT, PAPER, ALARM = (24, 24, 28), (208, 208, 214), (255, 255, 255), (196, 30, 30)
# Colors that the color-blind can tell apart (Okabe and Ito 2008).
COLORS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (120, 120, 120))

SMALLEST_CELL = 224  # pixels; smaller pictures are enlarged, or nothing could be written above them
TALLEST_ENLARGED = 4 * SMALLEST_CELL
LARGEST_SIDE = 8192


def to_image(picture: Image.Image) -> Tensor:
    """(1, H, W, 3) in [0, 1], the host's IMAGE."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255).unsqueeze(0)


def from_image(images: Tensor) -> Image.Image:
    """A picture of an IMAGE batch (B, H, W, C), C 1, or 3 and more; several side by side in rows."""
    pixels = (images[..., :3].float().clamp(0, 1) * 255).round().byte().cpu()
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
    largest = tuple(max(picture.size[axis] for picture in pictures) for axis in (0, 1))
    axes = _axes(labels)
    if axes is None:
        across = _columns(len(pictures), largest[1] / largest[0])
        columns, rows = [""] * across, [""] * -(-len(pictures) // across)
        places, captions = [[(i % across, i // across)] for i in range(len(pictures))], labels
    else:
        scales, starts, places = axes
        columns, rows = [shortened(scale) for scale in scales], [shortened(f"start layer {start}") for start in starts]
        captions = [""] * len(pictures)
    factor = _factor(largest, len(columns), len(rows))
    pictures = [picture.resize(tuple(max(round(side * factor), 1) for side in picture.size), Image.LANCZOS) for picture in pictures]
    width = max(round(largest[0] * factor), min(SMALLEST_CELL, LARGEST_SIDE // len(columns)), 1)
    cells = {place: (picture, caption) for picture, caption, its in zip(pictures, captions, places, strict=True) for place in its}
    drawn = _table(cells, (width, max(round(largest[1] * factor), 1)), columns, rows, title)
    if max(drawn.size) > LARGEST_SIDE:
        drawn.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.LANCZOS)
    return drawn


def _factor(largest: tuple[int, int], columns: int, rows: int) -> float:
    """Enlarges small pictures, unless they would become towers; keeps all together from being larger than the grid may be."""
    width, height = largest
    enlarged = max(1.0, min(SMALLEST_CELL / width, TALLEST_ENLARGED / height))
    return min(enlarged, LARGEST_SIDE / (columns * width), LARGEST_SIDE / (rows * height))


def _axes(labels: list[str]):
    """(heading of each column, start layer of each row, the places of each picture), or None unless the labels are a sweep's.

    What has no start layer, the plain picture or the model at w 0, stands in every row.
    """
    matches = [parts(label) for label in labels]
    if not all(matches) or not any(start for _, start in matches):
        return None
    scales = list(dict.fromkeys(scale for scale, _ in matches))
    starts = list(dict.fromkeys(start for _, start in matches if start))
    places = [[(scales.index(scale), row) for row in ([starts.index(start)] if start else range(len(starts)))] for scale, start in matches]
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


def shortened(line: str, most: int = 40) -> str:
    """The line, or its beginning and dots: what is written small rather than in several lines."""
    return line if len(line) <= most else line[:most] + " ..."


def wrapped(text: str, letters, width: float, most: int = 6) -> list[str]:
    """Lines no wider than `width`, cut between words or, in longer ones, anywhere; past `most` lines, dots."""
    lines = list(itertools.islice(_lines(text, letters, width), most + 1))
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1].rstrip(".") + " ..."]
    return lines


def _lines(text: str, letters, width: float):
    for paragraph in text.strip().splitlines():
        line = ""
        for word in paragraph.split():
            joined = f"{line} {word}" if line else word
            if _fits(joined, letters, width):
                line = joined
                continue
            if line:
                yield line
            while not _fits(word, letters, width) and len(word) > 1:
                cut = bisect.bisect(range(2, _most_letters(width) + 1), False, key=lambda n: not _fits(word[:n], letters, width)) + 1
                yield word[:cut]
                word = word[cut:]
            line = word
        if line:
            yield line


def _fits(line: str, letters, width: float) -> bool:
    # Measuring takes as long as the line is, whose letters are a pixel wide or more.
    return len(line) <= _most_letters(width) and letters.getlength(line) <= width


def _most_letters(width: float) -> int:
    return max(round(width), 1)

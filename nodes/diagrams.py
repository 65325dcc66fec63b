"""The picture of Inspect Guidance: cosines as matrices, strengths as a bar or a line over the layers."""

import math

from PIL import Image, ImageDraw

from ..model_patches.inspection import Inspection
from ..model_patches.telling import BURNING
from .pictures import ALARM, COLORS, FAINT, INK, PAPER, fitted, font, line_height, shortened, wrapped

WIDTH, MARGIN = 1280, 32
TEXT, SMALL = font(22), font(18)


def inspection_picture(inspection: Inspection, labels: list[str], w: float) -> Image.Image:
    """(PIL) 1280 wide, as tall as it needs."""
    labels = [shortened(label) for label in labels]
    heading = f"{inspection.family}, {inspection.depth} layers, w {w:g}"
    matrices = [("cosines of pooled outputs", inspection.pooled), ("cosines of shifts of y", inspection.modulation)]
    side = (WIDTH - 3 * MARGIN) // 2
    compared = line_height(TEXT) + side + MARGIN if len(labels) > 1 else 0
    warnings = [line for warning in inspection.warnings for line in wrapped(f"! {warning}", TEXT, WIDTH - 2 * MARGIN)]
    chart_height = 460
    legend = _legend_rows(labels)
    height = (
        MARGIN
        + 48
        + compared
        + (2 * line_height(TEXT) + chart_height + MARGIN)
        + len(legend) * line_height(SMALL)
        + len(warnings) * line_height(TEXT)
        + MARGIN
    )
    picture = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN), heading, INK, font(32))
    top = MARGIN + 48
    for i, (name, matrix) in enumerate(matrices if compared else ()):
        left = MARGIN + i * (side + MARGIN)
        draw.text((left, top), name, INK, TEXT)
        _matrix(draw, matrix, labels, left, top + line_height(TEXT), side)
    top += compared
    draw.text((MARGIN, top), "strength at each layer: |w shift of y| / |y|", INK, TEXT)
    top += round(1.6 * line_height(TEXT))
    _strengths(draw, inspection.strengths, MARGIN, top, WIDTH - 2 * MARGIN, chart_height)
    top += chart_height + MARGIN // 2
    for row in legend:
        for left, label, color in row:
            draw.rectangle((left, top + 4, left + 18, top + 18), fill=color)
            draw.text((left + 26, top), label, INK, SMALL)
        top += line_height(SMALL)
    top += MARGIN // 2
    for line in warnings:
        draw.text((MARGIN, top), line, ALARM, TEXT)
        top += line_height(TEXT)
    return picture


def color_of(direction: int):
    return COLORS[direction % len(COLORS)]


def _legend_rows(labels):
    """[[(left, label, color)]], as many in a row as fit."""
    rows, left = [[]], MARGIN
    for i, label in enumerate(labels):
        length = 26 + SMALL.getlength(label) + MARGIN
        if rows[-1] and left + length > WIDTH - MARGIN:
            rows.append([])
            left = MARGIN
        rows[-1].append((left, label, color_of(i)))
        left += length
    return rows


def _matrix(draw, matrix, labels, left, top, side):
    """Blue for alike, red for opposite, white for unrelated."""
    if matrix is None:
        draw.text((left, top), "the directions hold no pooled outputs of one kind", INK, SMALL)
        return
    names = side // 4
    cell = (side - names) / len(labels)
    for i, label in enumerate(labels):
        draw.text(
            (left + names - 8, top + names + (i + 0.5) * cell), label, INK, fitted(label, min(22, cell * 0.8), names - 8), anchor="rm"
        )
        _upright(draw, (left + names + (i + 0.5) * cell, top + names - 8), label, min(22, cell * 0.8), names - 8)
        for j, cosine in enumerate(matrix[i]):
            x, y = left + names + j * cell, top + names + i * cell
            tint = COLORS[0] if cosine > 0 else COLORS[1]
            color = tuple(round(255 + (part - 255) * abs(cosine)) for part in tint)
            draw.rectangle((x, y, x + cell - 2, y + cell - 2), fill=color)
            number = f"{cosine:.2f}".replace("-0.00", "0.00")
            letters = fitted(number, min(26, cell * 0.4), cell * 0.9)
            draw.text((x + cell / 2, y + cell / 2), number, PAPER if abs(cosine) > 0.6 else INK, letters, anchor="mm")


def _upright(draw, at, label, size, length):
    """The label turned by a quarter, its end at `at`."""
    letters = fitted(label, size, length)
    width, height = round(letters.getlength(label)) + 2, line_height(letters)
    turned = Image.new("L", (width, height), 0)
    ImageDraw.Draw(turned).text((0, 0), label, 255, letters)
    turned = turned.rotate(90, expand=True)
    draw.bitmap((round(at[0] - height / 2), round(at[1] - width)), turned, INK)


def _strengths(draw, strengths, left, top, width, height):
    """Bars for one direction, lines for several; the head stands apart at the right end."""
    axis, foot = 64, 32
    depth = len(strengths[0]) - 1
    highest = max([value for layers in strengths for value in layers if not math.isnan(value)] + [0.01])
    step = _tick(highest)
    ceiling = math.ceil(highest / step) * step
    slot = (width - axis) / (depth + 2)

    def at(layer, value):
        return left + axis + (layer + 0.5 + (layer == depth) * 0.5) * slot, top + (height - foot) * (1 - value / ceiling)

    for i in range(round(ceiling / step) + 1):
        y = at(0, i * step)[1]
        draw.line((left + axis, y, left + width, y), FAINT)
        draw.text((left + axis - 8, y), f"{i * step:g}", INK, SMALL, anchor="rm")
    every = max(1, math.ceil(depth * 28 / width))
    for layer in range(0, depth, every):
        draw.text((at(layer, 0)[0], top + height - foot + 6), str(layer), INK, SMALL, anchor="ma")
    draw.text((at(depth, 0)[0], top + height - foot + 6), "output", INK, SMALL, anchor="ma")
    for i, layers in enumerate(strengths):
        color = color_of(i)
        if len(strengths) == 1:
            for layer, value in enumerate(layers):
                if value > 0:
                    x, y = at(layer, value)
                    draw.rectangle((x - slot * 0.4, y, x + slot * 0.4, top + height - foot), fill=color)
            continue
        # Equal values would hide each other: later lines are thinner.
        thickness = max(2, 7 - 2 * i)
        points = [at(layer, value) for layer, value in enumerate(layers[:-1])]
        draw.line(points, color, thickness, joint="curve")
        for x, y in points + ([] if math.isnan(layers[-1]) else [at(depth, layers[-1])]):
            radius = thickness / 2 + 2
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    if ceiling >= BURNING:
        y = at(0, BURNING)[1]
        draw.line((left + axis, y, left + width, y), ALARM, 3)
        draw.text((left + width, y - 4), "burns from here on", ALARM, SMALL, anchor="rd")


def _tick(highest):
    """A round number that divides the axis in two to five."""
    size = 10 ** math.floor(math.log10(highest))
    return next(size * part for part in (0.2, 0.5, 1, 2) if highest / (size * part) <= 5)

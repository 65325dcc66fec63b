"""The picture of Choose Guidance: every setting as a point, wanted against kept, the reason in words, and a table."""

import math

from PIL import Image, ImageDraw

from ..scoring.choice import Choice, Scored, change, shown
from .labels import parts
from .pictures import ALARM, COLORS, FAINT, INK, PAPER, font, line_height, shortened, wrapped

WIDTH, MARGIN = 1280, 32
HEADING, TEXT, SMALL = font(32), font(22), font(18)
PLOT, AXIS, FOOT = 520, 96, 56  # pixels: height of the plot, left of it and below it
LOST = (246, 236, 232)  # where too much is lost
MOST_ROWS = 30
COLUMNS = ((0, "setting"), (300, "wanted"), (470, "from plain"), (640, "kept"), (810, "from plain"), (980, ""))


def choice_picture(choice: Choice, tolerance: float) -> Image.Image:
    """(PIL) 1280 wide, as tall as it needs."""
    words = [line for text in (choice.why, *choice.notes) for line in wrapped(text, TEXT, WIDTH - 2 * MARGIN)]
    rows = _rows(choice)
    legend = _legend(choice, tolerance)
    table = (len(rows) + 1) * round(1.3 * line_height(SMALL))
    height = (
        3 * MARGIN
        + 48
        + len(words) * line_height(TEXT)
        + MARGIN
        + PLOT
        + FOOT
        + MARGIN // 2
        + len(legend) * line_height(SMALL)
        + MARGIN
        + table
    )
    picture = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN), f"chosen: {shortened(choice.chosen.setting.label)}", INK, HEADING)
    top = MARGIN + 48
    for line in words:
        draw.text((MARGIN, top), line, INK, TEXT)
        top += line_height(TEXT)
    top += 2 * MARGIN
    _plot(draw, choice, MARGIN, top)
    top += PLOT + FOOT + MARGIN // 2
    for entries in legend:
        for left, text, mark in entries:
            mark(draw, left + 10, top + 11)
            draw.text((left + 28, top), text, INK, SMALL)
        top += line_height(SMALL)
    _table(draw, rows, top + MARGIN)
    return picture


def _marks(choice: Choice) -> dict:
    """How the settings of each start layer are drawn; where the colors are used up, as squares."""
    starts = sorted({one.setting.start_layer for one in choice.settings if one is not choice.plain})
    return {start: _mark(COLORS[i % len(COLORS)], i // len(COLORS) % 2) for i, start in enumerate(starts)}


def _mark(color, square, radius=7):
    def drawn(draw, x, y):
        (draw.rectangle if square else draw.ellipse)((x - radius, y - radius, x + radius, y + radius), fill=color)

    return drawn


def _diamond(draw, x, y):
    draw.polygon([(x, y - 11), (x + 11, y), (x, y + 11), (x - 11, y)], fill=INK)


def _ring(draw, x, y, radius=10):
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=ALARM, width=3)


def _plot(draw, choice: Choice, left: int, top: int) -> None:
    """kept to the right, wanted up."""
    drawn = [one for one in choice.settings if one.counts]
    x_axis = _Axis([one.kept for one in drawn] + [choice.floor], left + AXIS, left + WIDTH - 2 * MARGIN)
    y_axis = _Axis([one.wanted for one in drawn], top + PLOT, top)
    at_floor = x_axis.at(choice.floor)
    draw.rectangle((x_axis.first, y_axis.last, at_floor, y_axis.first), fill=LOST)
    for tick in x_axis.ticks():
        draw.line((x_axis.at(tick), y_axis.last, x_axis.at(tick), y_axis.first), FAINT)
        draw.text((x_axis.at(tick), y_axis.first + 6), x_axis.written(tick), INK, SMALL, anchor="ma")
    for tick in y_axis.ticks():
        draw.line((x_axis.first, y_axis.at(tick), x_axis.last, y_axis.at(tick)), FAINT)
        draw.text((x_axis.first - 8, y_axis.at(tick)), y_axis.written(tick), INK, SMALL, anchor="rm")
    draw.line((at_floor, y_axis.last, at_floor, y_axis.first), ALARM, 2)
    at_plain = y_axis.at(choice.plain.wanted)
    for x in range(round(x_axis.first), round(x_axis.last), 12):
        draw.line((x, at_plain, min(x + 6, x_axis.last), at_plain), INK)
    draw.text((x_axis.last, y_axis.first + 30), "kept", INK, TEXT, anchor="ra")
    draw.text((left, y_axis.last - 4), "wanted", INK, TEXT, anchor="ld")
    marks = _marks(choice)
    places = {id(one): (x_axis.at(one.kept), y_axis.at(one.wanted)) for one in drawn}
    taken: list[tuple[float, float, float, float]] = []
    for one in drawn:
        (_diamond if one is choice.plain else marks[one.setting.start_layer])(draw, *places[id(one)])
        (x, y), reach = places[id(one)], 18 if one is choice.chosen else 11
        taken.append((x - reach, y - reach, x + reach, y + reach))
    _ring(draw, *places[id(choice.chosen)], 17)
    # The chosen one's name first: names that would lie on others are left to the table.
    for one in sorted(drawn, key=lambda one: (one is not choice.chosen, one is not choice.plain)):
        _name(draw, _short(one), places[id(one)], (x_axis.first, y_axis.last, x_axis.last, y_axis.first), taken)


def _short(one: Scored) -> str:
    """The color says the start layer."""
    found = parts(one.setting.label)
    return shortened(found[0] if found else one.setting.label, 14)


def _name(draw, text: str, at, frame, taken: list) -> None:
    width, height = SMALL.getlength(text), line_height(SMALL)
    x, y = at
    for left, upper in (
        (x + 22, y - height / 2),
        (x - 22 - width, y - height / 2),
        (x - width / 2, y - 20 - height),
        (x - width / 2, y + 20),
    ):
        box = (left, upper, left + width, upper + height)
        inside = frame[0] <= box[0] and box[2] <= frame[2] and frame[1] <= box[1] and box[3] <= frame[3]
        if inside and not any(box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in taken):
            draw.text((left, upper), text, INK, SMALL, stroke_width=2, stroke_fill=PAPER)
            taken.append(box)
            return


class _Axis:
    """From numbers to pixels, with some room at both ends."""

    def __init__(self, numbers: list[float], first: float, last: float):
        low, high = min(numbers), max(numbers)
        room = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
        self.low, self.high, self.first, self.last = low - room, high + room, first, last
        self.step = _step((self.high - self.low) / 5)

    def at(self, number: float) -> float:
        return self.first + (number - self.low) / (self.high - self.low) * (self.last - self.first)

    def ticks(self) -> list[float]:
        return [i * self.step for i in range(math.ceil(self.low / self.step), math.floor(self.high / self.step) + 1)]

    def written(self, tick: float) -> str:
        return f"{tick:.{min(max(0, -math.floor(math.log10(self.step) + 1e-9)), 12)}f}"


def _step(least: float) -> float:
    """1, 2 or 5 times a power of ten, no less than `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(part * power for part in (1, 2, 5, 10) if part * power >= least * (1 - 1e-9))


def _legend(choice: Choice, tolerance: float) -> list[list[tuple]]:
    """[[(left, text, how its mark is drawn)]], as many in a row as fit."""
    entries = [
        (choice.plain.setting.label, _diamond),
        ("chosen", _ring),
        *((f"start layer {start}", mark) for start, mark in [*_marks(choice).items()][:24]),
        (f"loses more than {100 * tolerance:g} %", lambda draw, x, y: draw.rectangle((x - 10, y - 10, x + 10, y + 10), LOST, ALARM)),
    ]
    rows, left = [[]], MARGIN
    for text, mark in entries:
        length = 28 + SMALL.getlength(text) + MARGIN
        if rows[-1] and left + length > WIDTH - MARGIN:
            rows.append([])
            left = MARGIN
        rows[-1].append((left, text, mark))
        left += length
    return rows


def _rows(choice: Choice) -> list[tuple[str, ...]]:
    """Of the table: the most wanted first, the plain one among them; what has no scores last."""
    plain = choice.plain
    ordered = sorted(choice.settings, key=lambda one: -one.wanted if one.counts else math.inf)
    first = ordered[:MOST_ROWS]
    first += [one for one in dict.fromkeys((choice.chosen, plain)) if one not in first]
    rows = []
    for one in first:
        compared = one.counts and one is not plain
        rows.append(
            (
                shortened(one.setting.label, 24),
                shown(one.wanted),
                change(one.wanted, plain.wanted) if compared else "",
                shown(one.kept),
                change(one.kept, plain.kept) if compared else "",
                _remark(choice, one),
            )
        )
    if len(ordered) > len(first):
        rows.append((f"and {len(ordered) - len(first)} more", "", "", "", "", ""))
    return rows


def _remark(choice: Choice, one: Scored) -> str:
    if one is choice.chosen:
        return "chosen"
    if not one.counts:
        return "no number"
    if one.kept < choice.floor:
        return "loses too much"
    return "" if one is choice.plain or one.wanted > choice.plain.wanted else "no more wanted"


def _table(draw, rows: list[tuple[str, ...]], top: int) -> None:
    step = round(1.3 * line_height(SMALL))
    for left, name in COLUMNS:
        draw.text((MARGIN + left, top), name, INK, SMALL)
    draw.line((MARGIN, top + step - 4, WIDTH - MARGIN, top + step - 4), INK)
    for i, row in enumerate(rows, 1):
        for (left, _), text in zip(COLUMNS, row, strict=True):
            draw.text((MARGIN + left, top + i * step), text, ALARM if row[-1] == "chosen" else INK, SMALL)

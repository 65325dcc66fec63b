"""Draws the pack's icon and banner for ComfyUI's registry, into docs/assets.

    python tools/brand.py

The sign is what the pack does: the layers of a model, and the weight that each is guided with.
"""

import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
# in place of tools/, where Python has put that: its modules are imported as tools.*
sys.path[:] = [str(CHECKOUT), *(each for each in sys.path if Path(each).resolve() != CHECKOUT / "tools")]

from tools.host import with_module

with_module("PIL", [__file__])

from PIL import Image, ImageDraw, ImageFont

ASSETS = CHECKOUT / "docs" / "assets"
ICON, BANNER = 400, (1680, 720)  # pixels; the registry takes icons up to 400 and banners of 21:9
NIGHT, STAY, GUIDED = (23, 26, 38), (74, 82, 110), ((255, 176, 59), (255, 94, 98))
WEIGHTS = (0.3, 0.3, 0.62, 0.88, 1.0, 0.74)  # of the layers; the first two are left as they are
FINE = 4  # times finer while drawing, for smooth edges


def blend(part):
    return tuple(round(a + (b - a) * part) for a, b in zip(*GUIDED, strict=True))


def sign(size):
    """The sign on its own square, `size` pixels wide and high."""
    side = size * FINE
    picture = Image.new("RGBA", (side, side))
    pen = ImageDraw.Draw(picture)
    pen.rounded_rectangle((0, 0, side - 1, side - 1), side * 0.2, fill=NIGHT)
    edge, gap = side * 0.17, side * 0.035
    width = (side - 2 * edge - gap * (len(WEIGHTS) - 1)) / len(WEIGHTS)
    for layer, weight in enumerate(WEIGHTS):
        left = edge + layer * (width + gap)
        height = (side - 2 * edge) * weight
        color = STAY if layer < 2 else blend((layer - 2) / (len(WEIGHTS) - 3))
        pen.rounded_rectangle((left, side - edge - height, left + width, side - edge), width * 0.3, fill=color)
    return picture.resize((size, size), Image.Resampling.LANCZOS)


def banner():
    width, height = BANNER
    picture = Image.new("RGB", BANNER, NIGHT)
    pen = ImageDraw.Draw(picture)
    mark = sign(420)
    picture.paste(mark, (110, (height - 420) // 2), mark)
    pen.text((590, 225), "Modulation Guidance", (255, 255, 255), ImageFont.load_default(96))
    for line, text in enumerate(("More of this, less of that, in every layer", "of your diffusion transformer. As fast as before.")):
        pen.text((594, 365 + 62 * line), text, (176, 184, 208), ImageFont.load_default(44))
    return picture


def main():
    ASSETS.mkdir(exist_ok=True)
    for name, picture in (("icon", sign(ICON)), ("banner", banner())):
        picture.save(ASSETS / f"{name}.png", optimize=True)
        print(ASSETS / f"{name}.png")


if __name__ == "__main__":
    main()

"""A grid of pictures on one sheet, with its rows and columns named."""

from PIL import Image, ImageDraw, ImageFont


def sheet(cells, columns, rows, lines, width):
    """The sheet: lines of text, wrapped, over `cells` (rows of pictures of one size), each shown `width` pixels wide.

    columns, rows: their names, those of the columns wrapped; rows of no name take no room. Pictures are enlarged without smoothing, so that each pixel is seen.
    """
    size = max(14, width // 16)
    font, gap, line = ImageFont.load_default(size), max(4, width // 40), int(size * 1.4)
    picture = cells[0][0]
    height = round(picture.height * width / picture.width)
    left = gap + int(max(max(map(font.getlength, name.split("\n"))) + gap if name else 0 for name in rows))
    whole = left + len(columns) * (width + gap)
    wrapped = [part for text in lines for part in wrap(text, font, whole - 2 * gap)]
    heads = ["\n".join(wrap(name, font, width)) for name in columns]
    top = gap + line * (len(wrapped) + max(name.count("\n") for name in heads) + 1) + gap

    image = Image.new("RGB", (whole, top + len(rows) * (height + gap)), "white")
    draw = ImageDraw.Draw(image)
    for i, text in enumerate(wrapped):
        draw.text((gap, gap + i * line), text, fill="black", font=font)
    for j, name in enumerate(heads):
        draw.text((left + j * (width + gap) + width / 2, top - gap), name, fill="black", font=font, anchor="md", align="center")
    for i, (name, row) in enumerate(zip(rows, cells)):
        draw.text((left - gap, top + i * (height + gap) + height / 2), name, fill="black", font=font, anchor="rm", align="right")
        for j, cell in enumerate(row):
            shown = cell.resize((width, height), Image.NEAREST if width > cell.width else Image.LANCZOS)
            image.paste(shown, (left + j * (width + gap), top + i * (height + gap)))
    return image


def wrap(text, font, width):
    """The text in lines of at most `width` pixels, where its words permit."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines

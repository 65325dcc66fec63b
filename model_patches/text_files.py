"""Text files of users, as their editors save them."""

import codecs
import os
import stat

LARGEST = 100_000_000  # bytes

# UTF-32 first: its mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32-LE",
    codecs.BOM_UTF32_BE: "UTF-32-BE",
    codecs.BOM_UTF8: "UTF-8",
    codecs.BOM_UTF16_LE: "UTF-16-LE",
    codecs.BOM_UTF16_BE: "UTF-16-BE",
}


def read_text(path: str | os.PathLike, told: str, largest: int = LARGEST) -> str:
    """The text of a file: UTF-8, or what its byte order mark says. Raises ValueError where it cannot be read as that.

    told: names the file, and begins the sentence. largest: bytes, so that a file of another kind does not fill the memory.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for somebody to write to it
            raise ValueError(f"{told} is no file, but a folder, a pipe or a device. Choose a text file.")
        with open(path, "rb") as file:
            data = file.read(largest + 1)
    except OSError as error:
        raise ValueError(f"{told} cannot be read: {error.strerror}. Look whether it is there, and whether it may be read.") from None
    if len(data) > largest:
        raise ValueError(f"{told} is larger than {largest} bytes, and no text is expected to be. Choose another file.")
    mark = next((mark for mark in _MARKS if data.startswith(mark)), b"")
    codec, data = _MARKS.get(mark, "UTF-8"), data[len(mark) :]
    try:
        text = data.decode(codec)
    except UnicodeDecodeError as error:
        line = _line_after(data[: error.start].decode(codec))
        raise ValueError(f"{told} is no {codec} text: line {line} holds the byte 0x{data[error.start]:02X}. {_SAVE}.") from None
    before, nul, _ = text.partition("\0")
    if nul:
        raise ValueError(f"{told} is no text, or none that says its encoding: line {_line_after(before)} holds a NUL. {_SAVE}.")
    return text


_SAVE = "Save it as UTF-8, which text editors offer when they save under another name"


def _line_after(text: str) -> int:
    return len(f"{text}x".splitlines())

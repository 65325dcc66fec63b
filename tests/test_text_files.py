"""Text files that users write: read whatever way their editors save them, or refused in a sentence; nothing is waited for."""

import codecs
import importlib
import json
import os
import threading
from argparse import Namespace
from pathlib import Path

import folder_paths
import pytest

import nodes as host_nodes
from benchmarks.effect.own import run as draw_own
from benchmarks.in_process import node
from tools.distill import lines as command_lines

PRESET = host_nodes.NODE_CLASS_MAPPINGS["GuidancePreset"]
DISTILL = host_nodes.NODE_CLASS_MAPPINGS["DistillPooledProjection"]
PACK = PRESET.__module__.rpartition(".nodes.")[0]
text_files = importlib.import_module(f"{PACK}.model_patches.text_files")

MARKS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
TEXT = "a café\r\nein Bär 🐻\n日本語"


def saved(text, encoding):
    return MARKS[encoding] + text.encode(encoding)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where the input folder and the user folder are."""
    for name in ("input_directory", "user_directory"):
        monkeypatch.setattr(folder_paths, name, str(tmp_path))
    return tmp_path


def queued(name):
    said = DISTILL.validate_inputs(prompts_file=name)
    if said is not True:
        raise ValueError(said)


# Every reader, by (the file's name, what reads it, what its sentences begin with).
READERS = {
    "preset": (
        "modulation_guidance_presets.json",
        lambda path: node("GuidancePreset", preset="complexity", subject=""),
        "Guidance Preset: .*",
    ),
    "node": ("prompts.txt", lambda path: queued(path.name), "Distill Pooled Projection: prompts_file 'prompts.txt' "),
    "command": ("prompts.txt", lambda path: command_lines("--prompts", path), "--prompts .*prompts.txt "),
    "effect": ("prompts.txt", lambda path: draw_own(None, None, None, Namespace(prompts_file=path)), "--prompts-file .*prompts.txt "),
}


@pytest.fixture(params=READERS)
def reader(request, place):
    """(path, read(), begin of its sentences)."""
    name, read, begin = READERS[request.param]
    return place / name, lambda: read(place / name), begin


@pytest.mark.parametrize("encoding", MARKS)
def test_what_editors_save_is_read(tmp_path, encoding):
    (tmp_path / "text.txt").write_bytes(saved(TEXT, encoding))
    assert text_files.read_text(tmp_path / "text.txt", "It").splitlines() == ["a café", "ein Bär 🐻", "日本語"]
    assert command_lines("--prompts", tmp_path / "text.txt") == ["a café", "ein Bär 🐻", "日本語"]


def test_a_file_of_the_largest_size_is_read_and_no_larger_one(tmp_path):
    (tmp_path / "text.txt").write_bytes(b"12345")
    assert text_files.read_text(tmp_path / "text.txt", "It", largest=5) == "12345"
    with pytest.raises(ValueError, match="It is larger than 4 bytes"):
        text_files.read_text(tmp_path / "text.txt", "It", largest=4)


@pytest.mark.parametrize("encoding", MARKS)
def test_presets_in_any_of_these(place, encoding):
    preset = {"Bär": {"positive": "ein Bär", "negative": "b", "w": 2, "start_layer": 7}}
    (place / "modulation_guidance_presets.json").write_bytes(saved(json.dumps(preset, ensure_ascii=False), encoding))
    assert node("GuidancePreset", preset="Bär", subject="")[0] == "ein Bär"


@pytest.mark.parametrize("encoding", MARKS)
def test_prompts_in_any_of_these(place, encoding):
    (place / "prompts.txt").write_bytes(saved(TEXT, encoding))
    assert DISTILL.check_lazy_status(prompts="", prompts_file="prompts.txt", model=None) == ["model"]
    (place / "prompts.txt").write_bytes(saved(" \r\n\n", encoding))
    with pytest.raises(ValueError, match="prompts is empty"):
        DISTILL.check_lazy_status(prompts="", prompts_file="prompts.txt", model=None)


@pytest.mark.parametrize(
    "content, words",
    [
        ("a\r\nb\r\nein Bär\n".encode("cp1252"), "is no UTF-8 text: line 3 holds the byte 0xE4. Save it as UTF-8"),
        (codecs.BOM_UTF8 + "a\nBär\n".encode("latin-1"), "is no UTF-8 text: line 2 holds the byte 0xE4. Save it as UTF-8"),
        (
            codecs.BOM_UTF16_LE + "a\nb\nc".encode("utf-16-le") + b"\0\xd8",
            "is no UTF-16-LE text: line 3 holds the byte 0x00. Save it as UTF-8",
        ),
        (
            codecs.BOM_UTF32_BE + "a\n".encode("utf-32-be") + b"\0\x11\0\0",
            "is no UTF-32-BE text: line 2 holds the byte 0x00. Save it as UTF-8",
        ),
        ("a\nb".encode("utf-16-le"), "is no text, or none that says its encoding: line 1 holds a NUL. Save it as UTF-8"),
        (b"a\nb\nc\0d", ".*: line 3 holds a NUL. Save it as UTF-8"),
    ],
)
def test_what_is_no_such_text_is_refused_by_its_line(reader, content, words):
    path, read, begin = reader
    path.write_bytes(content)
    with pytest.raises(ValueError, match=begin + words):
        read()


def test_what_is_too_large_is_not_read(reader):
    path, read, begin = reader
    with path.open("wb") as file:
        file.truncate(text_files.LARGEST + 1)
    with pytest.raises(ValueError, match=begin + "is larger than 1.*000 bytes"):
        read()


def test_a_folder_is_said_so(reader):
    path, read, begin = reader
    path.mkdir()
    with pytest.raises(ValueError, match=begin + "is no file, but a folder"):
        read()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes of that kind")
def test_a_pipe_is_not_waited_for(reader):
    path, read, begin = reader
    os.mkfifo(path)
    said = []

    def run():
        with pytest.raises(ValueError, match=begin + "is no file, but a folder, a pipe"):
            read()
        said.append(True)

    waiting = threading.Thread(target=run, daemon=True)
    waiting.start()
    waiting.join(10)
    assert said


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens and cannot be read")
def test_what_the_system_says_while_it_is_read_is_passed_on():
    with pytest.raises(ValueError, match="^It cannot be read: Input/output error. Look whether"):
        text_files.read_text("/proc/self/mem", "It")


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(ValueError, match="^--prompts .*none.txt cannot be read: No such file"):
        command_lines("--prompts", tmp_path / "none.txt")


@pytest.mark.parametrize(
    "name, words",
    [
        ("a\0b.txt", r"prompts_file 'a\\x00b.txt' holds a character that no file's name can have"),
        ("\ud800", "holds a character that no file's name can have"),
        ("none.txt", "prompts_file 'none.txt' is not in ComfyUI's input folder"),
        ("x" * 100_000, r"prompts_file 'x*\.\.\.x*' is not in ComfyUI's input folder"),
        ("../prompts.txt", "is not in ComfyUI's input folder"),
    ],
)
def test_names_that_lead_nowhere(place, name, words):
    with pytest.raises(ValueError, match=words) as refused:
        queued(name)
    assert len(str(refused.value)) < 1000

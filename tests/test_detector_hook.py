"""The detector in docs/scorers.md, run as it stands there by benchmarks/effect.py's hook, on a small one with random weights."""

import re
import shutil
from os import environ
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPTokenizer, OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessor, OwlViTProcessor

from benchmarks.effect.own_scores import scorer_of

DOCS = Path(__file__).parent.parent / "docs" / "scorers.md"
NAMED = "owlv2-base-patch16-ensemble"
PATCHES = 4


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the page's detector.py, and the folder of a model that it names."""
    folder = tmp_path / NAMED
    tower = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    config = OwlViTConfig(
        text_config=tower | {"vocab_size": 49408}, vision_config=tower | {"image_size": 16, "patch_size": 8}, projection_dim=16
    )
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(0)
        OwlViTForObjectDetection(config).save_pretrained(folder)
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(Path(environ["COMFYUI_PATH"]) / "comfy" / "sd1_tokenizer", tokenizer)
    sizes = {"size": {"height": 16, "width": 16}, "do_center_crop": False}
    OwlViTProcessor(OwlViTImageProcessor(**sizes), CLIPTokenizer.from_pretrained(tokenizer, model_max_length=16)).save_pretrained(folder)
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert f'model="{NAMED}"' in code
    (tmp_path / "detector.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(folder, picture, things):
    """How many of the model's boxes are surer than 0.3, by the model itself."""
    processor = AutoProcessor.from_pretrained(folder)
    model = OwlViTForObjectDetection.from_pretrained(folder)
    image = Image.fromarray((picture * 255).round().astype("uint8"))
    logits = model(**processor(text=[[things]], images=image, return_tensors="pt")).logits
    assert logits.shape == (1, PATCHES, 1)
    return int((logits.sigmoid() > 0.3).sum())


def test_the_detector_of_the_page_counts_what_its_model_finds(place):
    picture = np.random.default_rng(0).random((32, 32, 3), np.float32)
    counted = scorer_of("detector:counted").score
    number = found(place / NAMED, picture, "red circles")
    words = ["no", "one", "two", "three", "four"]
    assert number > 0
    assert {word: counted(picture, f"{word} red circles") for word in words[1:]} == {
        word: float(word == words[number]) for word in words[1:]
    }

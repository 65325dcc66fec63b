"""Makes the pictures of the editor that the documentation and the template browser show, from the editor itself.

    python tools/editor_pictures.py

web/docs/assets/<node>.png      each node as it is dropped
web/docs/assets/first_steps.jpg the first-steps workflow after its run
workflows/<name>.jpg            the preview of each workflow: its pictures where it is for the small world, else what it guides, drawn
workflows/<name>.png            a picture that holds the workflow it was made by, to drop into the editor

Needs Chromium and playwright (see tests/requirements.txt). The API twins in workflows/api are the editor's own, too: --twins
writes them anew.
"""

import argparse
import io
import json
import os
import sys
import tempfile
import urllib.parse
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
# in place of tools/, where Python has put that: its modules are imported as tools.*
sys.path[:] = [str(CHECKOUT), *(each for each in sys.path if Path(each).resolve() != CHECKOUT / "tools")]

from tools.browser import find_chromium, open_editor
from tools.files import write_whole
from tools.host import ensure_host, run_under
from tools.packages import SetupError
from tools.server import PACK, Client, running_server
from tools.templates import api_form, graphs

ASSETS = CHECKOUT / "web" / "docs" / "assets"
FIRST_STEPS = "First steps (small world)"
RUN = (FIRST_STEPS, "Modulation Guidance (one node)", "Plain against guided", "Sweep and grid", "Inspect guidance")  # for the small world
HOLDS_ITS_WORKFLOW = "Modulation Guidance (one node)"
SHIPPED = {"Distill a projection": CHECKOUT / "tools" / "small_world" / "distilled_side_by_side.png"}  # of a run of six minutes
GUIDED = {  # first and last layer, depth, and w of the workflows for published models
    "Anima CLIP scales (complexity)": (0, 27, 28, 3),
    "Anima max pool (complexity)": (8, 26, 28, 3),
    "Cosmos Predict2 (realism)": (0, 27, 28, 3),
    "FLUX Kontext edit (realism)": (5, 56, 57, 3),
    "FLUX dev (complexity, schedule)": (5, 56, 57, 3),
    "FLUX schnell (aesthetics)": (5, 56, 57, 3),
    "HiDream-I1 Fast (complexity)": (5, 47, 48, 3),
    "Hunyuan Video text to video": (5, 59, 60, 3.5),
    "SD3.5 Large (complexity)": (2, 37, 38, 2),
    "SD3.5 Large DMD2 (complexity)": (2, 37, 38, 2),
    "Wan CausVid (video)": (3, 29, 30, 3),
    "Guide with a learned direction (FLUX)": (0, 56, 57, 1),
    "Guide with a learned direction (Wan)": (0, 29, 30, 1),
    "Learn a direction": (0, 6, 7, 1),
    "Sweep, score, choose": (2, 11, 12, "2, 4, 6 or 8"),
}
PREVIEW = (640, 360)  # pixels
EDGE = 12  # around a node
KINDS = {  # which folder of models a loader of this name reads
    "UNETLoader": "diffusion_models",
    "CLIPLoader": "text_encoders",
    "VAELoader": "vae",
    "Lora": "loras",
    "Checkpoint": "checkpoints",
    "PooledProjection": "pooled_projections",
    "LoadGuidanceDirection": "guidance_directions",
}
BACKGROUND, BAR = "#141414", "#3b9eff"


def main():
    parser = argparse.ArgumentParser(description="Make the pictures of the editor for the documentation and the template browser.")
    parser.add_argument("--twins", action="store_true", help="write workflows/api anew, too")
    parser.add_argument("--under-host", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    chromium = find_chromium()
    if chromium is None:
        sys.exit("error: there is no Chromium. Install it (apt-get install chromium), or set CHROMIUM to its path.")
    try:
        host = ensure_host()
    except SetupError as error:
        sys.exit(f"error: {error}")
    if not options.under_host:
        run_under(host, [__file__, "--under-host", *sys.argv[1:]])

    from tools.small_models import write_small_models  # needs the host's libraries

    with tempfile.TemporaryDirectory() as models:
        write_small_models(Path(models))
        name_models(Path(models))
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        with running_server(host, [models]) as url, open_editor(url, chromium) as editor:
            client = Client(url)
            ASSETS.mkdir(parents=True, exist_ok=True)
            for node in our_nodes(client):
                save_png(ASSETS / f"{node}.png", node_picture(editor, node))
            for path in graphs():
                workflow = json.loads(path.read_text(encoding="utf-8"))
                if options.twins:
                    editor.load(workflow)
                    write_whole(api_form(path), json.dumps(editor.prompt(), indent=2, ensure_ascii=False) + "\n")
                if path.stem in RUN:
                    after_run, made = run_here(editor, client, workflow)
                    if path.stem == FIRST_STEPS:
                        save_jpg(ASSETS / "first_steps.jpg", after_run, (1400, 1400))
                    if path.stem == HOLDS_ITS_WORKFLOW:
                        write_whole(path.with_suffix(".png"), made[-1])
                    preview = side_by_side(made) if len(made) == 2 else made[0]
                else:
                    preview = SHIPPED[path.stem].read_bytes() if path.stem in SHIPPED else drawing(path, workflow)
                save_jpg(path.with_suffix(".jpg"), padded(preview))


def name_models(folder):
    """Empty files for the models that workflows name, so that the editor shows the graphs as to somebody who has them."""
    for path in graphs():
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            kind = next((kind for loader, kind in KINDS.items() if loader in node["type"]), None)
            for value in node.get("widgets_values") or () if kind else ():
                if isinstance(value, str) and value.endswith((".safetensors", ".pt")):
                    (folder / kind).mkdir(exist_ok=True)
                    (folder / kind / value).touch()


def our_nodes(client):
    return [name for name, node in client.get("/object_info").items() if node["python_module"].endswith(PACK)]


def node_picture(editor, node):
    """A PNG of one node in the new rendering."""
    editor.render_nodes(True)
    number = editor.add(node)
    box = editor.page.locator(f'[data-node-id="{number}"]')
    box.wait_for()
    editor.look_at((-300, -200), 1)
    for _ in range(3):
        editor.settle()
    place = box.bounding_box()
    return editor.page.screenshot(
        clip={"x": place["x"] - EDGE, "y": place["y"] - EDGE, "width": place["width"] + 2 * EDGE, "height": place["height"] + 2 * EDGE}
    )


def screenshot(editor, margin=30):
    """A PNG of the graph that is open, without the editor around it."""
    editor.page.set_viewport_size({"width": 2000, "height": 1400})
    editor.settle()
    left, top, width, height = editor.bounds(margin)
    scale = min(1880 / width, 1240 / height)
    editor.look_at((left - 70 / scale, top - 90 / scale), scale)
    for _ in range(4):
        editor.settle()
    return editor.page.screenshot(clip={"x": 70, "y": 90, "width": width * scale, "height": height * scale})


def run_here(editor, client, workflow):
    """(PNG of the graph after a run, the PNGs that it made, in the order of their nodes)."""
    editor.render_nodes(True)
    editor.load(workflow)
    client.post("/history", {"clear": True})
    editor.page.evaluate("app.queuePrompt(0)")
    while not (history := client.get("/history")):
        editor.page.wait_for_timeout(500)
    (entry,) = history.values()
    editor.page.wait_for_timeout(2000)  # the pictures appear on the nodes
    return screenshot(editor), pictures_of(client, entry["outputs"])


def pictures_of(client, outputs):
    """The first PNG of each kind that each output node gave, e.g. both of Compare Images."""
    lists = [images for node in sorted(outputs, key=int) for images in outputs[node].values() if images and isinstance(images[0], dict)]
    return [client.request(f"/view?{urllib.parse.urlencode(images[0])}") for images in lists]


def side_by_side(pair):
    from PIL import Image, ImageDraw, ImageFont

    size = 300
    sheet = Image.new("RGB", PREVIEW, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for index, (name, content) in enumerate(zip(("plain", "guided"), pair)):
        left = 13 + index * (size + 14)
        sheet.paste(Image.open(io.BytesIO(content)).convert("RGB").resize((size, size), Image.NEAREST), (left, 12))
        draw.text((left + size / 2, 336), name, fill="white", font=ImageFont.load_default(22), anchor="mm")
    content = io.BytesIO()
    sheet.save(content, "PNG")
    return content.getvalue()


def drawing(path, workflow):
    """What the workflow guides: its words, and its layers as a Layer Schedule shows them."""
    from PIL import Image, ImageDraw, ImageFont

    name, _, kind = path.stem.removesuffix(")").partition(" (")
    first, last, depth, w = GUIDED[path.stem]
    positive, negative = "learned from words", ""
    for node in workflow["nodes"]:
        if node["type"] == "EncodeGuidanceDirection":
            positive, negative = node["widgets_values"]
        if node["type"] == "DistillGuidanceDirection":
            positive, negative = node["widgets_values"][1:3]
    for node in workflow["nodes"]:
        if node["type"] == "GuidancePreset":  # its words go into the others' boxes
            preset = json.loads((CHECKOUT / "nodes" / "presets.json").read_text(encoding="utf-8"))[node["widgets_values"][0]]
            positive, negative = preset["positive"], preset["negative"]
    sheet = Image.new("RGB", PREVIEW, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((32, 28), name, fill="white", font=ImageFont.load_default(38))
    draw.text((32, 80), kind, fill="#9a9a9a", font=ImageFont.load_default(24))
    for y, sign, words, color in ((132, "+", positive, BAR), (168, "-", negative, "#f0803c")):
        draw.text((32, y), sign if words else "", fill=color, font=ImageFont.load_default(26))
        draw.text((60, y), words, fill="#d8d8d8", font=ImageFont.load_default(24))
    width = (PREVIEW[0] - 64) / depth
    weights = [0.25 if "schedule" in kind and layer > last - 4 else 1 for layer in range(depth)]
    for layer in range(depth):
        left = 32 + layer * width
        draw.rectangle((left, 220, left + width * 0.8, 310), fill="#242424")
        if first <= layer <= last:
            draw.rectangle((left, 310 - 90 * weights[layer], left + width * 0.8, 310), fill=BAR)
    draw.text((32, 322), f"layers {first} to {last} of {depth}, w {w}", fill="#9a9a9a", font=ImageFont.load_default(20))
    content = io.BytesIO()
    sheet.save(content, "PNG")
    return content.getvalue()


def padded(content):
    """The whole picture within PREVIEW."""
    from PIL import Image, ImageOps

    made = io.BytesIO()
    ImageOps.pad(Image.open(io.BytesIO(content)).convert("RGB"), PREVIEW, Image.LANCZOS, BACKGROUND).save(made, "PNG")
    return made.getvalue()


def save_png(path, content):
    """A small PNG of few colors."""
    from PIL import Image

    small = io.BytesIO()
    Image.open(io.BytesIO(content)).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    write_whole(path, small.getvalue())


def save_jpg(path, content, size=PREVIEW):
    """A JPEG within `size`."""
    from PIL import Image

    image = Image.open(io.BytesIO(content)).convert("RGB")
    image.thumbnail(size, Image.LANCZOS)
    small = io.BytesIO()
    image.save(small, "JPEG", quality=82, optimize=True)
    write_whole(path, small.getvalue())


if __name__ == "__main__":
    main()

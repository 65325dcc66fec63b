"""Makes the pictures of the editor that the documentation and the template browser show, from the editor itself.

    python tools/editor_pictures.py

web/docs/assets/<node>.png      each node as it is dropped
web/docs/assets/first_steps.jpg the first-steps workflow after its run
workflows/<name>.jpg            the preview of each workflow: its two pictures where it runs on the small world, else its graph

Needs Chromium and playwright (see tests/requirements.txt). The API twins in workflows/api are the editor's own, too: --twins
writes them anew.
"""

import argparse
import io
import json
import os
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path[0] = str(CHECKOUT)  # in place of tools/: its modules are imported as tools.*

from tools.browser import find_chromium, open_editor  # noqa: E402
from tools.host import SetupError, ensure_host, run_under, write_whole  # noqa: E402
from tools.server import PACK, Client, running_server  # noqa: E402

ASSETS = CHECKOUT / "web" / "docs" / "assets"
WORKFLOWS = CHECKOUT / "workflows"
FIRST_STEPS = WORKFLOWS / "first_steps_small_world.json"
RUN = (FIRST_STEPS, WORKFLOWS / "modulation_guidance_one_node.json")  # on the small world, with a plain and a guided picture
PREVIEW = (640, 360)  # pixels
EDGE = 12  # around a node
KINDS = {  # which folder of models a loader of this name reads
    "UNETLoader": "diffusion_models", "CLIPLoader": "text_encoders", "VAELoader": "vae", "Lora": "loras", "Checkpoint": "checkpoints",
    "PooledProjection": "pooled_projections", "LoadGuidanceDirection": "guidance_directions",
}
BACKGROUND = "#141414"


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
            for path in sorted(WORKFLOWS.glob("*.json")):
                workflow = json.loads(path.read_text(encoding="utf-8"))
                if options.twins:
                    editor.load(workflow)
                    write_whole(WORKFLOWS / "api" / path.name, json.dumps(editor.prompt(), indent=2, ensure_ascii=False) + "\n")
                if path in RUN:
                    after_run, pair = run_here(editor, client, workflow)
                    if path == FIRST_STEPS:
                        save_jpg(ASSETS / "first_steps.jpg", after_run, (1400, 1400))
                    preview = side_by_side(pair)
                else:
                    preview = graph_picture(editor, workflow)
                save_jpg(path.with_suffix(".jpg"), padded(preview))


def name_models(folder):
    """Empty files for the models that workflows name, so that the editor shows the graphs as to somebody who has them."""
    for path in WORKFLOWS.glob("*.json"):
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
    editor.clear()
    editor.render_nodes(True)
    number = editor.add(node)
    box = editor.page.locator(f'[data-node-id="{number}"]')
    box.wait_for()
    editor.look_at((-300, -200), 1)
    for _ in range(3):
        editor.settle()
    place = box.bounding_box()
    return editor.page.screenshot(clip={
        "x": place["x"] - EDGE, "y": place["y"] - EDGE, "width": place["width"] + 2 * EDGE, "height": place["height"] + 2 * EDGE,
    })


def graph_picture(editor, workflow):
    """A PNG of a whole graph."""
    editor.render_nodes(True)
    editor.load(workflow)
    return screenshot(editor)


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
    """(PNG of the graph after a run, PNGs of the plain and the guided picture)."""
    editor.render_nodes(True)
    editor.load(workflow)
    titles = {str(node["id"]): node.get("title") for node in workflow["nodes"]}
    client.post("/history", {"clear": True})
    editor.page.evaluate("app.queuePrompt(0)")
    while not (history := client.get("/history")):
        editor.page.wait_for_timeout(500)
    (entry,) = history.values()
    images = client.images(entry["prompt"][1])
    by_title = {titles[node]: files[0] for node, files in images.items()}
    editor.page.wait_for_timeout(2000)  # the pictures appear on the nodes
    return screenshot(editor), [by_title["Plain"], by_title["Guided"]]


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

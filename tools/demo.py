"""The main job on one command: two pictures of one prompt and seed, plain and guided.

    python tools/demo.py [--prompt ... --positive ... --negative ... --w 3 --seed 42 --steps 4 --size 512]

Sets ComfyUI up where there is none (see host.py), starts its server with this pack, queues a shared workflow over HTTP and
writes out/plain.png, out/guided.png and out/side_by_side.png. Where the models the workflow names are missing, small random
ones take their place. With --comfyui URL a server that already runs is used instead, with its own models.
"""

import argparse
import io
import json
import signal
import sys
import textwrap
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path[0] = str(CHECKOUT)  # in place of tools/: its modules are imported as tools.*

from tools.host import DEFAULT_VERSION, SetupError, cache_folder, ensure_host, has_module, run_under, write_whole  # noqa: E402
from tools.server import Client, PromptError, PromptInterrupted, ServerError, running_server  # noqa: E402

SETTINGS = {  # option -> the inputs of the workflow it sets
    "prompt": [("CLIPTextEncode", "text")],
    "positive": [("EncodeGuidanceDirection", "positive")],
    "negative": [("EncodeGuidanceDirection", "negative")],
    "w": [("ApplyModulationGuidance", "w")],
    "seed": [("KSampler", "seed")],
    "steps": [("KSampler", "steps")],
    "size": [("EmptySD3LatentImage", "width"), ("EmptySD3LatentImage", "height")],
}


class DemoError(Exception):
    """The demo cannot run as asked; the message says why."""


def arguments():
    parser = argparse.ArgumentParser(description="Make two pictures of one prompt and seed, plain and guided.")
    parser.add_argument("--prompt", help="what to draw (default: the workflow's)")
    parser.add_argument("--positive", help="what is wanted, the one end of the direction")
    parser.add_argument("--negative", help="what is not wanted, the other end")
    parser.add_argument("--w", type=float, help="guidance scale; 0 changes nothing")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--steps", type=int, help="sampling steps")
    parser.add_argument("--size", type=int, help="width and height in pixels")
    parser.add_argument("--workflow", default="flux_schnell_aesthetics",
                        help="one of workflows/api, or a .json file in that format with two Save Image nodes titled Plain and Guided")
    parser.add_argument("--small", action="store_true", help="use the small random models even where the real ones are there")
    parser.add_argument("--out", type=Path, default=CHECKOUT / "out", help="folder for the pictures")
    parser.add_argument("--comfyui", metavar="URL", help="use the server that runs there")
    parser.add_argument("--comfyui-version", default=DEFAULT_VERSION, help="the ComfyUI to set up")
    parser.add_argument("--under-host", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped then, too
    try:
        # a running server does the work: then these two libraries are all that is needed here
        enough = options.comfyui and not options.small and has_module("PIL") and has_module("aiohttp")
        if not options.under_host and not enough:
            run_under(ensure_host(options.comfyui_version), [__file__, "--under-host", *sys.argv[1:]])
        if options.comfyui:
            pictures, prompt = use_server(options)
        else:
            pictures, prompt = use_own_server(options)
        write_pictures(options.out, pictures, prompt)
    except (DemoError, SetupError, ServerError, PromptError, PromptInterrupted, ConnectionError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nInterrupted; no picture was written.", file=sys.stderr)
        sys.exit(130)


def use_server(options):
    """The pictures of a server that already runs, and the prompt they were made with."""
    client = Client(options.comfyui if "://" in options.comfyui else f"http://{options.comfyui}")
    if not client.get("/object_info/ApplyModulationGuidance"):
        raise DemoError(f"ComfyUI at {client.url} does not have this pack: put it into its custom_nodes folder and restart it.")
    prompt = read_workflow(options)
    if options.small:
        prompt = small_models().with_small_models(prompt)
    prompt, missing = with_files_of(client, prompt)
    if missing:
        raise DemoError(f"ComfyUI at {client.url} has no {', '.join(missing)}: put that into its models folder, or give another --workflow.")
    return make_pictures(client, prompt, options), prompt


def use_own_server(options):
    """The pictures of a server started for this, and the prompt they were made with."""
    host = ensure_host(options.comfyui_version)
    small = cache_folder() / "small-models"
    print(f"Starting ComfyUI {host.version}", flush=True)
    with running_server(host, [host.folder / "models", small]) as url:
        client = Client(url)
        prompt, missing = with_files_of(client, read_workflow(options))
        if missing or options.small:
            print(f"Using small random models in place of {', '.join(missing) or 'the real ones'}", flush=True)
            small_models().write_small_models(small)
            prompt = small_models().with_small_models(read_workflow(options))
        return make_pictures(client, prompt, options), prompt


def small_models():
    """The module, which needs torch, so the host's Python."""
    from tools import small_models

    return small_models


def read_workflow(options):
    """The API-format prompt of --workflow."""
    path = Path(options.workflow)
    if path.suffix != ".json":
        path = CHECKOUT / "workflows" / "api" / f"{options.workflow}.json"
    if not path.is_file():
        names = ", ".join(sorted(each.stem for each in (CHECKOUT / "workflows" / "api").glob("*.json")))
        raise DemoError(f"There is no workflow {options.workflow}; there are {names}.")
    return json.loads(path.read_text(encoding="utf-8"))


def with_files_of(client, prompt):
    """The prompt with each model file as the server names it (it may lie in a subfolder), and the files it does not have."""
    missing = []
    for node in prompt.values():
        for name, file in node["inputs"].items():
            if not isinstance(file, str) or not file.endswith(".safetensors"):
                continue
            offered = client.choices(node["class_type"], name)
            found = next((each for each in offered if each.replace("\\", "/").split("/")[-1] == file), None)
            if found:
                node["inputs"][name] = found
            else:
                missing.append(file)
    return prompt, missing


def make_pictures(client, prompt, options):
    """Applies the options to the prompt and runs it; returns the PNG bytes of the plain and the guided picture."""
    for option, inputs in SETTINGS.items():
        if getattr(options, option) is not None:
            for class_type, name in inputs:
                set_input(prompt, class_type, name, getattr(options, option))
    saved = {node["_meta"]["title"].lower(): key for key, node in prompt.items() if node["class_type"] == "SaveImage"}
    if not {"plain", "guided"} <= saved.keys():
        raise DemoError(f"The workflow {options.workflow} has no two Save Image nodes titled Plain and Guided.")
    images = client.run(prompt, show_progress)
    print(flush=True)
    return [images[saved[name]][0] for name in ("plain", "guided")]


def set_input(prompt, class_type, name, value):
    """Sets an input of all nodes of a class, at the primitive node it is linked to where there is one."""
    nodes = [node for node in prompt.values() if node["class_type"] == class_type]
    if not nodes:
        raise DemoError(f"The workflow has no {class_type}, whose {name} was to be {value}.")
    for node in nodes:
        holder, key = holder_of(prompt, node, name)
        holder["inputs"][key] = value


def holder_of(prompt, node, name):
    """The node and input where the value of `name` stands: this node's own, or that of the primitive node linked to it."""
    value = node["inputs"][name]
    if isinstance(value, list) and prompt[value[0]]["class_type"].startswith("Primitive"):
        return prompt[value[0]], "value"
    return node, name


def show_progress(progress):
    step = f"{progress.title} {progress.value}/{progress.total}" if progress.total else progress.title
    if sys.stdout.isatty():
        print(f"\r\033[K{step}", end="", flush=True)
    else:
        print(step, flush=True)


def write_pictures(folder, pictures, prompt):
    """Writes plain.png, guided.png and side_by_side.png, each whole or not at all."""
    contents = dict(zip(("plain.png", "guided.png"), pictures))
    contents["side_by_side.png"] = side_by_side(pictures, caption(prompt))
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_whole(folder / name, content)
        print(folder / name)


def caption(prompt):
    """The settings of a prompt in words, one line each."""

    def value(class_type, name):
        node = next((node for node in prompt.values() if node["class_type"] == class_type), None)
        if node is None:
            return "-"
        holder, key = holder_of(prompt, node, name)
        found = holder["inputs"][key]
        return f"of preset {value('GuidancePreset', 'preset')}" if isinstance(found, list) else repr(found)

    return [
        f"prompt {value('CLIPTextEncode', 'text')}",
        f"guided: w {value('ApplyModulationGuidance', 'w')}, negative {value('EncodeGuidanceDirection', 'negative')}, "
        f"positive {value('EncodeGuidanceDirection', 'positive')}",
        f"{value('UNETLoader', 'unet_name')}, seed {value('KSampler', 'seed')}, {value('KSampler', 'steps')} steps, "
        f"{value('EmptySD3LatentImage', 'width')} x {value('EmptySD3LatentImage', 'height')}",
    ]


def side_by_side(pictures, lines):
    """PNG bytes of two pictures next to each other, named, over lines of text."""
    from PIL import Image, ImageDraw, ImageFont

    plain, guided = (Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures)
    gap = max(8, plain.width // 64)
    width = plain.width + guided.width + 3 * gap
    size = max(12, width // 64)
    font = ImageFont.load_default(size)
    lines = [part for line in lines for part in textwrap.wrap(line, int(width / size * 1.9))]
    line_height = int(size * 1.5)
    top = line_height + gap
    sheet = Image.new("RGB", (width, top + plain.height + gap + line_height * len(lines) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for name, picture, left in (("plain", plain, gap), ("guided", guided, 2 * gap + plain.width)):
        draw.text((left, gap), name, fill="black", font=font)
        sheet.paste(picture, (left, top))
    for index, line in enumerate(lines):
        draw.text((gap, top + plain.height + gap + index * line_height), line, fill="black", font=font)
    content = io.BytesIO()
    sheet.save(content, "PNG")
    return content.getvalue()


if __name__ == "__main__":
    main()

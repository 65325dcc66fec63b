"""The main job on one command: two pictures of one prompt and seed, plain and guided, and a grid of settings.

    python tools/demo.py [--prompt ... --positive ... --negative ... --w 6 --start-layer 2 --seed 1]

Sets ComfyUI up where there is none (see host.py), starts its server with this pack, queues a shared workflow over HTTP and
writes out/plain.png, out/guided.png, out/side_by_side.png and out/grid.png (w by start layer). Where the models the workflow
names are missing, the small world's take their place (see small_world/README.md), and a direction learned from words is shown beside. With --comfyui URL a server that already
runs is used instead, with its own models.
"""

import argparse
import copy
import io
import itertools
import json
import signal
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
# in place of tools/, where Python has put that: its modules are imported as tools.*
sys.path[:] = [str(CHECKOUT), *(each for each in sys.path if Path(each).resolve() != CHECKOUT / "tools")]

from tools.console import show_line
from tools.files import write_whole
from tools.host import DEFAULT_VERSION, ensure_host, run_under
from tools.options import finite
from tools.packages import SetupError, has_module
from tools.pinned import cache_folder
from tools.server import Client, PromptError, PromptInterrupted, ServerError, running_server

SMALL_WORLD = {  # what the small world shows best, for options not given
    "prompt": "three red circles",
    "positive": "Extremely complex, the highest quality",
    "negative": "Very simple, no details at all",
    "w": 6.0,
    "start_layer": 2,
    "seed": 1,
}
LEARNED, LEARNED_W = "small_world_flux_detail.safetensors", 1.5  # a direction of the small world's, and where it shows best
GRID_W, GRID_START_LAYERS = (1.0, 3.0, 6.0), (0, 2, 4, 6)
PAIR_WIDTH, GRID_WIDTH = 320, 160  # pixels at which a picture is shown


class DemoError(Exception):
    """The demo cannot run as asked; the message says why."""


def arguments():
    parser = argparse.ArgumentParser(description="Make two pictures of one prompt and seed, plain and guided.")
    parser.add_argument("--prompt", help="what to draw (default: the workflow's)")
    parser.add_argument("--positive", help="what is wanted, the one end of the direction")
    parser.add_argument("--negative", help="what is not wanted, the other end")
    parser.add_argument("--w", type=finite, help="guidance scale; 0 changes nothing (with a projection its base stays in)")
    parser.add_argument("--start-layer", type=int, help="the first layer that is guided")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--steps", type=int, help="sampling steps")
    parser.add_argument("--size", type=int, help="width and height in pixels")
    parser.add_argument(
        "--workflow",
        default="flux_schnell_aesthetics",
        help="one of workflows/api, or a .json file in that format with two Save Image nodes titled Plain and Guided",
    )
    parser.add_argument("--small", action="store_true", help="use the small world's models even where the real ones are there")
    parser.add_argument("--grid", action="store_true", help="draw the grid with real models, too (13 pictures)")
    parser.add_argument("--out", type=Path, default=CHECKOUT / "out", help="folder for the pictures")
    parser.add_argument("--comfyui", metavar="URL", help="use the server that runs there")
    parser.add_argument("--comfyui-version", default=DEFAULT_VERSION, help="the ComfyUI to set up")
    parser.add_argument("--under-host", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped then, too
    try:
        check_folder(options.out)
        # a running server does the work: then these two libraries are all that is needed here
        enough = options.comfyui and not options.small and has_module("PIL") and has_module("aiohttp")
        if not options.under_host and not enough:
            run_under(ensure_host(options.comfyui_version), [__file__, "--under-host", *sys.argv[1:]])
        if options.comfyui:
            contents = use_server(options)
        else:
            contents = use_own_server(options)
        write_files(options.out, contents)
    except (DemoError, SetupError, ServerError, PromptError, PromptInterrupted, ConnectionError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nInterrupted; no picture was written.", file=sys.stderr)
        sys.exit(130)


def use_server(options):
    """The files' contents, of a server that already runs."""
    client = Client(options.comfyui if "://" in options.comfyui else f"http://{options.comfyui}")
    if not client.get("/object_info/ApplyModulationGuidance"):
        raise DemoError(f"ComfyUI at {client.url} does not have this pack: put it into its custom_nodes folder and restart it.")
    prompt = read_workflow(options)
    if options.small:
        prompt = with_small_world(prompt, options)
    prompt, missing = with_files_of(client, prompt)
    if missing:
        raise DemoError(
            f"ComfyUI at {client.url} has no {', '.join(missing)}: put that into its models folder, or give another --workflow."
        )
    return draw(client, prompt, options)


def use_own_server(options):
    """The files' contents, of a server started for this."""
    host = ensure_host(options.comfyui_version)
    small = cache_folder() / "small-world"
    print(f"Starting ComfyUI {host.version}", flush=True)
    with running_server(host, [host.models, small]) as url:
        client = Client(url)
        prompt, missing = with_files_of(client, read_workflow(options))
        if missing or options.small:
            print(f"Using the small world's models in place of {', '.join(missing) or 'the real ones'}", flush=True)
            small_models().write_small_models(small)
            prompt = with_small_world(read_workflow(options), options)
        return draw(client, prompt, options)


def small_models():
    """The module, which needs torch, so the host's Python."""
    from tools import small_models

    return small_models


def with_small_world(prompt, options):
    """The prompt with the small world's models. Options not given become what shows best there."""
    for option, value in SMALL_WORLD.items():
        if getattr(options, option) is None:
            setattr(options, option, value)
    options.grid = True
    return small_models().with_small_models(prompt)


def read_workflow(options):
    """The API-format prompt of --workflow."""
    path = Path(options.workflow)
    if path.suffix != ".json":
        path = CHECKOUT / "workflows" / "api" / f"{options.workflow}.json"
    if not path.is_file():
        names = ", ".join(sorted(each.stem for each in (CHECKOUT / "workflows" / "api").glob("*.json")))
        raise DemoError(f"There is no workflow {options.workflow}; there are {names}.")
    return json.loads(path.read_bytes())  # whatever its encoding


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


def draw(client, prompt, options):
    """The contents of the files to write, {name: bytes}: the options applied to the prompt, and the prompt run."""
    apply_options(prompt, options)
    plain, guided = run(client, prompt, options)
    contents = {"plain.png": plain, "guided.png": guided}
    columns, lines = ["plain", f"guided, w {shown(prompt, 'ApplyModulationGuidance', 'w')}"], caption(prompt)
    pictures = [plain, guided]
    if LEARNED in client.choices("LoadGuidanceDirection", "direction_name") and fits_learned(prompt):
        contents["learned.png"] = run(client, with_learned(prompt), options)[1]
        pictures.append(contents["learned.png"])
        columns.append(f"learned from words, w {LEARNED_W:g}")
    contents["side_by_side.png"] = sheet_of([pictures], columns, [""], lines, PAIR_WIDTH)
    if options.grid:
        cells = []
        for start_layer in GRID_START_LAYERS:
            set_start_layer(prompt, start_layer)
            cells.append([plain])
            for w in GRID_W:
                set_input(prompt, "ApplyModulationGuidance", "w", w)
                cells[-1].append(run(client, prompt, options)[1])
        columns = ["plain", *(f"w {w:g}" for w in GRID_W)]
        rows = [f"start layer {start_layer}" for start_layer in GRID_START_LAYERS]
        contents["grid.png"] = sheet_of(cells, columns, rows, lines[:2], GRID_WIDTH)
    return contents


def fits_learned(prompt):
    """Whether the prompt guides the small world's model towards what its direction was learned from."""
    asked = [
        shown(prompt, "UNETLoader", "unet_name"),
        *(shown(prompt, "EncodeGuidanceDirection", side) for side in ("positive", "negative")),
    ]
    return asked == ["small_world_flux.safetensors", SMALL_WORLD["positive"], SMALL_WORLD["negative"]]


def with_learned(prompt):
    """The prompt guided by the learned direction in place of the encoded one."""
    prompt = copy.deepcopy(prompt)
    inputs = {"direction_name": LEARNED}
    prompt["learned"] = {"class_type": "LoadGuidanceDirection", "inputs": inputs, "_meta": {"title": "Load Guidance Direction"}}
    set_input(prompt, "ApplyModulationGuidance", "direction", ["learned", 0])
    set_input(prompt, "ApplyModulationGuidance", "w", LEARNED_W)
    return prompt


def apply_options(prompt, options):
    """Sets what the options say in the prompt."""
    if options.prompt is not None:
        for node in prompt_encoders(prompt):
            node["inputs"]["text"] = options.prompt
    if options.start_layer is not None:
        set_start_layer(prompt, options.start_layer)
    for option, class_type, name in (
        ("positive", "EncodeGuidanceDirection", "positive"),
        ("negative", "EncodeGuidanceDirection", "negative"),
        ("w", "ApplyModulationGuidance", "w"),
        ("seed", "KSampler", "seed"),
        ("steps", "KSampler", "steps"),
        ("size", "EmptySD3LatentImage", "width"),
        ("size", "EmptySD3LatentImage", "height"),
    ):
        if getattr(options, option) is not None:
            set_input(prompt, class_type, name, getattr(options, option))


def run(client, prompt, options):
    """PNG bytes of the prompt's plain and guided picture."""
    saved = {node["_meta"]["title"].lower(): key for key, node in prompt.items() if node["class_type"] == "SaveImage"}
    if not {"plain", "guided"} <= saved.keys():
        raise DemoError(f"The workflow {options.workflow} has no two Save Image nodes titled Plain and Guided.")
    images = client.run(prompt, show_progress)
    print(flush=True)
    return [images[saved[name]][0] for name in ("plain", "guided")]


def prompt_encoders(prompt):
    """The nodes that encode the positive prompt: those that the samplers' positive inputs lead back to."""
    found, links = [], [node["inputs"]["positive"] for node in prompt.values() if node["class_type"] == "KSampler"]
    while links:
        node = prompt[links.pop()[0]]
        if node["class_type"] == "CLIPTextEncode":
            found.append(node)
        else:
            links += [value for value in node["inputs"].values() if isinstance(value, list)]
    if not found:
        raise DemoError("The workflow has no CLIPTextEncode that leads to a KSampler's positive input.")
    return found


def set_start_layer(prompt, start_layer):
    """Sets the first guided layer, with a schedule of its own where the workflow has none."""
    if not any(node["class_type"] == "GuidanceLayerSchedule" for node in prompt.values()):
        inputs = {"start_layer": start_layer, "end_layer": -1, "taper_layers": 0, "taper_scale": 0.25, "final_layer": 0.0}
        prompt["schedule"] = {"class_type": "GuidanceLayerSchedule", "inputs": inputs, "_meta": {"title": "Layer Schedule"}}
        set_input(prompt, "ApplyModulationGuidance", "schedule", ["schedule", 0])
    set_input(prompt, "GuidanceLayerSchedule", "start_layer", start_layer)


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
    value = node["inputs"].get(name)
    if isinstance(value, list) and prompt[value[0]]["class_type"].startswith("Primitive"):
        return prompt[value[0]], "value"
    return node, name


def show_progress(progress):
    step = f"{progress.title} {progress.value}/{progress.total}" if progress.total else progress.title
    if sys.stdout.isatty():
        show_line(step)
    else:
        print(step, flush=True)


def check_folder(folder):
    """Raises DemoError where no picture can be written: before all the work, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DemoError(f"{folder} cannot be written to: {error.strerror}. Give another folder by --out.") from error


def write_files(folder, contents):
    """Writes the files, each whole or not at all, and one that Windows holds for a program that shows it under another name."""
    for name, content in contents.items():
        path = folder / name
        try:
            write_whole(path, content)
        except PermissionError:
            path = next(other for other in (path.with_stem(f"{path.stem}_{n}") for n in itertools.count(2)) if not other.exists())
            write_whole(path, content)
        print(path)


def shown(prompt, class_type, name):
    """The value of an input in words; a dash where the workflow has none."""
    node = next((node for node in prompt.values() if node["class_type"] == class_type), {"inputs": {}})
    holder, key = holder_of(prompt, node, name)
    value = holder["inputs"].get(key, "-")
    if isinstance(value, list):
        return f"of preset {shown(prompt, 'GuidancePreset', 'preset')}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def caption(prompt):
    """The settings of a prompt in words: the prompt, the direction, and the others."""
    return [
        f"Prompt: {prompt_encoders(prompt)[0]['inputs']['text']}",
        f"More of: {shown(prompt, 'EncodeGuidanceDirection', 'positive')}. Less of: {shown(prompt, 'EncodeGuidanceDirection', 'negative')}.",
        f"w {shown(prompt, 'ApplyModulationGuidance', 'w')} from layer {shown(prompt, 'GuidanceLayerSchedule', 'start_layer')} on; "
        f"{shown(prompt, 'UNETLoader', 'unet_name')}, seed {shown(prompt, 'KSampler', 'seed')}, {shown(prompt, 'KSampler', 'steps')} steps",
    ]


def sheet_of(cells, columns, rows, lines, width):
    """PNG bytes of a sheet (see sheet.py) of PNG pictures."""
    from PIL import Image

    from tools.sheet import sheet

    pictures = [[Image.open(io.BytesIO(cell)).convert("RGB") for cell in row] for row in cells]
    content = io.BytesIO()
    sheet(pictures, columns, rows, lines, max(width, pictures[0][0].width)).save(content, "PNG")
    return content.getvalue()


if __name__ == "__main__":
    main()

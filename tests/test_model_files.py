"""The model files that the shared workflows name: where they come from, and that the loaders find them where they are put."""

import json
from urllib.parse import urlparse

import folder_paths
import pytest
from support import blueprints
from support.blueprints import BLUEPRINTS

import nodes as host_nodes
from tools.templates import api_form, graphs

GRAPHS = graphs()
OFFERED = ("https://huggingface.co/", "https://civitai.com/")  # what the editor's dialog downloads from
HOW_ELSE = {  # files that no such address has -> what the workflow's note says instead
    "pooled_text_proj-0611.safetensors": "https://github.com/sorryhyun/ComfyUI-Spectrum-KSampler/releases/download/0605/pooled_text_proj-0611.safetensors",
    "stable-diffusion-3.5-large-dmd2.safetensors": "https://huggingface.co/yresearch/stable-diffusion-3.5-large-dmd2",
    "wan_clip.safetensors": "*Distill a projection*",
    **{f"{name}_detail_00001_.safetensors": f"**guidance_directions/{name}_detail**" for name in ("flux", "wan")},
    **{f"small_world_{name}.safetensors": "tools/small_world/install.py" for name in ("flux", "wan", "vae", "clip_l")},
}


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def files(values):
    return [value for value in values if isinstance(value, str) and value.endswith(tuple(folder_paths.supported_pt_extensions))]


@pytest.fixture(params=GRAPHS, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_every_model_file_has_an_address_or_the_note_says_where_it_comes_from(path):
    check_addresses(read(path)["nodes"])


@pytest.mark.parametrize("blueprint", BLUEPRINTS, ids=lambda path: path.stem)
def test_so_has_every_file_of_a_blueprint(blueprint):
    _, subgraph = blueprints.read(blueprint)
    check_addresses(subgraph["nodes"])


def check_addresses(graph):
    note = "\n".join(node["widgets_values"][0] for node in graph if node["type"] == "MarkdownNote")
    loaders = {node["id"]: files(node.get("widgets_values", [])) for node in graph if node["type"] != "MarkdownNote"}
    assert any(loaders.values())
    for node in graph:
        models = node.get("properties", {}).get("models", [])
        named = loaders.get(node["id"], [])
        assert [model["name"] for model in models] == [name for name in named if name not in HOW_ELSE], node["type"]
        assert all(HOW_ELSE[name] in note for name in named if name in HOW_ELSE)
        for model in models:
            assert model.keys() == {"name", "url", "directory"}
            assert model["url"].startswith(OFFERED) and "/resolve/" in model["url"]
            assert urlparse(model["url"]).path.split("/")[-1] == model["name"]


def test_the_api_form_names_the_same_files(path):
    graph, prompt = read(path)["nodes"], read(api_form(path))
    in_graph = {
        str(node["id"]): named for node in graph if node["type"] != "MarkdownNote" and (named := files(node.get("widgets_values", [])))
    }
    assert in_graph == {number: named for number, node in prompt.items() if (named := files(node["inputs"].values()))}


def test_each_loader_finds_a_file_in_the_folder_that_it_is_downloaded_to(path, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    prompt = read(api_form(path))
    for node in read(path)["nodes"]:
        for model in node.get("properties", {}).get("models", []):
            directory = tmp_path / model["directory"]
            directory.mkdir(exist_ok=True)
            (directory / model["name"]).touch()
            _, extensions = folder_paths.folder_names_and_paths[model["directory"]]
            monkeypatch.setitem(folder_paths.folder_names_and_paths, model["directory"], ([str(directory)], extensions))
            (name,) = (name for name, value in prompt[str(node["id"])]["inputs"].items() if value == model["name"])
            assert model["name"] in choices(node["type"], name)


def choices(class_type, name):
    kind, *options = host_nodes.NODE_CLASS_MAPPINGS[class_type].INPUT_TYPES()["required"][name]
    return kind if isinstance(kind, list) else options[0]["options"]

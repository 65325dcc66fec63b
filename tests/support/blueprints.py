"""The blueprints of subgraphs/, and the API form that stands for one of them in a prompt."""

import json
from pathlib import Path

BLUEPRINTS = sorted((Path(__file__).parents[2] / "subgraphs").glob("*.json"))


def read(path):
    """(node that stands for it, its subgraph)"""
    whole = json.loads(path.read_text(encoding="utf-8"))
    (node,), (subgraph,) = whole["nodes"], whole["definitions"]["subgraphs"]
    return node, subgraph


def prompt_of(path, model, prefix="blueprint:"):
    """(nodes in API form, the guided model's link); model: the link of the plain one."""
    _, subgraph = read(path)
    links = {link["id"]: link for link in subgraph["links"]}
    nodes = {}
    for node in subgraph["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        values = iter(node["widgets_values"])
        inputs = {}
        for given in node["inputs"]:
            if "widget" in given:
                inputs[given["name"]] = next(values)
            elif given["link"] is not None:
                source = links[given["link"]]
                inside = [f"{prefix}{source['origin_id']}", source["origin_slot"]]
                inputs[given["name"]] = model if source["origin_id"] == subgraph["inputNode"]["id"] else inside
        nodes[f"{prefix}{node['id']}"] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": node["type"]}}
    (last,) = (link for link in links.values() if link["target_id"] == subgraph["outputNode"]["id"])
    return nodes, [f"{prefix}{last['origin_id']}", last["origin_slot"]]

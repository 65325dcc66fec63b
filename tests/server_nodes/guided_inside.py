"""A node for the tests' server that puts Apply Modulation Guidance into the graph as the prompt runs."""

from comfy_execution.graph_utils import GraphBuilder


class GuidedInside:
    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "guide", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "direction": ("GUIDANCE_DIRECTION",), "w": ("FLOAT", {"default": 3.0})}}

    def guide(self, model, direction, w):
        graph = GraphBuilder()
        settings = dict(start_percent=0.0, end_percent=1.0, cfg_rows="auto", keep_norm=False)
        inside = graph.node("ApplyModulationGuidance", model=model, direction=direction, w=w, **settings)
        return {"result": (inside.out(0),), "expand": graph.finalize()}


NODE_CLASS_MAPPINGS = {"GuidedInside": GuidedInside}

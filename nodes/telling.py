"""Telling on a node of ours, and in the log, what was done when the model it patched was sampled."""

import logging
from dataclasses import dataclass

from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ..model_patches.telling import Told


@dataclass(frozen=True)
class Teller:
    """Of a node, by its name.

    node: its number in the prompt, None where it runs in none. shown_as: the number of the node that the user sees, another one where
    a node put it into the graph as the prompt ran. label: of the model, where the node makes several.
    """

    name: str
    node: str | None
    shown_as: str | None
    label: str

    def __call__(self, told: Told) -> None:
        where = "" if self.node is None else f" ({self.node})"
        text = f"{self.label}: {told.text}" if self.label else told.text
        logging.log(logging.WARNING if told.warns else logging.INFO, "%s%s: %s", self.name, where, text)
        context = get_executing_context()
        if self.node is None or context is None:
            return
        lines = _LINES.of_prompt(context.prompt_id).setdefault(self.shown_as, {})
        lines[self.node, self.label, context.node_id] = _shown_as(context.node_id), ("⚠ " if told.warns else "") + text
        server = PromptServer.instance
        if server.client_id is not None:  # without, every editor that is open would show it
            server.send_progress_text(_together([*lines.values()]), self.shown_as, server.client_id)


def teller(cls, label: str = "") -> Teller:
    """For `guide` and `scale_variance`, of the node class `cls` as it executes; label: of the model, where it makes several."""
    context = get_executing_context()
    node = context and context.node_id
    return Teller(cls.define_schema().display_name, node, node and _shown_as(node), label)


class _Lines:
    """Of the prompt that runs, {number of the node seen: {(number of ours, label, number of the sampler): (that of the sampler seen, text)}}.

    Not with the tellers: the host keeps what a node made, tellers too, and one node may make several.
    """

    def __init__(self):
        self.prompt, self.nodes = None, {}

    def of_prompt(self, prompt: str) -> dict:
        if prompt != self.prompt:
            self.prompt, self.nodes = prompt, {}
        return self.nodes


_LINES = _Lines()


def _together(lines: list[tuple[str, str]]) -> str:
    if len({sampler for sampler, _ in lines}) == 1:
        return "\n".join(text for _, text in lines)
    return "\n".join(f"{_title(sampler)}: {text}" for sampler, text in lines)


def _title(node: str) -> str:
    known = get_progress_state().dynprompt.get_node(node)
    return f"{known.get('_meta', {}).get('title', known['class_type'])} ({node})"


def _shown_as(node: str) -> str:
    return get_progress_state().dynprompt.get_display_node_id(node)

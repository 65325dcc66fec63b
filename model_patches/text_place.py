"""Where the text stands among the tokens that `post_input` patches make of it, as those of the host's USO Style Reference do.

The patches run within the model, where torch.compile may have compiled them: the place is a tensor, filled in there and read by
the blocks after it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PostInputPatches:
    """The model's post_input patches as one, which notes in `start`, (1,), how many tokens come before the text after it."""

    patches: list
    start: Tensor

    def __call__(self, args: dict) -> dict:
        text = args["txt"]
        for patch in self.patches:
            args = args | patch(args)
        self.start.copy_(_start_of(text, args["txt"]))
        return args


def _start_of(text: Tensor, tokens: Tensor) -> Tensor:
    """Where `text`, (R, L, D), begins in `tokens`, (R, L', D): where its first and last token come nearest."""
    if text.shape[1] > tokens.shape[1]:
        return -_start_of(tokens, text)
    starts = tokens.shape[1] - text.shape[1] + 1
    first = _apart(tokens[:, :starts], text[:, :1])
    last = _apart(tokens[:, -starts:], text[:, -1:])
    return (first + last).sum(dim=0).argmin(dim=0, keepdim=True)


def _apart(tokens: Tensor, token: Tensor) -> Tensor:
    """(R, L)"""
    return torch.linalg.vector_norm(tokens.float() - token.float(), dim=-1)


def placed(kept: Tensor, start: Tensor, count: int) -> Tensor:
    """`kept`, (R, L, 1), of the text as numbers of `count` tokens among which it begins at `start`: 0 for those beside it."""
    position = torch.arange(count, device=kept.device) - start
    inside = (position >= 0) & (position < kept.shape[1])
    return kept[:, position.clamp(0, kept.shape[1] - 1)] * inside.unsqueeze(-1)

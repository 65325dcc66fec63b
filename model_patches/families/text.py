"""How text reaches a model: as a shift of y, and as tokens."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..directions import EncodedPrompt, PromptPair
from ..schedules import LayerSchedule
from .blocks import BlockInput
from .call import Call

if TYPE_CHECKING:
    from .base import Family

OWN_TEXT = "(the text of the rows themselves)"


class TextPath:
    """How texts become shifts of y.

    injection: the name of the family's injection that takes the shift.
    base_texts: what the base is made of, prompts or OWN_TEXT; empty where there is none.
    same_for_rows: whether the contributions of a single prompt are known to be the same for every row.
    """

    injection = "modulation"
    base_texts: tuple[EncodedPrompt | str, ...] = ()
    same_for_rows = False

    @property
    def source(self) -> Hashable:
        """What makes the contributions; those of one source are made together, whichever guidances they are for."""
        return self

    def check(self, family: Family, model: nn.Module, prompt: EncodedPrompt) -> None:
        """Raises ValueError, with what to do, if the prompt can't be read."""
        raise NotImplementedError

    def check_pair(self, family: Family, model: nn.Module, pair: PromptPair) -> None:
        """The same for the two prompts of a pair."""
        for prompt in (pair.positive, pair.negative):
            self.check(family, model, prompt)

    def contributions(self, model: nn.Module, texts: Sequence[EncodedPrompt | str], call: Call) -> dict[EncodedPrompt | str, Tensor]:
        """What each of the texts contributes to y at this call, up to what all contribute: (R, D) in fp32, (R, T, D) where frames have
        a time of their own."""
        raise NotImplementedError

    def base(self, of_text: dict[EncodedPrompt | str, Tensor], conditional: list[bool | None]) -> Tensor | None:
        """What goes into y at every step, whatever w, made of the contributions of `base_texts`; None for nothing."""
        return of_text.get(OWN_TEXT)

    def takes_base(self, weight: float) -> bool:
        """Whether a layer with this weight in the schedule takes the base."""
        return False

    def layer_scales(self, call: Call) -> Tensor | None:
        """(L, D), what the shift is multiplied with at each layer; None for nothing."""
        return None

    def patchers(self, device: torch.device) -> list:
        """ModelPatchers of what it runs besides a model on that device, for the host to load beside it."""
        return []

    def schedule(self, family: Family, depth: int) -> LayerSchedule:
        """Used where the user connects none."""
        return family.default_schedule(depth)

    def weights(self, schedule: LayerSchedule, depth: int) -> tuple[float, ...]:
        """One for each layer: the schedule's, or 0 where this text cannot enter."""
        return schedule.resolve(depth)

    def cfg_rows(self, family: Family) -> str:
        """What "auto" means."""
        return family.cfg_rows

    def w(self, family: Family) -> float | None:
        """The guidance scale of whoever uses it; None where nobody is known to."""
        return family.w


@dataclass(frozen=True)
class NoText(TextPath):
    """Of a text-blind model that is guided without any text."""

    injection: str


@dataclass(frozen=True)
class PooledText(TextPath):
    """Text that reaches y as the pooled output of the text encoder, y = ... + modulation(pooled).

    width: how many features the model reads. modulation: (N, P) -> (N, D).
    """

    same_for_rows = True

    width: Callable[[nn.Module], int]
    modulation: Callable[[nn.Module, Tensor], Tensor]

    def check(self, family, model, prompt):
        needed = self.width(model)
        if prompt.pooled is None:
            raise ValueError(
                f"The guidance direction has no pooled output, which guiding {family.name} needs. "
                f"Encode it with the text encoder the model uses: {family.encoder}."
            )
        if prompt.pooled.shape[-1] < needed:
            raise ValueError(
                f"The guidance direction's pooled output is {prompt.pooled.shape[-1]} wide, but this {family.name} model "
                f"reads {needed}. Encode it with the text encoder the model uses: {family.encoder}."
            )

    def check_pair(self, family, model, pair):
        super().check_pair(family, model, pair)
        # What SD3's and HiDream's encoders give where their CLIP parts were not loaded; one side may well be zeroed out.
        if not (pair.positive.pooled.any() or pair.negative.pooled.any()):
            raise ValueError(
                "The guidance direction's pooled outputs are all zeros, so that it guides nowhere: the text encoder was loaded "
                f"without the part that makes them. Encode it with the text encoder the model uses: {family.encoder}."
            )

    def contributions(self, model, texts, call):
        width = self.width(model)  # a wider pooled output is cut to it, as the host cuts it
        pooled = [call.cast(prompt.pooled[:, :width]) for prompt in texts]
        made = self.modulation(model, torch.cat(pooled)).float().split([len(each) for each in pooled])
        return {prompt: call.to_rows(each) for prompt, each in zip(texts, made, strict=True)}


def blank(width: Callable[[nn.Module], int], pooled: Callable[[nn.Module], int]) -> Callable[[nn.Module], EncodedPrompt]:
    """For `Family.blank`, of a family that reads tokens of that width and a pooled output."""
    return lambda model: EncodedPrompt(torch.zeros(1, pooled(model)), torch.zeros(1, 8, width(model)))


@dataclass(frozen=True)
class TextContext:
    """The text tokens as they reach the model, for projections that pool them.

    width: C, how wide they are.
    of_prompt: (model, prompt of a direction, call) -> (N, L, C). of_rows: (model, call) -> (R, L, C), those of the batch.
    """

    width: Callable[[nn.Module], int]
    of_prompt: Callable[[nn.Module, EncodedPrompt, Call], Tensor] = lambda model, prompt, call: call.cast(prompt.tokens)
    of_rows: Callable[[nn.Module, Call], Tensor] = lambda model, call: call.cast(call.context)


def unmasked(call: Call) -> Tensor:
    """(R, L), True where neither the encoder's attention mask nor a row of zeros says padding."""
    present = call.context.any(dim=-1)
    mask = call.conds.get("attention_mask")
    if mask is None:
        return present
    if mask.ndim == 3:
        # (R, L + image tokens, the same): what each token sees. What no image token sees is as good as padding.
        count = present.shape[1]
        mask = mask[:, count:, :count].amax(dim=1)
    # As the host reads it: numbers that are added to the attention, or 1 for a token and 0 for padding. exp(-100) is 0 in fp32.
    kept = mask > -100 if mask.is_floating_point() else mask.bool()
    return present & kept.to(present.device)


@dataclass(frozen=True)
class Counting:
    """How text tokens are told from padding where encoders pad without a mask: by counting those of the prompt.

    encoders: which ones, by the host's names; of names in one string any will do.
    in_order: {name of an encoder that is loaded: True for each token of the prompt, False for padding} -> the same for all L tokens
    as they follow each other in the blocks, those that stand for encoders which are not loaded included.
    given: (tokens (N, L', C), extras), as the encoders give them -> (N, L, C'), in that order: what prompts are told apart by.
    """

    encoders: tuple[str, ...]
    in_order: Callable[[dict[str, list[bool]]], list[bool]]
    given: Callable[[Tensor, dict[str, Any]], Tensor] = lambda tokens, extras: tokens


@dataclass(frozen=True)
class TextTokens:
    """Where the text tokens themselves enter the blocks, in models whose blocks attend to text and image jointly (MM-DiT).

    joint: the first blocks, and the argument that holds the text tokens, (R, L, D).
    mixed: the blocks after them, and the argument that holds text and image tokens in one, (R, L + image tokens, D).
    mixed_text_first: whether the text comes before the image there.
    present: (call) -> (R, L), True for the prompt's tokens and False for padding, as far as the model's inputs tell; L as in the blocks.
    counting: for padding that the inputs do not tell; None where they do.
    """

    joint: Callable[[nn.Module], list[BlockInput]]
    mixed: Callable[[nn.Module], list[BlockInput]] = lambda model: []
    mixed_text_first: bool = True
    present: Callable[[Call], Tensor] = unmasked
    counting: Counting | None = None

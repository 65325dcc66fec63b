"""Which tokens of a conditioning are those of a prompt, where encoders pad and give no mask.

A prompt's text is tokenized again, which tells its tokens from padding, and encoded again, which tells the conditionings that hold
it from those that hold another: a sampling may have several prompts (combined, of regions, of parts of the sampling), and nodes put
other tokens beside a prompt's (Redux, Conditioning Concat). What is counted goes with each conditioning as one more input of the
model, so that the host itself brings it to the right rows of every batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from comfy.conds import CONDRegular
from torch import Tensor

from .families import Counting, Family

COUNTED = "text_variance_counted"  # the input's name

# The host's names of encoders whose modules are called otherwise.
_MODULES = {"l": "clip_l", "g": "clip_g"}

# How far tokens of the same text may be apart: far below what another word makes, far above a rounding.
_TOLERANCE = 0.01


@dataclass(frozen=True, eq=False)
class PromptTokens:
    """The text tokens that a model gets of one prompt.

    given: (L, C) in fp32 on the CPU, what `counting.given` makes of them. counted: L of them, True for those of the prompt (start and end
    included), False for padding.
    """

    given: Tensor
    counted: tuple[bool, ...]
    counting: Counting

    def stand_at(self, position: int, row: Tensor) -> bool:
        """Whether the tokens of `row`, (L', C), are this prompt's from `position` on, and not all zeros."""
        part = row[position : position + len(self.given)]
        # The first token alone tells most places.
        return part.shape == self.given.shape and _same(part[:1], self.given[:1]) and _same(part, self.given) and bool(part.any())


def _same(tokens: Tensor, given: Tensor) -> bool:
    """Zeros are the same as anything: they are padding wherever they stand (Conditioning Zero Out)."""
    apart = torch.linalg.vector_norm(tokens - given, dim=-1)
    close = apart <= _TOLERANCE * torch.linalg.vector_norm(given, dim=-1)
    return bool((close | ~tokens.any(dim=-1)).all())


def count_tokens(family: Family, clip, text: str) -> list[PromptTokens]:
    """One for each conditioning that the encoder makes of the text: several if hooks change it while sampling.

    Raises ValueError if the encoder is not of the kind that the model uses.
    """
    counting = family.text_tokens.counting
    chunks = clip.tokenize(text, return_word_ids=True)
    if not all(any(name in chunks for name in names.split()) for names in counting.encoders):
        raise ValueError(_wrong_encoder(family, chunks))
    masks = {
        name: [is_prompt for chunk in chunks[name] for is_prompt in _of_prompt(chunk, getattr(clip.tokenizer, _MODULES.get(name, name)))]
        for name in chunks
        if getattr(clip.cond_stage_model, _MODULES.get(name, name), None) is not None
    }
    counted = tuple(counting.in_order(masks))
    prompts = [
        PromptTokens(counting.given(tokens, extras)[0].float().cpu(), counted, counting)
        for tokens, extras in clip.encode_from_tokens_scheduled(clip.tokenize(text), show_pbar=False)
    ]
    if any(len(prompt.given) != len(counted) for prompt in prompts):
        raise ValueError(_wrong_encoder(family, masks))
    return prompts


def _wrong_encoder(family: Family, names) -> str:
    wanted = " and ".join(names.replace(" ", " or ") for names in family.text_tokens.counting.encoders)
    return (
        f"Scale Text Variance: the text encoder on clip makes tokens for {', '.join(names)}, but {family.name} reads those of {wanted}. "
        f"Connect the text encoder the model uses: {family.encoder}."
    )


def _of_prompt(chunk: list[tuple], tokenizer) -> list[bool]:
    words = [position for position, (_, _, word) in enumerate(chunk) if word]
    last = max(words, default=0 if tokenizer.start_token is not None else -1)
    count = last + 1 + (tokenizer.end_token is not None)
    return [position < count for position in range(len(chunk))]


def count_in(conds: dict[str, list[dict]], prompts: list[PromptTokens]) -> None:
    """Puts what is counted on each of a guider's conditionings (by the guider's names) that hold one of the prompts, or none at all.

    The others are left without, for `counted_rows` to refuse if they are sampled with. The positive ones always are: raises
    ValueError if they are among the others.
    """
    for name, side in conds.items():
        for cond in side:
            tokens = cond.get("cross_attn")
            if tokens is None:
                continue
            rows = [_counted(row, prompts) for row in prompts[0].counting.given(tokens, cond).float().cpu()]
            if None not in rows:
                cond["model_conds"] = cond["model_conds"] | {COUNTED: CONDRegular(torch.tensor(rows))}
            elif name == "positive":
                raise ValueError(_UNKNOWN)


def _counted(row: Tensor, prompts: list[PromptTokens]) -> list[bool] | None:
    """For each token of a row, (L, C), whether it is one of a prompt; None if none of the prompts is there, but another text."""
    counted: list[bool] = []
    known = not row.any()
    while len(counted) < len(row):
        prompt = next((prompt for prompt in prompts if prompt.stand_at(len(counted), row)), None)
        known = known or prompt is not None
        counted += prompt.counted if prompt else (False,)
    return counted if known else None


def counted_rows(conds: dict) -> Tensor:
    """(R, L), what `count_in` counted, in a batch; conds: the model's inputs. Raises ValueError where a row comes without."""
    if COUNTED not in conds:
        raise ValueError(_UNKNOWN)
    return conds[COUNTED]


_UNKNOWN = (
    "Scale Text Variance: a conditioning that is sampled with holds none of the texts on prompt, negative_prompt and prompts, as the "
    "encoder on clip encodes them, or another node brings it while sampling, so its tokens can't be told from padding. Connect the texts "
    "of all prompts that are sampled with, and the very encoder that encodes them (after its LoRAs), or disconnect clip and the texts."
)

"""A direction: one shift of y for each main layer, delta (L, D), that does what words in the prompt do. It starts at zero.

    teacher   v(x_t, t, "prompt, words")     by attention, the model's own way, with the plain prompt's pooled vector
    student   v(x_t, t, "prompt")            with y_i + s delta_i at layer i, s = +1 for the positive words, -1 for the negative ones

The loss is the mean square of their difference, x_t made of the model's own pictures with both kinds of words. Some rows have the empty
prompt in place of the prompt, on both sides, so that the unconditional rows of CFG take the shift too.

One of the words may be empty: then only rows of the other's are learned, and pictures of the plain prompt stand beside theirs. With
s of the empty side towards the plain prompt, delta would come to about the half.

What is learned is weaker than the words: the least square leaves out what one shift cannot do for every prompt. So at the end it is
scaled, so that at w 1 it moves the prediction as far as the words do on prompts that were set aside. Only as far as that is honest:
not where it moves it another way than the words, and not by more than MOST_SCALED.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..model_patches.directions import GuidanceDirection, LearnedDirection
from ..model_patches.families import OWN_TEXT
from ..model_patches.learned import LearnedShifts
from ..model_patches.quoting import quoted
from .checkpoints import Checkpoint, digest
from .lessons import Batch, generator
from .loop import Progress, Training, Workers, learn, out_of_memory_explained, stripped
from .settings import Settings
from .teaching import Course, Shift, Teaching

EMPTY_ROWS = 0.15  # of all
SET_ASIDE = 8  # prompts at most, and one in as many, on which it is measured what w 1 means
MOST_SCALED = 4.0  # times, up or down
LEAST_ALIKE = 0.3  # cosine to the words' change, below which more of it is more of something else

EMPTY = -1  # number of the empty prompt


class Strength(NamedTuple):
    """Of w 1. far: it moves the prediction, of as far as the words do. alike: the cosine of the two changes. scaled: by what it was."""

    far: float
    alike: float
    scaled: float

    @property
    def record(self) -> dict[str, float]:
        return {"strength": self.far, "alike": self.alike, "scaled by": self.scaled}

    def told(self, prompts: int) -> str:
        on = f"on {prompts} {'prompt' if prompts == 1 else 'prompts'}"
        if self.alike < LEAST_ALIKE:
            return (
                f"w 1 is {self.far:.2f} times as strong as the words, {on}, and goes another way (alike by {self.alike:.2f}): learn longer."
            )
        meant = f"w 1 is {self.far:.2f} times as strong as the words, {on} (alike by {self.alike:.2f}; scaled by {self.scaled:.2f})."
        if self.scaled in (MOST_SCALED, 1 / MOST_SCALED):
            meant += f" It was scaled as far as is safe; w {1 / self.far:.1f} is about as strong as they are."
        return meant


class Said(NamedTuple):
    """A prompt's conditionings: plain; words: with the words of +1 and of -1, the plain one where there are none."""

    plain: list
    words: dict[int, list]


class DirectionTraining(Training):
    """A direction in training on one model.

    positive, negative: the words. direction: a learned one to go on from. held_out: prompts on which it is measured what w 1 means;
    without any, some of the prompts are set aside for that. checkpoint, origin: as of Distillation.
    """

    learned = "direction"

    def __init__(
        self,
        model,
        clip,
        prompts: list[str],
        positive: str,
        negative: str,
        settings: Settings,
        direction: GuidanceDirection | None = None,
        held_out: list[str] = (),
        workers: Workers = Workers(),
        checkpoint: Checkpoint | None = None,
        origin: Mapping[str, Any] | None = None,
    ):
        check_words(positive, negative)
        self.words = {+1: positive.strip(), -1: negative.strip()}
        kept, aside = (prompts, held_out) if stripped(held_out) else _set_aside(stripped(prompts))
        super().__init__(model, clip, kept, settings, aside, workers)
        self.injection = self.family.place_of_y
        if direction is None:
            first = torch.zeros(self.family.depth(self.diffusion_model), self.family.injections[self.injection].width(self.diffusion_model))
        elif direction.pairs:
            raise ValueError(
                "Distilling: the direction to go on from is an encoded one. Connect one from Distill Guidance Direction or Load Guidance "
                "Direction, or none."
            )
        else:
            first = LearnedShifts.of(tuple(map(_as_it_was_learned, direction.learned)), self.family, self.diffusion_model).shifts
        self.given = direction
        self.signs = [sign for sign, words in self.words.items() if words]
        self.strength: Strength | None = None
        run = {
            "prompts": digest(*stripped(prompts)),
            "positive": self.words[+1],
            "negative": self.words[-1],
            "direction": digest(b"" if direction is None else first.cpu().numpy().tobytes()),
        }
        self._begin({"shifts": first}, run | dict(origin or {}), checkpoint)

    def result(self) -> GuidanceDirection:
        """What has been learned so far; scaled, once it has been measured."""
        if self.step == 0 and self.given is not None:
            return self.given
        shifts = self.network.shifts.detach().cpu() * (1.0 if self.strength is None else self.strength.scaled)
        before = [run for learned in ([] if self.given is None else self.given.learned) for run in learned.record.get("runs", [])]
        run = self._record() | {"positive": self.words[+1], "negative": self.words[-1]}
        if self.strength is not None:
            run |= self.strength.record | {"measured on": len(self.held_out)}
        learned = LearnedDirection(shifts, self.family.name, self.words[+1], self.words[-1], {"runs": [*before, run]})
        return GuidanceDirection(learned=(learned,))

    @torch.no_grad()
    def measure(self):
        """Scales what was learned so that w 1 is as strong as the words, and says how strong it is then."""
        found = self._moved(1.0)
        if found is None:
            return "The words change nothing in this model."
        if found.alike >= LEAST_ALIKE:
            for _ in range(2):  # the second makes good that the model is not linear
                found = self._moved(min(max(found.scaled / found.far, 1 / MOST_SCALED), MOST_SCALED))
        if not all(map(math.isfinite, found)):
            return "What w 1 means could not be measured: this model's predictions are not finite."
        self.strength = found
        return found.told(len(self.held_out))

    def _moved(self, scaled: float) -> Strength | None:
        """Of the shift scaled so; None where the words change nothing."""
        sums = torch.zeros(3, device=self.teaching.device)
        for batch in self._examined():
            plain = self.teaching.plainly(self.exam, batch)
            by_shift, by_words = self.teaching.student(self.exam, batch, scaled) - plain, self.teaching.teacher(self.exam, batch) - plain
            sums += torch.stack([(by_shift * by_shift).sum(), (by_shift * by_words).sum(), (by_words * by_words).sum()])
        shift, both, words = self.workers.mean(sums).tolist()
        if not words:
            return None
        return Strength(math.sqrt(shift / words), both / math.sqrt(shift * words) if shift else 0.0, scaled)

    def _network(self, weights):
        return _Shifts(weights["shifts"])

    def _course(self, texts, rows, seeds, on_progress):
        numbers = self._sampled(len(texts), rows, seeds)
        said = self._each([EMPTY, *numbers], lambda number: self._said("" if number == EMPTY else texts[number]), on_progress)
        # Pictures of the two kinds in turn.
        pictured = [said[number].words[(+1, -1)[turn % 2]] for turn, number in enumerate(numbers)]
        return Course(self._lessons(pictured, numbers, said[EMPTY].plain, seeds, on_progress), said)

    def _said(self, text: str) -> Said:
        plain = self._encoded(text)
        return Said(
            plain, {sign: self._encoded(", ".join(filter(None, (text, words)))) if words else plain for sign, words in self.words.items()}
        )

    def _encoded(self, text: str) -> list:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def _teaching(self):
        return DirectionTeaching(self.model, self.family, self.shape, self.settings, self.network, self.injection, self.signs)


class _Shifts(nn.Module):
    """delta, (L, D)."""

    def __init__(self, shifts: Tensor):
        super().__init__()
        self.shifts = nn.Parameter(shifts)

    def weights(self) -> dict[str, Tensor]:
        return dict(self.state_dict())


class _Shift(Shift):
    """s delta_i at layer i; of_rows: (R,), s."""

    def __init__(self, network: _Shifts, injection: str):
        self.network, self.injection = network, injection

    def contributions(self, model, texts, call):
        return {OWN_TEXT: self.of_rows[:, None].expand(-1, self.network.shifts.shape[1])}

    def layer_scales(self, call):
        return self.network.shifts


class DirectionTeaching(Teaching):
    """network: the shifts, on the model's device. signs: of the words that are learned."""

    def __init__(self, model, family, shape, settings, network: _Shifts, injection: str, signs: list[int]):
        super().__init__(model, family, shape, settings, _Shift(network, injection))
        self.signs = signs

    def taught(self, course, batch):
        said = [(sign, course.prompts[number]) for sign, number in zip(*self.rows(course, batch), strict=True)]
        return [_with_pooled_of(prompt.plain, prompt.words[sign]) for sign, prompt in said]

    def student(self, course, batch, scaled=1.0):
        """(R, ...) the prediction with the plain prompt and the shifts, scaled."""
        signs, numbers = self.rows(course, batch)
        of_rows = scaled * torch.tensor(signs, dtype=torch.float32, device=self.device)
        return self.predicted(self.shifted, batch, [course.prompts[number].plain for number in numbers], of_rows).float()

    def plainly(self, course: Course, batch: Batch) -> Tensor:
        """(R, ...) the prediction with the plain prompt and nothing else."""
        _, numbers = self.rows(course, batch)
        return self.predicted(self.plain, batch, [course.prompts[number].plain for number in numbers]).float()

    def rows(self, course: Course, batch: Batch) -> tuple[list[int], list[int]]:
        """For each row, s, and the number of its prompt."""
        draw = generator(*course.lessons.seeds, "words", batch.number)
        which = torch.randint(len(self.signs), (len(batch.prompts),), generator=draw).tolist()
        empty = (torch.rand(len(batch.prompts), generator=draw) < EMPTY_ROWS).tolist()
        numbers = [EMPTY if is_empty else number for number, is_empty in zip(batch.prompts, empty, strict=True)]
        return [self.signs[each] for each in which], numbers


def check_words(positive: str, negative: str) -> None:
    """Raises ValueError where they are the same."""
    if positive.strip() == negative.strip():
        raise ValueError(
            f"Distilling: positive and negative are both {quoted(positive.strip())}, so that there is nothing to learn. Write words that "
            "are wanted and words that are not; one of the two may be empty."
        )


def _as_it_was_learned(one: LearnedDirection) -> LearnedDirection:
    """Without what its last run has scaled it by, to be learned on; a record is what a file says."""
    for run in one.record.get("runs", [])[-1:]:
        scaled = run.get("scaled by") if isinstance(run, dict) else None
        if isinstance(scaled, float) and 1 / MOST_SCALED <= scaled <= MOST_SCALED:
            return replace(one, weight=one.weight / scaled)
    return one


def _with_pooled_of(plain: list, words: list) -> list:
    """The conditioning of the words, but for the pooled output, where the encoder gives one.

    What a model pools of its tokens itself, it pools of these.
    """
    return [
        [tokens, extras | {"pooled_output": given["pooled_output"]} if "pooled_output" in given else extras]
        for [tokens, extras], [_, given] in zip(words, plain, strict=True)
    ]


def _set_aside(prompts: list[str]) -> tuple[list[str], list[str]]:
    """(to learn from, to measure on): of few prompts all are both."""
    count = min(SET_ASIDE, len(prompts) // SET_ASIDE)
    if not count:
        return prompts, prompts[:SET_ASIDE]
    aside = {number * len(prompts) // count for number in range(count)}
    return [prompt for number, prompt in enumerate(prompts) if number not in aside], [prompts[number] for number in sorted(aside)]


@dataclass(frozen=True, eq=False)
class Learned:
    """losses: one for each step taken in this call."""

    direction: GuidanceDirection
    losses: list[float]


def learn_direction(
    model,
    clip,
    prompts: list[str],
    positive: str,
    negative: str,
    settings: Settings,
    direction: GuidanceDirection | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Learned:
    """A direction for the model's family. An interrupt, or a step that would make it NaN, ends it early and keeps what was learned.

    model: ModelPatcher. clip: the model's own text encoder. direction: a learned one, to go on from. Raises ValueError, with what to do,
    for what cannot work.
    """
    with out_of_memory_explained(settings):
        training = DirectionTraining(model, clip, prompts, positive, negative, settings, direction)
        learn(training, on_progress)
        return Learned(training.result(), training.losses)

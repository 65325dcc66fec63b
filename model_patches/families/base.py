"""What a model family must answer, and nothing more."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor, nn

from ..directions import EncodedPrompt, PromptPair
from ..host_model import HostModel
from ..schedules import LayerSchedule, RangeSchedule

RESULT = "(result)"
OWN_TEXT = "(the text of the rows themselves)"


class BlockInput(NamedTuple):
    """A module and one argument of its forward, by name and by position among the positional ones.

    Named RESULT: not an argument but a part of the tuple that the module returns, by position.
    carry: for an argument that is made from y by a layer before the block: (model, call, y's two shifts at several blocks, see `carried`)
    -> what is added to the argument of each at this call, a tensor or a structure of them like the argument's; None where the argument
    is y.
    repeats: whether the argument holds the rows of the batch several times over where reference pictures have a time of their own.
    part: (model, what `carry` or the injection's `carry_all` makes) -> a block's part of it, where one layer makes the arguments of all
    blocks at once.
    """

    module: nn.Module
    name: str
    position: int
    carry: Callable[[nn.Module, Call, list[tuple[Tensor | None, Tensor | None] | None]], list] | None = None
    part: Callable[[nn.Module, Any], Any] | None = None
    repeats: bool = False


@dataclass
class Tally:
    """What one value on a model did in a sampling.

    steps: those at which it acted, by how many were done before. longest: |shift of y| / |y| where it acted first, the largest of rows
    and layers, a tensor of no dimension; None where it is not known.
    """

    steps: set[int] = field(default_factory=set)
    longest: Tensor | None = None


class Sampling:
    """One sampling, from its first step to its last.

    known: what is remembered for as long, see OncePerPrompt. steps: how many are due; done: how many are done; calls: how many calls of
    the model came by. interrupted: whether the user stopped it. lost: whether what came of it holds NaN or infinity.
    """

    def __init__(self, steps: int = 0):
        self.known: dict[tuple, Tensor] = {}
        self.steps = steps
        self.done = self.calls = 0
        self.interrupted = self.lost = False
        self._tallies: dict[int, Tally] = {}

    def tally(self, value: Any) -> Tally:
        """Of a value on the model, by its identity."""
        return self._tallies.setdefault(id(value), Tally())

    def acted(self, value: Any) -> Tally:
        """Notes that the value acts at the step under way."""
        tally = self.tally(value)
        tally.steps.add(self.done)
        return tally

    def look_at(self, samples: Tensor) -> None:
        """samples: what came of the sampling."""
        self.lost = not samples.isfinite().all()

    def counting(self, callback: Callable | None) -> Callable:
        """A sampler's callback that counts its steps."""

        def count(step, *state, **named):
            self.done = max(self.done, step + 1)
            if callback is not None:
                callback(step, *state, **named)

        return count


@dataclass(frozen=True)
class Call:
    """One call of the model, for families whose y depends on more than the text.

    sigma: (R,) noise levels, R the rows of the batch, which is made of `chunks` equal parts (one per conditioning).
    context: (R, L, C) the rows' own text tokens. conds: the model's other inputs, by the host's names.
    sample_sigmas: all noise levels of this sampling, where the host tells. sampling: the one that the call belongs to, None outside of any.
    options: the transformer options that the model gets in this call and no other; whoever edits the call may put patches there.
    """

    base_model: Any
    x: Tensor
    sigma: Tensor
    chunks: int
    context: Tensor | None
    conds: dict[str, Any]
    sample_sigmas: Tensor | None = None
    sampling: Sampling | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return self.x.shape[0]

    @cached_property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self.base_model.get_dtype_inference()

    @cached_property
    def timestep(self) -> Tensor:
        """The timestep as the diffusion model gets it: (R,), or (R, T) where the host gives each frame its own."""
        timestep = self.base_model.model_sampling.timestep(self.sigma).float()
        conds = {name: self.cast(value) if isinstance(value, Tensor) else value for name, value in self.conds.items()}
        return self.base_model.process_timestep(timestep, x=self.x, **conds)

    def cast(self, tensor: Tensor) -> Tensor:
        """On the model's device; floats in the model's dtype."""
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        # A blocking copy would drain the GPU's queue at every step.
        non_blocking = comfy.model_management.device_supports_non_blocking(self.x.device)
        return comfy.model_management.cast_to(tensor, dtype, self.x.device, non_blocking=non_blocking)

    def to_rows(self, tensor: Tensor) -> Tensor:
        """(N, ...), one for each prompt of a batch or one for all -> (R, ...), the same in every chunk."""
        if len(tensor) == 1:
            # Right even where another pack splits or reorders the rows without saying so.
            return tensor.repeat(self.rows, *[1] * (tensor.ndim - 1))
        per_chunk = comfy.utils.repeat_to_batch_size(tensor, self.rows // self.chunks)
        return per_chunk.repeat(self.chunks, *[1] * (tensor.ndim - 1))


def in_width(layer: nn.Module) -> int:
    """How many features a linear layer reads, whatever its class."""
    return _features(layer, "in_features", 1)


def out_width(layer: nn.Module) -> int:
    """How many features a linear layer makes, whatever its class."""
    return _features(layer, "out_features", 0)


def _features(layer: nn.Module, name: str, dimension: int) -> int:
    if hasattr(layer, name):
        return getattr(layer, name)
    # Layers of loaders that quantise with bitsandbytes hold a weight and nothing else, and its own shape is that of packed bytes. The
    # true one is kept beside it; on the layer too, since the weight loses it where the host makes a new parameter of it.
    states = (getattr(holder, "quant_state", None) for holder in (layer, layer.weight))
    return next((state for state in states if state is not None), layer.weight).shape[dimension]


class OncePerPrompt:
    """What layers make of a prompt whatever the step, made once in a sampling.

    No longer: before the next one a LoRA of any kind, an object patch or another pack may have changed those layers, in more ways
    than could be asked for. Within one the host's hooks do.
    """

    def get(self, model: nn.Module, prompt: EncodedPrompt, call: Call, make: Callable[[], Tensor]) -> Tensor:
        """make(), or what it gave before for this prompt; it may use the model's weights, dtype and device, and nothing else of the call."""
        patcher = call.base_model.current_patcher
        if call.sampling is None or (patcher is not None and patcher.current_hooks is not None):
            return make()  # the strength of hooks changes from step to step
        key = (self, weakref.ref(model), prompt, call.dtype, call.x.device)
        known = call.sampling.known
        if key not in known:
            known[key] = make()
        return known[key]


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


@dataclass(frozen=True)
class Injection:
    """Where a shift enters.

    blocks: the main blocks, in global order (double, then single); refiners and text-only blocks are left out.
    head: the output head; None where it takes no shift.
    width: D, of what is shifted. y: the vector itself at this call, (R, D) or (R, T, D); needed where a projection adds the pooled text.
    carry_all: in place of each block's `carry`: (model, call, y's two shifts at each layer and the head) -> what the blocks' `part` takes.
    """

    blocks: Callable[[nn.Module], list[BlockInput]]
    head: Callable[[nn.Module], BlockInput] | None
    width: Callable[[nn.Module], int]
    y: Callable[[nn.Module, Call], Tensor] | None = None
    carry_all: Callable[[nn.Module, Call, list[tuple[Tensor | None, Tensor | None]]], Any] | None = None

    def carries(self, model: nn.Module) -> bool:
        """Whether what the blocks take is made from y before them."""
        return self.carry_all is not None or self.blocks(model)[0].carry is not None


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


def runs_as(cls: type, known: type, *kin: str) -> bool:
    """Whether a model of class `cls` runs as the host's class `known` does: it is that class, or one that leaves all its methods alone.

    A subclass with another forward, or another part of it, is another model. kin: the names of those that are known all the same.
    """
    if known not in cls.__mro__:
        return False
    parts = (vars(base).items() for base in known.__mro__ if base not in nn.Module.__mro__)
    methods = {name for part in parts for name, value in part if callable(value) and not name.startswith("__")}
    for base in cls.__mro__:
        if base is known or base.__name__ in kin:
            return True
        if methods & vars(base).keys():
            return False
    return False


@dataclass(frozen=True)
class Family:
    """A family of diffusion transformers that share a class of the host.

    matches: (model, its class) -> is this host model mine. host_models: the names by which the host knows them, those of its classes
    around the diffusion model; one of another name is another model that runs on the same class.
    injections: where shifts may enter, by name, first at y itself; each has the same number of blocks.
    text: how the model itself takes text into y; None for text-blind models, which need a projection.
    start_layer (None: a tenth of the depth), final_layer, cfg_rows: the reference's settings, used where the user gives none.
    w: the reference's guidance scale; None where there is no reference.
    encoder: how to load the text encoder that the model uses.
    context: the text-blind model's own text, which a projection may pool.
    blank: a prompt of zeros that the model can read; None where it is as wide as its context, and nothing else is read.
    text_tokens: where the text tokens enter the blocks; None where they do by cross-attention alone.
    next_level: whether y is made from the next noise level too, of which the host gives all rows of a call that of the first.
    lineage: deeper models made by inserting layers: (depth, the numbers there of those inserted), each into the one before.
    """

    name: str
    matches: Callable[[nn.Module, type], bool]
    host_models: tuple[str, ...]
    injections: dict[str, Injection]
    text: TextPath | None
    encoder: str
    w: float | None = None
    start_layer: int | None = None
    final_layer: float = 0.0
    cfg_rows: str = "both"
    context: TextContext | None = None
    blank: Callable[[nn.Module], EncodedPrompt] | None = None
    text_tokens: TextTokens | None = None
    next_level: Callable[[nn.Module], bool] = lambda model: False
    lineage: tuple[tuple[int, tuple[int, ...]], ...] = ()

    @property
    def place_of_y(self) -> str:
        """The name of the injection at y itself."""
        return next(iter(self.injections))

    def has(self, host: HostModel) -> bool:
        """Whether the host's model is of this family."""
        return host.kind in (None, *self.host_models) and self.matches(host.diffusion_model, host.cls)

    def places(self, of: int, depth: int) -> tuple[int, ...] | None:
        """Where the layers of a model with `of` layers stand in one with `depth`; None where one is not known to be made of the other."""
        places: Sequence[int] = range(of)
        for deeper, inserted in self.lineage:
            if of == deeper - len(inserted) and deeper <= depth:
                inherited = [layer for layer in range(deeper) if layer not in inserted]
                places, of = [inherited[layer] for layer in places], deeper
        return tuple(places) if of == depth else None

    def blank_prompt(self, model: nn.Module) -> EncodedPrompt:
        """Of zeros, for y where no prompt is at hand."""
        return EncodedPrompt(None, torch.zeros(1, 8, self.context.width(model))) if self.blank is None else self.blank(model)

    def depth(self, model: nn.Module) -> int:
        """The number of layers."""
        return len(self.injections[self.place_of_y].blocks(model))

    def default_schedule(self, depth: int) -> LayerSchedule:
        """The reference start layer; a tenth of the depth for models too shallow (pruned, toy) to have that layer."""
        start = self.start_layer
        if start is None or start >= depth:
            start = round(depth / 10)
        return RangeSchedule(start, final_layer=self.final_layer)

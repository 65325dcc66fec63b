"""What guidance and the scaling of text have in common: values on a ModelPatcher that make edits for each call of the model."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import RLock
from typing import Any

from comfy.model_management import InterruptProcessingException
from comfy.patcher_extension import WrappersMP

from .conditionings import conditional_chunks, tell_conditionings_apart
from .families import Call, Sampling
from .host_model import HostModel
from .injection import Edit, Watch, run_edited
from .telling import Told, without_harm

_TURNS: weakref.WeakKeyDictionary[Any, RLock] = weakref.WeakKeyDictionary()  # of diffusion models


@dataclass(frozen=True)
class CallPatch:
    """name: as the user knows it. key: one constant; a wrapper key per node would give torch.compile a new frame per node.

    edits: (values, model, call, conditional) -> the edits of this call, none where nothing is to be done. Runs outside any compiled
    region, the only place of a call where numbers and layers are read. around: (values) -> whether any edit is one for function wrappers.
    told: (value, sampling, what says that layers were not reached) -> what the value's `teller`, where it has one, is to tell.
    """

    name: str
    key: str
    edits: Callable[[tuple, HostModel, Call, list[bool | None]], Sequence[Edit]]
    told: Callable[[Any, Sampling, str | None], Told]
    around: Callable[[tuple], bool] = lambda values: False

    def put_on(self, model, value):
        """A clone of the ModelPatcher `model` with one more value."""
        model = model.clone()
        options = model.model_options["transformer_options"]
        options[self.key] = (*options.get(self.key, ()), value)
        if not model.get_wrappers(WrappersMP.APPLY_MODEL, self.key):
            model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, self.key, self._sample)
            model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, self.key, self._batches)
            model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, self.key, self._call)
            tell_conditionings_apart(model, self.key, self._numbers)
        return model

    @property
    def _numbers(self) -> str:
        return f"{self.key}_numbers"

    @property
    def _sampling(self) -> str:
        return f"{self.key}_sampling"

    def _sample(self, executor, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, *args, **kwargs):
        """OUTER_SAMPLE wrapper: gives all calls of a sampling what they share, and says afterwards what was done."""
        sampling, watch = Sampling(len(sigmas) - 1, latent_image.shape[0]), Watch()
        # The guider's options are copies made for this sampling.
        options = executor.class_obj.model_options["transformer_options"]
        options[self._sampling] = (sampling, watch)
        try:
            result = executor(noise, latent_image, sampler, sigmas, denoise_mask, sampling.counting(callback), *args, **kwargs)
        except InterruptProcessingException:
            sampling.interrupted = True
            without_harm(self._tell, options.get(self.key, ()), sampling, watch)
            raise
        without_harm(self._tell, options.get(self.key, ()), sampling, watch, result)
        return result

    def _tell(self, values: tuple, sampling: Sampling, watch: Watch, samples: Any = None) -> None:
        """samples: what came of it, None where nothing did."""
        if not sampling.steps:
            return
        if any(value.teller for value in values):
            without_harm(sampling.over, samples)
        missed = self._missed(sampling, watch)
        if missed is not None and not all(value.teller for value in values):
            logging.warning("%s", missed)
        for value in values:
            if value.teller is not None:
                value.teller(self.told(value, sampling, missed))

    def _missed(self, sampling: Sampling, watch: Watch) -> str | None:
        """Where other nodes kept it from layers, a sentence on that."""
        missed, due = len(watch.due - watch.made), len(watch.due)
        never_called = sampling.calls == 0 and not sampling.interrupted
        if not (missed or never_called):
            return None
        what = "did nothing" if missed == due else f"left out {missed} of the {due} layers it acts on"
        return (
            f"{self.name} {what} in this sampling of {watch.calls} calls: there the model's own layers were never run. Another node runs copies "
            "of them, or code of its own in their place: a loader that moves layers piece by piece, a cache, a sampler, a node that skips "
            "layers. Take these out one by one."
        )

    def _call(self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):  # noqa: B006
        """APPLY_MODEL wrapper."""
        after = executor.wrappers[executor.idx + 1 :]
        if not all(isinstance(getattr(wrapper, "__self__", None), CallPatch) for wrapper in after):
            # Ours come last, where rows, times and blocks are as the model gets them.
            inside = type(executor).new_class_executor(executor.original, executor.class_obj, [*after, self._call])
            return inside.execute(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        values = transformer_options.get(self.key)
        # Taken out, so that a wrapper list merged twice by somebody does not act twice, and that torch.compile sees no new object.
        options = {name: value for name, value in transformer_options.items() if name not in (self.key, self._numbers, self._sampling)}
        # Inputs of its own, by their names, are not the model's.
        inputs = {name: value for name, value in kwargs.items() if not name.startswith(self.key)}
        run = partial(executor, x, t, c_concat, c_crossattn, control, options, **inputs)
        if values is None:  # within a call of ours
            return run()
        host = HostModel.called(executor.class_obj)
        sampling, watch = transformer_options.get(self._sampling, (None, Watch()))
        if sampling is not None:
            sampling.calls += 1
        with _TURNS.setdefault(host.diffusion_model, RLock()):
            edits = self._edits(host, executor.class_obj, x, t, c_crossattn, kwargs, transformer_options, options)
            return run_edited(host.diffusion_model, edits, run, watch, self.key) if edits else run()

    def _edits(self, host, base_model, x, t, context, conds, transformer_options, options) -> Sequence[Edit]:
        """options: those of the transformer that the model gets."""
        conditional = conditional_chunks(transformer_options, self._numbers, len(x))
        sampling, _ = transformer_options.get(self._sampling, (None, None))
        sample_sigmas = transformer_options.get("sample_sigmas")
        call = Call(base_model, x, t, len(conditional), context, conds, sample_sigmas, sampling, options)
        with host.naming_a_stand_in():
            return self.edits(transformer_options[self.key], host, call, conditional)

    def _batches(self, executor, model, conds, x_in, timestep, model_options):
        """CALC_COND_BATCH wrapper: what a function wrapper runs of the model by itself, as caches do with the head, is edited too."""
        wrapper = model_options.get("model_function_wrapper")
        if wrapper is not None:
            model_options = model_options | {"model_function_wrapper": partial(self._function, wrapper, model)}
        return executor(model, conds, x_in, timestep, model_options)

    def _function(self, wrapper, model, apply_model, args):
        run = partial(wrapper, apply_model, args)
        conds = dict(args["c"])
        options, context = conds.pop("transformer_options"), conds.pop("c_crossattn", None)
        values = options.get(self.key)
        if not values or not self.around(values):
            return run()
        base_model = getattr(apply_model, "__self__", model)  # another device's where the host spreads the model
        host = HostModel.called(base_model)
        edits = [
            edit for edit in self._edits(host, base_model, args["input"], args["timestep"], context, conds, options, {}) if edit.around
        ]
        # Without taking turns: it may call the model from threads. Each such call has edits of its own in place of these.
        return run_edited(host.diffusion_model, edits, run, Watch(), self.key) if edits else run()

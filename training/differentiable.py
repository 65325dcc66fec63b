"""A host model that gradients can pass through, for as long as a training run lasts. Its weights get none and stay what they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass, replace
from types import MethodType
from typing import Any

import comfy.model_management
import comfy.quant_ops
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


@contextmanager
def differentiable(model: nn.Module, recomputed: Iterable[nn.Module] = ()):
    """Within the context, autograd can follow the host's `model` from the arguments of its blocks to its output.

    recomputed: blocks that keep their arguments alone and compute their inside a second time when gradients come back
    (gradient checkpointing).
    """
    with ExitStack() as stack:
        # Selects, in most families, a rotary embedding that autograd knows.
        stack.enter_context(_with_attribute(comfy.model_management, "in_training", True))
        # MiniTrainDIT takes a fused one all the same: since ComfyUI 0.30 the first, before that the second.
        for name, function in (("rms_rope_split_half", _rms_rope_split_half), ("apply_rope_split_half", _apply_rope_split_half)):
            if hasattr(comfy.quant_ops.ck, name):
                stack.enter_context(_with_attribute(comfy.quant_ops.ck, name, function))
        stack.enter_context(_outside_inference_mode(model))
        for block in recomputed:
            stack.enter_context(_recomputing(block))
        yield


def plain_attention(function, *args, **kwargs):
    """For transformer_options["optimized_attention_override"]: others work in place, or have no gradient."""
    return attention_pytorch(*args, **kwargs)


@contextmanager
def _with_attribute(owner, name: str, value):
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _rms_rope_split_half(q, k, frequencies, q_scale, k_scale, epsilon):
    """As the host's: RMS norm, then _apply_rope_split_half."""
    q, k = (nn.functional.rms_norm(x, x.shape[-1:], weight=scale, eps=epsilon) for x, scale in ((q, q_scale), (k, k_scale)))
    return _apply_rope_split_half(q, k, frequencies)


def _apply_rope_split_half(q, k, frequencies):
    """As the host's: the rotation of feature i with feature i + D / 2. q, k: (..., D); frequencies: (..., D / 2, 2, 2)."""
    return _rotated(q, frequencies), _rotated(k, frequencies)


def _rotated(x: Tensor, frequencies: Tensor) -> Tensor:
    halves = x.unflatten(-1, (2, -1)).movedim(-2, -1).unsqueeze(-2).to(frequencies.dtype)
    rotated = (frequencies * halves).sum(dim=-1)
    return rotated.movedim(-1, -2).flatten(-2).type_as(x)


@contextmanager
def _outside_inference_mode(model: nn.Module):
    """The weights that were loaded in inference mode, which autograd refuses, in the same memory as ordinary tensors."""
    replaced = [
        (tensors, name, tensor)
        for module in model.modules()
        for tensors in (module._parameters, module._buffers)
        for name, tensor in tensors.items()
        if tensor is not None and tensor.is_inference()
    ]
    try:
        for tensors, name, tensor in replaced:
            tensors[name] = _ordinary(tensor)
        yield
    finally:
        for tensors, name, tensor in replaced:
            tensors[name] = tensor


def _ordinary(tensor: Tensor) -> Tensor:
    """The same memory, class and attributes."""
    if is_traceable_wrapper_subclass(tensor):  # as quantised ones: other tensors hold the memory
        names, context = tensor.__tensor_flatten__()
        parts = {name: _ordinary(getattr(tensor, name)) for name in names}
        whole = type(tensor).__tensor_unflatten__(parts, context, tensor.size(), tensor.stride())
        return nn.Parameter(whole, requires_grad=False) if isinstance(tensor, nn.Parameter) else whole
    plain = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    plain.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
    ordinary = Tensor._make_subclass(type(tensor), plain)
    ordinary.__dict__.update(tensor.__dict__)
    return ordinary


@contextmanager
def _recomputing(block: nn.Module):
    inner = block.forward
    had_own = "forward" in block.__dict__
    block.__dict__["forward"] = MethodType(lambda self, *args, **kwargs: _recomputed(inner, args, kwargs), block)
    try:
        yield
    finally:
        del block.__dict__["forward"]
        if had_own:
            block.__dict__["forward"] = inner


def _recomputed(function: Callable, args: tuple, kwargs: dict):
    """function(*args, **kwargs), of which autograd keeps the arguments only. Returns a tensor or a tuple of them, or of None."""
    if not torch.is_grad_enabled():
        return function(*args, **kwargs)
    # The host notes there, before each block, which one it is; a second run must find what the first found.
    kwargs = {name: dict(value) if name == "transformer_options" else value for name, value in kwargs.items()}
    tensors = []
    structure = _without_tensors((args, kwargs), tensors)

    def run(*given):
        args, kwargs = _with_tensors(structure, given)
        return function(*args, **kwargs)

    return _Recomputed.apply(run, *tensors)


class _Recomputed(torch.autograd.Function):
    """A function of tensors; it may change them in place, since it gets copies."""

    @staticmethod
    def forward(ctx, run, *tensors):
        ctx.run = run
        ctx.save_for_backward(*tensors)
        with torch.no_grad():
            return run(*(tensor.clone() for tensor in tensors))

    @staticmethod
    def backward(ctx, *gradients):
        inputs = [
            tensor.detach().requires_grad_(needed) for tensor, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[1:], strict=True)
        ]
        with torch.enable_grad():
            outputs = ctx.run(*(tensor.clone() for tensor in inputs))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        followed = [  # a last block's text comes to None
            (output, gradient) for output, gradient in zip(outputs, gradients, strict=True) if output is not None and output.requires_grad
        ]
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        found = torch.autograd.grad([output for output, _ in followed], wanted, [gradient for _, gradient in followed], allow_unused=True)
        found = iter(found)
        return None, *(next(found) if tensor.requires_grad else None for tensor in inputs)


class _Place(int):
    """Where a tensor of a list stood."""


def _without_tensors(value: Any, tensors: list[Tensor]) -> Any:
    """The structure of nested tuples, lists, dicts and dataclasses with its tensors moved to the end of `tensors`."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return _Place(len(tensors) - 1)
    return _mapped(value, lambda part: _without_tensors(part, tensors))


def _with_tensors(value: Any, tensors) -> Any:
    return tensors[value] if isinstance(value, _Place) else _mapped(value, lambda part: _with_tensors(part, tensors))


def _mapped(value: Any, function: Callable) -> Any:
    if type(value) in (tuple, list):
        return type(value)(map(function, value))
    if type(value) is dict:
        return {name: part if name == "transformer_options" else function(part) for name, part in value.items()}
    if is_dataclass(value):
        return replace(value, **{field.name: function(getattr(value, field.name)) for field in fields(value)})
    return value

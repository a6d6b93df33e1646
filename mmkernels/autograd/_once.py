"""Gradients that have no derivative of their own, and say so."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _Once(torch.autograd.Function):
    """The first gradients among tensors as they are; the others are what the gradients depend on."""

    @staticmethod
    def forward(name: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(f"{ctx.name} has first derivatives only: nothing can be differentiated through them")


_Once.forward.__signature__ = inspect.signature(_Once.forward)  # type: ignore[attr-defined]


def once(name: str, gradients: Sequence[Tensor], *depend_on: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients; whoever differentiates them gets a NotImplementedError that names the function."""
    if not torch.is_grad_enabled():
        return tuple(gradients)
    out: tuple[Tensor, ...] = _Once.apply(name, len(gradients), *gradients, *depend_on)  # type: ignore[no-untyped-call]
    return out

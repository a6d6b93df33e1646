"""Autocast as a matrix product has it, or as statistics do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import chain
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from mmkernels._dispatch import no_autocast

P = ParamSpec("P")
R = TypeVar("R")


def autocast(x: Tensor) -> Tensor:
    """Cast x as autocast, where it is on, casts a matrix product's operands: float64 stays."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """The function with autocast off on the device of its first tensor, as batch normalisation has it."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for value in chain(args, kwargs.values()):
            first = value[0] if isinstance(value, list | tuple) and value else value
            if isinstance(first, Tensor):
                with no_autocast(first):
                    return function(*args, **kwargs)
        return function(*args, **kwargs)

    return call

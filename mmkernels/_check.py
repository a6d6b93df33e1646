"""Argument checks: what must hold and what was got. Shapes, dtypes and devices only; tensors' values are not read."""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def tensor(name: str, value: object, ndim: int) -> Tensor:
    """Return value if it is a tensor of ndim dimensions."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension(s), got shape {tuple(value.shape)}")
    return value


def floating(name: str, value: object, ndim: int) -> Tensor:
    """Return value if it is a tensor of ndim dimensions in float16, bfloat16, float32 or float64."""
    t = tensor(name, value, ndim)
    if t.dtype not in _FLOATS:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {t.dtype}")
    return t


def embeddings(name: str, value: object, like: Tensor | None = None, like_name: str = "x") -> Tensor:
    """Return value if it is (N, D), D >= 1, with D, dtype and device as those of like."""
    t = floating(name, value, 2)
    if t.shape[1] < 1:
        raise ValueError(f"{name} must have at least one feature, got shape {tuple(t.shape)}")
    if like is not None:
        if t.shape[1] != like.shape[1]:
            raise ValueError(
                f"{name} must have as many features as {like_name}, got shapes {tuple(t.shape)} and {tuple(like.shape)}"
            )
        if t.dtype != like.dtype:
            raise TypeError(f"{name} must have {like_name}'s dtype, got {t.dtype} and {like.dtype}")
        on_device(name, t, like, like_name)
    return t


def on_device(name: str, value: Tensor, like: Tensor, like_name: str = "x") -> None:
    """Raise unless value is where like is."""
    if value.device != like.device:
        raise ValueError(f"{name} must be on {like_name}'s device, got {value.device} and {like.device}")


def vector(name: str, value: object, sizes: dict[str, int], like: Tensor) -> Tensor:
    """Return value if it is a floating vector on like's device whose length is one of sizes (length by its meaning)."""
    t = floating(name, value, 1)
    length(name, t, sizes)
    on_device(name, t, like)
    return t


def length(name: str, value: Tensor, sizes: dict[str, int]) -> None:
    """Raise unless the vector's length is one of sizes."""
    if value.shape[0] not in sizes.values():
        wanted = " or ".join(f"{meaning} = {size}" for meaning, size in sizes.items())
        raise ValueError(f"{name} must have length {wanted}, got {value.shape[0]}")


def ids(name: str, value: object, sizes: dict[str, int] | None, like: Tensor) -> Tensor:
    """Return value as int64 if it is an integer vector on like's device, and its length one of sizes if given."""
    t = tensor(name, value, 1)
    if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
        raise TypeError(f"{name} must be an integer tensor, got {t.dtype}")
    if sizes is not None:
        length(name, t, sizes)
    on_device(name, t, like)
    return t.to(torch.int64)


def pair_of_ids(
    value: object, rows: dict[str, int], columns: dict[str, int] | None, like: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Return row and column ids, given as one tensor for both sides or as a pair, if they pass `ids`; None for None."""
    if value is None:
        return None, None
    pair = (value, value) if isinstance(value, Tensor) else value
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TypeError(f"ids must be an integer tensor or a pair of them, got {type(value).__name__}")
    return ids("ids[0]", pair[0], rows, like), ids("ids[1]", pair[1], columns, like)


def integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return value if it is an int in [low, high], of Python or NumPy."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    number = int(value)
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name} must be {f'at least {low}' if high is None else f'in [{low}, {high}]'}, got {value}")
    return number


def seed(value: object) -> int:
    """Return value if it seeds a generator."""
    return integer("seed", value, 0, 2**63 - 1)


def number(name: str, value: object, low: float = -math.inf, high: float = math.inf, with_low: bool = False) -> float:
    """Return value if it is a finite Python number in (low, high), or in [low, high) if with_low."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    number = float(value)
    if not low < number < high and not (with_low and number == low):  # NaN is in no interval, inf in no open one
        raise ValueError(f"{name} must be finite and in {'[' if with_low else '('}{low:g}, {high:g}), got {value}")
    return number


def number_or_scalar(name: str, value: object, like: Tensor, low: float = -math.inf) -> Tensor | float:
    """Return value if it is a finite number above low, or a 0-dimensional floating tensor on like's device."""
    if not isinstance(value, Tensor):
        return number(name, value, low)
    floating(name, value, 0)
    on_device(name, value, like)
    return value


def per_feature(name: str, value: object, like: Tensor) -> Tensor | float:
    """Return value if it is a positive number, or a floating tensor that divides like (..., N, D)."""
    if not isinstance(value, Tensor):
        return number(name, value, 0)
    D = like.shape[-1]
    fits = value.ndim == 0 or (value.shape[-1] in (1, D) if value.ndim > 1 else value.shape[0] == D)
    if not fits or (value.ndim > 1 and value.shape[-2] != 1):
        raise ValueError(
            f"{name} must be 0-dimensional or of shape (D,), (*batch, 1, 1) or (*batch, 1, D) with D = {D}, "
            f"got shape {tuple(value.shape)}"
        )
    on_device(name, floating(name, value, value.ndim), like)
    return value


def choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise unless value is one of choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")

"""The kernels' names and parameters, checked, and what the operators take for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmkernels import _check
from mmkernels._dispatch import compute_dtype
from mmkernels.ops._autocast import autocast
from mmkernels.ops._bandwidth import median_distance, scale_gamma

Parameter = Tensor | float
Gamma = Tensor | float | str | Sequence[float] | None

PARAMETERS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "cosine": (),
    "polynomial": ("degree", "gamma", "coef0"),
    "exponential": ("gamma",),
    "sigmoid": ("gamma", "coef0"),
    "rbf": ("gamma", "length_scale"),
    "laplacian": ("gamma",),
    "matern": ("length_scale", "nu"),
    "rational_quadratic": ("length_scale", "alpha"),
    "energy": (),
}
_SMOOTHNESS = {0.5: "matern12", 1.5: "matern32", 2.5: "matern52"}


class Pairs(NamedTuple):
    """A kernel between rows, as the operators take it."""

    x: Tensor  # (B, N, D)
    y: Tensor | None  # (B, M, D), None for x itself
    gamma: Tensor  # (B, Q)
    coef: Tensor  # (B,)
    kernel: str
    degree: int
    batch: torch.Size


def check_pairs(x: object, y: object) -> tuple[Tensor, Tensor | None]:
    """Return x and y if they are (..., N, D) and (..., M, D), y None where it is x itself."""
    first = _rows("x", x)
    if y is None or y is x:
        return first, None
    second = _rows("y", y)
    if second.shape[-1] != first.shape[-1]:
        raise ValueError(f"y must have as many features as x, got shapes {_shape(second)} and {_shape(first)}")
    if second.dtype != first.dtype:
        raise TypeError(f"y must have x's dtype, got {second.dtype} and {first.dtype}")
    _check.on_device("y", second, first)
    broadcast("y", first.shape[:-2], second, 2)
    return first, second


def broadcast(name: str, batch: torch.Size, value: Tensor, own: int) -> torch.Size:
    """Return batch broadcast with value's leading dimensions, all but its own last ones."""
    try:
        return together(batch, value.shape[: max(0, value.ndim - own)])
    except RuntimeError:
        message = f"{name} must have leading dimensions that broadcast with {tuple(batch)}, got shape {_shape(value)}"
        raise ValueError(message) from None


def together(*shapes: Sequence[int]) -> torch.Size:
    """The shape that all of them broadcast to."""
    return torch.Size(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]


def check_kernel(kernel: str, parameters: dict[str, Any]) -> None:
    """Raise unless the kernel exists and has these parameters."""
    _check.choice("kernel", kernel, tuple(PARAMETERS))
    for name in parameters:
        if name not in PARAMETERS[kernel]:
            has = ", ".join(PARAMETERS[kernel]) or "no parameters"
            raise TypeError(f"the {kernel} kernel has no parameter {name!r}; it has {has}")


def pairs(x: Tensor, y: Tensor | None, kernel: str, parameters: dict[str, Any], v_batch: Sequence[int] = ()) -> Pairs:
    """Work out the parameters of a kernel other than linear and cosine, and flatten the batch dimensions.

    Those of v count only if K itself is batched: otherwise one K serves all of them.
    """
    x = autocast(x)
    y = None if y is None else autocast(y)
    dtype, D = compute_dtype(x.dtype), x.shape[-1]
    batch = x.shape[:-2] if y is None else broadcast("y", x.shape[:-2], y, 2)
    coef: Parameter = 0.0
    degree = 1
    name = kernel
    if kernel == "polynomial":
        degree = _check.integer("degree", parameters.get("degree", 3), 1)
    if kernel in ("polynomial", "sigmoid"):
        coef = _over_pairs("coef0", parameters.get("coef0", 1.0), x, -math.inf)
    if kernel == "rational_quadratic":
        coef = _over_pairs("alpha", parameters.get("alpha", 1.0), x, 0)
    if kernel == "matern":
        nu = parameters.get("nu", 1.5)
        if nu not in _SMOOTHNESS:
            raise ValueError(f"nu must be 0.5, 1.5 or 2.5, got {nu!r}")
        name = _SMOOTHNESS[nu]
    if "length_scale" in PARAMETERS[kernel] and (kernel != "rbf" or parameters.get("length_scale") is not None):
        if parameters.get("gamma") is not None:
            raise ValueError("give either gamma or length_scale (gamma = 1 / (2 length_scale^2)), got both")
        length_scale = parameters.get("length_scale", 1.0)
        if isinstance(length_scale, str):
            _check.choice("length_scale", length_scale, ("median",))
            length_scale = median_distance(x, y, p=2)
        scale = _check.per_feature("length_scale", length_scale, x)
        half = 0.5 if kernel == "rbf" else 1.0
        if isinstance(scale, Tensor) and scale.ndim and scale.shape[-1] == D:
            batch = broadcast("length_scale", batch, scale, 2)
            x, y = _scaled(x, y, scale)
            gamma: Parameter = half
        else:
            gamma = half / (scale.to(dtype) if isinstance(scale, Tensor) else scale) ** 2
    elif kernel == "energy":
        gamma = 1.0
    else:
        gamma = multiplier(parameters.get("gamma"), x, y, kernel)
    for label, parameter in (("gamma", gamma), (PARAMETERS[kernel][-1] if PARAMETERS[kernel] else "", coef)):
        if isinstance(parameter, Tensor) and parameter.ndim > 1:
            batch = broadcast(label, batch, parameter, 2)
    batch = together(batch, v_batch) if batch else batch
    if isinstance(gamma, Tensor) and gamma.ndim == 1:  # a mixture
        columns = gamma.to(dtype).expand(batch.numel(), -1)
    else:
        columns = _per_entry(gamma, batch, x, dtype)[:, None]
    return Pairs(
        flat(x, batch),
        None if y is None else flat(y, batch),
        columns.contiguous(),
        _per_entry(coef, batch, x, dtype).contiguous(),
        name,
        degree,
        batch,
    )


def flat(x: Tensor, batch: torch.Size) -> Tensor:
    """x as (B, rows, columns), without a copy where one batch dimension is expanded."""
    rows = x.expand(*batch, *x.shape[-2:]).reshape(batch.numel(), *x.shape[-2:])
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def cosine_rows(x: Tensor) -> Tensor:
    """The rows of x in the compute dtype, of length 1, or 0."""
    return torch.nn.functional.normalize(x.to(compute_dtype(x.dtype)), dim=-1, eps=torch.finfo(torch.float32).tiny)


def _rows(name: str, value: object) -> Tensor:
    ndim = value.ndim if isinstance(value, Tensor) else 2
    if ndim < 2:
        raise ValueError(f"{name} must have at least 2 dimensions (..., N, D), got shape {_shape(value)}")
    t = _check.floating(name, value, ndim)
    if t.shape[-1] < 1:
        raise ValueError(f"{name} must have at least one feature, got shape {_shape(t)}")
    return t


def multiplier(gamma: Gamma, x: Tensor, y: Tensor | None, kernel: str) -> Parameter:
    """The kernel's multiplier: a number, 0-dim, (*batch, 1, 1), or for a mixture 1-dim."""
    if gamma is None:
        return 1 / x.shape[-1]
    if isinstance(gamma, str):
        distances = kernel in ("rbf", "laplacian")
        _check.choice("gamma", gamma, ("scale", "median") if distances else ("scale",))
        if gamma == "scale":
            return scale_gamma(x)
        if kernel == "laplacian":
            return 1 / median_distance(x, y, p=1)
        return 0.5 / median_distance(x, y, p=2) ** 2
    if kernel == "rbf" and ((isinstance(gamma, Tensor) and gamma.ndim == 1) or isinstance(gamma, Sequence)):
        if len(gamma) == 0:
            raise ValueError("gamma must hold at least one bandwidth, got none")
        if isinstance(gamma, Tensor):
            _check.on_device("gamma", _check.floating("gamma", gamma, 1), x)
            return gamma
        numbers = [_check.number(f"gamma[{q}]", g, 0) for q, g in enumerate(gamma)]
        return torch.tensor(numbers, dtype=compute_dtype(x.dtype), device=x.device)
    return _over_pairs("gamma", gamma, x, 0)


def _over_pairs(name: str, value: object, x: Tensor, low: float) -> Parameter:
    """Return value if it is a finite number above low, or a floating tensor, 0-dimensional or (*batch, 1, 1)."""
    if not isinstance(value, Tensor):
        return _check.number(name, value, low)
    if value.ndim != 0 and (value.ndim < 2 or value.shape[-2:] != (1, 1)):
        raise ValueError(f"{name} must be 0-dimensional or of shape (*batch, 1, 1), got shape {_shape(value)}")
    _check.on_device(name, _check.floating(name, value, value.ndim), x)
    return value


def _scaled(x: Tensor, y: Tensor | None, length_scale: Tensor) -> tuple[Tensor, Tensor | None]:
    """x and y over a length-scale per feature; what they share is taken off first, or its digits would be lost."""
    dtype = compute_dtype(x.dtype)
    centre = x.detach().mean(-2, keepdim=True, dtype=dtype) if x.shape[-2] else 0.0
    scaled = (None if t is None else (t.to(dtype) - centre) / length_scale.to(dtype) for t in (x, y))
    first, second = scaled
    assert first is not None
    return first, second


def _per_entry(parameter: Parameter, batch: torch.Size, x: Tensor, dtype: torch.dtype) -> Tensor:
    """The parameter of each batch entry, (B,)."""
    if not isinstance(parameter, Tensor):
        return x.new_full((batch.numel(),), parameter, dtype=dtype)
    parameter = parameter.to(dtype)
    return parameter.expand(*batch, 1, 1).reshape(-1) if parameter.ndim else parameter.expand(batch.numel())


def _shape(value: object) -> tuple[int, ...]:
    assert isinstance(value, Tensor)
    return tuple(value.shape)

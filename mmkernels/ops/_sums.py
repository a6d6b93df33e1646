"""Sums of the kernel matrices of several views of the same rows, checked: what dependence measures are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmkernels import _check
from mmkernels._dispatch import compute_dtype
from mmkernels.autograd.moments import moments
from mmkernels.ops._entries import data_driven
from mmkernels.ops._kernels import PARAMETERS, check_kernel, cosine_rows, pairs, together
from mmkernels.ops._statistics import check_views

Options = Sequence[tuple[str, dict[str, Any]]]  # kernels and their parameters
UNIT_DIAGONAL = ("rbf", "laplacian", "matern", "rational_quadratic", "cosine")  # kernels with k(x, x) = 1
_SAMPLE = 256  # rows, of which the mean entry of a kernel matrix is estimated


class Sums(NamedTuple):
    """Sums of the kernel matrices of V views, less a constant for each view; float64 but for what a row each has.

    The diagonal is there if it is to be left out.
    """

    n: int
    rows: Tensor  # (*batch, V, N)
    pairs: Tensor  # (*batch, V, V), of K_u * K_v
    product: Tensor  # (*batch,), of the product of all
    square: Tensor  # (*batch,), of its square
    diagonal: Tensor  # (*batch, V, N)
    centres: Tensor  # (*batch, V), the constants

    def off_diagonal(self) -> Sums:
        """The sums without the diagonal, of two views at most."""
        d = self.diagonal.double()
        pairs = self.pairs - d @ d.mT if self.pairs.numel() else self.pairs
        product = self.product - d.prod(-2).sum(-1) if self.product.numel() else self.product
        return self._replace(rows=self.rows - self.diagonal, pairs=pairs, product=product)


def check_options(
    views: Sequence[Tensor], kernel: object, gamma: object, parameters: object
) -> list[tuple[str, dict[str, Any]]]:
    """Return the kernel and the parameters of each view; kernel, gamma and parameters may be given for each."""
    V = len(views)
    kernels = each("kernel", kernel, V)
    gammas = each("gamma", gamma, V)
    others = each("parameters", parameters, V)
    out = []
    for v, (name, g, other) in enumerate(zip(kernels, gammas, others, strict=True)):
        if not isinstance(name, str):
            raise TypeError(f"kernel must be a name or one for each of {V} views, got {name!r}")
        out.append((name, kernel_parameters(name, g, other, f" of view {v}")))
    return out


def kernel_parameters(name: str, gamma: object, parameters: object, of: str = "") -> dict[str, Any]:
    """Return the parameters of a kernel, and gamma among them unless it is the default of kernels without one."""
    if parameters is not None and not isinstance(parameters, dict):
        raise TypeError(
            f"parameters must be a dict of the kernel's parameters by name, got {type(parameters).__name__}"
        )
    own = dict(parameters or {})
    check_kernel(name, own)
    # "median" is what stands for no gamma said
    if isinstance(gamma, str) and gamma == "median":
        if name not in ("rbf", "laplacian") or "length_scale" in own or "gamma" in own:
            return own
    elif gamma is None:
        return own
    if "gamma" not in PARAMETERS[name]:
        raise TypeError(f"the {name} kernel{of} has no gamma, got {gamma!r}")
    if "gamma" in own:
        raise ValueError(f"give gamma once, got {gamma!r} and {own['gamma']!r} among the parameters")
    return own | {"gamma": gamma}


def each(name: str, value: object, V: int) -> list[Any]:
    """Return value for each of V views: a list or tuple has one for each."""
    if isinstance(value, list | tuple):
        if len(value) != V:
            raise ValueError(f"{name} must be one value or one for each of {V} views, got {len(value)}")
        return list(value)
    return [value] * V


def several(views: object, least: int = 2) -> Sequence[Any]:
    """Return views if they are a list or tuple of so many."""
    if not isinstance(views, list | tuple):
        raise TypeError(f"views must be a list or tuple of at least {least} tensors, got {type(views).__name__}")
    if len(views) < least:
        raise ValueError(f"views must be at least {least} tensors, got {len(views)}")
    return views


def check_samples(views: Sequence[object], rows: int) -> list[Tensor]:
    """Return views if they are (*batch, N, D_v) with rows enough."""
    checked = check_views(views)
    if checked[0].shape[-2] < rows:
        raise ValueError(f"at least {rows} row(s) must be given, got shape {tuple(checked[0].shape)}")
    return checked


def sums(
    views: Sequence[Tensor],
    kernels: Options,
    *,
    of_pairs: bool = False,
    product: bool = False,
    square: bool = False,
    centred: bool = True,
    diagonal: bool = False,
) -> Sums:
    """Row sums and what else is asked for, of checked views (*batch, N, D_v).

    centred subtracts from each kernel matrix about the mean of its entries: where the terms of a sum cancel, float32
    keeps their digits.
    """
    found = []
    if any(name in ("linear", "cosine") for name, _ in kernels):
        views = [x.to(compute_dtype(x.dtype)) for x in views]
    for x, (name, parameters) in zip(views, kernels, strict=True):
        if name == "linear" and centred:
            x = without_mean(x)
        if name in ("linear", "cosine"):
            x = cosine_rows(x) if name == "cosine" else x
            name, parameters = "polynomial", {"gamma": 1.0, "coef0": 0.0, "degree": 1}
        found.append(pairs(x, None, name, parameters))
    batch = together(*(p.batch for p in found))
    B, N, V = batch.numel(), views[0].shape[-2], len(views)
    wide, gammas, coefs = (
        [_expanded(t, p.batch, batch) for t, p in zip(ts, found, strict=True)]
        for ts in ([p.x for p in found], [p.gamma for p in found], [p.coef for p in found])
    )
    names, degrees = tuple(p.kernel for p in found), tuple(p.degree for p in found)
    dtype = compute_dtype(views[0].dtype)
    zero = [views[0].new_zeros(B, dtype=dtype) for _ in range(V)]
    centres = zero
    if centred:
        step = max(1, N // _SAMPLE)
        with torch.no_grad():
            small = [x[:, ::step].detach() for x in wide]
            rows = moments(small, gammas, coefs, zero, (names, degrees), (True, False, False, False))[0]
            centres = [t.contiguous() for t in rows.mean(2).div(rows.shape[2]).unbind(1)]
    wants = (True, of_pairs, product, square)
    out = moments(wide, gammas, coefs, centres, (names, degrees), wants)
    d = views[0].new_empty(0, dtype=dtype)
    if diagonal:
        of = zip(wide, gammas, coefs, found, strict=True)
        on = [diagonal_of(x, g, c, p.kernel, p.degree) for x, g, c, p in of]
        d = torch.stack([k - c[:, None] for k, c in zip(on, centres, strict=True)], 1).reshape(*batch, V, N)
    shapes = ((*batch, V, N), (*batch, V, V), batch, batch)
    rows, pair_sums, products, squares = (
        t.reshape(shape) if want else t for t, shape, want in zip(out, shapes, wants, strict=True)
    )
    return Sums(N, rows, pair_sums, products, squares, d, torch.stack(centres, 1).reshape(*batch, V))


def without_mean(x: Tensor) -> Tensor:
    """The rows less their mean, detached, in the dtype of computation: what linear kernels lose digits to."""
    wide = x.to(compute_dtype(x.dtype))
    return wide - wide.detach().mean(-2, keepdim=True)


def fixed(views: Sequence[Tensor], kernels: Options) -> list[tuple[Tensor, str, dict[str, Any]]]:
    """Views in float32 or float64, their kernels, and parameters that serve any of the rows."""
    out = []
    for x, (name, own) in zip(views, kernels, strict=True):
        x = x.to(compute_dtype(x.dtype))
        x = without_mean(x) if name == "linear" else x
        own = data_driven(x, None, name, own)
        for key, value in own.items():
            if isinstance(value, Tensor) and value.numel() > 1 and value.ndim > 1 and key != "length_scale":
                raise ValueError(f"{key} must be one for all rows, got shape {tuple(value.shape)}")
        out.append((x, name, own))
    return out


def _expanded(t: Tensor, own: torch.Size, batch: torch.Size) -> Tensor:
    """t (own batch entries, ...) as (B, ...)."""
    rest = t.shape[1:]
    return t.reshape(own + rest).expand(batch + rest).reshape(batch.numel(), *rest)


def diagonal_of(x: Tensor, gamma: Tensor, coef: Tensor, kernel: str, degree: int) -> Tensor:
    """k(x_i, x_i), (B, N), in the operators' layout."""
    if kernel not in ("polynomial", "exponential", "sigmoid"):
        value = 0.0 if kernel == "energy" else float(gamma.shape[1])  # a mixture has 1 from each
        return gamma.new_full(x.shape[:2], value)
    t = gamma * x.to(gamma.dtype).square().sum(2)
    if kernel == "exponential":
        return t.exp()
    t = t + coef[:, None]
    return t**degree if kernel == "polynomial" else t.tanh()


def check_estimator(estimator: object) -> None:
    """Raise unless the estimator is biased or unbiased."""
    if not isinstance(estimator, str):
        raise TypeError(f"estimator must be a name, got {type(estimator).__name__}")
    _check.choice("estimator", estimator, ("biased", "unbiased"))

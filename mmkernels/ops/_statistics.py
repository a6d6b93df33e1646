"""Means and scatter matrices of stacked views, checked, with weights and missing views, over a process group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmkernels import _check
from mmkernels._dispatch import compute_dtype, no_autocast
from mmkernels.autograd.covariance import scatter

_SAMPLE = 256  # rows whose mean is subtracted before products are formed, drawn evenly over all


class Statistics(NamedTuple):
    """Sums over rows of views stacked along their features, D in all."""

    means: Tensor  # (B, 1 or V, D): of the rows that have the feature's view and view v
    scatter: Tensor  # (B, D, D), about the means of the rows that have both views
    n: Tensor  # (1 or B, 1 or V, 1 or V), the sum of weights of the rows that have both views
    sizes: tuple[int, ...]  # features of each view

    @property
    def mean(self) -> Tensor:
        """Mean (B, D) of the rows that have the feature's view."""
        return self.means[:, 0] if self.means.shape[1] == 1 else self.pair_means().diagonal(dim1=1, dim2=2)

    def pair_means(self) -> Tensor:
        """Mean (B, D, 1 or D) of feature i over the rows that have the views of features i and j, at (i, j)."""
        means = self.means.mT
        return means if means.shape[2] == 1 else means[:, :, of_view(self.sizes, means.device)]

    def over_pairs(self, n: Tensor) -> Tensor:
        """A value per pair of views, one per pair of features: (1 or B, 1 or D, 1 or D)."""
        if n.shape[-1] == 1:
            return n
        return n[:, of_view(self.sizes, n.device)[:, None], of_view(self.sizes, n.device)]


def of_view(sizes: Sequence[int], device: torch.device) -> Tensor:
    """Which view each of the stacked features belongs to, (D,)."""
    return torch.cat([torch.full((d,), v, device=device) for v, d in enumerate(sizes)])


def check_views(views: Sequence[object]) -> list[Tensor]:
    """Return the views if they are floating tensors (*batch, N, D_v) of one dtype, device, batch and N."""
    if not views:
        raise ValueError("at least one view must be given, got none")
    checked: list[Tensor] = []
    for v, view in enumerate(views):
        name = "xyz"[v] if len(views) <= 3 else f"views[{v}]"
        t = _check.floating(name, view, view.ndim if isinstance(view, Tensor) and view.ndim > 2 else 2)
        if t.shape[-1] < 1:
            raise ValueError(f"{name} must have at least one feature, got shape {tuple(t.shape)}")
        if checked:
            first = checked[0]
            if t.shape[:-1] != first.shape[:-1]:
                shapes = f"{tuple(t.shape)} and {tuple(first.shape)}"
                raise ValueError(f"{name} must have as many rows as the first view, got shapes {shapes}")
            if t.dtype != first.dtype:
                raise TypeError(f"{name} must have the first view's dtype, got {t.dtype} and {first.dtype}")
            _check.on_device(name, t, first, "the first view")
        checked.append(t)
    return checked


def check_weights(weights: object, like: Tensor) -> Tensor | None:
    """Return weights (N,) or (*batch, N) as (1 or B, N) in the dtype that like is computed in."""
    if weights is None:
        return None
    t = _check.floating("weights", weights, weights.ndim if isinstance(weights, Tensor) and weights.ndim > 1 else 1)
    if t.shape not in (like.shape[-2:-1], like.shape[:-1]):
        raise ValueError(
            f"weights must have shape (N,) or (*batch, N) = {tuple(like.shape[:-1])}, got {tuple(t.shape)}"
        )
    _check.on_device("weights", t, like)
    return t.reshape(t.shape[:-1].numel(), like.shape[-2]).to(compute_dtype(like.dtype))


def check_present(present: object, views: Sequence[Tensor]) -> Tensor | None:
    """Return a bool tensor (N,) or None for each view as one tensor (1, V, N) of ones and zeros."""
    if present is None:
        return None
    if not isinstance(present, tuple | list) or len(present) != len(views):
        raise TypeError(
            f"present must be a sequence of {len(views)} boolean tensors or None, one for each view, "
            f"got {type(present).__name__}" + (f" of {len(present)}" if isinstance(present, tuple | list) else "")
        )
    like, N, dtype = views[0], views[0].shape[-2], compute_dtype(views[0].dtype)
    rows = []
    for v, t in enumerate(present):
        if t is not None:
            _check.tensor(f"present[{v}]", t, 1)
            if t.dtype != torch.bool:
                raise TypeError(f"present[{v}] must be a boolean tensor, got {t.dtype}")
            _check.length(f"present[{v}]", t, {"N": N})
            _check.on_device(f"present[{v}]", t, like)
        rows.append(like.new_ones(N, dtype=dtype) if t is None else t.to(dtype))
    return torch.stack(rows)[None]


def statistics(
    views: Sequence[Tensor], weights: Tensor | None = None, present: Tensor | None = None, group: Any = None
) -> Statistics:
    """Mean, scatter and n of checked views (*batch, N, D_v), each reshaped to (B, N, D_v).

    weights (1 or B, N), present (1, V, N). With a process group every sum runs over the rows of all its processes.
    """
    N = views[0].shape[-2]
    stacked = [v.reshape(-1, N, v.shape[-1]) for v in views]
    sizes = tuple(v.shape[-1] for v in views)
    shift = _shift(stacked, weights, present, group)
    products, sums = scatter(stacked, shift, weights, present)
    n = _weight_of_pairs(N, weights, present, shift)
    if group is not None:
        products, sums, n = all_reduce([products, sums, n], group)
    # rows that have view v and the feature's view, at (v, feature)
    at = n if n.shape[-1] == 1 else n[:, :, of_view(sizes, shift.device)]
    residuals = Statistics(sums / at, products, n, sizes)
    r = residuals.pair_means()
    products = products - residuals.over_pairs(n) * (r * r.mT)
    result = residuals._replace(means=shift[:, None] + residuals.means, scatter=products)
    # What a constant feature has left is the rounding of its mean: its value becomes 0, its gradient stays.
    rounding = torch.finfo(shift.dtype).eps / 10 * result.mean.detach()
    variances = products.detach().diagonal(dim1=1, dim2=2)
    constant = variances <= rounding.square_() * result.over_pairs(n.detach()).diagonal(dim1=1, dim2=2)
    if shift.device.type == "cpu" and not torch.compiler.is_compiling() and not constant.any():
        return result
    left = products.detach().masked_fill(~(constant[:, None] | constant[..., None]), 0)
    return result._replace(scatter=products - left)


def _weight_of_pairs(N: int, weights: Tensor | None, present: Tensor | None, like: Tensor) -> Tensor:
    if present is None:
        return like.new_full((1, 1, 1), N) if weights is None else weights.sum(1)[:, None, None]
    weighted = present if weights is None else present * weights[:, None]
    with no_autocast(like):
        n = weighted @ present.mT
    return (n + n.mT) / 2  # symmetric to the last bit


@torch.no_grad()
def _shift(views: Sequence[Tensor], weights: Tensor | None, present: Tensor | None, group: Any) -> Tensor:
    """A point (B, D) near the data's mean: the mean of some rows."""
    N, dtype = views[0].shape[1], compute_dtype(views[0].dtype)
    step = max(1, N // _SAMPLE)
    rows = [v[:, ::step].to(dtype) for v in views]
    if present is None:
        sums = torch.cat([r.sum(1) for r in rows], 1)
        count = sums.new_full((1, 1), rows[0].shape[1])
    else:
        there = [p[:, ::step, None] for p in present.unbind(1)]
        sums = torch.cat([torch.where(t > 0, r, 0).sum(1) for r, t in zip(rows, there, strict=True)], 1)
        count = torch.cat([t.sum(1).expand(-1, r.shape[2]) for r, t in zip(rows, there, strict=True)], 1)
    if group is not None:
        sums, count = all_reduce([sums, count], group)
    return sums / count.clamp(min=1)


def all_reduce(tensors: Sequence[Tensor], group: Any) -> list[Tensor]:
    """The sums of tensors over a process group, in one exchange, with gradients."""
    from torch.distributed.nn import functional

    total: Tensor = functional.all_reduce(torch.cat([t.reshape(-1) for t in tensors]), group=group)  # type: ignore[no-untyped-call]
    parts = torch.split(total, [t.numel() for t in tensors])
    return [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]

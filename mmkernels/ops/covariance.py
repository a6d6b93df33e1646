"""Covariance matrices of one or more views in one read of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmkernels import _check
from mmkernels.ops._autocast import without_autocast
from mmkernels.ops._statistics import Statistics, check_present, check_views, check_weights, statistics


class Covariance(NamedTuple):
    """Means and covariances of views, stacked along their features: D features in all.

    Attributes:
        mean: (*batch, D).
        cov: (*batch, D, D), symmetric.
        n: rows, or the sum of their weights; 0-dimensional, or (V, V) for each pair of V views where some rows lack
            a view.
        sizes: how many features each view has.
        xx, xy, yy, mean_x, mean_y: those of the first two views.
    """

    mean: Tensor
    cov: Tensor
    n: Tensor
    sizes: tuple[int, ...]

    def block(self, u: int, v: int) -> Tensor:
        """Return the covariance (*batch, D_u, D_v) of views u and v."""
        return self.cov[..., self.features(u), self.features(v)]

    def features(self, v: int) -> slice:
        """Return where view v's features lie in the stack."""
        start = sum(self.sizes[:v])
        return slice(start, start + self.sizes[v])

    @property
    def xx(self) -> Tensor:
        """Covariance of the first view."""
        return self.block(0, 0)

    @property
    def xy(self) -> Tensor:
        """Covariance of the first view's features with the second's."""
        return self.block(0, 1)

    @property
    def yy(self) -> Tensor:
        """Covariance of the second view."""
        return self.block(1, 1)

    @property
    def mean_x(self) -> Tensor:
        """Mean of the first view."""
        return self.mean[..., self.features(0)]

    @property
    def mean_y(self) -> Tensor:
        """Mean of the second view."""
        return self.mean[..., self.features(1)]


@without_autocast
def covariance(
    *views: Tensor,
    weights: Tensor | None = None,
    present: Sequence[Tensor | None] | None = None,
    correction: float = 1,
    groups: int = 1,
    group: Any = None,
) -> Covariance:
    r"""Means, covariances and cross-covariances of views with the same rows, in one read of them.

    .. math::
        \mu_v = \frac1n \sum_i w_i x^v_i, \qquad
        \Sigma_{uv} = \frac1{n - c} \sum_i w_i\, (x^u_i - \mu_u)(x^v_i - \mu_v)^\top, \qquad n = \sum_i w_i

    Equal to `torch.cov` of the stacked views' transpose. Digits that all rows share are subtracted before products are
    formed, so that data far from the origin loses none (float32, offset 1e4: relative error below 1e-5). The same call
    gives the same bits.

    Args:
        views: one or more tensors (*batch, N, D_v) in float16, bfloat16, float32 or float64, of one dtype and device.
        weights: (N,) or (*batch, N), at least 0: how often a row counts.
        present: for each view None, or a boolean tensor (N,), False where the row lacks the view. A pair of views then
            uses the rows that have both, with means over those (as pandas' `DataFrame.cov` does); what absent rows hold
            is not read, NaN included. A covariance of such pairs need not be positive semidefinite.
        correction: c; 1 is unbiased where weights count repetitions, 0 is the maximum-likelihood estimate and does not
            depend on the scale of weights.
        groups: cut every view's features into this many equal groups, each with a covariance of its own.
        group: a torch.distributed process group: sums run over the rows of all its processes, and so do gradients (with
            DDP's mean over processes they are those of one process with all rows).

    Returns:
        A `Covariance` with `mean` of shape `(*batch, D)` and `cov` of shape `(*batch, D, D)`, whose blocks are `xx`,
        `xy`, `yy` and `block(u, v)`. With groups > 1 they have a dimension of that size more, before their features.
        float32 for 16-bit and float32 views (also under autocast), float64 for float64. Gradients in views and weights
        of any order.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: ranks, sizes or devices that do not fit; no more rows than `correction`.

    Cost: N D^2 multiply-adds, about half of D x D once per pair of features; O(D^2) memory beside the tiles
    (`set_memory_budget`). Backward: 2 N D^2.

    Example:
        >>> import torch, mmkernels
        >>> S = mmkernels.covariance(torch.randn(1000, 5), torch.randn(1000, 3))
        >>> S.xx.shape, S.xy.shape, S.mean_y.shape
        (torch.Size([5, 5]), torch.Size([5, 3]), torch.Size([3]))
    """
    checked = check_views(views)
    first = checked[0]
    correction = _check.number("correction", correction, 0, with_low=True)
    least = correction if weights is None else 0
    if group is None and first.shape[-2] <= least:
        raise ValueError(f"views must have more than {least:g} row(s), got shape {tuple(first.shape)}")
    _check.integer("groups", groups, 1)
    w, p = check_weights(weights, first), check_present(present, checked)
    batch = first.shape[:-2]
    if groups > 1:
        checked = [into_groups(v, groups) for v in checked]
        batch = checked[0].shape[:-2]
        if w is not None and len(w) != 1:
            w = w.repeat_interleave(groups, 0)
    s = statistics(checked, w, p, group)
    return finished(s, batch, correction)


def into_groups(view: Tensor, groups: int) -> Tensor:
    """View (*batch, N, D) as (*batch, groups, N, D / groups)."""
    if view.shape[-1] % groups:
        raise ValueError(f"groups must divide the number of features, got {groups} and shape {tuple(view.shape)}")
    return view.reshape(*view.shape[:-1], groups, view.shape[-1] // groups).transpose(-3, -2)


def finished(s: Statistics, batch: torch.Size, correction: float) -> Covariance:
    """The covariance of such sums, with the batch dimensions that the views had."""
    D = s.mean.shape[-1]
    n = s.n.reshape(*((*batch, *s.n.shape[1:]) if len(s.n) != 1 else s.n.shape[1:]))
    return Covariance(
        s.mean.reshape(*batch, D),
        (s.scatter / (s.over_pairs(s.n) - correction)).reshape(*batch, D, D),
        n.squeeze((-2, -1)) if n.shape[-1] == 1 else n,
        s.sizes,
    )

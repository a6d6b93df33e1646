"""Estimators of entropy and information from the distances of nearest neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmkernels import _check
from mmkernels._dispatch import compute_dtype
from mmkernels.ops._sums import check_samples

NORMS = ("max", "euclidean")
TREE_FEATURES = 14  # beyond which SciPy's tree never finds neighbours faster than comparing all pairs


def _tree_of(views: Sequence[Tensor], norm: str, counting: bool = False) -> Any | None:
    """SciPy's tree of all features in the maximum norm, where it is installed and the faster way; else None."""
    features, N = sum(v.shape[1] for v in views), max(1, len(views[0]))
    # measured on two cores: comparing all pairs is faster from 12 features on at 5,000 rows, when counting from 8
    if views[0].device.type != "cpu" or features > min(TREE_FEATURES, 4 * math.log10(N) - (7 if counting else 3)):
        return None
    if norm != "max" and len(views) > 1:
        return None
    try:
        from scipy.spatial import cKDTree
    except ImportError:
        return None
    return cKDTree(torch.cat(list(views), 1).detach().double().numpy(), 64 if counting else 16)


def nearest(views: Sequence[Tensor], k: int, norm: str) -> tuple[Tensor, Tensor]:
    """The k smallest distances (squared, if Euclidean) of each row to others, and their rows: (N, k) each."""
    if norm == "max":  # the largest of several maxima is one maximum
        views = [torch.cat(list(views), 1)]
    tree = _tree_of(views, norm)
    if tree is None:
        values, rows = torch.ops.mmkernels.nearest_topk([v.detach() for v in views], k, norm == "euclidean")
        return values, rows
    distances, found = tree.query(tree.data, k + 1, p=math.inf if norm == "max" else 2, workers=-1)
    values, rows = torch.from_numpy(distances), torch.from_numpy(found)
    # the row itself is among those at distance 0, not always the first of them
    own = rows == torch.arange(len(rows))[:, None]
    own[:, -1] |= ~own.any(1)
    values, rows = (t[~own].view(len(rows), k) for t in (values, rows))
    return values if norm == "max" else values.square(), rows


def within(views: Sequence[Tensor], radii: Tensor, norm: str, strict: bool) -> Tensor:
    """How many others are nearer to each row than its radius (strict), or no farther: int64 (N,)."""
    if norm == "max" and sum(v.shape[1] for v in views) == 1:
        return _within_sorted(views[0].detach()[:, 0].to(radii.dtype), radii, strict)
    # distances are rounded as those that the radii are: float64's of the tree, or those of tiles
    tree = _tree_of(views, norm, counting=True) if norm == "max" and radii.dtype == torch.float64 else None
    if tree is None:
        views = [v.detach() if compute_dtype(v.dtype) == radii.dtype else v.detach().to(radii.dtype) for v in views]
        count: Tensor = torch.ops.mmkernels.nearest_count(views, radii, norm == "euclidean", strict)
        return count
    edge = radii.double().numpy()
    if strict:
        import numpy as np

        edge = np.nextafter(edge, -np.inf)
    found = tree.query_ball_point(tree.data, edge, p=math.inf, return_length=True, workers=-1)
    # a negative radius, of a row that coincides with its neighbours, finds nothing, not even the row
    return torch.from_numpy(found) - torch.from_numpy((edge >= 0).astype(found.dtype))


def _within_sorted(x: Tensor, radii: Tensor, strict: bool) -> Tensor:
    """`within` of one feature (N,), by bisection of the sorted values: the same differences, rounded alike."""
    values, order = x.sort()
    own = torch.arange(len(x), device=x.device)

    def following(values: Tensor, radii: Tensor) -> Tensor:
        low, high = own + 1, torch.full_like(own, len(x))
        for _ in range(len(x).bit_length()):
            middle = (low + high) // 2
            distance = values[middle.clamp(max=len(x) - 1)] - values
            inside = (distance < radii if strict else distance <= radii) & (low < high)
            high = torch.where(inside | (low == high), high, middle)
            low = torch.where(inside, middle + 1, low)
        return low - own - 1

    radii = radii[order]
    count = following(values, radii) + following(-values.flip(0), radii.flip(0)).flip(0)
    return torch.empty_like(count).index_copy_(0, order, count)


def check_k(k: object, N: int) -> int:
    """Return k if each of N rows has so many others."""
    if N < 2:
        raise ValueError(f"at least 2 rows must be given, got {N}")
    return _check.integer("k", k, 1, N - 1)


def check_no_gradient(views: Sequence[Tensor], name: str) -> None:
    """Raise where somebody may differentiate a count."""
    if torch.is_grad_enabled() and any(v.requires_grad for v in views):
        raise NotImplementedError(
            f"{name} counts neighbours and has no gradient: detach the views, or take 'kde', 'gaussian' or a bound"
        )


def check_finite(views: Sequence[Tensor]) -> None:
    """Raise on a CPU unless all values are finite: a row that is not has no neighbours."""
    for v, view in enumerate(views):
        if view.device.type == "cpu" and not torch.isfinite(view).all():
            raise ValueError(f"values must be finite, got NaN or infinity in view {v}")


def _neighbours(views: Sequence[Tensor], k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's distance to its k-th neighbour (N,), how many are so near (N,) and the k of them (N, k).

    The k-th neighbours of rows that coincide with them are all that coincide, with the row itself, and their distance
    is the least number above 0.
    """
    values, rows = nearest(views, k, "max")
    radii = values[:, -1]
    tied = radii == 0
    near = torch.full_like(radii, k, dtype=torch.float64)
    if radii.device.type != "cpu" or tied.any():
        radii = radii.clamp(min=torch.finfo(radii.dtype).tiny)
        near = torch.where(tied, within(views, radii, "max", strict=True).double() + 1, near)
    return radii, near, rows


def kozachenko_leonenko(x: Tensor, k: int, norm: str) -> Tensor:
    """Differential entropy of rows (N, D) in nats; gradients with neighbours held fixed."""
    _check.choice("norm", norm, NORMS)
    N, D = x.shape
    k = check_k(k, N)
    check_finite([x])
    values, rows = nearest([x], k, norm)
    if x.device.type == "cpu" and not torch.isfinite(values).all():
        raise ValueError(f"squared distances must be finite in {values.dtype}: scale the data, or take norm 'max'")
    wide = x.to(compute_dtype(x.dtype))
    difference = wide - wide[rows[:, -1].to(x.device)]
    if norm == "max":
        distance, log_ball = difference.abs().amax(1), D * math.log(2)
    else:
        distance, log_ball = difference.square().sum(1).sqrt(), D / 2 * math.log(math.pi) - math.lgamma(D / 2 + 1)
    if x.device.type == "cpu" and not (distance > 0).all():
        raise ValueError(f"{int((distance == 0).sum())} row(s) coincide with their {k} nearest: their entropy is -inf")
    return _digamma(N) - _digamma(k) + log_ball + D * distance.log().mean()


def ksg(views: Sequence[Tensor], k: int, variant: int) -> Tensor:
    """Mutual information of two or more views (N, D_v), by algorithm 1 or 2 of Kraskov et al., maximum norm."""
    check_no_gradient(views, f"'ksg{variant}'")
    N, V = len(views[0]), len(views)
    k = check_k(k, N)
    check_finite(views)
    values, near, rows = _neighbours(views, k)
    total = torch.zeros((), dtype=torch.float64, device=views[0].device)
    if variant == 1:
        for view in views:
            total += torch.digamma(within([view], values, "max", strict=True).double() + 1).mean()
        result = torch.digamma(near).mean() + (V - 1) * _digamma(N) - total
    else:
        if views[0].device.type == "cpu" and (tied := int((near != k).sum())):
            raise ValueError(f"{tied} row(s) coincide with their {k} nearest: 'ksg1' admits that, 'ksg2' does not")
        for view in views:
            wide = view.detach().to(torch.float64 if values.dtype == torch.float64 else compute_dtype(view.dtype))
            radii = (wide[:, None] - wide[rows.to(view.device)]).abs().amax((1, 2))
            total += torch.digamma(within([view], radii, "max", strict=False).double()).mean()
        result = _digamma(k) - (V - 1) / k + (V - 1) * _digamma(N) - total
    return result.to(compute_dtype(views[0].dtype))


def frenzel_pompe(x: Tensor, y: Tensor, z: Tensor, k: int) -> Tensor:
    """Conditional mutual information of x and y given z."""
    views = check_samples([x, y, z], 2)
    check_no_gradient(views, "conditional mutual information by nearest neighbours")
    k = check_k(k, len(views[0]))
    check_finite(views)
    radii, near, _ = _neighbours(views, k)
    counts = [within(group, radii, "max", strict=True) for group in (views[2:], views[::2], views[1:])]
    given, of_x, of_y = (torch.digamma(n.double() + 1).mean() for n in counts)
    return (torch.digamma(near).mean() + given - of_x - of_y).to(compute_dtype(x.dtype))


def ross(x: Tensor, labels: Tensor, k: int) -> Tensor:
    """Mutual information of rows x (N, D) and labels (N,); rows whose label occurs once are left out."""
    check_no_gradient([x], "mutual information with labels")
    check_finite([x])
    _, inverse, sizes = torch.unique(labels, return_inverse=True, return_counts=True)
    kept = sizes[inverse] > 1
    x, inverse, sizes = x.detach()[kept], inverse[kept], sizes[inverse[kept]]
    dtype = compute_dtype(x.dtype)
    x = x.double() if x.device.type == "cpu" else x  # the tree may serve some labels, and tiles others
    N = len(x)
    if N < 2:
        raise ValueError("no label occurs twice: mutual information with labels has no estimate")
    radii = x.new_zeros(N, dtype=torch.float64)
    neighbours = x.new_zeros(N, dtype=torch.float64)
    for label in torch.unique(inverse):
        own = inverse == label
        n = min(_check.integer("k", k, 1), int(own.sum()) - 1)
        distances, near, _ = _neighbours([x[own]], n)
        radii[own], neighbours[own] = distances.double(), near
    count = within([x], radii, "max", strict=True).double() + 1  # the row itself counts
    information = _digamma(N) + torch.digamma(neighbours).mean() - torch.digamma(sizes.double()).mean()
    return (information - torch.digamma(count).mean()).to(dtype)


def _digamma(n: int) -> float:
    return float(torch.digamma(torch.tensor(float(n), dtype=torch.float64)))

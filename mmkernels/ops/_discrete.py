"""Entropy and mutual information of labels and of bins, from their frequencies."""

from __future__ import annotations

import torch
from torch import Tensor

from mmkernels import _check
from mmkernels._dispatch import compute_dtype
from mmkernels.ops._knn import check_finite, check_no_gradient, ross


def is_labels(x: object) -> bool:
    """Whether x is a vector of integers, and so a discrete variable."""
    return isinstance(x, Tensor) and x.ndim == 1 and not (x.is_floating_point() or x.is_complex())


def plug_in_entropy(labels: Tensor) -> Tensor:
    """Entropy of the frequencies of labels (N,), float64."""
    p = torch.unique(labels, return_counts=True)[1].double() / len(labels)
    entropy: Tensor = -(p * p.log()).sum()
    return entropy


def plug_in_information(x: Tensor, y: Tensor) -> Tensor:
    """Mutual information of the frequencies of labels x and y (N,), float64."""
    of_x, of_y = (torch.unique(labels, return_inverse=True)[1] for labels in (x, y))
    joint = of_x * (of_y.amax() + 1) + of_y
    return plug_in_entropy(of_x) + plug_in_entropy(of_y) - plug_in_entropy(joint)


def entropy_of_labels(x: Tensor, method: str) -> Tensor:
    """The plug-in estimate of checked labels."""
    if method != "knn":
        raise ValueError(f"labels have one estimate and no method: leave it out, got {method!r}")
    return plug_in_entropy(_check_labels("x", x, x))


def information_of_labels(x: Tensor, y: Tensor, method: str, k: int) -> Tensor:
    """Mutual information where x or y is labels (N,), and the other one rows (N, D) or labels too."""
    if method != "ksg1":
        raise ValueError(f"labels have one estimate and no method: leave it out, got {method!r}")
    if is_labels(x) and is_labels(y):
        return plug_in_information(_check_labels("x", x, x), _check_labels("y", y, x))
    name, rows, other, labels = ("y", y, "x", x) if is_labels(x) else ("x", x, "y", y)
    return ross(_check.embeddings(name, rows), _check_labels(other, labels, rows), k)


def binned(x: Tensor, y: Tensor, bins: int) -> Tensor:
    """Mutual information of checked scalars (N, 1), each cut into bins of equal width from its least to its largest."""
    for name, t in (("x", x), ("y", y)):
        if t.shape[1] != 1:
            raise ValueError(f"method 'binned' takes one feature, got {name} of shape {tuple(t.shape)}")
    check_no_gradient([x, y], "'binned'")
    check_finite([x, y])
    bins = _check.integer("bins", bins, 1, 2**31)  # the pair of bins is one integer
    return plug_in_information(*(_bin(t[:, 0].double(), bins) for t in (x, y))).to(compute_dtype(x.dtype))


def _bin(x: Tensor, bins: int) -> Tensor:
    low, high = x.aminmax()
    width = torch.where(high > low, (high - low) / bins, 1)  # a constant lies in one bin
    return ((x - low) / width).long().clamp(max=bins - 1)


def _check_labels(name: str, value: Tensor, like: Tensor) -> Tensor:
    if len(value) < 2:
        raise ValueError(f"at least 2 rows must be given, got {len(value)}")
    return _check.ids(name, value, {"N": len(like)}, like)

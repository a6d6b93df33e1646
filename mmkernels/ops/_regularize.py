"""Ridges and shrinkage of covariance matrices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmkernels import _check

Shrinkage = float | str | None
INTENSITIES = ("ledoit_wolf", "oas")


def check_reg(reg: object, views: int) -> list[float]:
    """Return a ridge for each view: reg is a number at least 0, or one for each."""
    each = list(reg) if isinstance(reg, tuple | list) else [reg] * views
    if len(each) != views:
        raise ValueError(f"reg must be a number or one for each of {views} views, got {len(each)}")
    return [_check.number("reg", r, 0, with_low=True) for r in each]


def check_shrinkage(shrinkage: object, views: int) -> list[Shrinkage]:
    """Return a shrinkage for each view: None, a number in [0, 1], 'ledoit_wolf' or 'oas', or one for each."""
    each = list(shrinkage) if isinstance(shrinkage, tuple | list) else [shrinkage] * views
    if len(each) != views:
        raise ValueError(f"shrinkage must be one value or one for each of {views} views, got {len(each)}")
    for s in each:
        if isinstance(s, str):
            _check.choice("shrinkage", s, INTENSITIES)
        elif s is not None and not 0 <= _check.number("shrinkage", s) <= 1:
            raise ValueError(f"shrinkage must be in [0, 1], 'ledoit_wolf' or 'oas', got {s}")
    return each  # type: ignore[return-value]  # checked just now


def regularized(
    S: Tensor, n: Tensor, reg: float, shrinkage: Shrinkage, fourth: Callable[[], Tensor] | None = None
) -> Tensor:
    """(1 - s) S + s tr(S) / D + reg on the diagonal, s the shrinkage of a covariance (..., D, D) of n rows.

    fourth() gives the sum of the fourth powers of the rows' distances from the mean, (...), for Ledoit and Wolf.
    """
    D = S.shape[-1]
    mean = S.diagonal(dim1=-2, dim2=-1).mean(-1)
    s: Tensor | float
    if shrinkage == "oas":
        s = _oas(S, mean, n)
    elif shrinkage == "ledoit_wolf":
        if fourth is None:
            raise ValueError("shrinkage 'ledoit_wolf' needs all rows at once, complete and unweighted: take 'oas'")
        s = _ledoit_wolf(S, mean, n, fourth())
    else:
        assert not isinstance(shrinkage, str)
        s = 0.0 if shrinkage is None else float(shrinkage)
    if isinstance(s, Tensor) or s:
        ridge = (s * mean + reg)[..., None]
        S = (1 - s)[..., None, None] * S if isinstance(s, Tensor) else (1 - s) * S
    elif reg:
        ridge = S.new_full((1,), reg)
    else:
        return S
    return S + torch.diag_embed(ridge.expand(*S.shape[:-2], D))


def _oas(S: Tensor, mean: Tensor, n: Tensor) -> Tensor:
    """The intensity of Chen, Wiesel, Eldar and Hero 2010, equation 23, as scikit-learn has it."""
    D = S.shape[-1]
    alpha = S.square().mean((-2, -1))
    below = (n + 1) * (alpha - mean.square() / D)
    return torch.where(below > 0, (alpha + mean.square()) / torch.where(below > 0, below, 1), 1).clamp(max=1)


def _ledoit_wolf(S: Tensor, mean: Tensor, n: Tensor, fourth: Tensor) -> Tensor:
    """The intensity of Ledoit and Wolf 2004, as scikit-learn has it: of the covariance over n, not n - 1."""
    D, biased = S.shape[-1], (n - 1) / n
    square = S.square().sum((-2, -1)) * biased**2
    beta = (fourth / n - square) / n
    delta = square - D * (mean * biased).square()
    return torch.where(delta > 0, torch.minimum(beta, delta) / torch.where(delta > 0, delta, 1), 0).clamp(min=0)

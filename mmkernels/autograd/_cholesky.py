"""Cholesky factors that say when there is none."""

from __future__ import annotations

import torch
from torch import Tensor


def cholesky(S: Tensor, name: str = "the covariance of x") -> Tensor:
    """The lower factor of S (..., D, D). Where S is singular to rounding: ValueError on a CPU, NaN elsewhere.

    A pivot is what a feature's variance has left once the features before it are known: singular means that this is
    below the rounding of the variance itself. Elsewhere than on a CPU reading it would wait for the device.
    """
    L, info = torch.linalg.cholesky_ex(S)
    pivots, variances = (t.detach().diagonal(dim1=-2, dim2=-1) for t in (L, S))
    singular = pivots.square() <= S.shape[-1] * torch.finfo(S.dtype).eps * variances
    failed = (info > 0) | singular.any(-1)
    if S.device.type == "cpu" and not torch.compiler.is_compiling():
        if failed.any() and not S.isnan().any():
            raise ValueError(
                f"{name} must be positive definite: with constant or dependent features, or fewer rows than features, "
                "give a (larger) reg or a shrinkage"
            )
        return L  # type: ignore[no-any-return]
    return torch.where(failed[..., None, None], torch.nan, L)

"""Rows of arrays as tensors, in pieces where they may not be in memory."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import assert_all_finite, check_array
from sklearn.utils.validation import _check_sample_weight, check_consistent_length
from torch import Tensor

from mmkernels.ops.running import RunningCovariance

_BYTES = 2**26  # of a piece


def array(a: Any) -> Any:
    """Tensors as arrays."""
    return a.detach().cpu().numpy() if isinstance(a, Tensor) else a


def device_of(a: Any) -> torch.device:
    """Where the work is done."""
    return a.device if isinstance(a, Tensor) else torch.device("cpu")


def check_view(a: Any, name: str, ensure_2d: bool = True) -> NDArray[Any]:
    """Return a as an array (N, D) of numbers; a file that is mapped into memory is not read."""
    checked: NDArray[Any] = check_array(
        array(a), ensure_2d=ensure_2d, ensure_all_finite=False, dtype="numeric", input_name=name
    )
    return checked.reshape(len(checked), -1)


def pieces(
    views: Sequence[NDArray[Any]], device: torch.device, features: int = 0
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Yield slices of the rows and all views' tensors of them: float32 if all views are, otherwise float64.

    What a tensor cannot share memory with, a read-only file among it, is copied piece by piece; so are rows of which
    features are made, that many for each.
    """
    N = len(views[0])
    single = all(view.dtype == np.float32 for view in views)
    dtype = np.float32 if single else np.float64
    shared = all(view.dtype == dtype and view.flags.writeable and view.flags.c_contiguous for view in views)
    mapped = any(isinstance(_base(view), np.memmap) for view in views)
    whole = shared and not mapped and not features
    width = max(1, features, sum(view.shape[1] for view in views)) * dtype().itemsize
    step = max(1, N if whole else _BYTES // width)
    for start in range(0, N, step):
        rows = slice(start, min(start + step, N))
        yield rows, [_tensor(view[rows], dtype, device) for view in views]
        for view in views:
            _release(view)


def _base(a: NDArray[Any]) -> Any:
    """The array that owns the memory."""
    while isinstance(a.base, np.ndarray):
        a = a.base
    return a


def _release(view: NDArray[Any]) -> None:
    """Give back the memory of a read-only file that has been read; the system keeps it cached while there is room."""
    file = getattr(_base(view), "_mmap", None)
    if file is not None and not view.flags.writeable and hasattr(mmap, "MADV_DONTNEED"):
        file.madvise(mmap.MADV_DONTNEED)


def _tensor(a: NDArray[Any], dtype: type, device: torch.device) -> Tensor:
    a = np.ascontiguousarray(a, dtype=dtype)
    return torch.from_numpy(a if a.flags.writeable else a.copy()).to(device)


def check_weights(sample_weight: Any, X: NDArray[Any]) -> NDArray[Any] | None:
    """Return weights (N,), at least 0, or None."""
    if sample_weight is None:
        return None
    dtype = np.float32 if X.dtype == np.float32 else np.float64
    weights: NDArray[Any] = _check_sample_weight(
        array(sample_weight), np.empty((len(X), 0)), dtype=dtype, ensure_non_negative=True
    )
    return weights


def summed(
    views: Sequence[NDArray[Any]],
    names: Sequence[str],
    weights: NDArray[Any] | None,
    device: torch.device,
    show: Callable[[float, str], None],
    features: Callable[[Tensor, int], Tensor] = lambda x, view: x,
    width: int = 0,
) -> RunningCovariance:
    """Covariances of the rows' features, features(rows, view), width of them in all if they are not the rows' own.

    Raises:
        ValueError: lengths differ, or an entry is NaN or infinite.
    """
    check_consistent_length(*views)
    running = RunningCovariance()
    for rows, tensors in pieces(views, device, width):
        w = None if weights is None else torch.from_numpy(weights[rows]).to(tensors[0])
        running.update(*(features(x, v) for v, x in enumerate(tensors)), weights=w)
        show(rows.stop, "rows")
    if running.n.numel() and not running.covariance(0).cov.isfinite().all():
        for view, name in zip(views, names, strict=True):
            assert_all_finite(view, input_name=name)
        raise ValueError("entries are so large that their squares overflow")
    return running


def fourth_powers(views: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """For each view the sum of the fourth powers of the rows' distances from their mean, in two reads."""
    running = RunningCovariance()
    for _, tensors in pieces(views, device):
        running.update(torch.cat(tensors, 1))
    if running.n.numel() == 0:
        return [torch.zeros((), dtype=torch.float64) for _ in views]
    means = torch.split(running.covariance(0).mean, [view.shape[1] for view in views])
    sums = [torch.zeros((), dtype=torch.float64, device=device) for _ in views]
    for _, tensors in pieces(views, device):
        for total, x, mean in zip(sums, tensors, means, strict=True):
            total += (x - mean.to(x.dtype)).square().sum(1).square().sum()
    return sums

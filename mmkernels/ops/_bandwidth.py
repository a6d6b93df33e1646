"""Bandwidths from the data, in O(N) memory; they carry no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from mmkernels._dispatch import compute_dtype

_SAMPLE = 1000  # rows; their half a million distances give the median to about a percent


def scale_gamma(x: Tensor) -> Tensor:
    """1 / (D var(x)), the variance over all entries of a batch entry: scikit-learn's gamma="scale"; (*batch, 1, 1)."""
    wide = x.detach().to(compute_dtype(x.dtype))
    return 1 / (x.shape[-1] * wide.var((-2, -1), correction=0, keepdim=True))


def median_distance(x: Tensor, y: Tensor | None, p: int) -> Tensor:
    """The median p-norm distance between different rows of x (and y), of a seeded sample where they are many.

    (*batch, 1, 1); the sample is the same in every call, whatever the state of torch's generators.
    """
    if y is None:
        rows = x
    else:
        batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])  # type: ignore[no-untyped-call]
        rows = torch.cat([t.expand(*batch, *t.shape[-2:]) for t in (x, y)], -2)
    count = rows.shape[-2]
    if count < 2:
        raise ValueError(f"the median distance needs at least two rows, got {count}")
    rows = rows.detach()
    if count > _SAMPLE:
        chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:_SAMPLE]
        rows = rows[..., chosen.to(rows.device), :]
    rows = rows.to(compute_dtype(x.dtype))
    rows = rows - rows.mean(-2, keepdim=True)
    pairs = torch.triu_indices(rows.shape[-2], rows.shape[-2], 1, device=rows.device)
    mode = "donot_use_mm_for_euclid_dist"
    distances = torch.cdist(rows, rows, p=p, compute_mode=mode)[..., pairs[0], pairs[1]]
    lower, upper = distances.median(-1, keepdim=True).values, -(-distances).median(-1, keepdim=True).values
    return ((lower + upper) / 2)[..., None]

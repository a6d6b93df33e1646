"""Bandwidths from the data, in O(N) memory; they carry no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from mmkernels._dispatch import compute_dtype

_SAMPLE = 1000  # rows; their half a million distances give the median to about a percent


def scale_gamma(x: Tensor) -> Tensor:
    """1 / (D var(x)), the variance over all entries of a batch entry: scikit-learn's gamma="scale"; (*batch, 1, 1).

    1 where all entries agree.
    """
    wide = x.detach().to(compute_dtype(x.dtype))
    variance = wide.var((-2, -1), correction=0, keepdim=True)
    return torch.where(variance > 0, 1 / (x.shape[-1] * variance), 1)


def median_distance(x: Tensor, y: Tensor | None, p: int) -> Tensor:
    """The median p-norm distance, p 1 or 2, of rows of x (and y) that differ, of a seeded sample where they are many.

    (*batch, 1, 1), 1 where all rows agree, or there is one; the sample is the same in every call, whatever the state of
    torch's generators.
    """
    rows = x if y is None else pooled(x, y)
    count = rows.shape[-2]
    if count < 2:
        return rows.new_ones((*rows.shape[:-2], 1, 1), dtype=compute_dtype(x.dtype))
    rows = rows.detach()
    if count > _SAMPLE:
        chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:_SAMPLE]
        rows = rows[..., chosen.to(rows.device), :]
    rows = rows.to(compute_dtype(x.dtype))
    i, j = torch.triu_indices(rows.shape[-2], rows.shape[-2], 1, device=rows.device)
    d = torch.cdist(rows, rows, p=1)[..., i, j] if p == 1 else _distances(rows.double(), i, j).to(rows.dtype)
    d = torch.where(d > 0, d, torch.nan)
    lower = d.nanmedian(-1, keepdim=True).values
    # of an even number of distances the median is between two, of which nanmedian is the first
    below, known = ((d <= lower).sum(-1, keepdim=True), (~d.isnan()).sum(-1, keepdim=True))
    upper = torch.where(2 * below > known, lower, torch.where(d > lower, d, torch.inf).amin(-1, keepdim=True))
    return ((lower + upper) / 2).nan_to_num(1)[..., None]


def pooled(x: Tensor, y: Tensor) -> Tensor:
    """The rows of x and of y together."""
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])  # type: ignore[no-untyped-call]
    return torch.cat([t.expand(*batch, *t.shape[-2:]) for t in (x, y)], -2)


def _distances(rows: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Euclidean distances of rows i and j, pair by pair; 0 where they are nothing but rounding."""
    rows = rows - rows.mean(-2, keepdim=True)
    squares = (rows @ rows.mT)[..., i, j]
    norms = rows.square().sum(-1)
    norms = norms[..., i] + norms[..., j]
    squares = norms.sub(squares, alpha=2)
    return torch.where(squares > 4 * torch.finfo(rows.dtype).eps * norms, squares, 0).sqrt()

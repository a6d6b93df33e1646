"""Scatter matrix and column sums of stacked views about a given point, and their gradients, some rows at a time.

Arguments and results are those of `kernels/covariance.py`. A view is (B, N, D_v); stacked they have D = sum D_v
features. `shift` (B, D) is what is subtracted from each row. `factors` (1 or B, 1 or V, N) multiplies what is left, one
factor a row, or one for each view of it: the square root of the row's weight, 0 where the view is absent (whatever its
values are then, NaN included).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mmkernels.tiled._tiles import memory_budget, scratch, slices

_BLOCK = 128  # columns that a product takes at a time, to leave out what lies below the diagonal
_FLUSH = 8  # products added up in the working precision before they go to a float64 sum
# BLAS adds up row after row where columns are few: fewer than this take a sum for so many rows
_NARROW, _ROWS = 32, 1024


def covariance_fwd(
    views: Sequence[Tensor], shift: Tensor, factors: Tensor | None, precision: str
) -> tuple[Tensor, Tensor]:
    """Return the scatter z'z (B, D, D) and the sums f'z (B, 1 or V, D) of z = factors * (views - shift)."""
    B, D = shift.shape
    F = 1 if factors is None else factors.shape[1]
    total: Tensor | None = None
    part, sums = shift.new_zeros(B, D, D), shift.new_zeros(B, F, D, dtype=torch.float64)
    for count, (batch, rows, z) in enumerate(_chunks(views, shift, factors), 1):
        sums[batch] += z.sum(1, keepdim=True) if factors is None else _of(factors, batch)[..., rows] @ z
        if D < _NARROW and z.shape[1] > _ROWS:
            whole = z.shape[1] // _ROWS * _ROWS
            pieces, z = z[:, :whole].view(len(z), -1, _ROWS, D), z[:, whole:]
            total = shift.new_zeros(B, D, D, dtype=torch.float64) if total is None else total
            total[batch] += (pieces.mT @ pieces).sum(1, dtype=torch.float64)
        if len(z) == 1:
            out, one = part[batch.start], z[0]
            for start in range(0, D, _BLOCK):
                out[start : start + _BLOCK, start:].addmm_(one[:, start : start + _BLOCK].mT, one[:, start:])
        else:
            part[batch].baddbmm_(z.mT, z)
        if count % _FLUSH == 0:
            total = part.to(torch.float64, copy=True) if total is None else total.add_(part)
            part.zero_()
    scatter = part if total is None else total.add_(part).to(shift.dtype)
    return scatter.triu() + scatter.triu(1).mT, sums.to(shift.dtype)


def covariance_bwd(
    views: Sequence[Tensor],
    shift: Tensor,
    factors: Tensor | None,
    grad_scatter: Tensor,
    grad_sums: Tensor,
    needs: Sequence[bool],
    precision: str,
) -> list[Tensor]:
    """Return the gradients of the views that needs asks for, empty tensors for the others.

    grad_scatter is symmetric, and stands for each pair of features twice: z' of the loss is z @ grad_scatter.
    """
    grads = [v.new_empty(v.shape if need else (0,)) for v, need in zip(views, needs, strict=True)]
    for batch, rows, z in _chunks(views, shift, factors):
        f = None if factors is None else _of(factors, batch)[..., rows]
        start = 0
        for v, (view, grad, need) in enumerate(zip(views, grads, needs, strict=True)):
            columns = slice(start, start + view.shape[2])
            start = columns.stop
            if not need:
                continue
            g, s = grad_scatter[batch, :, columns], grad_sums[batch, :, columns]
            if f is None:
                dz = torch.baddbmm(s, z, g)
            else:
                dz = torch.baddbmm(f.mT @ s, z, g)
                dz *= f[:, v % f.shape[1], :, None]
            grad[batch, rows] = dz
    return grads


def _of(factors: Tensor, batch: slice) -> Tensor:
    """The factors of some batch entries, (b, 1 or V, N)."""
    return factors.expand(batch.stop - batch.start, -1, -1) if len(factors) == 1 else factors[batch]


def _chunks(views: Sequence[Tensor], shift: Tensor, factors: Tensor | None) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield batch entries, rows, and z (b, n, D) of them, which lies in scratch memory."""
    (B, D), N = shift.shape, views[0].shape[1]
    if B == 0 or N == 0:
        return
    room = max(1, memory_budget() // (2 * D * shift.itemsize))
    height = min(N, room)
    group = min(B, max(1, room // height))
    block = scratch(shift, 1, group * height * D, shift.dtype)[0]
    for batch in slices(B, group):
        for rows in slices(N, height):
            b, n = batch.stop - batch.start, rows.stop - rows.start
            z = block[: b * n * D].view(b, n, D)
            start = 0
            for v, view in enumerate(views):
                columns = slice(start, start + view.shape[2])
                start = columns.stop
                part, c = z[..., columns], shift[batch, None, columns]
                if view.dtype == shift.dtype:
                    torch.sub(view[batch, rows], c, out=part)
                else:
                    part.copy_(view[batch, rows]).sub_(c)
                if factors is not None:
                    f = _of(factors, batch)[:, v % factors.shape[1], rows, None]
                    part.mul_(f).masked_fill_(f == 0, 0)
            yield batch, rows, z

"""The nearest columns of every row by dot product, and how many pairs score above a threshold, tile by tile.

Arguments and results are those of `kernels/neighbors.py`. N rows, M columns, D features. A pair is right if its ids are
equal, or without ids if it is on the diagonal. `neighbors_best` and `neighbors_count` form the same tiles with the same
products, so that a threshold from the one ties in the other with whatever scores the same.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from mmkernels.tiled._tiles import compute_dtype, scratch, slices, tile, tile_side


def _tiles(x: Tensor, y: Tensor, diagonal: bool = False) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Yield the rows and columns of each tile (on the diagonal alone), its dot products, and scratch of its shape."""
    dtype, side = compute_dtype(x.dtype), tile_side(x.dtype)
    buffers = scratch(x, 2, min(len(x), side) * min(len(y), side), dtype)
    for rows in slices(len(x), side):
        xi = x[rows].to(dtype)
        for cols in [rows] if diagonal else slices(len(y), side):
            n, m = rows.stop - rows.start, cols.stop - cols.start
            dots, spare = tile(buffers, n, m)
            yield rows, cols, torch.mm(xi, y[cols].to(dtype).T, out=dots), spare


def neighbors_best(
    x: Tensor, y: Tensor, row_ids: Tensor | None, column_ids: Tensor | None, precision: str
) -> tuple[Tensor, Tensor]:
    """Return the highest score among the right pairs of each row and each column, -inf where there is none but NaN."""
    dtype = compute_dtype(x.dtype)
    row_best, column_best = (t.new_full((len(t),), -torch.inf, dtype=dtype) for t in (x, y))
    for rows, cols, dots, _ in _tiles(x, y, diagonal=row_ids is None):
        if row_ids is not None and column_ids is not None:
            dots.nan_to_num_(-torch.inf, torch.inf, -torch.inf)
            dots.masked_fill_(row_ids[rows, None] != column_ids[cols], -torch.inf)
            row_best[rows] = torch.maximum(row_best[rows], dots.amax(1))
            column_best[cols] = torch.maximum(column_best[cols], dots.amax(0))
        else:
            row_best[rows] = column_best[cols] = dots.diagonal().nan_to_num(-torch.inf, torch.inf, -torch.inf)
    return row_best, column_best


def neighbors_count(
    x: Tensor,
    y: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    row_thresholds: Tensor,
    column_thresholds: Tensor,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Return twice how many wrong pairs of each row and of each column score above its threshold, ties counted half."""
    row_count, column_count = (t.new_zeros(len(t), dtype=torch.int64) for t in (x, y))
    for rows, cols, dots, spare in _tiles(x, y):
        if row_ids is not None and column_ids is not None:
            dots.masked_fill_(row_ids[rows, None] == column_ids[cols], -torch.inf)
        elif rows == cols:
            dots.fill_diagonal_(-torch.inf)
        # 1 + sign(s - threshold) is 2, 1 or 0: above, tied, below. The sums of a tile are small enough to be exact.
        n, m = dots.shape
        row_count[rows] += m + torch.sub(dots, row_thresholds[rows, None], out=spare).sign_().sum(1).long()
        column_count[cols] += n + torch.sub(dots, column_thresholds[cols], out=spare).sign_().sum(0).long()
    return row_count, column_count


def neighbors_topk(x: Tensor, y: Tensor, k: int, precision: str) -> tuple[Tensor, Tensor]:
    """Return the k highest scores of each row, sorted, and their columns; -inf and -1 where NaN left too few."""
    values = x.new_full((len(x), k), -torch.inf, dtype=compute_dtype(x.dtype))
    columns = x.new_full((len(x), k), -1, dtype=torch.int64)
    if k == 0:
        return values, columns
    for rows, cols, dots, _ in _tiles(x, y):
        v, j = values[rows], columns[rows]
        better = (dots.amax(1) > v[:, -1]).nonzero().squeeze(1)  # few rows after the first tiles
        new, at = dots[better].topk(min(k, dots.shape[1]))
        best, chosen = torch.cat([v[better], new], 1).topk(k)
        v[better], j[better] = best, torch.cat([j[better], at + cols.start], 1).gather(1, chosen)
    return values, columns

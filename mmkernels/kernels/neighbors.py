"""The nearest columns of every row by dot product, and how many pairs score above a threshold.

The launchers. N rows, M columns, D features. Arguments and results are those of `tiled/neighbors.py`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from mmkernels.kernels._configs import WAVE, aligned, neighbors_tile, on_device, slices, spans
from mmkernels.kernels._neighbors import neighbors_kernel, neighbors_topk_kernel

_MOST = 16  # the k up to which registers hold a row's k best
_STORED = 2**28  # bytes of scores stored at once for a larger k


def _arguments(x: Tensor, y: Tensor, precision: str) -> tuple[dict[str, Any], int]:
    """What both kernels are launched with, and how many programs that makes along the columns."""
    tile = neighbors_tile(x, precision)
    span, across = spans(len(x), len(y), tile, x.device)
    arguments = {
        "y_ptr": y,
        "stride_xm": x.stride(0),
        "stride_yn": y.stride(0),
        "M": len(y),
        "D": x.shape[1],
        "span": span,
        "EVEN_D": x.shape[1] % tile.BLOCK_D == 0,
        "INPUT_PRECISION": "ieee" if x.element_size() == 2 else precision,
        **tile._asdict(),
    }
    return arguments, across


def _sweep(
    x: Tensor,
    y: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    thresholds: tuple[Tensor, Tensor] | None,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Return the best right score of each row and column, or with thresholds twice the count of wrong ones above."""
    N, M = len(x), len(y)
    count = thresholds is not None
    start, dtype = (0, torch.int64) if count else (-torch.inf, torch.float32)
    rows, columns = (t.new_full((len(t),), start, dtype=dtype) for t in (x, y))
    if N == 0 or M == 0:
        return rows, columns
    x, y = aligned(x), aligned(y)
    row_ids, column_ids = (None if v is None else v.contiguous() for v in (row_ids, column_ids))
    arguments, across = _arguments(x, y, precision)
    for wave in slices(N, WAVE):
        n = wave.stop - wave.start
        tiles = triton.cdiv(n, arguments["BLOCK_M"])
        row_parts, column_parts = (
            rows.new_empty(shape, dtype=torch.int32 if count else torch.float32) for shape in ((across, n), (tiles, M))
        )
        neighbors_kernel[(tiles * across,)](
            x_ptr=x[wave],
            row_ids_ptr=None if row_ids is None else row_ids[wave],
            column_ids_ptr=column_ids,
            row_thresholds_ptr=None if thresholds is None else thresholds[0][wave],
            column_thresholds_ptr=None if thresholds is None else thresholds[1],
            row_out_ptr=row_parts,
            column_out_ptr=column_parts,
            offset=wave.start,
            N=n,
            COUNT=count,
            HAS_IDS=row_ids is not None,
            **arguments,
        )
        if count:
            rows[wave] = row_parts.sum(0)
            columns += column_parts.sum(0)
        else:
            rows[wave] = row_parts.amax(0)
            if row_ids is not None:
                torch.maximum(columns, column_parts.amax(0), out=columns)
    # Without ids a right pair is the best of its row and of its column.
    return rows, rows.clone() if row_ids is None and not count else columns


def neighbors_best(
    x: Tensor, y: Tensor, row_ids: Tensor | None, column_ids: Tensor | None, precision: str
) -> tuple[Tensor, Tensor]:
    """Return the highest score among the right pairs of each row and of each column, -inf where there is none."""
    with on_device(x):
        return _sweep(x, y, row_ids, column_ids, None, precision)


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
    with on_device(x):
        return _sweep(x, y, row_ids, column_ids, (row_thresholds, column_thresholds), precision)


def neighbors_topk(x: Tensor, y: Tensor, k: int, precision: str) -> tuple[Tensor, Tensor]:
    """Return the k highest scores of each row, sorted, and their columns; -inf and -1 where NaN left too few."""
    N = len(x)
    if N == 0 or k == 0:
        return x.new_empty(N, k, dtype=torch.float32), x.new_empty(N, k, dtype=torch.int64)
    if k > _MOST:
        return _stored_topk(x, y, k)
    x, y = aligned(x), aligned(y)
    arguments, across = _arguments(x, y, precision)
    values = x.new_empty(N, across, k, dtype=torch.float32)
    columns = x.new_empty(N, across, k, dtype=torch.int32)
    with on_device(x):
        neighbors_topk_kernel[(triton.cdiv(N, arguments["BLOCK_M"]) * across,)](
            x_ptr=x,
            values_ptr=values,
            indices_ptr=columns,
            N=N,
            k=k,
            BLOCK_K=max(2, triton.next_power_of_2(k)),
            **arguments,
        )
    best, at = values.flatten(1).topk(k)
    return best, columns.flatten(1).gather(1, at).long()


def _stored_topk(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same from stored scores of some rows at a time."""
    y = y.float()
    step = max(1, _STORED // (4 * len(y)))
    found = [
        (x[rows].float() @ y.T).nan_to_num_(-torch.inf, torch.inf, -torch.inf).topk(k) for rows in slices(len(x), step)
    ]
    values, columns = (torch.cat(parts) for parts in zip(*found, strict=True))
    return values, columns.masked_fill_(values == -torch.inf, -1)

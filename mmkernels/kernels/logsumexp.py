"""Row and column log-sum-exps of the scores s_ij = scale <x_i, y_j> + log_weights_j in one sweep, and their gradients.

The launchers. N rows, M columns, D features. Arguments and results are those of `tiled/logsumexp.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from mmkernels.kernels._configs import WAVE, Tile, aligned, narrow_tile, on_device, row_tile, scores_tile, slices, spans
from mmkernels.kernels._logsumexp_bwd import (
    logsumexp_bwd_finish_kernel,
    logsumexp_bwd_kernel,
    logsumexp_bwd_weight_kernel,
)
from mmkernels.kernels._logsumexp_fwd import logsumexp_dots_kernel, logsumexp_fwd_kernel, logsumexp_merge_kernel
from mmkernels.kernels._scores import Scores

_BLOCK = 16384  # side of a stored block of weights: 512 MiB in 16 bit; float32 takes half the side, 256 MiB


def _row_dots(x: Tensor, y: Tensor) -> Tensor:
    """The row-wise dot products <x_i, y_i>, float32 (N,)."""
    N, D = x.shape
    dots = x.new_empty(N, dtype=torch.float32)
    tile = row_tile(x)
    logsumexp_dots_kernel[(triton.cdiv(N, tile["BLOCK_M"]),)](
        x, y, dots, stride_xm=x.stride(0), stride_ym=y.stride(0), N=N, D=D, EVEN_D=D % tile["BLOCK_D"] == 0, **tile
    )
    return dots


def _merge(part_max: Tensor, part_sum: Tensor, maximum: Tensor, total: Tensor, first: bool, last: bool) -> None:
    L = len(maximum)
    logsumexp_merge_kernel[(triton.cdiv(L, 128),)](
        part_max, part_sum, maximum, total, parts=len(part_max), L=L, FIRST=first, LAST=last, BLOCK_P=16, BLOCK_L=128
    )


def logsumexp_fwd(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    log_weights: Tensor | None,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    offset: int | None,
    columns: bool,
    keep: bool,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return rows, columns, positives, row_max, column_max; the last, kept scores, is empty: tiles are recomputed."""
    N, M = len(x), len(y)
    rows, row_max = (scale.new_full((N,), -torch.inf) for _ in range(2))
    column_lse, column_max = (scale.new_full((M if columns else 0,), -torch.inf) for _ in range(2))
    positives, kept = scale.new_empty(0), scale.new_empty(0)
    if N == 0 or M == 0:
        return rows, column_lse, positives, row_max, column_max, kept
    x, y = aligned(x), aligned(y)
    scores = Scores.of(x, y, scale, log_weights, row_ids, column_ids, offset, precision)
    tile = scores_tile(x, precision)
    span, across = spans(N, M, tile, x.device)
    row_parts = scale.new_empty(2, across * min(N, WAVE))
    column_parts = scale.new_empty(2, triton.cdiv(min(N, WAVE), tile.BLOCK_M) if columns else 0, M)
    with on_device(x):
        if offset is not None:
            positives = _row_dots(x, y[offset : offset + N]) * scale
            if log_weights is not None:
                positives += log_weights[offset : offset + N]
        for wave in slices(N, WAVE):
            n = wave.stop - wave.start
            tiles = triton.cdiv(n, tile.BLOCK_M)
            part_max, part_sum = row_parts[:, : across * n].view(2, across, n)
            logsumexp_fwd_kernel[(tiles * across,)](
                **scores.block(wave, slice(0, M)).arguments(tile),
                row_max_ptr=part_max,
                row_sum_ptr=part_sum,
                column_max_ptr=column_parts[0],
                column_sum_ptr=column_parts[1],
                span=span,
                COLUMNS=columns,
            )
            _merge(part_max, part_sum, row_max[wave], rows[wave], first=True, last=True)
            if columns:
                part_max, part_sum = column_parts[:, :tiles]
                _merge(part_max, part_sum, column_max, column_lse, first=wave.start == 0, last=wave.stop == N)
    return rows, column_lse, positives, row_max, column_max, kept


class _Term(NamedTuple):
    """gradient_i e^(s_ij - lse_i): one of the two terms of the weights G."""

    lse: Tensor
    gradient: Tensor


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, accumulated in float32."""
    if a.is_cuda and a.element_size() == 2:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.float(), b.float())


def _finish(
    total: Tensor, scale: Tensor, factor: Tensor, y: Tensor, gp: Tensor | None, offset: int | None, dx: Tensor
) -> None:
    """dx_i = scale (factor total_i + gp_i y_(i + offset)), rounded once."""
    N, D = dx.shape
    tile = row_tile(dx)
    logsumexp_bwd_finish_kernel[(triton.cdiv(N, tile["BLOCK_M"]),)](
        total, scale, factor, y, gp, dx, stride_yn=y.stride(0), offset=offset or 0, N=N, M=len(y), D=D,
        HAS_POSITIVES=gp is not None, EVEN_D=D % tile["BLOCK_D"] == 0, **tile,
    )  # fmt: skip


def _stored_weights(
    scores: Scores,
    by_row: _Term,
    by_column: _Term | None,
    factor: Tensor,
    gp: Tensor | None,
    gp_columns: Tensor | None,
    dx: Tensor,
    dy: Tensor,
    dscale: Tensor,
    dlog_weights: Tensor,
) -> None:
    """Write blocks of G and multiply them by the library; what has no elements is not computed."""
    x, y, scale = scores.x, scores.y, scores.scale
    (N, D), M = x.shape, len(y)
    need_x, need_y, need_scale, need_log_weights = (t.numel() > 0 for t in (dx, dy, dscale, dlog_weights))
    tile = scores_tile(x, scores.precision)
    side = _BLOCK * 2 // x.element_size()
    # Whole tiles: the kernel stores without masks, and library products want aligned rows.
    height, stride = (
        triton.cdiv(min(size, side), block) * block for size, block in ((N, tile.BLOCK_M), (M, tile.BLOCK_N))
    )
    weights = x.new_empty((height, stride) if need_x or need_y else (0, 0))
    dy_total = scale.new_zeros(dy.shape)
    for i in slices(N, side):
        dx_total = scale.new_zeros((i.stop - i.start, D) if need_x else (0,))
        for j in slices(M, side):
            n, m = i.stop - i.start, j.stop - j.start
            row_tiles, column_tiles = triton.cdiv(n, tile.BLOCK_M), triton.cdiv(m, tile.BLOCK_N)
            dots_sum = scale.new_empty((column_tiles, n) if need_scale else (0,))
            column_sum = scale.new_empty((row_tiles, m) if need_log_weights else (0,))
            logsumexp_bwd_weight_kernel[(row_tiles * column_tiles,)](
                **scores.block(i, j).arguments(tile),
                rows_ptr=by_row.lse[i],
                g_ptr=by_row.gradient[i],
                columns_ptr=by_column and by_column.lse[j],
                h_ptr=by_column and by_column.gradient[j],
                w_ptr=weights,
                stride_wm=stride,
                dots_sum_ptr=dots_sum,
                column_sum_ptr=column_sum,
                HAS_COLUMNS=by_column is not None,
                STORE_WEIGHTS=need_x or need_y,
                SUM_DOTS=need_scale,
                SUM_COLUMNS=need_log_weights,
            )
            w = weights[:n, :m]
            if need_x:
                _add_product(dx_total, w, y[j])
            if need_y:
                _add_product(dy_total[j], w.T, x[i])
            if need_scale:
                dscale += dots_sum.sum()
            if need_log_weights:
                dlog_weights[j] += column_sum.sum(0)
        if need_x:
            start = 0 if scores.offset is None else scores.offset + i.start
            _finish(dx_total, scale, factor, y, None if gp is None else gp[i], start, dx[i])
    if need_y:
        _finish(dy_total, scale, factor, x, gp_columns, -(scores.offset or 0), dy)


def _streamed_weights(
    scores: Scores,
    tile: Tile,
    by_row: _Term | None,
    by_column: _Term | None,
    factor: Tensor,
    gp: Tensor | None,
    dx: Tensor,
    dots_sum: Tensor,
    row_sum: Tensor,
) -> None:
    """Gradients of the rows with G never stored; what has no elements is not computed."""
    N = len(scores.x)
    parts = dots_sum.new_empty(N if dots_sum.numel() else 0)
    logsumexp_bwd_kernel[(triton.cdiv(N, tile.BLOCK_M),)](
        **scores.arguments(tile),
        rows_ptr=by_row and by_row.lse,
        g_ptr=by_row and by_row.gradient,
        columns_ptr=by_column and by_column.lse,
        h_ptr=by_column and by_column.gradient,
        grad_positives_ptr=gp,
        factor_ptr=factor,
        dx_ptr=dx,
        dots_sum_ptr=parts,
        row_sum_ptr=row_sum,
        HAS_ROWS=by_row is not None,
        HAS_COLUMNS=by_column is not None,
        LOG_WEIGHTS_BY_ROW=scores.transposed,
        HAS_POSITIVES=gp is not None,
        STORE_DX=dx.numel() > 0,
        SUM_DOTS=dots_sum.numel() > 0,
        SUM_ROWS=row_sum.numel() > 0,
    )
    if dots_sum.numel():
        dots_sum += parts.sum()


def logsumexp_bwd(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    log_weights: Tensor | None,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    offset: int | None,
    rows: Tensor,
    columns: Tensor,
    scores: Tensor,
    grad_rows: Tensor,
    grad_columns: Tensor | None,
    grad_positives: Tensor | None,
    needs: list[bool],
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, y, scale and log_weights that needs asks for, empty tensors for the others."""
    N, M, D = len(x), len(y), x.shape[1]
    need_x, need_y, need_scale, need_log_weights = needs
    x, y = aligned(x), aligned(y)
    dx = x.new_zeros(x.shape if need_x else (0,))
    dy = y.new_zeros(y.shape if need_y else (0,))
    dscale = scale.new_zeros(() if need_scale else (0,))
    dlog_weights = scale.new_zeros(M if need_log_weights else 0)
    if N == 0 or M == 0 or not any(needs):
        return dx[..., :D].contiguous(), dy[..., :D].contiguous(), dscale, dlog_weights
    # Weights are divided by the largest upstream gradient before they are rounded to 16 bit. Softmax entries are about
    # 1 / N, subnormal in fp16 from N = 16,384 on: there 2^12 more keeps them normal, and 1 below the maximum.
    factor = grad_rows.abs().amax()
    if grad_columns is not None:
        factor = torch.maximum(factor, grad_columns.abs().amax())
    factor = factor.clamp(min=1e-30)
    if x.dtype == torch.float16:
        factor = factor / 4096
    matrix = Scores.of(x, y, scale, log_weights, row_ids, column_ids, offset, precision)
    by_row = _Term(rows, grad_rows / factor)
    by_column = None if grad_columns is None else _Term(columns, grad_columns / factor)
    gp = None if offset is None else grad_positives
    gp_columns = None if gp is None or offset is None else pad(gp, (offset, M - N - offset))
    tile = narrow_tile(x, precision, min(N, M))
    with on_device(x):
        if tile is None or not (need_x or need_y):
            _stored_weights(matrix, by_row, by_column, factor, gp, gp_columns, dx, dy, dscale, dlog_weights)
        else:
            none = scale.new_empty(0)
            if need_x:
                _streamed_weights(matrix, tile, by_row, by_column, factor, gp, dx, dscale, none)
            if need_y or need_log_weights:
                _streamed_weights(
                    matrix.transpose(), tile, by_column, by_row, factor, gp_columns, dy,
                    none if need_x else dscale, dlog_weights,
                )  # fmt: skip
        if need_scale:
            dscale *= factor
            if gp is not None and offset is not None:
                dscale += (gp * _row_dots(x, y[offset : offset + N])).sum()
        if need_log_weights:
            dlog_weights *= factor
            if gp_columns is not None:
                dlog_weights += gp_columns
    return dx[..., :D].contiguous(), dy[..., :D].contiguous(), dscale, dlog_weights

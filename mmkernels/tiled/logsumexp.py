"""Row and column log-sum-exps of the scores s_ij = scale <x_i, y_j> + log_weights_j, tile by tile.

Arguments and results are those of `kernels/logsumexp.py`. N rows, M columns, D features; everything pairwise lives in
buffers of one tile, unless the dot products are kept.
"""

import math

import torch
from torch import Tensor

from mmkernels.tiled._tiles import compute_dtype, memory_budget, scratch, slices, tile, tile_side


def _positives(rows: slice, cols: slice, offset: int) -> tuple[int, slice]:
    """Return which diagonal of a tile holds its positives, and which rows of x they belong to, perhaps none."""
    start, stop = max(rows.start, cols.start - offset), min(rows.stop, cols.stop - offset)
    return rows.start + offset - cols.start, slice(start, max(start, stop))


def _scores(
    dots: Tensor,
    scale: Tensor,
    log_weights: Tensor | None,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    offset: int | None,
    rows: slice,
    cols: slice,
    out: Tensor,
) -> Tensor:
    """Write the tile's scores into out, -inf on the pairs that are left out."""
    torch.mul(dots, scale, out=out)
    if log_weights is not None:
        out += log_weights[cols]
    if row_ids is not None and column_ids is not None:
        ids = column_ids[cols]
        out[:, : len(ids)].masked_fill_(row_ids[rows, None] == ids, -torch.inf)
    if offset is not None:
        out.diagonal(_positives(rows, cols, offset)[0]).fill_(-torch.inf)
    return out


def _reference(maximum: Tensor) -> Tensor:
    """What to subtract before the exponential: 0 where the maximum is infinite (nothing summed yet, or overflow)."""
    return maximum.nan_to_num(nan=math.nan, posinf=0, neginf=0)


def _shared_reference(rows: Tensor, columns: Tensor) -> Tensor | None:
    """A reference that serves every row and column of a tile, so that one exponential per pair does; None if none can.

    rows and columns are maxima or log-sum-exps, all finite if there is one. With all references within 60 of the
    largest, what a float32 exponential flushes to 0 is below e^-27 of any of them. The question is asked on a CPU only:
    elsewhere the host would wait for the answer.
    """
    if rows.device.type != "cpu" or rows.numel() == 0 or columns.numel() == 0:
        return None
    low, high = torch.cat([rows, columns]).aminmax()
    return high if high - low < 60 else None  # also None with infinities and NaN


def _add_tile(s: Tensor, e: Tensor, row_max: Tensor, row_sum: Tensor, column_max: Tensor, column_sum: Tensor) -> None:
    """Fold a tile into the running maxima and sums of e^(s - maximum); no columns if theirs are empty. s is used up."""
    row_new = torch.maximum(row_max, s.amax(1))
    column_new = torch.maximum(column_max, s.amax(0)) if column_max.numel() else column_max
    shared = _shared_reference(row_new, column_new)
    if shared is not None:
        s.sub_(shared).exp_()  # in place: memory touched for the first time costs as much as the exponential
        row_sum.mul_(torch.exp(row_max - row_new)).addcmul_(s.sum(1), torch.exp(shared - row_new))
        column_sum.mul_(torch.exp(column_max - column_new)).addcmul_(s.sum(0), torch.exp(shared - column_new))
    else:
        row_ref, column_ref = _reference(row_new), _reference(column_new)
        row_sum *= torch.exp(row_max - row_ref)
        column_sum *= torch.exp(column_max - column_ref)
        row_sum += torch.sub(s, row_ref[:, None], out=e).exp_().sum(1)
        if column_max.numel():
            column_sum += torch.sub(s, column_ref, out=e).exp_().sum(0)
    row_max.copy_(row_new)
    column_max.copy_(column_new)


def _weights(s: Tensor, w: Tensor, rows: Tensor, columns: Tensor, g: Tensor, h: Tensor | None) -> Tensor:
    """g_i e^(s - rows_i) + h_j e^(s - columns_j), the second term if h is given; s is overwritten."""
    if h is None:
        return torch.sub(s, _reference(rows)[:, None], out=w).exp_().mul_(g[:, None])
    shared = _shared_reference(rows, columns)
    if shared is not None:
        torch.add((g * torch.exp(shared - rows))[:, None], h * torch.exp(shared - columns), out=w)
        return w.mul_(s.sub_(shared).exp_())
    torch.sub(s, _reference(rows)[:, None], out=w).exp_().mul_(g[:, None])
    return w.add_(s.sub_(_reference(columns)).exp_().mul_(h))


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
    """Return rows, columns, positives, row_max, column_max and the dot products, the last (N, M) if keep else (0,)."""
    N, M, dtype = x.shape[0], y.shape[0], compute_dtype(x.dtype)
    side = tile_side(x.dtype)
    row_max, row_sum = x.new_full((N,), -torch.inf, dtype=dtype), x.new_zeros(N, dtype=dtype)
    column_max = x.new_full((M if columns else 0,), -torch.inf, dtype=dtype)
    column_sum = torch.zeros_like(column_max)
    positives = x.new_empty(0 if offset is None else N, dtype=dtype)
    scores = x.new_empty((N, M) if keep else (0,), dtype=dtype)
    buffers = scratch(x, 3, min(N, side) * min(M, side), dtype)
    for rows in slices(N, side):
        xi = x[rows].to(dtype)
        for cols in slices(M, side):
            n, m = rows.stop - rows.start, cols.stop - cols.start
            dots, s, e = tile(buffers, n, m)
            dots = torch.mm(xi, y[cols].to(dtype).T, out=scores[rows, cols] if keep else dots)
            if offset is not None:
                diagonal, matched = _positives(rows, cols, offset)
                positives[matched] = dots.diagonal(diagonal)
            _scores(dots, scale, log_weights, row_ids, column_ids, offset, rows, cols, s)
            _add_tile(s, e, row_max[rows], row_sum[rows], column_max[cols], column_sum[cols])
    if offset is not None:
        positives *= scale
        if log_weights is not None:
            positives += log_weights[offset : offset + N]
    # Where nothing was summed this is -inf - inf, where the maximum overflowed inf + inf.
    row_lse, column_lse = row_max + row_sum.log(), column_max + column_sum.log()
    return row_lse, column_lse, positives, row_max, column_max, scores


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
    """Return the gradients of x, y, scale and log_weights that needs asks for, empty tensors for the others.

    G_ij = grad_rows_i e^(s_ij - rows_i) + grad_columns_j e^(s_ij - columns_j), and grad_positives on the positives. The
    sums are in float32 (float64) until one rounding to the inputs' dtype.
    """
    (N, D), M, dtype = x.shape, y.shape[0], compute_dtype(x.dtype)
    need_x, need_y, need_scale, need_log_weights = needs
    side = tile_side(x.dtype)
    # On a CPU the products take the scale along; elsewhere the host would wait for its value.
    in_product = x.device.type == "cpu"
    alpha = scale.item() if in_product else 1.0
    new = x.new_empty if N and M else x.new_zeros  # the first product along a row or column overwrites, with beta = 0
    dx = new(N, D) if need_x else x.new_empty(0)
    dy = new(M, D, dtype=dtype) if need_y else x.new_empty(0)
    dscale_rows = x.new_zeros(N if need_scale else 0, dtype=dtype)
    dlog_weights = x.new_zeros(M if need_log_weights else 0, dtype=dtype)
    buffers = scratch(x, 3, min(N, side) * min(M, side), dtype)
    for i in slices(N, side):
        xi = x[i].to(dtype)
        # 16-bit gradients are summed in float32 and rounded once; others where they will stay.
        dxi = torch.zeros_like(xi) if dx.dtype != dtype else dx[i]
        for j in slices(M, side):
            yj = y[j].to(dtype)
            n, m = i.stop - i.start, j.stop - j.start
            dots, s, w = tile(buffers, n, m)
            dots = scores[i, j] if scores.numel() else torch.mm(xi, yj.T, out=dots)
            _scores(dots, scale, log_weights, row_ids, column_ids, offset, i, j, s)
            _weights(s, w, rows[i], columns[j], grad_rows[i], None if grad_columns is None else grad_columns[j])
            if grad_positives is not None and offset is not None:
                diagonal, matched = _positives(i, j, offset)
                w.diagonal(diagonal).copy_(grad_positives[matched])
            if need_scale:
                dscale_rows[i] += torch.mul(w, dots, out=s).sum(1)
            if need_log_weights:
                dlog_weights[j] += w.sum(0)
            if need_x:
                dxi.addmm_(w, yj, beta=int(j.start > 0), alpha=alpha)
            if need_y:
                dy[j].addmm_(w.T, xi, beta=int(i.start > 0), alpha=alpha)
        if need_x and not in_product:
            dxi.mul_(scale)
        if need_x and dx.dtype != dtype:
            dx[i] = dxi
    if need_y:
        dy = (dy if in_product else dy.mul_(scale)).to(y.dtype)
    return dx, dy, dscale_rows.sum() if need_scale else dscale_rows, dlog_weights


def row_tiles(N: int, M: int, dtype: torch.dtype) -> list[slice]:
    """Row tiles in which `logsumexp_grad_formula` keeps within the memory budget (about ten N x M matrices alive)."""
    return list(slices(N, max(1, memory_budget() // (10 * max(M, 1) * compute_dtype(dtype).itemsize))))


def logsumexp_grad_formula(
    *,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    offset: int | None,
    rows: Tensor,
    columns: Tensor,
    grad_rows: Tensor,
    log_weights: Tensor | None = None,
    grad_columns: Tensor | None = None,
    grad_positives: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`logsumexp_bwd` of one row tile, written out of place so that autograd can differentiate it."""
    dtype = compute_dtype(x.dtype)
    x, y = x.to(dtype), y.to(dtype)
    dots = x @ y.T
    s = dots * scale if log_weights is None else dots * scale + log_weights
    positive = torch.zeros_like(dots, dtype=torch.bool)
    if offset is not None:
        positive.diagonal(offset).fill_(True)
    s = s.masked_fill(positive, -torch.inf)
    if row_ids is not None and column_ids is not None:
        equal = torch.zeros_like(positive)
        equal[:, : len(column_ids)] = row_ids[:, None] == column_ids
        s = s.masked_fill(equal, -torch.inf)
    G = grad_rows[:, None] * torch.exp(s - _reference(rows)[:, None])
    if grad_columns is not None:
        G = G + grad_columns * torch.exp(s - _reference(columns))
    if grad_positives is not None:
        G = G + positive * grad_positives[:, None]
    return scale * (G @ y), scale * (G.T @ x), (G * dots).sum(), G.sum(0)

"""Device code of the gradients of logsumexp: the tile of scores is recomputed and made into weights

    G_ij = g_i e^(s_ij - rows_i) + h_j e^(s_ij - columns_j),  0 on the pairs that are left out,

and dx = scale (G y + positives), dy = scale (G' x + positives). Where whole rows fit in registers, one kernel forms
weights and product together; elsewhere blocks of G are stored and multiplied by the library. The positives' own part
is added in float32, before the one rounding to the inputs' dtype: inside G it would drown the rest.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmkernels.kernels._pair import dot_tile, finite, load_rows, mask_tile, needs_mask, quarters, score_tile


@triton.jit
def _load_term(lse_ptr, gradient_ptr, offs, size):
    """One term's log-sum-exps and gradients; beyond the end the first entry stands in, with gradient 0."""
    lse = finite(tl.load(lse_ptr + tl.where(offs < size, offs, 0)))
    return lse, tl.load(gradient_ptr + offs, mask=offs < size, other=0.0)


@triton.jit
def _nearness(row_lse, column_lse):
    """The largest of the tile's log-sum-exps, and whether all lie within 40 of it."""
    top = tl.maximum(tl.max(row_lse, 0), tl.max(column_lse, 0))
    return top, top - tl.minimum(tl.min(row_lse, 0), tl.min(column_lse, 0)) < 40


@triton.jit
def _softmax(s, lse):
    """e^(s - lse), at most 1 even where the rounding of huge scores differs from the forward's; NaN stays NaN."""
    return tl.exp(tl.minimum(s - lse, 0.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def _weight_tile(s, near, top, row_lse, g, column_lse, h, HAS_ROWS: tl.constexpr, HAS_COLUMNS: tl.constexpr):
    """G from scores, float32; with one exponential for both terms if all log-sum-exps are near top, within 40."""
    if HAS_ROWS and HAS_COLUMNS:
        if near:
            w = tl.exp(s - top) * ((g * tl.exp(top - row_lse))[:, None] + (h * tl.exp(top - column_lse))[None, :])
        else:
            w = _softmax(s, row_lse[:, None]) * g[:, None] + _softmax(s, column_lse[None, :]) * h[None, :]
    elif HAS_ROWS:
        w = _softmax(s, row_lse[:, None]) * g[:, None]
    else:
        w = _softmax(s, column_lse[None, :]) * h[None, :]
    return w


@triton.jit
def _store_gradient(
    dx,
    scale_ptr,
    factor_ptr,
    y_ptr,
    stride_yn,
    grad_positives_ptr,
    dx_ptr,
    offs_m,
    offs_d,
    offset,
    N,
    M,
    D,
    HAS_POSITIVES: tl.constexpr,
    EVEN_D: tl.constexpr,
):
    """Store scale (factor dx_i + grad_positives_i y_{i + offset}), rounded once; dx is float32."""
    dx *= tl.load(factor_ptr)
    if HAS_POSITIVES:
        grad_positives = tl.load(grad_positives_ptr + offs_m, mask=offs_m < N, other=0.0)
        # Rows whose pair lies outside y have gradient 0 and read row 0.
        matched = tl.where(offs_m + offset >= 0, offs_m + offset, 0)
        y = load_rows(y_ptr, stride_yn, matched, M, offs_d, D, EVEN_D)
        dx += grad_positives[:, None] * y.to(tl.float32)
    dx_ptrs = dx_ptr + offs_m.to(tl.int64)[:, None] * D + offs_d[None, :]
    tl.store(
        dx_ptrs,
        (dx * tl.load(scale_ptr)).to(dx_ptr.dtype.element_ty),
        mask=(offs_m < N)[:, None] & (offs_d < D)[None, :],
    )


@triton.jit(do_not_specialize=["row_ids", "column_ids", "offset", "N", "M"])
def logsumexp_bwd_weight_kernel(
    x_ptr,  # (N, D)
    y_ptr,  # (M, D)
    stride_xm,
    stride_yn,
    scale_ptr,
    log_weights_ptr,  # (M,) or None
    row_ids_ptr,  # (row_ids,) or None
    column_ids_ptr,  # (column_ids,) or None
    rows_ptr,  # (N,)
    g_ptr,
    columns_ptr,  # (M,) or None
    h_ptr,
    w_ptr,  # (N, M), both rounded up to whole tiles (masks would make stores 2 bytes wide), any row stride, or None
    stride_wm,
    dots_sum_ptr,  # (column tiles, N) or None: sums of G * dots over the tile's columns
    column_sum_ptr,  # (row tiles, M) or None: sums of G over the tile's rows
    row_ids,
    column_ids,
    offset,
    N,
    M,
    D,
    HAS_COLUMNS: tl.constexpr,
    HAS_LOG_WEIGHTS: tl.constexpr,
    HAS_IDS: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    STORE_WEIGHTS: tl.constexpr,
    SUM_DOTS: tl.constexpr,
    SUM_COLUMNS: tl.constexpr,
    EVEN_D: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row_tiles = tl.cdiv(N, BLOCK_M)
    pid_m = tl.program_id(0) % row_tiles
    pid_n = tl.program_id(0) // row_tiles
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    dots = dot_tile(
        x_ptr, stride_xm, offs_m, y_ptr, stride_yn, offs_n, N, M, D,
        EVEN_D, INPUT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    row_lse, g = _load_term(rows_ptr, g_ptr, offs_m, N)
    top, near = 0.0, False
    if HAS_COLUMNS:
        column_lse, h = _load_term(columns_ptr, h_ptr, offs_n, M)
        top, near = _nearness(row_lse, column_lse)
    dots_sum = tl.zeros((BLOCK_M,), dtype=tl.float32)
    QUARTER: tl.constexpr = BLOCK_N // 4
    parts = quarters(dots, BLOCK_M, BLOCK_N)
    for q in tl.static_range(4):
        start_n = pid_n * BLOCK_N + q * QUARTER
        offs_q = start_n + tl.arange(0, QUARTER)
        s = score_tile(
            parts[q], scale_ptr, log_weights_ptr, row_ids_ptr, column_ids_ptr, row_ids, column_ids, offs_m, offs_q,
            N, M, HAS_LOG_WEIGHTS, False, HAS_IDS,
        )  # fmt: skip
        if needs_mask(pid_m * BLOCK_M, start_n, offset, N, M, HAS_OFFSET, BLOCK_M, QUARTER):
            s = mask_tile(s, offs_m, offs_q, offset, N, M, HAS_OFFSET)
        if HAS_COLUMNS:
            column_lse, h = _load_term(columns_ptr, h_ptr, offs_q, M)
            w = _weight_tile(s, near, top, row_lse, g, column_lse, h, True, True)
        else:
            w = _weight_tile(s, near, top, row_lse, g, row_lse, g, True, False)
        if STORE_WEIGHTS:
            w_ptrs = w_ptr + offs_m.to(tl.int64)[:, None] * stride_wm + offs_q[None, :]
            tl.store(w_ptrs, w.to(w_ptr.dtype.element_ty))
        if SUM_DOTS:
            dots_sum += tl.sum(w * parts[q], 1)
        if SUM_COLUMNS:
            tl.store(column_sum_ptr + pid_m.to(tl.int64) * M + offs_q, tl.sum(w, 0), mask=offs_q < M)
    if SUM_DOTS:
        tl.store(dots_sum_ptr + pid_n.to(tl.int64) * N + offs_m, dots_sum, mask=offs_m < N)


@triton.jit(do_not_specialize=["row_ids", "column_ids", "offset", "N", "M"])
def logsumexp_bwd_kernel(
    x_ptr,  # (N, D), the rows whose gradient is summed: the caller's x, or its y with the roles swapped
    y_ptr,  # (M, D)
    stride_xm,
    stride_yn,
    scale_ptr,
    log_weights_ptr,  # (M,), or (N,) if LOG_WEIGHTS_BY_ROW, or None
    row_ids_ptr,  # (row_ids,) or None
    column_ids_ptr,  # (column_ids,) or None
    rows_ptr,  # (N,) or None
    g_ptr,
    columns_ptr,  # (M,) or None
    h_ptr,
    grad_positives_ptr,  # (N,) or None, for the pair (i, i + offset)
    factor_ptr,  # what g and h were divided by
    dx_ptr,  # (N, D), contiguous, or None
    dots_sum_ptr,  # (N,) or None: sums of G * dots over the columns
    row_sum_ptr,  # (N,) or None: sums of G over the columns
    row_ids,
    column_ids,
    offset,
    N,
    M,
    D,
    HAS_ROWS: tl.constexpr,
    HAS_COLUMNS: tl.constexpr,
    HAS_LOG_WEIGHTS: tl.constexpr,
    LOG_WEIGHTS_BY_ROW: tl.constexpr,
    HAS_IDS: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    HAS_POSITIVES: tl.constexpr,
    STORE_DX: tl.constexpr,
    SUM_DOTS: tl.constexpr,
    SUM_ROWS: tl.constexpr,
    EVEN_D: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    pid_m = tl.program_id(0)
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    if HAS_ROWS:
        row_lse, g = _load_term(rows_ptr, g_ptr, offs_m, N)
    x = load_rows(x_ptr, stride_xm, offs_m, N, offs_d, D, EVEN_D)
    dx = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    dots_sum = tl.zeros((BLOCK_M,), dtype=tl.float32)
    row_sum = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for start_n in range(0, M, BLOCK_N):
        offs_n = start_n + tl.arange(0, BLOCK_N)
        y = load_rows(y_ptr, stride_yn, offs_n, M, offs_d, D, EVEN_D)
        dots = tl.dot(x, y.T, input_precision=INPUT_PRECISION)
        s = score_tile(
            dots, scale_ptr, log_weights_ptr, row_ids_ptr, column_ids_ptr, row_ids, column_ids, offs_m, offs_n, N, M,
            HAS_LOG_WEIGHTS, LOG_WEIGHTS_BY_ROW, HAS_IDS,
        )  # fmt: skip
        if needs_mask(pid_m * BLOCK_M, start_n, offset, N, M, HAS_OFFSET, BLOCK_M, BLOCK_N):
            s = mask_tile(s, offs_m, offs_n, offset, N, M, HAS_OFFSET)
        if HAS_COLUMNS:
            column_lse, h = _load_term(columns_ptr, h_ptr, offs_n, M)
        top, near = 0.0, False
        if HAS_ROWS and HAS_COLUMNS:
            top, near = _nearness(row_lse, column_lse)
            w = _weight_tile(s, near, top, row_lse, g, column_lse, h, True, True)
        elif HAS_ROWS:
            w = _weight_tile(s, near, top, row_lse, g, row_lse, g, True, False)
        else:
            w = _weight_tile(s, near, top, column_lse, h, column_lse, h, False, True)
        if SUM_DOTS:
            dots_sum += tl.sum(w * dots, 1)
        if SUM_ROWS:
            row_sum += tl.sum(w, 1)
        if STORE_DX:
            dx = tl.dot(w.to(y.dtype), y, dx, input_precision=INPUT_PRECISION)
    if STORE_DX:
        _store_gradient(
            dx, scale_ptr, factor_ptr, y_ptr, stride_yn, grad_positives_ptr, dx_ptr, offs_m, offs_d, offset, N, M, D,
            HAS_POSITIVES, EVEN_D,
        )  # fmt: skip
    if SUM_DOTS:
        tl.store(dots_sum_ptr + offs_m, dots_sum, mask=offs_m < N)
    if SUM_ROWS:
        tl.store(row_sum_ptr + offs_m, row_sum, mask=offs_m < N)


@triton.jit(do_not_specialize=["offset", "N", "M"])
def logsumexp_bwd_finish_kernel(
    sum_ptr,  # (N, D) float32, contiguous: G @ y
    scale_ptr,
    factor_ptr,  # what G was divided by
    y_ptr,  # (M, D)
    grad_positives_ptr,  # (N,) or None, for the pair (i, i + offset)
    dx_ptr,  # (N, D), contiguous
    stride_yn,
    offset,
    N,
    M,
    D,
    HAS_POSITIVES: tl.constexpr,
    EVEN_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    for d in range(0, D, BLOCK_D):
        offs_d = d + tl.arange(0, BLOCK_D)
        dx = load_rows(sum_ptr, D, offs_m, N, offs_d, D, EVEN_D)
        _store_gradient(
            dx, scale_ptr, factor_ptr, y_ptr, stride_yn, grad_positives_ptr, dx_ptr, offs_m, offs_d, offset, N, M, D,
            HAS_POSITIVES, EVEN_D,
        )  # fmt: skip

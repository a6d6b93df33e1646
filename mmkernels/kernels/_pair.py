"""Device pair functions: the tile of dot products, and the tile of scores made from it.

x is (N, D), y is (M, D); rows and columns beyond the ends read row 0 and are masked out of the scores, which keeps
masks out of the product's loads. Scores are in natural units and are rounded alike in every kernel (they are launched
without fused multiply-adds): a row dominated by one huge score s gets the log-sum-exp s, and weight e^(s - s) = 1
exactly.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(x_ptr, stride_xm, offs_m, N, offs_d, D, EVEN_D: tl.constexpr):
    """Rows offs_m of x at columns offs_d, 0 beyond the width D."""
    rows = tl.where(offs_m < N, offs_m, 0).to(tl.int64)
    x_ptrs = x_ptr + rows[:, None] * stride_xm + offs_d[None, :]
    if EVEN_D:
        return tl.load(x_ptrs)
    else:
        return tl.load(x_ptrs, mask=offs_d[None, :] < D, other=0.0)


@triton.jit
def dot_tile(
    x_ptr,
    stride_xm,
    offs_m,
    y_ptr,
    stride_yn,
    offs_n,
    N,
    M,
    D,
    EVEN_D: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """<x_i, y_j> over the whole width, float32 (BLOCK_M, BLOCK_N)."""
    rows = tl.where(offs_m < N, offs_m, 0).to(tl.int64)
    cols = tl.where(offs_n < M, offs_n, 0).to(tl.int64)
    offs_d = tl.arange(0, BLOCK_D)
    x_ptrs = x_ptr + rows[:, None] * stride_xm + offs_d[None, :]
    y_ptrs = y_ptr + cols[:, None] * stride_yn + offs_d[None, :]
    dots = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for d in range(0, D, BLOCK_D):
        if EVEN_D:
            x = tl.load(x_ptrs)
            y = tl.load(y_ptrs)
        else:
            x = tl.load(x_ptrs, mask=offs_d[None, :] < D - d, other=0.0)
            y = tl.load(y_ptrs, mask=offs_d[None, :] < D - d, other=0.0)
        dots = tl.dot(x, y.T, dots, input_precision=INPUT_PRECISION)
        x_ptrs += BLOCK_D
        y_ptrs += BLOCK_D
    return dots


@triton.jit
def score_tile(
    dots,
    scale_ptr,
    log_weights_ptr,
    row_ids_ptr,
    column_ids_ptr,
    row_ids,
    column_ids,
    offs_m,
    offs_n,
    N,
    M,
    HAS_LOG_WEIGHTS: tl.constexpr,
    LOG_WEIGHTS_BY_ROW: tl.constexpr,
    HAS_IDS: tl.constexpr,
):
    """scale * dots + log_weights, -inf on equal ids, which the first row_ids rows and column_ids columns have."""
    s = dots * tl.load(scale_ptr)
    if HAS_LOG_WEIGHTS:
        if LOG_WEIGHTS_BY_ROW:
            s += tl.load(log_weights_ptr + offs_m, mask=offs_m < N, other=0.0)[:, None]
        else:
            s += tl.load(log_weights_ptr + offs_n, mask=offs_n < M, other=0.0)[None, :]
    if HAS_IDS:
        mask_m = offs_m < row_ids
        mask_n = offs_n < column_ids
        row_id = tl.load(row_ids_ptr + offs_m, mask=mask_m, other=0)
        column_id = tl.load(column_ids_ptr + offs_n, mask=mask_n, other=0)
        equal = (row_id[:, None] == column_id[None, :]) & mask_m[:, None] & mask_n[None, :]
        s = tl.where(equal, float("-inf"), s)
    return s


@triton.jit
def needs_mask(start_m, start_n, offset, N, M, HAS_OFFSET: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Whether the tile reaches beyond the ends or holds a positive: few tiles do, the others skip `mask_tile`."""
    masked = (start_m + BLOCK_M > N) | (start_n + BLOCK_N > M)
    if HAS_OFFSET:
        first = start_m + offset  # the tile's rows have their positives in columns first ... first + BLOCK_M - 1
        masked |= (first < start_n + BLOCK_N) & (first + BLOCK_M > start_n)
    return masked


@triton.jit
def mask_tile(s, offs_m, offs_n, offset, N, M, HAS_OFFSET: tl.constexpr):
    """s, -inf outside (N, M) and on the positives j = i + offset."""
    keep = (offs_m < N)[:, None] & (offs_n < M)[None, :]
    if HAS_OFFSET:
        keep &= (offs_m + offset)[:, None] != offs_n[None, :]
    return tl.where(keep, s, float("-inf"))


@triton.jit
def finite(reference):
    """What to subtract before the exponential: 0 where the reference is infinite (an empty sum, or an overflow)."""
    return tl.where(tl.abs(reference) == float("inf"), 0.0, reference)


@triton.jit
def quarters(tile, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The tile's columns in four parts: what follows a product takes a quarter at a time, or registers run out."""
    HALF: tl.constexpr = BLOCK_N // 2
    QUARTER: tl.constexpr = BLOCK_N // 4
    left, right = tl.split(tile.reshape(BLOCK_M, 2, HALF).permute(0, 2, 1))
    first, second = tl.split(left.reshape(BLOCK_M, 2, QUARTER).permute(0, 2, 1))
    third, fourth = tl.split(right.reshape(BLOCK_M, 2, QUARTER).permute(0, 2, 1))
    return first, second, third, fourth

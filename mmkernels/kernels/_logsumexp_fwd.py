"""Device code of logsumexp: row and column log-sum-exps of the scores in one sweep.

In a wave of rows a program owns a tile of rows and a span of column tiles; it keeps the (maximum, sum) of its rows in
registers and writes those of each column tile to a buffer, and a small kernel merges what the programs wrote. No two
programs accumulate in the same place, so results are reproducible bit for bit. The maximum is the true running one, so
any scale is safe.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmkernels.kernels._pair import dot_tile, finite, load_rows, mask_tile, needs_mask, quarters, score_tile


@triton.jit
def _tile_sums(s, m, COLUMNS: tl.constexpr):
    """Sums of e^(s - maximum) by row and by column; returns the rows' new maximum, sum, the columns' maximum, sum.

    m is the rows' running maximum. While all maxima lie within 40 of the tile's own, one exponential serves both sums:
    what it flushes to 0 (below e^-87) is less than e^-47 of any of them.
    """
    new = tl.maximum(m, tl.max(s, 1))
    if COLUMNS:
        column_max = tl.max(s, 0)
        top = tl.max(column_max, 0)
        top = tl.where(top == float("-inf"), 0.0, top)
        row_ref = tl.where(new == float("-inf"), top, new)
        column_ref = tl.where(column_max == float("-inf"), top, column_max)
        if top - tl.minimum(tl.min(row_ref, 0), tl.min(column_ref, 0)) < 40:
            e = tl.exp(s - top)
            row_sum = tl.sum(e, 1) * tl.exp(top - row_ref)
            column_sum = tl.sum(e, 0) * tl.exp(top - column_ref)
        else:
            row_sum = tl.sum(tl.exp(s - finite(new)[:, None]), 1)
            column_sum = tl.sum(tl.exp(s - finite(column_max)[None, :]), 0)
        return new, row_sum, column_max, column_sum
    else:
        row_sum = tl.sum(tl.exp(s - finite(new)[:, None]), 1)
        return new, row_sum, new, row_sum


@triton.jit(do_not_specialize=["row_ids", "column_ids", "offset", "N", "M", "span"])
def logsumexp_fwd_kernel(
    x_ptr,  # (N, D), one wave
    y_ptr,  # (M, D)
    stride_xm,
    stride_yn,
    scale_ptr,
    log_weights_ptr,  # (M,) or None
    row_ids_ptr,  # (row_ids,) or None
    column_ids_ptr,  # (column_ids,) or None
    row_max_ptr,  # (spans, N)
    row_sum_ptr,
    column_max_ptr,  # (row tiles, M) or None
    column_sum_ptr,
    row_ids,
    column_ids,
    offset,
    N,
    M,
    D,
    span,  # column tiles per program
    COLUMNS: tl.constexpr,
    HAS_LOG_WEIGHTS: tl.constexpr,
    HAS_IDS: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    EVEN_D: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # Neighbouring programs have the same span, so those that run together read the same columns.
    row_tiles = tl.cdiv(N, BLOCK_M)
    pid_m = tl.program_id(0) % row_tiles
    pid_span = tl.program_id(0) // row_tiles
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < N
    m = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    QUARTER: tl.constexpr = BLOCK_N // 4
    for start_n in range(pid_span * span * BLOCK_N, min(M, (pid_span + 1) * span * BLOCK_N), BLOCK_N):
        offs_n = start_n + tl.arange(0, BLOCK_N)
        dots = dot_tile(
            x_ptr, stride_xm, offs_m, y_ptr, stride_yn, offs_n, N, M, D,
            EVEN_D, INPUT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        parts = quarters(dots, BLOCK_M, BLOCK_N)
        for q in tl.static_range(4):
            start_q = start_n + q * QUARTER
            offs_q = start_q + tl.arange(0, QUARTER)
            s = score_tile(
                parts[q], scale_ptr, log_weights_ptr, row_ids_ptr, column_ids_ptr, row_ids, column_ids, offs_m, offs_q,
                N, M, HAS_LOG_WEIGHTS, False, HAS_IDS,
            )  # fmt: skip
            if needs_mask(pid_m * BLOCK_M, start_q, offset, N, M, HAS_OFFSET, BLOCK_M, QUARTER):
                s = mask_tile(s, offs_m, offs_q, offset, N, M, HAS_OFFSET)
            new, row_sum, column_max, column_sum = _tile_sums(s, m, COLUMNS)
            total = total * tl.exp(m - finite(new)) + row_sum
            m = new
            if COLUMNS:
                out = pid_m.to(tl.int64) * M + offs_q
                tl.store(column_max_ptr + out, column_max, mask=offs_q < M)
                tl.store(column_sum_ptr + out, column_sum, mask=offs_q < M)
    out = pid_span.to(tl.int64) * N + offs_m
    tl.store(row_max_ptr + out, m, mask=mask_m)
    tl.store(row_sum_ptr + out, total, mask=mask_m)


@triton.jit(do_not_specialize=["parts", "L"])
def logsumexp_merge_kernel(
    part_max_ptr,  # (parts, L)
    part_sum_ptr,
    max_ptr,  # (L,), the running state
    sum_ptr,  # (L,), the running sum of e^(s - maximum); the log-sum-exp after the last call
    parts,
    L,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    offs_l = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    mask_l = offs_l < L
    if FIRST:
        m = tl.full((BLOCK_L,), float("-inf"), dtype=tl.float32)
        total = tl.zeros((BLOCK_L,), dtype=tl.float32)
    else:
        m = tl.load(max_ptr + offs_l, mask=mask_l, other=0.0)
        total = tl.load(sum_ptr + offs_l, mask=mask_l, other=0.0)
    for p in range(0, parts, BLOCK_P):
        offs_p = p + tl.arange(0, BLOCK_P)
        mask = (offs_p < parts)[:, None] & mask_l[None, :]
        part = offs_p.to(tl.int64)[:, None] * L + offs_l[None, :]
        part_max = tl.load(part_max_ptr + part, mask=mask, other=float("-inf"))
        part_sum = tl.load(part_sum_ptr + part, mask=mask, other=0.0)
        new = tl.maximum(m, tl.max(part_max, 0))
        ref = finite(new)
        total = total * tl.exp(m - ref) + tl.sum(part_sum * tl.exp(part_max - ref[None, :]), 0)
        m = new
    if LAST:
        empty = total == 0.0
        total = tl.where(empty, float("-inf"), finite(m) + tl.log(tl.where(empty, 1.0, total)))
    tl.store(max_ptr + offs_l, m, mask=mask_l)
    tl.store(sum_ptr + offs_l, total, mask=mask_l)


@triton.jit(do_not_specialize=["N"])
def logsumexp_dots_kernel(
    x_ptr,  # (N, D)
    y_ptr,  # (N, D)
    out_ptr,  # (N,): <x_i, y_i>
    stride_xm,
    stride_ym,
    N,
    D,
    EVEN_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    dots = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for d in range(0, D, BLOCK_D):
        offs_d = d + tl.arange(0, BLOCK_D)
        x = load_rows(x_ptr, stride_xm, offs_m, N, offs_d, D, EVEN_D).to(tl.float32)
        y = load_rows(y_ptr, stride_ym, offs_m, N, offs_d, D, EVEN_D).to(tl.float32)
        dots += tl.sum(x * y, 1)
    tl.store(out_ptr + offs_m, dots, mask=offs_m < N)

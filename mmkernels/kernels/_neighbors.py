"""Device code of neighbors: best right score, counts above a threshold, and the k highest scores, in one sweep each.

Programs own a tile of rows and a span of column tiles, as in logsumexp; what they find is written to buffers that the
launcher merges. All kernels form the scores by the same product of the same tiles, so equal pairs have equal scores.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmkernels.kernels._pair import dot_tile, quarters


@triton.jit
def _twice_above(s, threshold, counted):
    """2 where the score is above the threshold, 1 where they tie, else 0; 0 on pairs that are not counted."""
    return tl.where(counted, 1 + (s > threshold).to(tl.int32) - (s < threshold).to(tl.int32), 0)


@triton.jit(do_not_specialize=["offset", "N", "M", "span"])
def neighbors_kernel(
    x_ptr,  # (N, D), one wave
    y_ptr,  # (M, D)
    stride_xm,
    stride_yn,
    row_ids_ptr,  # (N,) or None: pairs of equal id are right; without ids (i, i + offset) are
    column_ids_ptr,  # (M,) or None
    row_thresholds_ptr,  # (N,) or None
    column_thresholds_ptr,  # (M,) or None
    row_out_ptr,  # (spans, N): the best right score, or twice the count of wrong ones above, ties half
    column_out_ptr,  # (row tiles, M)
    offset,
    N,
    M,
    D,
    span,  # column tiles per program
    COUNT: tl.constexpr,  # else the best
    HAS_IDS: tl.constexpr,
    EVEN_D: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row_tiles = tl.cdiv(N, BLOCK_M)
    pid_m = tl.program_id(0) % row_tiles
    pid_span = tl.program_id(0) // row_tiles
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < N
    if HAS_IDS:
        row_id = tl.load(row_ids_ptr + offs_m, mask=mask_m, other=0)
    if COUNT:
        row_threshold = tl.load(row_thresholds_ptr + offs_m, mask=mask_m, other=0.0)
        found = tl.zeros((BLOCK_M,), dtype=tl.int32)
    else:
        found = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    first = pid_m * BLOCK_M + offset  # without ids the tile's rows are right in columns first ... first + BLOCK_M - 1
    QUARTER: tl.constexpr = BLOCK_N // 4
    for start_n in range(pid_span * span * BLOCK_N, min(M, (pid_span + 1) * span * BLOCK_N), BLOCK_N):
        if COUNT or HAS_IDS or ((first < start_n + BLOCK_N) & (first + BLOCK_M > start_n)):
            offs_n = start_n + tl.arange(0, BLOCK_N)
            dots = dot_tile(
                x_ptr, stride_xm, offs_m, y_ptr, stride_yn, offs_n, N, M, D,
                EVEN_D, INPUT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
            )  # fmt: skip
            parts = quarters(dots, BLOCK_M, BLOCK_N)
            for q in tl.static_range(4):
                s = parts[q]
                offs_q = start_n + q * QUARTER + tl.arange(0, QUARTER)
                mask_q = offs_q < M
                if HAS_IDS:
                    column_id = tl.load(column_ids_ptr + offs_q, mask=mask_q, other=0)
                    right = row_id[:, None] == column_id[None, :]
                else:
                    right = (offs_m + offset)[:, None] == offs_q[None, :]
                inside = mask_m[:, None] & mask_q[None, :]
                if COUNT:
                    wrong = inside & (right == 0)
                    found += tl.sum(_twice_above(s, row_threshold[:, None], wrong), 1)
                    column_threshold = tl.load(column_thresholds_ptr + offs_q, mask=mask_q, other=0.0)
                    columns = tl.sum(_twice_above(s, column_threshold[None, :], wrong), 0)
                else:
                    s = tl.where(inside & right & (s == s), s, float("-inf"))
                    found = tl.maximum(found, tl.max(s, 1))
                    columns = tl.max(s, 0)
                if COUNT or HAS_IDS:
                    tl.store(column_out_ptr + pid_m.to(tl.int64) * M + offs_q, columns, mask=mask_q)
    tl.store(row_out_ptr + pid_span.to(tl.int64) * N + offs_m, found, mask=mask_m)


@triton.jit(do_not_specialize=["N", "M", "span", "k"])
def neighbors_topk_kernel(
    x_ptr,  # (N, D)
    y_ptr,  # (M, D)
    stride_xm,
    stride_yn,
    values_ptr,  # (N, spans, k), in no order
    indices_ptr,
    N,
    M,
    D,
    span,
    k,
    EVEN_D: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row_tiles = tl.cdiv(N, BLOCK_M)
    pid_m = tl.program_id(0) % row_tiles
    pid_span = tl.program_id(0) // row_tiles
    spans = tl.num_programs(0) // row_tiles
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_k = tl.arange(0, BLOCK_K)
    # Slots from k on hold infinity, so that nothing replaces them.
    values = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float32) + tl.where(offs_k < k, float("-inf"), float("inf"))[None, :]
    indices = tl.full((BLOCK_M, BLOCK_K), -1, dtype=tl.int32)
    QUARTER: tl.constexpr = BLOCK_N // 4
    offs_q = tl.arange(0, QUARTER)
    for start_n in range(pid_span * span * BLOCK_N, min(M, (pid_span + 1) * span * BLOCK_N), BLOCK_N):
        offs_n = start_n + tl.arange(0, BLOCK_N)
        dots = dot_tile(
            x_ptr, stride_xm, offs_m, y_ptr, stride_yn, offs_n, N, M, D,
            EVEN_D, INPUT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        parts = quarters(dots, BLOCK_M, BLOCK_N)
        for q in tl.static_range(4):
            start_q = start_n + q * QUARTER
            s = parts[q]
            s = tl.where(((start_q + offs_q) < M)[None, :] & (s == s), s, float("-inf"))
            best, column = tl.max(s, 1, return_indices=True)
            worst, slot = tl.min(values, 1, return_indices=True)
            # Every pass moves each row's best remaining score into its worst slot: a pass or two after the first tiles.
            while tl.max((best > worst).to(tl.int32), 0) > 0:
                improves = (best > worst)[:, None]
                replaced = improves & (offs_k[None, :] == slot[:, None])
                values = tl.where(replaced, best[:, None], values)
                indices = tl.where(replaced, (start_q + column)[:, None], indices)
                s = tl.where(improves & (offs_q[None, :] == column[:, None]), float("-inf"), s)
                best, column = tl.max(s, 1, return_indices=True)
                worst, slot = tl.min(values, 1, return_indices=True)
    out = (offs_m.to(tl.int64) * spans + pid_span)[:, None] * k + offs_k[None, :]
    mask = (offs_m < N)[:, None] & (offs_k < k)[None, :]
    tl.store(values_ptr + out, values, mask=mask)
    tl.store(indices_ptr + out, indices, mask=mask)

"""Device code of nearest: the k nearest of each row, counts within a radius, and distances of some rows.

Rows are given feature by feature, all views one below the other, with columns of NaN up to whole tiles. A NaN is near
nothing, so that ends need no masks; the row itself is NaN too. All kernels form the same differences in the same order,
and are launched without fused multiply-adds: distances of the one tie with those of the other.

A tile has a row along its second axis, where a warp's threads lie: a thread holds a row's distances, and what it looks
for in them, in its own registers.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _features(
    x_ptr, stride, offs_m, offs_n, first, last, EUCLIDEAN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Distances by features first ... last - 1: the largest absolute difference, or the sum of squares."""
    far = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    x_ptr += tl.cast(first, tl.int64) * stride
    for _ in range(first, last):
        difference = tl.load(x_ptr + offs_m)[None, :] - tl.load(x_ptr + offs_n)[:, None]
        if EUCLIDEAN:
            far += difference * difference
        else:
            far = tl.maximum(far, tl.abs(difference), propagate_nan=tl.PropagateNan.ALL)
        x_ptr += stride
    return far


@triton.jit
def distance_tile(
    x_ptr, stride, start_m, start_n, D_x, D, EUCLIDEAN: tl.constexpr, TWO: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Distances in the view where they are larger (BLOCK_N, BLOCK_M); NaN beyond the ends and of a row to itself."""
    offs_m = start_m + tl.arange(0, BLOCK_M)
    offs_n = start_n + tl.arange(0, BLOCK_N)
    far = _features(x_ptr, stride, offs_m, offs_n, 0, D_x, EUCLIDEAN, BLOCK_M, BLOCK_N)
    if TWO:
        own = _features(x_ptr, stride, offs_m, offs_n, D_x, D, EUCLIDEAN, BLOCK_M, BLOCK_N)
        far = tl.maximum(far, own, propagate_nan=tl.PropagateNan.ALL)
    if (start_n < start_m + BLOCK_M) & (start_m < start_n + BLOCK_N):
        far = tl.where(offs_n[:, None] == offs_m[None, :], float("nan"), far)
    return far


@triton.jit(do_not_specialize=["N", "span", "k"])
def nearest_topk_kernel(
    x_ptr,  # (D, stride)
    values_ptr,  # (N, spans, k), in no order
    indices_ptr,
    stride,
    N,
    D_x,  # features of the first view, of D
    D,
    span,  # column tiles per program
    k,
    EUCLIDEAN: tl.constexpr,
    TWO: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row_tiles = tl.cdiv(N, BLOCK_M)
    pid_m = tl.program_id(0) % row_tiles
    pid_span = tl.program_id(0) // row_tiles
    spans = tl.num_programs(0) // row_tiles
    offs_k = tl.arange(0, BLOCK_K)
    offs_n = tl.arange(0, BLOCK_N)
    # Slots from k on hold minus infinity, so that nothing replaces them.
    values = tl.zeros((BLOCK_K, BLOCK_M), dtype=tl.float32) + tl.where(offs_k < k, float("inf"), float("-inf"))[:, None]
    indices = tl.full((BLOCK_K, BLOCK_M), -1, dtype=tl.int32)
    worst, slot = tl.max(values, 0, return_indices=True)
    for start_n in range(pid_span * span * BLOCK_N, min(N, (pid_span + 1) * span * BLOCK_N), BLOCK_N):
        far = distance_tile(x_ptr, stride, pid_m * BLOCK_M, start_n, D_x, D, EUCLIDEAN, TWO, BLOCK_M, BLOCK_N)
        far = tl.where(far == far, far, float("inf"))
        nearest, column = tl.min(far, 0, return_indices=True)
        # Every pass moves each row's nearest remaining column into its worst slot: few tiles after the first need one.
        while tl.max((nearest < worst).to(tl.int32), 0) > 0:
            improves = (nearest < worst)[None, :]
            replaced = improves & (offs_k[:, None] == slot[None, :])
            values = tl.where(replaced, nearest[None, :], values)
            indices = tl.where(replaced, (start_n + column)[None, :], indices)
            far = tl.where(improves & (offs_n[:, None] == column[None, :]), float("inf"), far)
            nearest, column = tl.min(far, 0, return_indices=True)
            worst, slot = tl.max(values, 0, return_indices=True)
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    out = (offs_m.to(tl.int64) * spans + pid_span)[None, :] * k + offs_k[:, None]
    mask = (offs_m < N)[None, :] & (offs_k < k)[:, None]
    tl.store(values_ptr + out, values, mask=mask)
    tl.store(indices_ptr + out, indices, mask=mask)


@triton.jit(do_not_specialize=["N", "span"])
def nearest_count_kernel(
    x_ptr,  # (D, stride)
    radii_ptr,  # (N,)
    out_ptr,  # (spans, N)
    stride,
    N,
    D_x,
    D,
    span,
    EUCLIDEAN: tl.constexpr,
    TWO: tl.constexpr,
    STRICT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row_tiles = tl.cdiv(N, BLOCK_M)
    pid_m = tl.program_id(0) % row_tiles
    pid_span = tl.program_id(0) // row_tiles
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    radii = tl.load(radii_ptr + offs_m, mask=offs_m < N, other=0.0)
    count = tl.zeros((BLOCK_M,), dtype=tl.int32)
    for start_n in range(pid_span * span * BLOCK_N, min(N, (pid_span + 1) * span * BLOCK_N), BLOCK_N):
        far = distance_tile(x_ptr, stride, pid_m * BLOCK_M, start_n, D_x, D, EUCLIDEAN, TWO, BLOCK_M, BLOCK_N)
        if STRICT:
            inside = far < radii[None, :]
        else:
            inside = far <= radii[None, :]
        count += tl.sum(inside.to(tl.int32), 0)
    tl.store(out_ptr + pid_span.to(tl.int64) * N + offs_m, count, mask=offs_m < N)


@triton.jit(do_not_specialize=["first", "tiles"])
def nearest_distances_kernel(
    x_ptr,  # (D, stride)
    out_ptr,  # (rows of whole tiles, stride)
    stride,
    first,  # row tile of the rows
    tiles,  # row tiles in them
    D_x,
    D,
    EUCLIDEAN: tl.constexpr,
    TWO: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Here columns lie along the second axis: distances are the same either way, and are stored side by side."""
    pid = tl.program_id(0) % tiles
    start_m = tl.program_id(0) // tiles * BLOCK_M
    far = distance_tile(x_ptr, stride, start_m, (first + pid) * BLOCK_N, D_x, D, EUCLIDEAN, TWO, BLOCK_M, BLOCK_N)
    rows = (pid * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    columns = start_m + tl.arange(0, BLOCK_M)
    tl.store(out_ptr + rows[:, None] * stride + columns[None, :], far)

"""Device code of the gradients of K @ v and of K.

With P the gradient of K, which is the product of left (N, E) and right (M, E) or given,

    W_ij = P_ij dk/dt,  dx = gamma W y  or, of squared distances,  dx = 2 gamma (x_i sum_j W_ij - W y).

Where whole rows fit in registers one kernel forms weights and product together; elsewhere W is stored and multiplied by
the library. A symmetric K's P has both pairs (i, j) and (j, i).
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmkernels.kernels._kernels import argument_tile, distances_from_dots, kernel_slope, shape_slope
from mmkernels.kernels._pair import dot_tile, load_rows


@triton.jit
def _upstream_tile(
    left_ptr,
    right_ptr,
    offs_m,
    offs_n,
    N,
    M,
    E,
    GIVEN: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    EVEN_E: tl.constexpr,
    PRODUCT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """The tile of P, 0 outside (N, M); given, it is read from left (N, M), or (M, N) if TRANSPOSED."""
    inside = (offs_m < N)[:, None] & (offs_n < M)[None, :]
    if GIVEN:
        rows = offs_m.to(tl.int64)[:, None]
        cols = offs_n.to(tl.int64)[None, :]
        if TRANSPOSED:
            p = tl.load(left_ptr + cols * N + rows, mask=inside, other=0.0)
        else:
            p = tl.load(left_ptr + rows * M + cols, mask=inside, other=0.0)
        if SYMMETRIC:
            p += tl.load(left_ptr + cols * N + rows, mask=inside, other=0.0)
    else:
        p = dot_tile(
            left_ptr, E, offs_m, right_ptr, E, offs_n, N, M, E,
            EVEN_E, PRODUCT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_E,
        )  # fmt: skip
        p = tl.where(inside, p, 0.0)
    return p


@triton.jit(do_not_specialize=["N", "M"])
def matmul_bwd_kernel(
    x_ptr,  # (B, N, D), the rows whose gradient is summed: the caller's x, or its y with the roles swapped
    y_ptr,  # (B, M, D)
    x_norms_ptr,  # (B, N), read for squared distances only
    y_norms_ptr,  # (B, M)
    gamma_ptr,  # (B, Q)
    coef_ptr,  # (B,)
    left_ptr,  # (B, N, E), contiguous, or P
    right_ptr,  # (B, M, E), contiguous, or None
    dx_ptr,  # (B, N, D), contiguous
    stride_xb,
    stride_xm,
    stride_yb,
    stride_yn,
    N,
    M,
    D,
    E,
    KERNEL: tl.constexpr,
    DEGREE: tl.constexpr,
    Q: tl.constexpr,
    DISTANCE: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    GIVEN: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_E: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    PRODUCT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    row_tiles = tl.cdiv(N, BLOCK_M)
    pid_m = tl.program_id(0) % row_tiles
    pid_b = (tl.program_id(0) // row_tiles).to(tl.int64)
    x_ptr += pid_b * stride_xb
    y_ptr += pid_b * stride_yb
    x_norms_ptr += pid_b * N
    y_norms_ptr += pid_b * M
    gamma_ptr += pid_b * Q
    dx_ptr += pid_b * N * D
    if GIVEN:
        left_ptr += pid_b * N * M
    else:
        left_ptr += pid_b * N * E
        right_ptr += pid_b * M * E
    c = tl.load(coef_ptr + pid_b)
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    x = load_rows(x_ptr, stride_xm, offs_m, N, offs_d, D, EVEN_D)
    dx = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    weights = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for start_n in range(0, M, BLOCK_N):
        offs_n = start_n + tl.arange(0, BLOCK_N)
        y = load_rows(y_ptr, stride_yn, offs_n, M, offs_d, D, EVEN_D)
        a = tl.dot(x, y.T, input_precision=INPUT_PRECISION)
        if DISTANCE:
            a = distances_from_dots(a, x_norms_ptr, y_norms_ptr, offs_m, offs_n, N, M, SYMMETRIC)
        p = _upstream_tile(
            left_ptr, right_ptr, offs_m, offs_n, N, M, E, GIVEN, SYMMETRIC, TRANSPOSED, EVEN_E, PRODUCT_PRECISION,
            BLOCK_M, BLOCK_N, BLOCK_E,
        )  # fmt: skip
        w = p * kernel_slope(a, gamma_ptr, c, KERNEL, DEGREE, Q)
        if DISTANCE:
            w = tl.where(a > 0, w, 0.0)  # equal rows add nothing, not even a rounding
            weights += tl.sum(w, 1)
        dx = tl.dot(w.to(y.dtype), y, dx, input_precision=PRODUCT_PRECISION)
    if DISTANCE:
        dx = 2.0 * (x.to(tl.float32) * weights[:, None] - dx)
    if Q == 1:
        dx *= tl.load(gamma_ptr)
    dx_ptrs = dx_ptr + offs_m.to(tl.int64)[:, None] * D + offs_d[None, :]
    tl.store(dx_ptrs, dx.to(dx_ptr.dtype.element_ty), mask=(offs_m < N)[:, None] & (offs_d < D)[None, :])


@triton.jit(do_not_specialize=["first_m", "first_n", "row_tiles", "N", "M"])
def matmul_bwd_weight_kernel(
    x_ptr,  # (N, D)
    y_ptr,  # (M, D)
    x_norms_ptr,  # (N,), read for squared distances only
    y_norms_ptr,  # (M,)
    gamma_ptr,  # (Q,)
    coef_ptr,  # (1,)
    left_ptr,  # (N, E), contiguous, or P (N, M)
    right_ptr,  # (M, E), contiguous, or None
    w_ptr,  # a block of W from (first_m, first_n) on, in whole tiles (masks would make stores 2 bytes wide), or None
    stride_wm,
    row_sum_ptr,  # (column tiles, rows) of squared distances: sums of W over the tile's columns; rows in whole tiles
    column_sum_ptr,  # (row tiles, columns) likewise
    gamma_sum_ptr,  # (column tiles, Q, rows): sums of P dk/dgamma over the tile's columns
    coef_sum_ptr,  # (column tiles, rows): of P dk/dcoef
    stride_xm,
    stride_xd,
    stride_yn,
    stride_yd,
    first_m,
    first_n,
    row_tiles,  # of the block
    N,
    M,
    D,
    E,
    KERNEL: tl.constexpr,
    DEGREE: tl.constexpr,
    Q: tl.constexpr,
    DISTANCE: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    GIVEN: tl.constexpr,
    STORE_WEIGHTS: tl.constexpr,
    SUM_PARAMETERS: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_E: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    PRODUCT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    pid_m = tl.program_id(0) % row_tiles
    pid_n = tl.program_id(0) // row_tiles
    local_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    local_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_m = first_m + local_m
    offs_n = first_n + local_n
    a = argument_tile(
        x_ptr, stride_xm, stride_xd, x_norms_ptr, offs_m, y_ptr, stride_yn, stride_yd, y_norms_ptr, offs_n,
        N, M, D, KERNEL, SYMMETRIC, EVEN_D, INPUT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    p = _upstream_tile(
        left_ptr, right_ptr, offs_m, offs_n, N, M, E, GIVEN, SYMMETRIC, False, EVEN_E, PRODUCT_PRECISION,
        BLOCK_M, BLOCK_N, BLOCK_E,
    )  # fmt: skip
    c = tl.load(coef_ptr)
    slope = kernel_slope(a, gamma_ptr, c, KERNEL, DEGREE, Q)
    height = row_tiles * BLOCK_M
    row_out = pid_n * height + local_m
    if STORE_WEIGHTS:
        w = p * slope
        if DISTANCE:
            w = tl.where(a > 0, w, 0.0)  # equal rows add nothing, not even a rounding
        w_ptrs = w_ptr + local_m.to(tl.int64)[:, None] * stride_wm + local_n[None, :]
        tl.store(w_ptrs, w.to(w_ptr.dtype.element_ty))
        if DISTANCE:
            width = tl.num_programs(0) // row_tiles * BLOCK_N
            tl.store(row_sum_ptr + row_out, tl.sum(w, 1))
            tl.store(column_sum_ptr + pid_m * width + local_n, tl.sum(w, 0))
    if SUM_PARAMETERS:
        if Q == 1:
            tl.store(gamma_sum_ptr + row_out, tl.sum(p * slope * a, 1))
        else:
            for q in tl.static_range(Q):
                k = tl.exp(-tl.load(gamma_ptr + q) * a)
                tl.store(gamma_sum_ptr + (pid_n * Q + q) * height + local_m, -tl.sum(p * k * a, 1))
        of_coef = tl.sum(p * shape_slope(a, slope, gamma_ptr, c, KERNEL), 1)
        tl.store(coef_sum_ptr + row_out, of_coef)


@triton.jit(do_not_specialize=["N", "M"])
def matmul_bwd_signs_kernel(
    w_ptr,  # (N, M) float32, any strides
    x_ptr,  # (N, D)
    y_ptr,  # (M, D)
    dx_ptr,  # (N, D) float32, contiguous, added to
    stride_wm,
    stride_wn,
    stride_xm,
    stride_yn,
    N,
    M,
    D,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dx_i += sum_j W_ij sign(x_i - y_j): the gradient of L1 distances."""
    row_tiles = tl.cdiv(N, BLOCK_M)
    offs_m = tl.program_id(0) % row_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_d = tl.program_id(0) // row_tiles * BLOCK_D + tl.arange(0, BLOCK_D)
    mask = (offs_m < N)[:, None] & (offs_d < D)[None, :]
    x = tl.load(x_ptr + offs_m.to(tl.int64)[:, None] * stride_xm + offs_d[None, :], mask=mask, other=0.0)
    dx_ptrs = dx_ptr + offs_m.to(tl.int64)[:, None] * D + offs_d[None, :]
    dx = tl.load(dx_ptrs, mask=mask, other=0.0)
    for start_n in range(0, M, BLOCK_N):
        offs_n = start_n + tl.arange(0, BLOCK_N)
        w_ptrs = w_ptr + offs_m.to(tl.int64)[:, None] * stride_wm + offs_n.to(tl.int64)[None, :] * stride_wn
        w = tl.load(w_ptrs, mask=(offs_m < N)[:, None] & (offs_n < M)[None, :], other=0.0)
        y_ptrs = y_ptr + offs_n.to(tl.int64)[:, None] * stride_yn + offs_d[None, :]
        y = tl.load(y_ptrs, mask=(offs_n < M)[:, None] & (offs_d < D)[None, :], other=0.0)
        difference = x.to(tl.float32)[:, None, :] - y.to(tl.float32)[None, :, :]
        sign = (difference > 0).to(tl.float32) - (difference < 0).to(tl.float32)
        dx += tl.sum(w[:, :, None] * sign, 1)
    tl.store(dx_ptrs, dx, mask=mask)

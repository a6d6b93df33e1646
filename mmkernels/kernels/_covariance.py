"""Device code of scatter matrices z'z of two stacked views, z = factors * (views - shift), and of their gradients."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def centred_tile(
    x_ptr, stride_xm, shift_ptr, factors_ptr, offs_m, offs_d, N, D, EVEN_D: tl.constexpr, HAS_FACTORS: tl.constexpr
):
    """z = factors_m (x_md - shift_d) in float32, 0 beyond the ends and where the factor is 0; and the factors."""
    mask_m = offs_m < N
    x_ptrs = x_ptr + tl.where(mask_m, offs_m, 0).to(tl.int64)[:, None] * stride_xm + offs_d[None, :]
    if EVEN_D:
        x = tl.load(x_ptrs)
        shift = tl.load(shift_ptr + offs_d)
    else:
        x = tl.load(x_ptrs, mask=offs_d[None, :] < D, other=0.0)
        shift = tl.load(shift_ptr + offs_d, mask=offs_d < D, other=0.0)
    z = x.to(tl.float32) - shift[None, :]
    if HAS_FACTORS:
        factors = tl.load(factors_ptr + offs_m, mask=mask_m, other=0.0)
        z = tl.where((factors != 0.0)[:, None], factors[:, None] * z, 0.0)
    else:
        factors = tl.where(mask_m, 1.0, 0.0)
        z = tl.where(mask_m[:, None], z, 0.0)
    return z, factors


@triton.jit(do_not_specialize=["first", "last", "span", "B"])
def covariance_fwd_kernel(
    x_ptr,  # (B, N, D_x)
    y_ptr,  # (B, N, D_y)
    x_shift_ptr,  # (B, D_x)
    y_shift_ptr,
    x_factors_ptr,  # (B, N)
    y_factors_ptr,
    scatter_ptr,  # (spans, B, S, S) float32, S the side of all blocks
    sums_ptr,  # (spans, B, 2, S) float32: of z times the factors of its own view, and of the other one
    stride_xb,
    stride_xm,
    stride_yb,
    stride_ym,
    stride_fb,
    D_x,
    D_y,
    first,  # rows from this one
    last,  # up to this one
    span,  # rows per program
    B,
    x_blocks,  # blocks of features of x; those of y follow
    blocks,
    CROSS: tl.constexpr,  # only pairs of a block of x and one of y
    EVEN_D: tl.constexpr,
    HAS_FACTORS: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,  # features
    BLOCK_D: tl.constexpr,  # rows a step
):
    pid = tl.program_id(0)
    i = pid % blocks
    j = pid // blocks % blocks
    pid_b = (pid // blocks // blocks % B).to(tl.int64)
    pid_span = pid // blocks // blocks // B
    if i > j:
        return
    if CROSS and (i >= x_blocks or j < x_blocks):
        return
    x_ptr += pid_b * stride_xb
    y_ptr += pid_b * stride_yb
    x_shift_ptr += pid_b * D_x
    y_shift_ptr += pid_b * D_y
    x_factors_ptr += pid_b * stride_fb
    y_factors_ptr += pid_b * stride_fb
    a_in_x = i < x_blocks
    b_in_x = j < x_blocks
    offs_a = tl.where(a_in_x, i, i - x_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_b = tl.where(b_in_x, j, j - x_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    total = tl.zeros((BLOCK_M, BLOCK_M), dtype=tl.float32)
    a_sum = tl.zeros((BLOCK_M,), dtype=tl.float32)
    b_sum = tl.zeros((BLOCK_M,), dtype=tl.float32)
    first += pid_span * span
    end = min(last, first + span)
    for start in range(first, end, BLOCK_D):
        offs_m = start + tl.arange(0, BLOCK_D)
        a, a_factors = centred_tile(
            tl.where(a_in_x, x_ptr, y_ptr), tl.where(a_in_x, stride_xm, stride_ym),
            tl.where(a_in_x, x_shift_ptr, y_shift_ptr), tl.where(a_in_x, x_factors_ptr, y_factors_ptr),
            offs_m, offs_a, end, tl.where(a_in_x, D_x, D_y), EVEN_D, HAS_FACTORS,
        )  # fmt: skip
        b, b_factors = centred_tile(
            tl.where(b_in_x, x_ptr, y_ptr), tl.where(b_in_x, stride_xm, stride_ym),
            tl.where(b_in_x, x_shift_ptr, y_shift_ptr), tl.where(b_in_x, x_factors_ptr, y_factors_ptr),
            offs_m, offs_b, end, tl.where(b_in_x, D_x, D_y), EVEN_D, HAS_FACTORS,
        )  # fmt: skip
        a_sum += tl.sum(a * b_factors[:, None], 0)
        b_sum += tl.sum(b * a_factors[:, None], 0)
        dtype = x_ptr.dtype.element_ty
        total = tl.dot(tl.trans(a.to(dtype)), b.to(dtype), total, input_precision=INPUT_PRECISION)
    side = blocks * BLOCK_M
    part = pid_span * B + pid_b
    offs_a = i * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_b = j * BLOCK_M + tl.arange(0, BLOCK_M)
    tl.store(scatter_ptr + part * side * side + offs_a.to(tl.int64)[:, None] * side + offs_b[None, :], total)
    sums_ptr += part * 2 * side
    if i == j:
        tl.store(sums_ptr + offs_a, a_sum)
    if a_in_x and j == x_blocks:
        tl.store(sums_ptr + side + offs_a, a_sum)
    if i == 0 and j >= x_blocks:
        tl.store(sums_ptr + side + offs_b, b_sum)


@triton.jit
def add_product(
    total, x_ptr, stride_xm, shift_ptr, factors_ptr, offs_m, g_ptr, stride_gm, offs_n, N, D, M,
    EVEN_D: tl.constexpr, HAS_FACTORS: tl.constexpr, INPUT_PRECISION: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """total + z @ g, g (D, M) given by its transpose: rows of g are read as columns."""
    for d in range(0, D, BLOCK_D):
        offs_d = d + tl.arange(0, BLOCK_D)
        z, _ = centred_tile(x_ptr, stride_xm, shift_ptr, factors_ptr, offs_m, offs_d, N, D, EVEN_D, HAS_FACTORS)
        g_ptrs = g_ptr + offs_n.to(tl.int64)[:, None] * stride_gm + offs_d[None, :]
        g = tl.load(g_ptrs, mask=(offs_n < M)[:, None] & (offs_d < D)[None, :], other=0.0)
        total = tl.dot(z, tl.trans(g), total, input_precision=INPUT_PRECISION)
    return total


@triton.jit(do_not_specialize=["N", "B"])
def covariance_bwd_kernel(
    x_ptr,  # (B, N, D_x)
    y_ptr,  # (B, N, D_y)
    x_shift_ptr,  # (B, D_x)
    y_shift_ptr,
    x_factors_ptr,  # (B, N)
    y_factors_ptr,
    own_factors_ptr,  # (B, N), of the view whose gradient this is
    x_grad_ptr,  # (B, M, D_x) float32, the gradient of the scatter's block, transposed
    y_grad_ptr,  # (B, M, D_y)
    sums_grad_ptr,  # (B, 2, M) float32: what x's and y's factors multiply
    out_ptr,  # (B, N, M), contiguous
    stride_xb,
    stride_xm,
    stride_yb,
    stride_ym,
    stride_fb,
    N,
    M,
    D_x,
    D_y,
    B,
    HAS_Y: tl.constexpr,
    ADD: tl.constexpr,  # to what is there
    EVEN_D: tl.constexpr,
    HAS_FACTORS: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,  # rows
    BLOCK_N: tl.constexpr,  # features of the gradient
    BLOCK_D: tl.constexpr,
):
    row_tiles = tl.cdiv(N, BLOCK_M)
    pid = tl.program_id(0)
    pid_b = (pid // row_tiles % B).to(tl.int64)
    offs_m = pid % row_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid // row_tiles // B * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_m = offs_m < N
    mask_n = offs_n < M
    x_factors_ptr += pid_b * stride_fb
    y_factors_ptr += pid_b * stride_fb
    sums_grad_ptr += pid_b * 2 * M
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    total = add_product(
        total, x_ptr + pid_b * stride_xb, stride_xm, x_shift_ptr + pid_b * D_x, x_factors_ptr, offs_m,
        x_grad_ptr + pid_b * M * D_x, D_x, offs_n, N, D_x, M, EVEN_D, HAS_FACTORS, INPUT_PRECISION, BLOCK_D,
    )  # fmt: skip
    if HAS_Y:
        total = add_product(
            total, y_ptr + pid_b * stride_yb, stride_ym, y_shift_ptr + pid_b * D_y, y_factors_ptr, offs_m,
            y_grad_ptr + pid_b * M * D_y, D_y, offs_n, N, D_y, M, EVEN_D, HAS_FACTORS, INPUT_PRECISION, BLOCK_D,
        )  # fmt: skip
    row = tl.load(sums_grad_ptr + offs_n, mask=mask_n, other=0.0)
    if HAS_FACTORS:
        total += tl.load(x_factors_ptr + offs_m, mask=mask_m, other=0.0)[:, None] * row[None, :]
        if HAS_Y:
            row = tl.load(sums_grad_ptr + M + offs_n, mask=mask_n, other=0.0)
            total += tl.load(y_factors_ptr + offs_m, mask=mask_m, other=0.0)[:, None] * row[None, :]
        total *= tl.load(own_factors_ptr + pid_b * stride_fb + offs_m, mask=mask_m, other=0.0)[:, None]
    else:
        total += row[None, :]
    out_ptrs = out_ptr + pid_b * N * M + offs_m.to(tl.int64)[:, None] * M + offs_n[None, :]
    mask = mask_m[:, None] & mask_n[None, :]
    if ADD:
        total += tl.load(out_ptrs, mask=mask, other=0.0)
    tl.store(out_ptrs, total, mask=mask)

"""Device code of sums over the kernel matrices K and L of two views, and of the gradients of their entries.

A tile of K and one of L are formed side by side, less a constant each. Of the symmetric matrices tiles on and above the
diagonal are visited: a program owns a tile of rows and a span of column tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmkernels.kernels._kernels import argument_tile, kernel_value


@triton.jit
def centred_value(
    x_ptr, stride_xm, stride_xd, norms_ptr, gamma_ptr, coef_ptr, centre_ptr, offs_m, offs_n, inside, N, D,
    KERNEL: tl.constexpr, DEGREE: tl.constexpr, Q: tl.constexpr, EVEN_D: tl.constexpr, INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """K less its centre, 0 outside."""
    a = argument_tile(
        x_ptr, stride_xm, stride_xd, norms_ptr, offs_m, x_ptr, stride_xm, stride_xd, norms_ptr, offs_n,
        N, N, D, KERNEL, True, EVEN_D, INPUT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    k = kernel_value(a, gamma_ptr, tl.load(coef_ptr), KERNEL, DEGREE, Q) - tl.load(centre_ptr)
    return tl.where(inside, k, 0.0)


@triton.jit(do_not_specialize=["N", "first", "tiles", "span"])
def moments_fwd_kernel(
    x_ptr,  # (N, D_x)
    y_ptr,  # (N, D_y)
    x_norms_ptr,  # (N,), read for squared distances only
    y_norms_ptr,
    x_gamma_ptr,  # (Q,)
    y_gamma_ptr,
    x_coef_ptr,  # (1,)
    y_coef_ptr,
    x_centre_ptr,  # (1,)
    y_centre_ptr,
    rows_ptr,  # (spans, 6, wave's rows in whole tiles): sums over columns of K, L, K L, K K, L L, K K L L
    columns_ptr,  # (wave's row tiles, 2, N): sums over rows of K and L, of tiles above the diagonal
    stride_xm,
    stride_xd,
    stride_ym,
    stride_yd,
    N,
    D_x,
    D_y,
    first,  # row tile of the wave
    tiles,  # row tiles in it
    span,  # column tiles per program
    KERNEL: tl.constexpr,
    DEGREE: tl.constexpr,
    Q: tl.constexpr,
    EVEN_D: tl.constexpr,
    Y_KERNEL: tl.constexpr,
    Y_DEGREE: tl.constexpr,
    Y_Q: tl.constexpr,
    Y_EVEN_D: tl.constexpr,
    SQUARES: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    local = tl.program_id(0) % tiles
    pid_span = (tl.program_id(0) // tiles).to(tl.int64)
    pid_m = first + local
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    k_sum = tl.zeros((BLOCK_M,), dtype=tl.float32)
    l_sum = tl.zeros((BLOCK_M,), dtype=tl.float32)
    kl_sum = tl.zeros((BLOCK_M,), dtype=tl.float32)
    kk_sum = tl.zeros((BLOCK_M,), dtype=tl.float32)
    ll_sum = tl.zeros((BLOCK_M,), dtype=tl.float32)
    square_sum = tl.zeros((BLOCK_M,), dtype=tl.float32)
    last = min(tl.cdiv(N, BLOCK_N), (tl.program_id(0) // tiles + 1) * span)
    for tile in range(max(pid_m, tl.program_id(0) // tiles * span), last):
        offs_n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = (offs_m < N)[:, None] & (offs_n < N)[None, :]
        k = centred_value(
            x_ptr, stride_xm, stride_xd, x_norms_ptr, x_gamma_ptr, x_coef_ptr, x_centre_ptr, offs_m, offs_n, inside,
            N, D_x, KERNEL, DEGREE, Q, EVEN_D, INPUT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        q = centred_value(
            y_ptr, stride_ym, stride_yd, y_norms_ptr, y_gamma_ptr, y_coef_ptr, y_centre_ptr, offs_m, offs_n, inside,
            N, D_y, Y_KERNEL, Y_DEGREE, Y_Q, Y_EVEN_D, INPUT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        count = tl.where(tile > pid_m, 2.0, 1.0)
        k_sum += tl.sum(k, 1)
        l_sum += tl.sum(q, 1)
        kl_sum += count * tl.sum(k * q, 1)
        if SQUARES:
            kk_sum += count * tl.sum(k * k, 1)
            ll_sum += count * tl.sum(q * q, 1)
            square_sum += count * tl.sum(k * q * (k * q), 1)
        if tile > pid_m:
            out = columns_ptr + local.to(tl.int64) * 2 * N + offs_n
            tl.store(out, tl.sum(k, 0), mask=offs_n < N)
            tl.store(out + N, tl.sum(q, 0), mask=offs_n < N)
    height = tiles * BLOCK_M
    rows_ptr += pid_span * 6 * height + local * BLOCK_M + tl.arange(0, BLOCK_M)
    tl.store(rows_ptr, k_sum)
    tl.store(rows_ptr + height, l_sum)
    tl.store(rows_ptr + 2 * height, kl_sum)
    if SQUARES:
        tl.store(rows_ptr + 3 * height, kk_sum)
        tl.store(rows_ptr + 4 * height, ll_sum)
        tl.store(rows_ptr + 5 * height, square_sum)


@triton.jit(do_not_specialize=["N", "first", "rows"])
def moments_bwd_weight_kernel(
    x_ptr,  # (N, D_x)
    y_ptr,  # (N, D_y)
    x_norms_ptr,
    y_norms_ptr,
    x_gamma_ptr,
    y_gamma_ptr,
    x_coef_ptr,
    y_coef_ptr,
    x_centre_ptr,
    y_centre_ptr,
    grad_rows_ptr,  # (2, N) float32, of the row sums of K and L
    grads_ptr,  # (4,) float32, of the sums of K L (both orders), K K, L L and K K L L
    x_out_ptr,  # (rows, N) float32, the gradient of K's entries, or None
    y_out_ptr,  # of L's
    stride_xm,
    stride_xd,
    stride_ym,
    stride_yd,
    N,
    D_x,
    D_y,
    first,  # row
    rows,
    KERNEL: tl.constexpr,
    DEGREE: tl.constexpr,
    Q: tl.constexpr,
    EVEN_D: tl.constexpr,
    Y_KERNEL: tl.constexpr,
    Y_DEGREE: tl.constexpr,
    Y_Q: tl.constexpr,
    Y_EVEN_D: tl.constexpr,
    OF_X: tl.constexpr,
    OF_Y: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    column_tiles = tl.cdiv(N, BLOCK_N)
    local_m = tl.program_id(0) // column_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_m = first + local_m
    offs_n = tl.program_id(0) % column_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (local_m < rows)[:, None] & (offs_n < N)[None, :]
    k = centred_value(
        x_ptr, stride_xm, stride_xd, x_norms_ptr, x_gamma_ptr, x_coef_ptr, x_centre_ptr, offs_m, offs_n, inside,
        N, D_x, KERNEL, DEGREE, Q, EVEN_D, INPUT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    q = centred_value(
        y_ptr, stride_ym, stride_yd, y_norms_ptr, y_gamma_ptr, y_coef_ptr, y_centre_ptr, offs_m, offs_n, inside,
        N, D_y, Y_KERNEL, Y_DEGREE, Y_Q, Y_EVEN_D, INPUT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    g_kl = tl.load(grads_ptr)
    g_square = tl.load(grads_ptr + 3)
    mask_m = local_m < rows
    out = local_m.to(tl.int64)[:, None] * N + offs_n[None, :]
    if OF_X:
        row = tl.load(grad_rows_ptr + offs_m, mask=mask_m, other=0.0)
        p = row[:, None] + g_kl * q + 2.0 * tl.load(grads_ptr + 1) * k + 2.0 * g_square * k * q * q
        tl.store(x_out_ptr + out, p, mask=inside)
    if OF_Y:
        row = tl.load(grad_rows_ptr + N + offs_m, mask=mask_m, other=0.0)
        p = row[:, None] + g_kl * k + 2.0 * tl.load(grads_ptr + 2) * q + 2.0 * g_square * q * k * k
        tl.store(y_out_ptr + out, p, mask=inside)

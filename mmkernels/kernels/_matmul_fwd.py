"""Device code of K @ v and of K itself: rows stay, columns stream past, and the tile of K never leaves the chip.

A program owns a tile of rows of one batch entry, a block of v's columns and a span of column tiles; the launcher adds
what the spans give.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmkernels.kernels._kernels import argument_tile, kernel_value


@triton.jit(do_not_specialize=["N", "M", "span"])
def matmul_fwd_kernel(
    x_ptr,  # (B, N, D)
    y_ptr,  # (B, M, D)
    x_norms_ptr,  # (B, N), read for squared distances only
    y_norms_ptr,  # (B, M)
    gamma_ptr,  # (B, Q)
    coef_ptr,  # (B,)
    v_ptr,  # (B, M, E), contiguous
    out_ptr,  # (spans, B, N, E) float32
    stride_xb,
    stride_xm,
    stride_xd,
    stride_yb,
    stride_yn,
    stride_yd,
    N,
    M,
    D,
    E,
    span,  # column tiles per program
    spans,
    KERNEL: tl.constexpr,
    DEGREE: tl.constexpr,
    Q: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    EVEN_D: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    PRODUCT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,  # 1: no matrix product
):
    row_tiles = tl.cdiv(N, BLOCK_M)
    pid = tl.program_id(0)
    pid_m = pid % row_tiles
    pid_e = pid // row_tiles % tl.cdiv(E, BLOCK_E)
    pid_span = pid // row_tiles // tl.cdiv(E, BLOCK_E) % spans
    pid_b = (pid // row_tiles // tl.cdiv(E, BLOCK_E) // spans).to(tl.int64)
    B = (tl.num_programs(0) // row_tiles // tl.cdiv(E, BLOCK_E) // spans).to(tl.int64)
    x_ptr += pid_b * stride_xb
    y_ptr += pid_b * stride_yb
    x_norms_ptr += pid_b * N
    y_norms_ptr += pid_b * M
    gamma_ptr += pid_b * Q
    v_ptr += pid_b * M * E
    out_ptr += (pid_span * B + pid_b) * N * E
    c = tl.load(coef_ptr + pid_b)
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_e = pid_e * BLOCK_E + tl.arange(0, BLOCK_E)
    if BLOCK_E == 1:
        out = tl.zeros((BLOCK_M,), dtype=tl.float32)
    else:
        out = tl.zeros((BLOCK_M, BLOCK_E), dtype=tl.float32)
    for start_n in range(pid_span * span * BLOCK_N, min(M, (pid_span + 1) * span * BLOCK_N), BLOCK_N):
        offs_n = start_n + tl.arange(0, BLOCK_N)
        a = argument_tile(
            x_ptr, stride_xm, stride_xd, x_norms_ptr, offs_m, y_ptr, stride_yn, stride_yd, y_norms_ptr, offs_n,
            N, M, D, KERNEL, SYMMETRIC, EVEN_D, INPUT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        k = kernel_value(a, gamma_ptr, c, KERNEL, DEGREE, Q)
        mask_n = offs_n < M
        if start_n + BLOCK_N > M:
            k = tl.where(mask_n[None, :], k, 0.0)
        if BLOCK_E == 1:
            v = tl.load(v_ptr + offs_n.to(tl.int64) * E + pid_e, mask=mask_n, other=0.0)
            out += tl.sum(k * v.to(tl.float32)[None, :], 1)
        else:
            v_ptrs = v_ptr + offs_n.to(tl.int64)[:, None] * E + offs_e[None, :]
            v = tl.load(v_ptrs, mask=mask_n[:, None] & (offs_e < E)[None, :], other=0.0)
            out = tl.dot(k.to(v.dtype), v, out, input_precision=PRODUCT_PRECISION)
    if BLOCK_E == 1:
        tl.store(out_ptr + offs_m.to(tl.int64) * E + pid_e, out, mask=offs_m < N)
    else:
        out_ptrs = out_ptr + offs_m.to(tl.int64)[:, None] * E + offs_e[None, :]
        tl.store(out_ptrs, out, mask=(offs_m < N)[:, None] & (offs_e < E)[None, :])


@triton.jit(do_not_specialize=["N"])
def gram_fwd_kernel(
    x_ptr,  # (B, N, D)
    y_ptr,  # (B, M, D)
    x_norms_ptr,  # (B, N), read for squared distances only
    y_norms_ptr,  # (B, M)
    gamma_ptr,  # (B, Q)
    coef_ptr,  # (B,)
    out_ptr,  # (B, N, M) float32
    stride_xb,
    stride_xm,
    stride_xd,
    stride_yb,
    stride_yn,
    stride_yd,
    N,
    M,
    D,
    KERNEL: tl.constexpr,
    DEGREE: tl.constexpr,
    Q: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    EVEN_D: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row_tiles = tl.cdiv(N, BLOCK_M)
    column_tiles = tl.cdiv(M, BLOCK_N)
    pid = tl.program_id(0)
    pid_m = pid % row_tiles
    pid_n = pid // row_tiles % column_tiles
    pid_b = (pid // row_tiles // column_tiles).to(tl.int64)
    x_ptr += pid_b * stride_xb
    y_ptr += pid_b * stride_yb
    x_norms_ptr += pid_b * N
    y_norms_ptr += pid_b * M
    out_ptr += pid_b * N * M
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    a = argument_tile(
        x_ptr, stride_xm, stride_xd, x_norms_ptr, offs_m, y_ptr, stride_yn, stride_yd, y_norms_ptr, offs_n,
        N, M, D, KERNEL, SYMMETRIC, EVEN_D, INPUT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    k = kernel_value(a, gamma_ptr + pid_b * Q, tl.load(coef_ptr + pid_b), KERNEL, DEGREE, Q)
    out_ptrs = out_ptr + offs_m.to(tl.int64)[:, None] * M + offs_n[None, :]
    tl.store(out_ptrs, k, mask=(offs_m < N)[:, None] & (offs_n < M)[None, :])

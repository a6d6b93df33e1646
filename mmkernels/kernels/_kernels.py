"""Device code of the kernel functions k(a), their slopes, and the tile of their arguments a.

t = gamma a, plus coef for 'polynomial' and 'sigmoid'. `tiled/_pair.py` lists the formulas. A mixture of RBFs (Q > 1) is
a sum over gammas.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmkernels.kernels._pair import dot_tile


@triton.jit
def log1p(u):
    """log(1 + u), accurate for small u >= 0."""
    w = 1.0 + u
    return tl.where(w == 1.0, u, u * (tl.log(w) / tl.where(w == 1.0, 1.0, w - 1.0)))


@triton.jit
def power(t, DEGREE: tl.constexpr):
    """t^DEGREE by repeated products."""
    p = tl.full(t.shape, 1.0, dtype=tl.float32)
    for _ in tl.static_range(DEGREE):
        p *= t
    return p


@triton.jit
def kernel_value(a, gamma_ptr, c, KERNEL: tl.constexpr, DEGREE: tl.constexpr, Q: tl.constexpr):
    """k(a)."""
    t = tl.load(gamma_ptr) * a
    if KERNEL == "polynomial":
        k = power(t + c, DEGREE)
    elif KERNEL == "exponential":
        k = tl.exp(t)
    elif KERNEL == "sigmoid":
        e = tl.exp(-2.0 * tl.abs(t + c))  # tanh, without overflow
        k = tl.where(t + c < 0, -1.0, 1.0) * (1.0 - e) / (1.0 + e)
    elif KERNEL == "matern12":
        k = tl.exp(-tl.sqrt(t))
    elif KERNEL == "matern32":
        r = tl.sqrt(3.0 * t)
        k = (1.0 + r) * tl.exp(-r)
    elif KERNEL == "matern52":
        r = tl.sqrt(5.0 * t)
        k = (1.0 + r + r * r / 3.0) * tl.exp(-r)
    elif KERNEL == "rational_quadratic":
        k = tl.exp(-c * log1p(t / (2.0 * c)))
    elif KERNEL == "energy":
        k = -tl.sqrt(t)
    else:  # rbf, laplacian
        k = tl.exp(-t)
        for q in tl.static_range(1, Q):
            k += tl.exp(-tl.load(gamma_ptr + q) * a)
    return k


@triton.jit
def kernel_slope(a, gamma_ptr, c, KERNEL: tl.constexpr, DEGREE: tl.constexpr, Q: tl.constexpr):
    """dk/dt, for a mixture dk/da; 0 at a = 0 where the kernel has a kink there."""
    g = tl.load(gamma_ptr)
    t = g * a
    if KERNEL == "polynomial":
        slope = DEGREE * power(t + c, DEGREE - 1)
    elif KERNEL == "exponential":
        slope = tl.exp(t)
    elif KERNEL == "sigmoid":
        e = tl.exp(-2.0 * tl.abs(t + c))
        slope = 4.0 * e / ((1.0 + e) * (1.0 + e))
    elif KERNEL == "matern12":
        r = tl.sqrt(t)
        slope = tl.where(t > 0, -0.5 * tl.exp(-r) / tl.where(t > 0, r, 1.0), 0.0)
    elif KERNEL == "matern32":
        slope = -1.5 * tl.exp(-tl.sqrt(3.0 * t))
    elif KERNEL == "matern52":
        r = tl.sqrt(5.0 * t)
        slope = -0.8333333333333334 * (1.0 + r) * tl.exp(-r)
    elif KERNEL == "rational_quadratic":
        slope = -0.5 * tl.exp(-(c + 1.0) * log1p(t / (2.0 * c)))
    elif KERNEL == "energy":
        slope = tl.where(t > 0, -0.5 / tl.where(t > 0, tl.sqrt(t), 1.0), 0.0)
    elif Q == 1:
        slope = -tl.exp(-t)
    else:
        slope = -g * tl.exp(-t)
        for q in tl.static_range(1, Q):
            gq = tl.load(gamma_ptr + q)
            slope -= gq * tl.exp(-gq * a)
    return slope


@triton.jit
def shape_slope(a, slope, gamma_ptr, c, KERNEL: tl.constexpr):
    """dk/dcoef of the kernels that have a coef; slope is `kernel_slope`'s."""
    if KERNEL == "rational_quadratic":
        u = tl.load(gamma_ptr) * a / (2.0 * c)
        d = tl.exp(-c * log1p(u)) * (u / (1.0 + u) - log1p(u))
    else:
        d = slope
    return d


@triton.jit
def _l1_tile(
    x_ptr, stride_xm, stride_xd, offs_m, y_ptr, stride_yn, stride_yd, offs_n, N, M, D,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """|x_i - y_j|_1, a feature at a time: no product."""
    x_ptrs = x_ptr + tl.where(offs_m < N, offs_m, 0).to(tl.int64) * stride_xm
    y_ptrs = y_ptr + tl.where(offs_n < M, offs_n, 0).to(tl.int64) * stride_yn
    a = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for _ in range(0, D):
        x = tl.load(x_ptrs).to(tl.float32)
        y = tl.load(y_ptrs).to(tl.float32)
        a += tl.abs(x[:, None] - y[None, :])
        x_ptrs += stride_xd
        y_ptrs += stride_yd
    return a


@triton.jit
def distances_from_dots(dots, x_norms_ptr, y_norms_ptr, offs_m, offs_n, N, M, SYMMETRIC: tl.constexpr):
    """|x_i - y_j|^2 from dot products; what rounding cannot tell from 0 is 0."""
    x_norms = tl.load(x_norms_ptr + offs_m, mask=offs_m < N, other=0.0)
    y_norms = tl.load(y_norms_ptr + offs_n, mask=offs_n < M, other=0.0)
    norms = x_norms[:, None] + y_norms[None, :]
    a = norms - 2.0 * dots
    a = tl.where(a <= 4.76837158203125e-07 * norms, 0.0, a)  # four float32 roundings
    if SYMMETRIC:
        a = tl.where(offs_m[:, None] == offs_n[None, :], 0.0, a)
    return a


@triton.jit
def argument_tile(
    x_ptr,
    stride_xm,
    stride_xd,
    x_norms_ptr,
    offs_m,
    y_ptr,
    stride_yn,
    stride_yd,
    y_norms_ptr,
    offs_n,
    N,
    M,
    D,
    KERNEL: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    EVEN_D: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """What the kernel is a function of, float32 (BLOCK_M, BLOCK_N)."""
    if KERNEL == "laplacian":
        a = _l1_tile(
            x_ptr, stride_xm, stride_xd, offs_m, y_ptr, stride_yn, stride_yd, offs_n, N, M, D, BLOCK_M, BLOCK_N
        )
    else:
        a = dot_tile(
            x_ptr, stride_xm, offs_m, y_ptr, stride_yn, offs_n, N, M, D,
            EVEN_D, INPUT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        if KERNEL != "polynomial" and KERNEL != "exponential" and KERNEL != "sigmoid":
            a = distances_from_dots(a, x_norms_ptr, y_norms_ptr, offs_m, offs_n, N, M, SYMMETRIC)
    return a

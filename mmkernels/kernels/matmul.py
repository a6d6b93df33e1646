"""Products K @ v of a kernel matrix that is never stored, and their gradients.

The launchers. Arguments and results are those of `tiled/matmul.py`: x (B, N, D), y (B, M, D) or None for x itself, v
(B, M, E), gamma (B, Q), coef (B,).
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from mmkernels.kernels._configs import matmul_tile, on_device, split
from mmkernels.kernels._matmul_fwd import matmul_fwd_kernel
from mmkernels.kernels._pairs import Pairs
from mmkernels.kernels._weights import gradients


def _product(pairs: Pairs, v: Tensor) -> Tensor:
    """K @ v, float32."""
    (B, N, _), (M, E) = pairs.x.shape, v.shape[1:]
    if B == 0 or N == 0 or M == 0 or E == 0:
        return pairs.gamma.new_zeros(B, N, E)
    v, product_precision = pairs.product(v)
    tile = matmul_tile(pairs.x, pairs.precision)
    block_e = 1 if E == 1 else min(64, max(16, triton.next_power_of_2(E)))
    programs = B * triton.cdiv(N, tile.BLOCK_M) * triton.cdiv(E, block_e)
    span, spans = split(programs, M, tile, v.device)
    out = pairs.gamma.new_empty(spans, B, N, E)
    matmul_fwd_kernel[(programs * spans,)](
        **pairs.arguments(tile),
        v_ptr=v,
        out_ptr=out,
        E=E,
        span=span,
        spans=spans,
        PRODUCT_PRECISION=product_precision,
        BLOCK_E=block_e,
    )
    return out[0] if spans == 1 else out.sum(0)


def matmul_fwd(
    x: Tensor, y: Tensor | None, v: Tensor, gamma: Tensor, coef: Tensor, kernel: str, degree: int, precision: str
) -> Tensor:
    """Return K @ v, (B, N, E)."""
    with on_device(x):
        return _product(Pairs.of(x, y, gamma, coef, kernel, degree, precision), v)


def matmul_bwd(
    x: Tensor,
    y: Tensor | None,
    v: Tensor,
    gamma: Tensor,
    coef: Tensor,
    kernel: str,
    degree: int,
    grad: Tensor,
    needs: list[bool],
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, y, v, gamma and coef that needs asks for, empty tensors for the others."""
    need_x, need_y, need_v, *need_parameters = needs
    with on_device(x):
        pairs = Pairs.of(x, y, gamma, coef, kernel, degree, precision)
        dv = _product(pairs.transpose(), grad).to(v.dtype) if need_v else v.new_empty(0)
        wide = v.to(grad.dtype)
        # of a symmetric K the gradients of both (i, j) and (j, i), in one product
        left, right = (torch.cat([grad, wide], 2), torch.cat([wide, grad], 2)) if y is None else (grad, wide)
        dx, dy, dgamma, dcoef = gradients(pairs, x, y, left, right, [need_x, need_y, *need_parameters])
    return dx, dy, dv, dgamma, dcoef

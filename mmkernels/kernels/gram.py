"""Kernel matrices, stored, and their gradients. The launchers; arguments and results are those of `tiled/gram.py`."""

from __future__ import annotations

import triton
from torch import Tensor

from mmkernels.kernels._configs import matmul_tile, on_device
from mmkernels.kernels._matmul_fwd import gram_fwd_kernel
from mmkernels.kernels._pairs import Pairs
from mmkernels.kernels._weights import gradients


def gram_fwd(
    x: Tensor, y: Tensor | None, gamma: Tensor, coef: Tensor, kernel: str, degree: int, precision: str
) -> Tensor:
    """Return K, (B, N, M)."""
    (B, N, _), M = x.shape, (x if y is None else y).shape[1]
    out = gamma.new_empty(B, N, M)
    if out.numel() == 0:
        return out
    with on_device(x):
        pairs = Pairs.of(x, y, gamma, coef, kernel, degree, precision)
        tile = matmul_tile(pairs.x, precision)
        gram_fwd_kernel[(B * triton.cdiv(N, tile.BLOCK_M) * triton.cdiv(M, tile.BLOCK_N),)](
            **pairs.arguments(tile), out_ptr=out
        )
    return out


def gram_bwd(
    x: Tensor,
    y: Tensor | None,
    gamma: Tensor,
    coef: Tensor,
    kernel: str,
    degree: int,
    grad: Tensor,
    needs: list[bool],
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, y, gamma and coef that needs asks for, empty tensors for the others."""
    with on_device(x):
        pairs = Pairs.of(x, y, gamma, coef, kernel, degree, precision)
        return gradients(pairs, x, y, grad, None, needs)

"""Kernel matrices, stored, tile by tile. Arguments and results are those of `kernels/gram.py`, as in `matmul.py`."""

import torch
from torch import Tensor

from mmkernels.tiled._pair import values
from mmkernels.tiled._sweep import Step, gradients, steps
from mmkernels.tiled._tiles import compute_dtype


def gram_fwd(
    x: Tensor, y: Tensor | None, gamma: Tensor, coef: Tensor, kernel: str, degree: int, precision: str
) -> Tensor:
    """Return K, (B, N, M)."""
    out = x.new_empty(*x.shape[:2], (x if y is None else y).shape[1], dtype=compute_dtype(x.dtype))
    for b, i, j, _, _, (u, spare), mirrored in steps(kernel, x, y, gamma, coef, 2):
        k = values(kernel, degree, gamma[b], coef[b], u, out[b, i, j], spare)
        if mirrored:
            out[b, j, i] = k.mT
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

    def upstream(step: Step, out: Tensor) -> Tensor:
        b, i, j = step.batch, step.rows, step.cols
        return torch.add(grad[b, i, j], grad[b, j, i].mT, out=out) if y is None else grad[b, i, j]

    return gradients(x, y, gamma, coef, kernel, degree, upstream, needs)

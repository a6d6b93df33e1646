"""Products K @ v of a kernel matrix that is never stored, tile by tile.

Arguments and results are those of `kernels/matmul.py`: x (B, N, D), y (B, M, D) or None for x itself, v (B, M, E),
gamma (B, Q), coef (B,); kernels and their parameters are listed in `_pair.py`.
"""

import torch
from torch import Tensor

from mmkernels.tiled._pair import values
from mmkernels.tiled._sweep import Step, gradients, steps
from mmkernels.tiled._tiles import compute_dtype


def matmul_fwd(
    x: Tensor, y: Tensor | None, v: Tensor, gamma: Tensor, coef: Tensor, kernel: str, degree: int, precision: str
) -> Tensor:
    """Return K @ v, (B, N, E)."""
    dtype = compute_dtype(x.dtype)
    out = x.new_zeros(x.shape[0], v.shape[2], x.shape[1], dtype=dtype)
    for b, i, j, _, _, (u, k, spare), mirrored in steps(kernel, x, y, gamma, coef, 3):
        k = values(kernel, degree, gamma[b], coef[b], u, u if gamma.shape[1] == 1 else k, spare)
        out[b, :, i].baddbmm_(v[b, j].to(dtype).mT, k.mT)
        if mirrored:
            out[b, :, j].baddbmm_(v[b, i].to(dtype).mT, k)
    return out.mT.contiguous()


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
    v_wide = v.to(grad.dtype)
    if y is None:  # (i, j) and (j, i) in one product
        left, right = torch.cat([grad, v_wide], 2), torch.cat([v_wide, grad], 2)
    else:
        left, right = grad, v_wide
    dv = grad.new_zeros((v.shape[0], v.shape[2], v.shape[1]) if need_v else (0,))

    def upstream(step: Step, out: Tensor) -> Tensor:
        return torch.bmm(left[step.batch, step.rows], right[step.batch, step.cols].mT, out=out)

    def visit(step: Step, k: Tensor) -> None:
        b, i, j = step.batch, step.rows, step.cols
        dv[b, :, j].baddbmm_(grad[b, i].mT, k)
        if step.mirrored:
            dv[b, :, i].baddbmm_(grad[b, j].mT, k.mT)

    dx, dy, dgamma, dcoef = gradients(
        x, y, gamma, coef, kernel, degree, upstream, [need_x, need_y, *need_parameters],
        (left, right) if v.shape[2] == 1 else None, visit if need_v else None,
    )  # fmt: skip
    return dx, dy, dv.mT.to(v.dtype).contiguous() if need_v else v.new_empty(0), dgamma, dcoef

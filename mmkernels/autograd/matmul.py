"""Gradients of K @ v and of K, first order by the weight-tile sweep, second order by its formula.

Two reductions, `matmul` and `gram`, share one Function: the gradient of K is g v' where K is multiplied by v, and given
where K itself was asked for. Saved are the inputs only.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from mmkernels import _dispatch  # noqa: F401  (defines the operators)
from mmkernels.autograd._second_order import vjp_by_rows
from mmkernels.tiled._formula import grad_formula, row_tiles
from mmkernels.tiled._sweep import shift


class MatMul(torch.autograd.Function):
    """K(x, y) @ v, or K(x, y) where v is None."""

    @staticmethod
    def forward(
        x: Tensor, y: Tensor | None, v: Tensor | None, gamma: Tensor, coef: Tensor, kernel: str, degree: int
    ) -> Tensor:
        ops = torch.ops.mmkernels
        pairs = (gamma, coef, kernel, degree)
        out: Tensor = ops.gram_fwd(x, y, *pairs) if v is None else ops.matmul_fwd(x, y, v, *pairs)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.kernel, ctx.degree = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, y, v, gamma, coef = ctx.saved_tensors
        needs = ctx.needs_input_grad[:5]
        # Without grad mode nothing is recorded, and the Function is a detour. (torch.func.grad runs this with it on.)
        gradients = (MatMulGrad.apply if torch.is_grad_enabled() else MatMulGrad.forward)(
            x, y, v, gamma, coef, grad, ctx.kernel, ctx.degree, needs
        )
        return *(g if need else None for g, need in zip(gradients, needs, strict=True)), None, None


class MatMulGrad(torch.autograd.Function):
    """The gradients of x, y, v, gamma and coef, differentiable again in every tensor they depend on."""

    @staticmethod
    def forward(
        x: Tensor,
        y: Tensor | None,
        v: Tensor | None,
        gamma: Tensor,
        coef: Tensor,
        grad: Tensor,
        kernel: str,
        degree: int,
        needs: tuple[bool, ...],
    ) -> Any:
        ops = torch.ops.mmkernels
        pairs = (gamma, coef, kernel, degree, grad.contiguous())
        if v is not None:
            return ops.matmul_bwd(x, y, v, *pairs, list(needs))
        need_x, need_y, _, *parameters = needs
        dx, dy, dgamma, dcoef = ops.gram_bwd(x, y, *pairs, [need_x, need_y, *parameters])
        return dx, dy, None, dgamma, dcoef

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.kernel, ctx.degree, ctx.needs = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        x, y, v, gamma, coef, grad = ctx.saved_tensors
        kernel, degree, centre = ctx.kernel, ctx.degree, shift(ctx.kernel, x)
        asked = [
            c.to(grad.dtype) if c is not None and need else None for c, need in zip(cotangents, ctx.needs, strict=True)
        ]
        if all(c is None for c in asked):
            return (None,) * 9
        other = x if y is None else y
        if y is None:  # x in both roles: what is asked of the one is asked of the other
            asked[1] = asked[0]

        def formula(i: slice, **tensors: Tensor) -> tuple[Tensor | None, ...]:
            return grad_formula(kernel=kernel, degree=degree, centre=centre, **tensors)

        result = vjp_by_rows(
            formula,
            row_tiles(kernel, x, other),
            {"x": x, "grad": grad},
            {"y": other, "gamma": gamma, "coef": coef} | ({} if v is None else {"v": v}),
            asked,
            dim=1,
        )
        if y is None:
            result["x"] += result.pop("y")
        return *(result.get(name) for name in ("x", "y", "v", "gamma", "coef", "grad")), None, None, None


# Function.apply asks for forward's signature at every call, which takes 60 µs to work out and nothing to look up.
MatMul.forward.__signature__ = inspect.signature(MatMul.forward)  # type: ignore[attr-defined]
MatMulGrad.forward.__signature__ = inspect.signature(MatMulGrad.forward)  # type: ignore[attr-defined]


def matmul(
    x: Tensor, y: Tensor | None, v: Tensor | None, gamma: Tensor, coef: Tensor, kernel: str, degree: int
) -> Tensor:
    """K(x, y) @ v, or K(x, y) where v is None, of checked arguments in the operators' layout (`tiled/matmul.py`)."""
    # torch.compile admits no tensor twice among a Function's arguments
    y, v = (None if t is None else t.view_as(t) for t in (y, v))
    out: Tensor = MatMul.apply(x, y, v, gamma, coef, kernel, degree)  # type: ignore[no-untyped-call]
    return out

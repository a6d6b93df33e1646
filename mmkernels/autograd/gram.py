"""Gradients of a stored kernel matrix, first order by the weight-tile sweep, second order by its formula."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmkernels import _dispatch  # noqa: F401  (defines the operators)
from mmkernels.autograd._second_order import vjp_by_rows
from mmkernels.tiled._formula import row_tiles
from mmkernels.tiled._sweep import shift
from mmkernels.tiled.gram import gram_grad_formula


class Gram(torch.autograd.Function):
    """K(x, y) for x (B, N, D), y (B, M, D) or None for x itself, gamma (B, Q), coef (B,)."""

    @staticmethod
    def forward(x: Tensor, y: Tensor | None, gamma: Tensor, coef: Tensor, kernel: str, degree: int) -> Tensor:
        out: Tensor = torch.ops.mmkernels.gram_fwd(x, y, gamma, coef, kernel, degree)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, y, gamma, coef, ctx.kernel, ctx.degree = inputs
        ctx.save_for_backward(x, y, gamma, coef)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        gradients = (GramGrad.apply if torch.is_grad_enabled() else GramGrad.forward)(
            *ctx.saved_tensors, grad, ctx.kernel, ctx.degree, ctx.needs_input_grad[:4]
        )
        return *(g if need else None for g, need in zip(gradients, ctx.needs_input_grad, strict=False)), None, None


class GramGrad(torch.autograd.Function):
    """The gradients of x, y, gamma and coef, differentiable again in every tensor they depend on."""

    @staticmethod
    def forward(
        x: Tensor,
        y: Tensor | None,
        gamma: Tensor,
        coef: Tensor,
        grad: Tensor,
        kernel: str,
        degree: int,
        needs: tuple[bool, ...],
    ) -> Any:
        return torch.ops.mmkernels.gram_bwd(x, y, gamma, coef, kernel, degree, grad.contiguous(), list(needs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.kernel, ctx.degree, ctx.needs = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        x, y, gamma, coef, grad = ctx.saved_tensors
        kernel, degree, centre = ctx.kernel, ctx.degree, shift(ctx.kernel, x)
        asked = [
            c.to(grad.dtype) if c is not None and need else None for c, need in zip(cotangents, ctx.needs, strict=True)
        ]
        if all(c is None for c in asked):
            return (None,) * 8
        if y is None:  # x in both roles: what is asked of the one is asked of the other
            asked[1] = asked[0]

        def formula(i: slice, **tensors: Tensor) -> tuple[Tensor, ...]:
            return gram_grad_formula(kernel=kernel, degree=degree, centre=centre, **tensors)

        other = x if y is None else y
        result = vjp_by_rows(
            formula,
            row_tiles(kernel, x, other),
            {"x": x, "grad": grad},
            {"y": other, "gamma": gamma, "coef": coef},
            asked,
            dim=1,
        )
        if y is None:
            result["x"], result["y"] = result["x"] + result["y"], None
        return *(result[name] for name in ("x", "y", "gamma", "coef", "grad")), None, None, None


def gram(x: Tensor, y: Tensor | None, gamma: Tensor, coef: Tensor, kernel: str, degree: int) -> Tensor:
    """K(x, y) of checked arguments."""
    # torch.compile admits no tensor twice among a Function's arguments
    out: Tensor = Gram.apply(x, None if y is None else y.view_as(y), gamma, coef, kernel, degree)  # type: ignore[no-untyped-call]
    return out

"""A reduction of each row of a matrix that is formed some rows at a time, for its derivatives too: O(N) memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmkernels.autograd._second_order import vjp_by_rows

Formula = Callable[..., Tensor]  # formula(i, rows=x[..., i, :], **shared) is the part (*batch, n) of the result


class ByRows(torch.autograd.Function):
    """formula of all slices i of the rows, side by side: (*batch, N)."""

    @staticmethod
    def forward(
        formula: Formula, tiles: Sequence[slice], names: tuple[str, ...], rows: Tensor, *shared: Tensor
    ) -> Tensor:
        given = dict(zip(names, shared, strict=True))
        out = rows
        for i in tiles:
            part = formula(i, rows=rows[..., i, :], **given)
            if i.start == 0:
                out = part.new_empty(rows.shape[:-1])
            out[..., i] = part  # in place: small results kept between large blocks keep the heap from shrinking
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.formula, ctx.tiles, ctx.names, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        tensors = ctx.saved_tensors
        return None, None, None, *ByRowsGrad.apply(ctx.formula, ctx.tiles, ctx.names, grad, *tensors)  # type: ignore[no-untyped-call]


class ByRowsGrad(torch.autograd.Function):
    """The gradients of rows and of what is shared."""

    @staticmethod
    def forward(
        formula: Formula, tiles: Sequence[slice], names: tuple[str, ...], grad: Tensor, rows: Tensor, *shared: Tensor
    ) -> tuple[Tensor, ...]:
        def parts(i: slice, **tensors: Tensor) -> tuple[Tensor]:
            return (formula(i, **tensors),)

        given = dict(zip(names, shared, strict=True))
        result = vjp_by_rows(parts, tiles, {"rows": rows}, given, (grad,), rows.ndim - 2)
        return tuple(result[name] for name in ("rows", *names))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.formula, ctx.tiles, ctx.names, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        grad, rows, *shared = ctx.saved_tensors

        def parts(i: slice, grad: Tensor, **tensors: Tensor) -> list[Tensor]:
            def formula(tensors: dict[str, Tensor]) -> Tensor:
                result: Tensor = ctx.formula(i, **tensors)
                return result

            gradients = torch.func.vjp(formula, tensors)[1](grad)[0]
            return [gradients[name] for name in ("rows", *ctx.names)]

        if all(c is None for c in cotangents):
            return (None,) * (5 + len(shared))
        given = dict(zip(ctx.names, shared, strict=True))
        result = vjp_by_rows(parts, ctx.tiles, {"grad": grad, "rows": rows}, given, cotangents, rows.ndim - 2)
        return None, None, None, *(result[name] for name in ("grad", "rows", *ctx.names))


def by_rows(formula: Formula, tiles: Sequence[slice], rows: Tensor, shared: dict[str, Tensor]) -> Tensor:
    """formula(i, rows=rows[..., i, :], **shared) of all tiles i, side by side; twice differentiable in all tensors."""
    out: Tensor = ByRows.apply(formula, tiles, tuple(shared), rows, *shared.values())  # type: ignore[no-untyped-call]
    return out

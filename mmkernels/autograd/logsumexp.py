"""Gradients of the row and column log-sum-exps, first order by the weight-tile sweep, second order by its formula.

`LogSumExp.backward` is itself a Function: a kernel's output has no graph, so a plain backward would give second
derivatives that are silently wrong. Saved are inputs and outputs only.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmkernels import _dispatch
from mmkernels.autograd._second_order import vjp_by_rows
from mmkernels.tiled._tiles import compute_dtype, memory_budget
from mmkernels.tiled.logsumexp import logsumexp_grad_formula, row_tiles


class LogSumExp(torch.autograd.Function):
    """(rows, columns, positives, row_max, column_max, scores); the last three carry no gradient."""

    @staticmethod
    def forward(
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        log_weights: Tensor | None,
        row_ids: Tensor | None,
        column_ids: Tensor | None,
        offset: int | None,
        columns: bool,
        keep: bool,
    ) -> Any:
        return torch.ops.mmkernels.logsumexp_fwd(x, y, scale, log_weights, row_ids, column_ids, offset, columns, keep)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, y, scale, log_weights, row_ids, column_ids, offset, columns, _ = inputs
        rows, column_lse, _, row_max, column_max, scores = output
        ctx.mark_non_differentiable(row_max, column_max, scores)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, y, scale, log_weights, row_ids, column_ids, rows, column_lse, scores)
        ctx.offset, ctx.columns = offset, columns

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        x, y, scale, log_weights, row_ids, column_ids, rows, columns, scores = ctx.saved_tensors
        grad_rows, grad_columns, grad_positives = grads[:3]
        if grad_rows is None and grad_columns is None and grad_positives is None:
            return (None,) * 9
        # Without grad mode nothing is recorded, and the Function is a detour. (torch.func.grad runs this with it on.)
        gradients = (LogSumExpGrad.apply if torch.is_grad_enabled() else LogSumExpGrad.forward)(
            x,
            y,
            scale,
            log_weights,
            row_ids,
            column_ids,
            ctx.offset,
            rows,
            columns,
            scores,
            torch.zeros_like(rows) if grad_rows is None else grad_rows,
            grad_columns if ctx.columns else None,
            None if ctx.offset is None else grad_positives,
            ctx.needs_input_grad[:4],
        )
        wanted = [g if need else None for g, need in zip(gradients, ctx.needs_input_grad[:4], strict=True)]
        return (*wanted, None, None, None, None, None)


class LogSumExpGrad(torch.autograd.Function):
    """The gradients of x, y, scale and log_weights, differentiable again in every tensor they depend on."""

    @staticmethod
    def forward(
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        log_weights: Tensor | None,
        row_ids: Tensor | None,
        column_ids: Tensor | None,
        offset: int | None,
        rows: Tensor,
        columns: Tensor,
        scores: Tensor,
        grad_rows: Tensor,
        grad_columns: Tensor | None,
        grad_positives: Tensor | None,
        needs: tuple[bool, ...],
    ) -> Any:
        return torch.ops.mmkernels.logsumexp_bwd(
            x,
            y,
            scale,
            log_weights,
            row_ids,
            column_ids,
            offset,
            rows,
            columns,
            scores,
            grad_rows.contiguous(),
            None if grad_columns is None else grad_columns.contiguous(),
            None if grad_positives is None else grad_positives.contiguous(),
            list(needs),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, y, scale, log_weights, row_ids, column_ids, offset, rows, columns, _, g, h, gp, needs = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, y, scale, log_weights, row_ids, column_ids, rows, columns, g, h, gp)
        ctx.offset, ctx.needs = offset, needs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        x, y, scale, log_weights, row_ids, column_ids, rows, columns, g, h, gp = ctx.saved_tensors
        dtype = compute_dtype(x.dtype)
        asked = [c.to(dtype) if c is not None and need else None for c, need in zip(cotangents, ctx.needs, strict=True)]
        if all(c is None for c in asked):
            return (None,) * 14
        shared = {"y": y, "scale": scale, "log_weights": log_weights, "columns": columns, "grad_columns": h}
        by_row = {"x": x, "rows": rows, "grad_rows": g, "grad_positives": gp}

        def formula(i: slice, **tensors: Tensor) -> tuple[Tensor, ...]:
            return logsumexp_grad_formula(
                row_ids=None if row_ids is None else row_ids[i],
                column_ids=column_ids,
                offset=None if ctx.offset is None else ctx.offset + i.start,
                **tensors,
            )

        result = vjp_by_rows(
            formula,
            row_tiles(len(x), len(y), x.dtype),
            {name: t for name, t in by_row.items() if t is not None},
            {name: t for name, t in shared.items() if t is not None},
            asked,
        )
        return tuple(result.get(name) for name in _GRAD_ARGUMENTS)


# The names of LogSumExpGrad.forward's arguments, in order; those that carry no gradient are empty.
_GRAD_ARGUMENTS = (
    *("x", "y", "scale", "log_weights", "", "", "", "rows", "columns", "", "grad_rows", "grad_columns"),
    *("grad_positives", ""),
)


# Function.apply asks for forward's signature at every call, which takes 60 µs to work out and nothing to look up.
LogSumExp.forward.__signature__ = inspect.signature(LogSumExp.forward)  # type: ignore[attr-defined]
LogSumExpGrad.forward.__signature__ = inspect.signature(LogSumExpGrad.forward)  # type: ignore[attr-defined]


class Statistics(NamedTuple):
    """Log-sum-exps, positives and maxima of the rows and columns of a score matrix; maxima carry no gradient."""

    rows: Tensor  # (N,)
    columns: Tensor  # (M,), or (0,) where they were not asked for
    positives: Tensor  # (N,), or (0,) without an offset
    row_max: Tensor  # (N,)
    column_max: Tensor  # (M,) or (0,)


def logsumexp(
    x: Tensor,
    y: Tensor,
    scale: Tensor | float,
    log_weights: Tensor | None = None,
    row_ids: Tensor | None = None,
    column_ids: Tensor | None = None,
    offset: int | None = None,
    columns: bool = True,
) -> Statistics:
    """The statistics of checked arguments, which are cast and laid out here as the operators take them.

    The dot products are kept for the backward pass where tiles serve, a gradient is asked for and the memory budget
    admits them: three matrix products then instead of four.
    """
    dtype = compute_dtype(x.dtype)
    x, y = (t if t.stride(1) == 1 else t.contiguous() for t in (x, y))
    # new_full: a Python number becomes a tensor on x's device without a copy from the host.
    scale = scale.to(dtype) if isinstance(scale, Tensor) else x.new_full((), scale, dtype=dtype)
    if log_weights is not None:
        log_weights = log_weights.to(dtype).contiguous()
    if row_ids is not None and column_ids is not None:
        row_ids, column_ids = row_ids.contiguous(), column_ids.contiguous()
        column_ids = column_ids.view_as(column_ids)
    y = y.view_as(y)  # torch.compile admits no tensor twice among a Function's arguments
    differentiable = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, y, scale, log_weights)
    )
    fits = x.shape[0] * y.shape[0] * dtype.itemsize <= memory_budget()
    keep = differentiable and fits and not _dispatch.serves_triton(x)
    return Statistics(
        *LogSumExp.apply(  # type: ignore[no-untyped-call]
            x, y, scale, log_weights, row_ids, column_ids, offset, columns, keep
        )[:5]
    )

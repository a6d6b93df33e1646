"""Gradients of the scatter matrix of stacked views: of first order by one more sweep, above by the plain formula.

Everything here is O(N D), so that the formula needs no tiles. Saved are the inputs only.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmkernels import _dispatch  # noqa: F401  (defines the operators)


class Scatter(torch.autograd.Function):
    """Scatter matrix (B, D, D) and sums (B, 1 or V, D) about `shift` (`tiled/covariance.py`), of weighted rows.

    weights (1 or B, N) or None; present (1 or B, V, N) or None, 1 where a row has the view and 0 where not.
    """

    @staticmethod
    def forward(shift: Tensor, weights: Tensor | None, present: Tensor | None, *views: Tensor) -> tuple[Tensor, Tensor]:
        out: tuple[Tensor, Tensor] = torch.ops.mmkernels.covariance_fwd(list(views), shift, _factors(weights, present))
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_scatter: Tensor | None, grad_sums: Tensor | None) -> Any:
        shift, weights, present, *views = ctx.saved_tensors
        _, need_weights, _, *needs = ctx.needs_input_grad
        if grad_scatter is None and grad_sums is None:
            return (None,) * (3 + len(views))
        B, D = shift.shape
        if grad_scatter is None:
            grad_scatter = shift.new_zeros(B, D, D)
        if grad_sums is None:
            grad_sums = shift.new_zeros(B, 1 if present is None else len(views), D)
        # Without grad mode nothing is recorded, and the Function is a detour. (torch.func.grad runs this with it on.)
        dweights, *dviews = (ScatterGrad.apply if torch.is_grad_enabled() else ScatterGrad.forward)(
            shift, weights, present, grad_scatter + grad_scatter.mT, grad_sums, (need_weights, *needs), *views
        )
        grads = (
            dweights if need_weights else None,
            None,
            *(g if n else None for g, n in zip(dviews, needs, strict=True)),
        )
        return None, *grads


class ScatterGrad(torch.autograd.Function):
    """The gradients of weights and views, differentiable again in every tensor they depend on."""

    @staticmethod
    def forward(
        shift: Tensor,
        weights: Tensor | None,
        present: Tensor | None,
        grad_scatter: Tensor,
        grad_sums: Tensor,
        needs: tuple[bool, ...],
        *views: Tensor,
    ) -> tuple[Tensor | None, ...]:
        dviews = torch.ops.mmkernels.covariance_bwd(
            list(views), shift, _factors(weights, present), grad_scatter.contiguous(), grad_sums.contiguous(), needs[1:]
        )
        dweights = None
        if needs[0]:
            dweights = _grad_formula(shift, weights, present, grad_scatter, grad_sums, (True,), views)[0]
        return dweights, *dviews

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.needs = inputs[:6]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *inputs[6:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        shift, weights, present, grad_scatter, grad_sums, *views = ctx.saved_tensors
        asked = [need and c is not None for need, c in zip(ctx.needs, cotangents, strict=True)]
        if not any(asked):
            return (None,) * (6 + len(views))
        given = [] if weights is None else [weights]

        def formula(grad_scatter: Tensor, grad_sums: Tensor, *rest: Tensor) -> list[Tensor]:
            w, v = (rest[0], rest[1:]) if given else (None, rest)
            grads = _grad_formula(shift, w, present, grad_scatter, grad_sums, asked, v)
            return [g for g in grads if g is not None]

        vjp = torch.func.vjp(formula, grad_scatter, grad_sums, *given, *views)[1]
        wanted = [c for c, a in zip(cotangents, asked, strict=True) if a and c is not None]
        dscatter, dsums, *rest = vjp(wanted)
        dweights = rest.pop(0) if given else None
        return None, dweights, None, dscatter, dsums, None, *rest


# Function.apply asks for forward's signature at every call, which takes 60 µs to work out and nothing to look up.
Scatter.forward.__signature__ = inspect.signature(Scatter.forward)  # type: ignore[attr-defined]
ScatterGrad.forward.__signature__ = inspect.signature(ScatterGrad.forward)  # type: ignore[attr-defined]


def _factors(weights: Tensor | None, present: Tensor | None) -> Tensor | None:
    """What multiplies each row of each view, (1 or B, 1 or V, N)."""
    if weights is None:
        return present
    root = weights.sqrt()[:, None]
    return root if present is None else root * present


def _grad_formula(
    shift: Tensor,
    weights: Tensor | None,
    present: Tensor | None,
    grad_scatter: Tensor,
    grad_sums: Tensor,
    needs: Sequence[bool],
    views: Sequence[Tensor],
) -> list[Tensor | None]:
    """The gradients of weights and views that needs asks for; grad_scatter is twice the symmetric gradient."""
    sizes = [v.shape[2] for v in views]
    z = torch.cat([v.to(shift.dtype) for v in views], 2) - shift[:, None]
    if present is not None:
        there = torch.cat([p[..., None].expand(-1, -1, d) for p, d in zip(present.unbind(1), sizes, strict=True)], 2)
        z = torch.where(there > 0, z, 0)
    ones = shift.new_ones(1, 1, z.shape[1]) if present is None else present
    by_scatter, by_sums = z @ grad_scatter, ones.mT @ grad_sums
    grads: list[Tensor | None] = []
    if needs[0]:
        assert weights is not None
        each = (z * (by_scatter / 2 + by_sums)).sum(2)
        grads.append(each.sum(0, keepdim=True) if len(weights) < len(each) else each)
    else:
        grads.append(None)
    if any(needs[1:]):
        dz = by_scatter + by_sums
        if weights is not None:
            dz = dz * weights[..., None]
        if present is not None:
            dz = torch.where(there > 0, dz, 0)
        parts = torch.split(dz, sizes, 2)
        grads += [part.to(v.dtype) if need else None for part, v, need in zip(parts, views, needs[1:], strict=True)]
    return grads


def scatter(
    views: Sequence[Tensor], shift: Tensor, weights: Tensor | None, present: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Scatter matrix and sums of checked arguments in the operators' layout."""
    # torch.compile admits no tensor twice among a Function's arguments, nor a list of which none needs a gradient
    copies = [v.view_as(v) for v in views]
    if not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (weights, *views))):
        return Scatter.forward(shift, weights, present, *copies)
    out: tuple[Tensor, Tensor] = Scatter.apply(shift, weights, present, *copies)  # type: ignore[no-untyped-call]
    return out

"""Gradients of sums of kernel matrices of several views, first order by the sweep, second order by its formula."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmkernels import _dispatch  # noqa: F401  (defines the operators)
from mmkernels.autograd._second_order import vjp_by_rows
from mmkernels.tiled._formula import grad_formula, kernel_formula, row_tiles
from mmkernels.tiled._pair import L1, over_pairs
from mmkernels.tiled._sweep import shift

Kernels = tuple[tuple[str, ...], tuple[int, ...]]  # names and degrees


class Moments(torch.autograd.Function):
    """Row sums, sums of products of pairs, of the product of all, and of its square (`tiled/moments.py`).

    tensors are all views, then their gammas, coefs and centres.
    """

    @staticmethod
    def forward(kernels: Kernels, wants: tuple[bool, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        out: tuple[Tensor, ...] = torch.ops.mmkernels.moments_fwd(*_split(tensors, 4), *kernels, wants)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.kernels, ctx.wants, *tensors = inputs
        ctx.shapes = [(t.shape, t.dtype) for t in output]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        tensors = ctx.saved_tensors
        V = len(tensors) // 4
        needs = ctx.needs_input_grad[2 : 2 + 3 * V]
        if all(g is None for g in grads):
            return (None,) * (2 + len(tensors))
        given = [
            tensors[0].new_zeros(shape if want else (0,), dtype=dtype) if g is None else g
            for g, want, (shape, dtype) in zip(grads, ctx.wants, ctx.shapes, strict=True)
        ]
        # Without grad mode nothing is recorded, and the Function is a detour. (torch.func.grad runs this with it on.)
        out = (MomentsGrad.apply if torch.is_grad_enabled() else MomentsGrad.forward)(
            ctx.kernels, needs, *tensors, *given
        )
        return None, None, *(g if need else None for g, need in zip(out, needs, strict=True)), *(None,) * V


class MomentsGrad(torch.autograd.Function):
    """The gradients of views, gammas and coefs, differentiable again in every tensor they depend on."""

    @staticmethod
    def forward(kernels: Kernels, needs: tuple[bool, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        grads = [g.contiguous() for g in tensors[-4:]]
        out = torch.ops.mmkernels.moments_bwd(*_split(tensors[:-4], 4), *kernels, *grads, needs)
        return tuple(out)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.kernels, ctx.needs, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        *tensors, rows, pairs, product, square = ctx.saved_tensors
        views, gammas, coefs, centres = _split(tensors, 4)
        V, (names, degrees) = len(views), ctx.kernels
        asked = [c if c is not None and need else None for c, need in zip(cotangents, ctx.needs, strict=True)]
        if all(c is None for c in asked):
            return (None,) * (2 + len(tensors) + 4)
        shifts = [shift(name, x) for name, x in zip(names, views, strict=True)]

        def by_rows(i: slice, **t: Tensor) -> list[Tensor | None]:
            """Every view's gradient as rows, side by side, and as columns; then those of gammas and coefs."""
            sides = [(t[f"x{v}"], t[f"y{v}"], t[f"gamma{v}"], t[f"coef{v}"]) for v in range(V)]
            K = [kernel_formula(names[v], degrees[v], *sides[v], shifts[v]) - over_pairs(centres[v]) for v in range(V)]
            found = [
                grad_formula(
                    x=x, y=y, gamma=gamma, coef=coef, kernel=names[v], degree=degrees[v], centre=shifts[v],
                    grad=_weights(v, K, t["rows"], t["pairs"], t["product"], t["square"]),
                )
                for v, (x, y, gamma, coef) in enumerate(sides)
            ]  # fmt: skip
            both = [torch.cat([f[side] for f in found], 2) for side in (0, 1)]  # type: ignore[misc]
            return [*both, *(f[at] for at in (3, 4) for f in found)]

        dtype = gammas[0].dtype
        wide = [x.to(dtype) for x in views]
        of_views = torch.cat(
            [torch.zeros_like(x) if c is None else c.to(dtype) for x, c in zip(wide, asked[:V], strict=True)], 2
        )
        # the Laplacian forms the differences of every feature
        widest = max((x for x, name in zip(views, names, strict=True) if name == L1 or L1 not in names), key=_width)
        result = vjp_by_rows(
            by_rows,
            row_tiles(L1 if L1 in names else names[0], widest, widest, V),
            {f"x{v}": x for v, x in enumerate(wide)} | {"rows": _by_row(rows)},
            {f"y{v}": x for v, x in enumerate(wide)}
            | {f"gamma{v}": g for v, g in enumerate(gammas)}
            | {f"coef{v}": c for v, c in enumerate(coefs)}
            | {"pairs": pairs.to(dtype), "product": product.to(dtype), "square": square.to(dtype)},
            [of_views, of_views, *asked[V:]],
            dim=1,
        )
        dviews = [(result[f"x{v}"] + result[f"y{v}"]).to(x.dtype) for v, x in enumerate(views)]
        parameters = [result[f"{name}{v}"] for name in ("gamma", "coef") for v in range(V)]
        grads = [
            result["rows"].mT if rows.numel() else torch.zeros_like(rows),
            result["pairs"].to(pairs.dtype), result["product"].to(product.dtype), result["square"].to(square.dtype),
        ]  # fmt: skip
        return None, None, *dviews, *parameters, *(None,) * V, *grads


# Function.apply asks for forward's signature at every call, which takes 60 µs to work out and nothing to look up.
Moments.forward.__signature__ = inspect.signature(Moments.forward)  # type: ignore[attr-defined]
MomentsGrad.forward.__signature__ = inspect.signature(MomentsGrad.forward)  # type: ignore[attr-defined]


def _split(tensors: Sequence[Tensor], parts: int) -> list[list[Tensor]]:
    """Tensors of all views, part by part."""
    V = len(tensors) // parts
    return [list(tensors[k * V : (k + 1) * V]) for k in range(parts)]


def _width(x: Tensor) -> int:
    return x.shape[-1]


def _by_row(rows: Tensor) -> Tensor:
    """The gradient of the row sums as (B, N, V), or (0, 0, 0)."""
    return rows.mT if rows.numel() else rows.reshape(0, 0, 0)


def _weights(v: int, K: Sequence[Tensor], rows: Tensor, pairs: Tensor, product: Tensor, square: Tensor) -> Tensor:
    """The gradient of the rows of K_v, of each pair (i, j) alone."""
    out = torch.zeros_like(K[v])
    if rows.numel():
        out = out + rows[..., v, None]
    if pairs.numel():
        both = pairs + pairs.mT
        for u, k in enumerate(K):
            out = out + both[:, u, v, None, None] * k
    rest = torch.ones_like(K[v])
    for u, k in enumerate(K):
        rest = rest if u == v else rest * k
    if product.numel():
        out = out + product[:, None, None] * rest
    if square.numel():
        out = out + 2 * square[:, None, None] * rest**2 * K[v]
    return out


def moments(
    views: Sequence[Tensor],
    gammas: Sequence[Tensor],
    coefs: Sequence[Tensor],
    centres: Sequence[Tensor],
    kernels: Kernels,
    wants: tuple[bool, ...],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sums that wants asks for, of checked arguments in the operators' layout (`tiled/moments.py`)."""
    # torch.compile admits no tensor twice among a Function's arguments
    tensors = [*(v.view_as(v) for v in views), *gammas, *coefs, *centres]
    if not torch.is_grad_enabled():  # torch.compile does not trace the Function then
        return Moments.forward(kernels, wants, *tensors)  # type: ignore[return-value]
    out: tuple[Tensor, Tensor, Tensor, Tensor] = Moments.apply(kernels, wants, *tensors)  # type: ignore[no-untyped-call]
    return out

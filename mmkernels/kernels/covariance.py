"""Scatter matrix and column sums of stacked views about a given point, and their gradients.

The launchers. Arguments and results are those of `tiled/covariance.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from mmkernels.kernels._configs import (
    aligned,
    covariance_grad_tile,
    covariance_tile,
    multiprocessors,
    on_device,
    slices,
)
from mmkernels.kernels._covariance import covariance_bwd_kernel, covariance_fwd_kernel

_ROWS = 65536  # rows that a program adds up in float32
_PARTS = 2**26  # bytes of partial sums at once


class _View(NamedTuple):
    x: Tensor  # (B, N, D), laid out for vector loads
    shift: Tensor  # (B, D)
    factors: Tensor | None  # (B, N)
    features: slice  # of the stack


def covariance_fwd(
    views: Sequence[Tensor], shift: Tensor, factors: Tensor | None, precision: str
) -> tuple[Tensor, Tensor]:
    """Return the scatter z'z (B, D, D) and the sums f'z (B, 1 or V, D) of z = factors * (views - shift)."""
    (B, D), N, V = shift.shape, views[0].shape[1], len(views)
    F = 1 if factors is None else factors.shape[1]
    scatter, sums = (shift.new_zeros(B, *size, dtype=torch.float64) for size in ((D, D), (F, D)))
    if B == 0 or N == 0:
        return scatter.to(shift.dtype), sums.to(shift.dtype)
    with on_device(shift):
        factors, largest = _normalised(factors)
        of = list(_views(views, shift, factors))
        for u, v in [(0, V - 1)] if V <= 2 else combinations_with_replacement(range(V), 2):
            cross = V > 2 and u != v
            products, of_x, start = _launch(of[u], of[v] if u != v else None, cross, precision)
            a, b = of[u].features, of[v].features
            x, y = slice(a.stop - a.start), slice(start, start + b.stop - b.start)
            if not cross:
                scatter[:, a, a] = products[:, x, x]
                sums[:, u % F, a] = of_x[:, 0, x]
            if u != v:
                scatter[:, a, b] = products[:, x, y]
                if F > 1:
                    sums[:, v, a], sums[:, u, b] = of_x[:, 1, x], of_x[:, 1, y]
                if not cross:
                    scatter[:, b, b] = products[:, y, y]
                    sums[:, v % F, b] = of_x[:, 0, y]
        scatter = scatter.triu() + scatter.triu(1).mT
        if largest is not None:
            scatter, sums = scatter * largest.square(), sums * largest.square()
    return scatter.to(shift.dtype), sums.to(shift.dtype)


def _normalised(factors: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Factors of at most 1, which leave what they multiply in float16's range, and the largest one."""
    if factors is None:
        return None, None
    largest = factors.amax().clamp(min=torch.finfo(factors.dtype).tiny)
    return factors / largest, largest


def _views(views: Sequence[Tensor], shift: Tensor, factors: Tensor | None) -> Iterator[_View]:
    start = 0
    for v, view in enumerate(views):
        features = slice(start, start + view.shape[2])
        start = features.stop
        x = aligned(view)
        f = None if factors is None else factors[:, v % factors.shape[1]].contiguous()
        yield _View(x, pad(shift[:, features], (0, x.shape[2] - view.shape[2])).contiguous(), f, features)


def _launch(x: _View, y: _View | None, cross: bool, precision: str) -> tuple[Tensor, Tensor, int]:
    """The products (B, S, S), the sums (B, 2, S), in float64, and where y's features start."""
    B, N, _ = x.x.shape
    other = x if y is None else y
    tile = covariance_tile(x.x, max(x.x.shape[2], other.x.shape[2]), precision)
    x_blocks, y_blocks = (triton.cdiv(v.x.shape[2], tile.BLOCK_M) for v in (x, other))
    blocks = x_blocks if y is None else x_blocks + y_blocks
    side = blocks * tile.BLOCK_M
    # as many programs as fill the device a few times over, if there is room for what they find
    programs = B * blocks * (blocks + 1) // 2
    spans = min(
        triton.cdiv(4 * multiprocessors(x.x.device), programs),
        max(1, _PARTS // (4 * B * side * side)),
        triton.cdiv(N, tile.BLOCK_D),
    )
    span = min(_ROWS, triton.cdiv(triton.cdiv(N, spans), tile.BLOCK_D) * tile.BLOCK_D)
    scatter = x.shift.new_zeros(B, side, side, dtype=torch.float64)
    sums = x.shift.new_zeros(B, 2, side, dtype=torch.float64)
    # Programs below the diagonal write nothing.
    parts, sum_parts = x.shift.new_zeros(spans, B, side, side), x.shift.new_zeros(spans, B, 2, side)
    for rows in slices(N, spans * span):
        covariance_fwd_kernel[(blocks * blocks * B * spans,)](
            **_arguments(x, other),
            scatter_ptr=parts,
            sums_ptr=sum_parts,
            first=rows.start,
            last=rows.stop,
            span=span,
            x_blocks=x_blocks,
            blocks=blocks,
            CROSS=cross,
            EVEN_D=all(v.x.shape[2] % tile.BLOCK_M == 0 for v in (x, other)),
            INPUT_PRECISION="ieee" if x.x.element_size() == 2 else precision,
            BLOCK_M=tile.BLOCK_M,
            BLOCK_D=tile.BLOCK_D,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
        scatter += parts.sum(0, dtype=torch.float64)
        sums += sum_parts.sum(0, dtype=torch.float64)
    return scatter, sums, x_blocks * tile.BLOCK_M


def _arguments(x: _View, y: _View) -> dict[str, Any]:
    """What both kernels are launched with; where there are no factors, any pointer stands in."""
    return {
        "x_ptr": x.x,
        "y_ptr": y.x,
        "x_shift_ptr": x.shift,
        "y_shift_ptr": y.shift,
        "x_factors_ptr": x.shift if x.factors is None else x.factors,
        "y_factors_ptr": y.shift if y.factors is None else y.factors,
        "stride_xb": x.x.stride(0),
        "stride_xm": x.x.stride(1),
        "stride_yb": y.x.stride(0),
        "stride_ym": y.x.stride(1),
        "stride_fb": 0 if x.factors is None or len(x.factors) == 1 else x.x.shape[1],
        "D_x": x.x.shape[2],
        "D_y": y.x.shape[2],
        "B": len(x.x),
        "HAS_FACTORS": x.factors is not None,
    }


def covariance_bwd(
    views: Sequence[Tensor],
    shift: Tensor,
    factors: Tensor | None,
    grad_scatter: Tensor,
    grad_sums: Tensor,
    needs: Sequence[bool],
    precision: str,
) -> list[Tensor]:
    """Return the gradients of the views that needs asks for, empty tensors for the others.

    grad_scatter is symmetric and twice the gradient of each pair of features.
    """
    grads = [v.new_empty(v.shape if need else (0,)) for v, need in zip(views, needs, strict=True)]
    if shift.shape[0] == 0 or views[0].shape[1] == 0:
        return grads
    with on_device(shift):
        of = list(_views(views, shift, factors))
        for own, grad, need in zip(of, grads, needs, strict=True):
            if need:
                _gradient(of, own, grad_scatter, grad_sums, grad, precision)
    return grads


def _gradient(
    views: Sequence[_View], own: _View, grad_scatter: Tensor, grad_sums: Tensor, out: Tensor, precision: str
) -> None:
    """Write one view's gradient, two views' part of it at a time."""
    B, N, M = out.shape
    total = out if len(views) <= 2 else out.new_empty(out.shape, dtype=torch.float32)
    for start in range(0, len(views), 2):
        x, y = views[start], views[start + 1] if start + 1 < len(views) else None
        other = x if y is None else y
        # its rows are columns of the symmetric gradient, as wide as the aligned view
        grad_x, grad_y = (
            pad(grad_scatter[:, own.features, v.features], (0, v.x.shape[2] - (v.features.stop - v.features.start)))
            .float()
            .contiguous()
            for v in (x, other)
        )
        sums = grad_scatter.new_zeros(B, 2, M, dtype=torch.float32)
        if grad_sums.shape[1] > 1:
            sums[:, : len(views[start : start + 2])] = grad_sums[:, start : start + 2, own.features]
        elif start == 0:
            sums[:, 0] = grad_sums[:, 0, own.features]
        tile = covariance_grad_tile(x.x, precision)
        covariance_bwd_kernel[(triton.cdiv(N, tile.BLOCK_M) * B * triton.cdiv(M, tile.BLOCK_N),)](
            **_arguments(x, other),
            own_factors_ptr=own.shift if own.factors is None else own.factors,
            x_grad_ptr=grad_x,
            y_grad_ptr=grad_y,
            sums_grad_ptr=sums,
            out_ptr=total,
            N=N,
            M=M,
            HAS_Y=y is not None,
            ADD=start > 0,
            EVEN_D=all(v.x.shape[2] % tile.BLOCK_D == 0 for v in (x, other)),
            INPUT_PRECISION=_grad_precision(x.x, precision),
            **tile._asdict(),
        )
    if total is not out:
        out.copy_(total)


def _grad_precision(x: Tensor, precision: str) -> str:
    """How the float32 gradient of the scatter is multiplied: as exactly as the result's dtype asks for."""
    if x.element_size() == 4:
        return precision
    return {"tf32x3": "tf32", "bf16x6": "bf16x3"}.get(precision, precision)

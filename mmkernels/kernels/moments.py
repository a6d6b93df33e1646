"""Row sums and sums of products of the kernel matrices of one or two views of the same rows.

The launchers. Arguments and results are those of `tiled/moments.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from mmkernels.kernels._configs import WAVE, Tile, moments_tile, multiprocessors, on_device, slices
from mmkernels.kernels._moments import moments_bwd_weight_kernel, moments_fwd_kernel
from mmkernels.kernels._pairs import Pairs
from mmkernels.kernels._weights import gradients

_STORED = 2**28  # bytes of gradients of a kernel matrix at once


class _Two(NamedTuple):
    """Both views of a batch entry; one view stands for both."""

    x: Pairs
    y: Pairs
    centres: tuple[Tensor, Tensor]

    def arguments(self, tile: Tile) -> dict[str, Any]:
        x, y = self.x, self.y
        both = {
            "x_ptr": x.x,
            "y_ptr": y.x,
            "x_norms_ptr": x.x_norms,
            "y_norms_ptr": y.x_norms,
            "x_gamma_ptr": x.gamma,
            "y_gamma_ptr": y.gamma,
            "x_coef_ptr": x.coef,
            "y_coef_ptr": y.coef,
            "x_centre_ptr": self.centres[0],
            "y_centre_ptr": self.centres[1],
            "stride_xm": x.x.stride(-2),
            "stride_xd": x.x.stride(-1),
            "stride_ym": y.x.stride(-2),
            "stride_yd": y.x.stride(-1),
            "N": x.x.shape[-2],
            "D_x": x.x.shape[-1],
            "D_y": y.x.shape[-1],
            "KERNEL": x.kernel,
            "DEGREE": x.degree,
            "Q": x.gamma.shape[-1],
            "EVEN_D": x.x.shape[-1] % tile.BLOCK_D == 0,
            "Y_KERNEL": y.kernel,
            "Y_DEGREE": y.degree,
            "Y_Q": y.gamma.shape[-1],
            "Y_EVEN_D": y.x.shape[-1] % tile.BLOCK_D == 0,
            "INPUT_PRECISION": "ieee" if x.x.element_size() == 2 else x.precision,
        }
        return both | tile._asdict()


def _entries(
    views: Sequence[Tensor],
    gammas: Sequence[Tensor],
    coefs: Sequence[Tensor],
    centres: Sequence[Tensor],
    kernels: Sequence[str],
    degrees: Sequence[int],
    precision: str,
) -> list[_Two]:
    """Every batch entry's views, ready for the kernels."""
    ready = [
        Pairs.of(x, None, gamma, coef, kernel, degree, precision)
        for x, gamma, coef, kernel, degree in zip(views, gammas, coefs, kernels, degrees, strict=True)
    ]
    return [
        _Two(
            ready[0].entry(b),
            ready[-1].entry(b),
            (centres[0][b : b + 1].contiguous(), centres[-1][b : b + 1].contiguous()),
        )
        for b in range(len(views[0]))
    ]


def moments_fwd(
    views: Sequence[Tensor],
    gammas: Sequence[Tensor],
    coefs: Sequence[Tensor],
    centres: Sequence[Tensor],
    kernels: Sequence[str],
    degrees: Sequence[int],
    wants: Sequence[bool],
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what wants asks for, empty tensors for the rest; float64 but for the first.

    Row sums (B, V, N), sums of K_u * K_v (B, V, V), of the product of all (B,), and of its square (B,).
    """
    V, (B, N, _), new = len(views), views[0].shape, gammas[0].new_zeros
    squares = wants[1] or wants[3] or V == 1
    rows = new((B, V, N))
    pairs = new((B, V, V), dtype=torch.float64)
    product, square = (new((B,), dtype=torch.float64) for _ in range(2))
    if N and B:
        with on_device(views[0]):
            for b, two in enumerate(_entries(views, gammas, coefs, centres, kernels, degrees, precision)):
                own, (kl, kk, ll, kkll) = _sums(two, squares)
                rows[b] = own[:V]
                pairs[b, 0, 0], pairs[b, 0, -1], pairs[b, -1, 0], pairs[b, -1, -1] = (
                    (kk, kl, kl, ll) if V == 2 else (kk, kk, kk, kk)
                )
                product[b] = kl if V == 2 else own[0].double().sum()
                square[b] = kkll if V == 2 else kk
    found = (rows, pairs, product, square)
    first, second, third, fourth = (t if want else t.new_empty(0) for t, want in zip(found, wants, strict=True))
    return first, second, third, fourth


def _sums(two: _Two, squares: bool) -> tuple[Tensor, Tensor]:
    """Row sums of K and L (2, N), and the sums of K L, K K, L L and K K L L (4,), float64."""
    N, new = two.x.x.shape[-2], two.x.gamma.new_zeros
    tile = moments_tile(two.x.x, max(two.x.x.shape[-1], two.y.x.shape[-1]), two.x.precision)
    row_tiles = triton.cdiv(N, tile.BLOCK_M)
    wave = max(1, WAVE // tile.BLOCK_M)
    rows, totals = new(2, N), new(4, dtype=torch.float64)
    for tiles in slices(row_tiles, wave):
        count = tiles.stop - tiles.start
        # each program a few column tiles, but enough programs to fill the device a few times over
        spans = min(row_tiles, triton.cdiv(4 * multiprocessors(two.x.x.device), count))
        span = triton.cdiv(row_tiles, spans)
        spans = triton.cdiv(row_tiles, span)
        parts, columns = new(spans, 6, count * tile.BLOCK_M), new(count, 2, N)
        moments_fwd_kernel[(count * spans,)](
            **two.arguments(tile),
            rows_ptr=parts,
            columns_ptr=columns,
            first=tiles.start,
            tiles=count,
            span=span,
            SQUARES=squares,
        )
        start = tiles.start * tile.BLOCK_M
        here = min(N - start, count * tile.BLOCK_M)
        rows += columns.sum(0)
        rows[:, start : start + here] += parts[:, :2, :here].sum(0)
        totals += parts[:, 2:, :here].sum((0, 2), dtype=torch.float64)
    return rows, totals


def moments_bwd(
    views: Sequence[Tensor],
    gammas: Sequence[Tensor],
    coefs: Sequence[Tensor],
    centres: Sequence[Tensor],
    kernels: Sequence[str],
    degrees: Sequence[int],
    grad_rows: Tensor,
    grad_pairs: Tensor,
    grad_product: Tensor,
    grad_square: Tensor,
    needs: Sequence[bool],
    precision: str,
) -> list[Tensor]:
    """Return the gradients of views, gammas and coefs that needs asks for, empty tensors for the others.

    The gradients of what was not asked for are empty.
    """
    V, (B, N, _) = len(views), views[0].shape
    tensors = [*views, *gammas, *coefs]
    if N == 0 or B == 0:
        return [t.new_zeros(t.shape if need else (0,)) for t, need in zip(tensors, needs, strict=True)]
    of = [any(needs[k] for k in (v, V + v, 2 * V + v)) for v in range(V)]
    totals = [
        t.new_zeros(t.shape, dtype=torch.float32) if need else None for t, need in zip(tensors, needs, strict=True)
    ]
    height = max(1, min(N, _STORED // (8 * N)))
    with on_device(views[0]):
        P = gammas[0].new_empty(2, height, N)
        for b, two in enumerate(_entries(views, gammas, coefs, centres, kernels, degrees, precision)):
            rows = gammas[0].new_zeros(2, N)
            if grad_rows.numel():
                rows[:V] = grad_rows[b]
            grads = _scalar_gradients(V, b, grad_pairs, grad_product, grad_square, gammas[0], rows)
            tile = moments_tile(two.x.x, max(two.x.x.shape[-1], two.y.x.shape[-1]), precision)
            for i in slices(N, height):
                n = i.stop - i.start
                moments_bwd_weight_kernel[(triton.cdiv(n, tile.BLOCK_M) * triton.cdiv(N, tile.BLOCK_N),)](
                    **two.arguments(tile),
                    grad_rows_ptr=rows,
                    grads_ptr=grads,
                    x_out_ptr=P[0],
                    y_out_ptr=P[1],
                    first=i.start,
                    rows=n,
                    OF_X=of[0],
                    OF_Y=V == 2 and of[1],
                )
                for v in range(V):
                    if of[v]:
                        _add_gradients(
                            (two.x, two.y)[v],
                            views[v][b],
                            i,
                            P[v, :n],
                            [None if t is None else t[b] for t in totals[v::V]],
                        )
    return [t.new_empty(0) if total is None else total.to(t.dtype) for t, total in zip(tensors, totals, strict=True)]


def _add_gradients(pairs: Pairs, x: Tensor, i: slice, P: Tensor, totals: Sequence[Tensor | None]) -> None:
    """Add what rows i of K, whose gradient is P, say about x, gamma and coef, where that is needed."""
    block = pairs._replace(
        x=pairs.x[None, i],
        y=pairs.x[None],
        x_norms=pairs.x_norms[None, i] if pairs.distance else pairs.coef,
        y_norms=pairs.x_norms[None] if pairs.distance else pairs.coef,
        gamma=pairs.gamma[None],
        symmetric=False,
    )
    of_x, of_gamma, of_coef = totals
    needs = [of_x is not None, of_x is not None, of_gamma is not None, of_coef is not None]
    like = pairs.gamma.new_empty(1, 0, x.shape[1])  # float32: parts cancel, and 16 bits come after their sum
    dx, dy, dgamma, dcoef = gradients(block, like, like, P[None], None, needs)
    if of_x is not None:
        of_x[i] += dx[0]
        of_x += dy[0]
    if of_gamma is not None:
        of_gamma += dgamma[0]
    if of_coef is not None:
        of_coef += dcoef[0]


def _scalar_gradients(
    V: int, b: int, grad_pairs: Tensor, grad_product: Tensor, grad_square: Tensor, like: Tensor, rows: Tensor
) -> Tensor:
    """The gradients of the sums of K L, K K, L L and K K L L, (4,); of one view's product, its row sums get them."""
    grads = like.new_zeros(4)
    if grad_pairs.numel():
        grads[1], grads[2] = grad_pairs[b, 0, 0], grad_pairs[b, -1, -1]
        if V == 2:
            grads[0] = grad_pairs[b, 0, 1] + grad_pairs[b, 1, 0]
    if grad_product.numel():
        if V == 2:
            grads[0] += grad_product[b]
        else:
            rows[0] += grad_product[b]
    if grad_square.numel():
        grads[3 if V == 2 else 1] += grad_square[b]
    return grads

"""From the gradient of K to those of x, y and the parameters: launchers that `matmul` and `gram` share."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from mmkernels.kernels._configs import Tile, matmul_narrow_tile, matmul_tile, slices
from mmkernels.kernels._matmul_bwd import matmul_bwd_kernel, matmul_bwd_signs_kernel, matmul_bwd_weight_kernel
from mmkernels.kernels._pairs import L1, Pairs

_BLOCK = 8192  # side of a stored block of weights: 256 MiB in float32


def gradients(
    pairs: Pairs, x: Tensor, y: Tensor | None, left: Tensor, right: Tensor | None, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, y, gamma and coef that needs asks for, empty tensors for the others.

    The gradient of K is left right', or left where right is None; of a symmetric K both (i, j) and (j, i) count.
    """
    need_x, need_y, need_gamma, need_coef = needs[0], needs[1] and y is not None, needs[2], needs[3]
    B, N, M = *pairs.x.shape[:2], pairs.y.shape[1]
    dx = x.new_zeros(pairs.x.shape if need_x else (0,))
    dy = x.new_zeros(pairs.y.shape if need_y else (0,))
    dgamma = pairs.gamma.new_zeros(pairs.gamma.shape if need_gamma else (0,))
    dcoef = pairs.coef.new_zeros(pairs.coef.shape if need_coef else (0,))
    if B and N and M:
        factors = _Factors.of(left, right, pairs)
        tile = matmul_narrow_tile(pairs.x, pairs.precision, B * min(N, M))
        if tile is not None and pairs.kernel != L1:
            if need_x:
                _streamed_weights(pairs, factors, tile, dx, transposed=False)
            if need_y:
                _streamed_weights(pairs.transpose(), factors.transpose(), tile, dy, transposed=right is None)
            stored = dx[:0], dy[:0]
        else:
            stored = dx, dy
        if any(t.numel() for t in (*stored, dgamma, dcoef)):
            for b in range(B):
                _stored_weights(pairs.entry(b), factors.entry(b), *(t[b : b + 1] for t in (*stored, dgamma, dcoef)))
    D = x.shape[2]
    return dx[..., :D].contiguous(), dy[..., :D].contiguous(), dgamma, dcoef


class _Factors(NamedTuple):
    """The gradient of K: the product left right', or left as it is."""

    left: Tensor  # (B, N, E), or (B, N, M)
    right: Tensor | None  # (B, M, E)
    precision: str

    @classmethod
    def of(cls, left: Tensor, right: Tensor | None, pairs: Pairs) -> _Factors:
        """In the dtype that products of weights are taken in."""
        if right is None:
            return cls(left, None, "ieee")
        (left, precision), (right, _) = pairs.product(left), pairs.product(right)
        return cls(left, right, precision)

    def transpose(self) -> _Factors:
        """The same with the roles of x and y swapped."""
        return self if self.right is None else self._replace(left=self.right, right=self.left)

    def entry(self, b: int) -> _Factors:
        """One batch entry, its dimension kept out."""
        return self._replace(left=self.left[b], right=None if self.right is None else self.right[b])

    def arguments(self) -> dict[str, Any]:
        """What every kernel that forms the gradient of K is launched with."""
        E = 0 if self.right is None else self.right.shape[-1]
        block_e = 16  # few registers are left beside the scores and the rows
        return {
            "left_ptr": self.left,
            "right_ptr": self.right,
            "E": E,
            "GIVEN": self.right is None,
            "EVEN_E": E % block_e == 0,
            "PRODUCT_PRECISION": self.precision,
            "BLOCK_E": block_e,
        }


def _streamed_weights(pairs: Pairs, factors: _Factors, tile: Tile, dx: Tensor, transposed: bool) -> None:
    """The gradient of the rows with weights never stored; transposed: a given gradient of K is that of K'."""
    B, N, _ = pairs.x.shape
    matmul_bwd_kernel[(B * triton.cdiv(N, tile.BLOCK_M),)](
        **pairs.arguments(tile, features=False),
        **factors.arguments(),
        dx_ptr=dx,
        DISTANCE=pairs.distance,
        TRANSPOSED=transposed,
    )


def _stored_weights(pairs: Pairs, factors: _Factors, dx: Tensor, dy: Tensor, dgamma: Tensor, dcoef: Tensor) -> None:
    """Write blocks of weights and multiply them by the library; what has no elements is not computed."""
    (N, D), M = pairs.x.shape, len(pairs.y)
    store, parameters = dx.numel() + dy.numel() > 0, dgamma.numel() + dcoef.numel() > 0
    tile = matmul_tile(pairs.x, pairs.precision)
    new, buffer = pairs.gamma.new_zeros, pairs.gamma.new_empty
    height, width = (
        triton.cdiv(min(size, _BLOCK), block) * block for size, block in ((N, tile.BLOCK_M), (M, tile.BLOCK_N))
    )
    dtype = torch.bfloat16 if pairs.x.dtype == torch.bfloat16 and pairs.kernel != L1 else torch.float32
    weights = pairs.x.new_empty((height, width) if store else (0, 0), dtype=dtype)
    # Sums over the other side: of weights times rows, and of weights alone.
    dx_total, dy_total = new((N, D) if dx.numel() else (0,)), new((M, D) if dy.numel() else (0,))
    rows, columns = new(N), new(M)
    share = 0.5 if pairs.symmetric else 1.0  # every pair is met twice
    for i in slices(N, _BLOCK):
        for j in slices(M, _BLOCK):
            n, m = i.stop - i.start, j.stop - j.start
            row_tiles, column_tiles = triton.cdiv(n, tile.BLOCK_M), triton.cdiv(m, tile.BLOCK_N)
            whole_rows, whole_columns = row_tiles * tile.BLOCK_M, column_tiles * tile.BLOCK_N
            row_sum, column_sum = buffer(column_tiles, whole_rows), buffer(row_tiles, whole_columns)
            gamma_sum = buffer(column_tiles, len(pairs.gamma), whole_rows)
            coef_sum = buffer(column_tiles, whole_rows)
            matmul_bwd_weight_kernel[(row_tiles * column_tiles,)](
                **pairs.arguments(tile),
                **factors.arguments(),
                w_ptr=weights,
                stride_wm=width,
                row_sum_ptr=row_sum,
                column_sum_ptr=column_sum,
                gamma_sum_ptr=gamma_sum,
                coef_sum_ptr=coef_sum,
                first_m=i.start,
                first_n=j.start,
                row_tiles=row_tiles,
                DISTANCE=pairs.distance,
                STORE_WEIGHTS=store,
                SUM_PARAMETERS=parameters,
            )
            w = weights[:n, :m]
            if store and pairs.distance:
                rows[i] += row_sum.sum(0)[:n]
                columns[j] += column_sum.sum(0)[:m]
            if dx.numel():
                _add_product(pairs.kernel, dx_total[i], w, pairs.x[i], pairs.y[j])
            if dy.numel():
                _add_product(pairs.kernel, dy_total[j], w.T, pairs.y[j], pairs.x[i])
            if dgamma.numel():
                dgamma[0] += share * gamma_sum[..., :n].sum((0, 2))
            if dcoef.numel():
                dcoef += share * coef_sum[:, :n].sum()
    factor = pairs.gamma[:1] if len(pairs.gamma) == 1 else torch.ones_like(pairs.gamma[:1])
    for out, total, sums, own in ((dx, dx_total, rows, pairs.x), (dy, dy_total, columns, pairs.y)):
        if out.numel():
            out[0] = factor * (2 * (sums[:, None] * own - total) if pairs.distance else total)


def _add_product(kernel: str, total: Tensor, w: Tensor, x: Tensor, y: Tensor) -> None:
    """total += w @ y, accumulated in float32, or for an L1 distance the sums of w times the signs of x - y."""
    if kernel == L1:
        (N, D), M = x.shape, len(y)
        block_m, block_d = 32, min(32, max(4, triton.next_power_of_2(D)))
        matmul_bwd_signs_kernel[(triton.cdiv(N, block_m) * triton.cdiv(D, block_d),)](
            w, x.contiguous(), y.contiguous(), total,
            stride_wm=w.stride(0), stride_wn=w.stride(1), stride_xm=D, stride_yn=D, N=N, M=M, D=D,
            BLOCK_M=block_m, BLOCK_N=4, BLOCK_D=block_d,
        )  # fmt: skip
    elif w.is_cuda and w.dtype == torch.bfloat16:
        torch.addmm(total, w, y, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(w.float(), y.float())

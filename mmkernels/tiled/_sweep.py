"""Tiles of a kernel's argument in turn, and the gradients that a weight per pair sends back to x, y and the parameters.

x is (B, N, D), y (B, M, D) or None for x itself: then only tiles on and above the diagonal are visited. Thin products
are kept transposed, features by rows: that is several times faster on a CPU where the features are few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mmkernels.tiled._pair import DOTS, L1, SHIFTED, over_pairs, rate, slope_factor, slopes, values
from mmkernels.tiled._tiles import compute_dtype, scratch, slices, tile, tile_side


class Step(NamedTuple):
    """One tile of some batch entries."""

    batch: slice
    rows: slice
    cols: slice
    x: Tensor  # (b, n, D + 1): the rows, centred where distances are formed, and a column of ones
    y: Tensor  # (b, m, D + 1)
    buffers: tuple[Tensor, ...]  # (b, n, m) each; the first holds u
    mirrored: bool  # stands for the tile below the diagonal too


def shift(kernel: str, x: Tensor) -> Tensor | None:
    """What is subtracted from x and y before distances are formed: digits that they share would be lost."""
    return None if kernel in DOTS or x.shape[1] == 0 else x.detach().mean(1, keepdim=True, dtype=compute_dtype(x.dtype))


def steps(
    kernel: str,
    x: Tensor,
    y: Tensor | None,
    gamma: Tensor,
    coef: Tensor,
    buffers: int,
    storage: Tensor | None = None,
) -> Iterator[Step]:
    """Visit every tile, with u = rate * a (+ coef) in the first of its buffers, which lie in storage if given."""
    (B, N, D), M, dtype = x.shape, (x if y is None else y).shape[1], compute_dtype(x.dtype)
    if B == 0 or N == 0 or M == 0:
        return
    side = tile_side(x.dtype)
    group, size = tile_size(B, N, M, side)
    middle = shift(kernel, x)
    storage = scratch(x, buffers, size, dtype) if storage is None else storage
    for b in slices(B, group):
        c, centre = rate(kernel, gamma[b], coef[b]), None if middle is None else middle[b]
        offset = over_pairs(coef[b]) if kernel in SHIFTED else torch.zeros_like(c)
        for i in slices(N, side):
            xi, x_norms = _operand(x[b, i], centre, dtype)
            if kernel in DOTS:
                scaled = torch.cat([c * xi[..., :D], offset.expand_as(x_norms)], 2)
            else:
                scaled = torch.cat([-2 * c * xi[..., :D], c * x_norms, c.expand_as(x_norms)], 2)
            for j in slices(M, side):
                if y is None and j.start < i.start:
                    continue
                yj, y_norms = _operand((x if y is None else y)[b, j], centre, dtype)
                tiles = tile(storage, len(xi), xi.shape[1], yj.shape[1])
                if kernel == L1:
                    torch.mul(torch.cdist(xi[..., :D], yj[..., :D], p=1), c, out=tiles[0])
                elif kernel in DOTS:
                    torch.bmm(scaled, yj.mT, out=tiles[0])
                else:
                    torch.bmm(scaled, torch.cat([yj, y_norms], 2).mT, out=tiles[0])
                    _snap(tiles[0], x_norms, y_norms, c, kernel, y is None and i == j)
                yield Step(b, i, j, xi, yj, tiles, y is None and i != j)


def tile_size(B: int, N: int, M: int, side: int) -> tuple[int, int]:
    """How many batch entries a step takes, and how many elements its tiles have at most."""
    height, width = min(N, side), min(M, side)
    group = min(B, max(1, side * side // max(1, height * width)))
    return group, group * height * width


def _operand(x: Tensor, centre: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The rows and a column of ones, and their squared norms (b, n, 1)."""
    D = x.shape[2]
    operand = x.new_ones(*x.shape[:2], D + 1, dtype=dtype)
    rows = operand[..., :D]
    rows.copy_(x)
    if centre is not None:
        rows -= centre
    return operand, rows.square().sum(2, keepdim=True)


def _snap(u: Tensor, x_norms: Tensor, y_norms: Tensor, c: Tensor, kernel: str, itself: bool) -> None:
    """Set to 0 the distances that rounding cannot tell from it, so that equal rows have distance 0.

    itself: the tile's rows and columns are the same, and its diagonal is 0.
    """
    sign = -1 if kernel == "rbf" else 1
    tolerance = 4 * torch.finfo(u.dtype).eps
    diagonal = u.diagonal(dim1=1, dim2=2) if itself else u[..., 0, :0]
    diagonal.fill_(sign * torch.inf)
    near = True
    if u.device.type == "cpu":  # asking saves several passes; elsewhere the host would wait for the answer
        nearest = -u.amax() if sign < 0 else u.amin()
        near = not nearest > tolerance * c.abs().amax() * (x_norms.amax() + y_norms.amax())
    if near:
        u.masked_fill_(u.abs() <= tolerance * c.abs() * (x_norms + y_norms.mT), 0)
    diagonal.zero_()


def gradients(
    x: Tensor,
    y: Tensor | None,
    gamma: Tensor,
    coef: Tensor,
    kernel: str,
    degree: int,
    upstream: Callable[[Step, Tensor], Tensor],
    needs: list[bool],
    factors: tuple[Tensor, Tensor] | None = None,
    visit: Callable[[Step, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, y, gamma and coef that needs asks for, empty tensors for the others.

    Args:
        x, y, gamma, coef, kernel, degree: as everywhere.
        upstream: writes a tile of the gradient of K into the buffer and returns it, for a symmetric K that of both
            pairs (i, j) and (j, i).
        needs: of x, y, gamma, coef.
        factors: vectors (B, N, 1) and (B, M, 1) whose outer product is the gradient of K, used instead of upstream
            where that is simpler.
        visit: called with every tile of K, before the tile is used up.
    """
    if y is None or kernel == L1 or needs[2] or needs[3]:
        factors = None
    sums = PairGradients(x, y, gamma, coef, kernel, degree, needs)
    for step in steps(kernel, x, y, gamma, coef, 5):
        b = step.batch
        u, k, _, p, spare = step.buffers
        k = values(kernel, degree, gamma[b], coef[b], u, k, spare)
        if visit is not None:
            visit(step, k)
        if any(needs):
            sums.add(step, k, upstream(step, p) if factors is None else None, factors)
    return sums.result(factors)


class PairGradients:
    """The gradients of x, y, gamma and coef, summed over tiles in any order."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor | None,
        gamma: Tensor,
        coef: Tensor,
        kernel: str,
        degree: int,
        needs: list[bool],
    ) -> None:
        (B, N, D), M, dtype = x.shape, (x if y is None else y).shape[1], compute_dtype(x.dtype)
        self.x, self.y, self.gamma, self.coef, self.kernel, self.degree = x, y, gamma, coef, kernel, degree
        self.need_x, self.need_y, self.need_gamma, self.need_coef = needs
        self.need_y = self.need_y and y is not None
        # What is summed over the other side: weights times its rows, and the weights themselves.
        self.sum_x = x.new_zeros((B, D + 1, N) if self.need_x else (0,), dtype=dtype)
        self.sum_y = x.new_zeros((B, D + 1, M) if self.need_y else (0,), dtype=dtype)
        self.parameters = _ParameterSums(kernel, gamma, coef)

    def add(self, step: Step, k: Tensor, p: Tensor | None, factors: tuple[Tensor, Tensor] | None = None) -> None:
        """Add a tile of k, which is used up, with p its gradient: for y None that of both pairs (i, j) and (j, i).

        The step has five buffers: u, that of k, and the last one are used; factors stand for p where it is None.
        """
        b, i, j, kernel = step.batch, step.rows, step.cols, self.kernel
        u, w, spare = step.buffers[0], step.buffers[2], step.buffers[4]
        w = slopes(kernel, self.degree, self.gamma[b], u, k, w, spare)
        right, left = step.y, step.x
        if p is not None:
            share = 0.5 if self.y is None and not step.mirrored else 1.0  # p holds both pairs
            if self.need_gamma or self.need_coef:
                self.parameters.add(b, share, u, k, p, spare)
            w.mul_(p)
            if self.need_gamma or self.need_coef:
                self.parameters.add_weights(b, share, u, w, spare)
            if self.y is None and i == j and kernel not in DOTS:
                w.diagonal(dim1=1, dim2=2).zero_()  # a row and itself add nothing, not even a rounding
        elif factors is not None:
            right, left = right * factors[1][b, j], left * factors[0][b, i]
        if self.need_x:
            _add(self.sum_x[b, :, i], w, right, step.y, step.x, kernel)
            if step.mirrored:
                _add(self.sum_x[b, :, j], w.mT, left, step.x, step.y, kernel)
        if self.need_y:
            _add(self.sum_y[b, :, j], w.mT, left, step.x, step.y, kernel)

    def result(self, factors: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradients that were needed, empty tensors for the others."""
        x, y, kernel = self.x, self.y, self.kernel
        factor, centre = slope_factor(kernel, self.degree, self.gamma), shift(kernel, x)
        outer = (None, None) if factors is None else factors
        dx = _finish(x, self.sum_x, factor, centre, kernel, outer[0]) if self.need_x else self.sum_x.to(x.dtype)
        dy = self.sum_y.to(x.dtype)
        if self.need_y and y is not None:
            dy = _finish(y, self.sum_y, factor, centre, kernel, outer[1])
        dgamma, dcoef = self.parameters.result(factor)
        return (
            dx,
            dy,
            dgamma if self.need_gamma else dgamma.new_empty(0),
            dcoef if self.need_coef else dcoef.new_empty(0),
        )


def _add(total: Tensor, w: Tensor, right: Tensor, y: Tensor, x: Tensor, kernel: str) -> None:
    """total += (w @ right)', or for an L1 distance the sums of w times the signs of x - y."""
    if kernel != L1:
        total.baddbmm_(right.mT, w.mT)
        return
    x, y, w = x[..., :-1].contiguous(), y[..., :-1].contiguous(), w.contiguous()
    total[:, :-1] += torch.ops.aten._cdist_backward(w, x, y, 1.0, w).mT


def _finish(
    x: Tensor, total: Tensor, factor: Tensor, centre: Tensor | None, kernel: str, scale: Tensor | None
) -> Tensor:
    """The gradient of x from its sums, some rows at a time."""
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    for i in slices(x.shape[1], tile_side(x.dtype)):
        product = total[:, :-1, i].mT
        if kernel not in DOTS and kernel != L1 and centre is not None:
            product = 2 * ((x[:, i].to(total.dtype) - centre) * total[:, -1:, i].mT - product)
        dx[:, i] = product * (factor if scale is None else factor * scale[:, i])
    return dx


class _ParameterSums:
    """Sums over all pairs from which the gradients of gamma and coef follow."""

    def __init__(self, kernel: str, gamma: Tensor, coef: Tensor) -> None:
        self.kernel, self.gamma, self.coef = kernel, gamma, coef
        self.weighted, self.weights, self.direct = (torch.zeros_like(t) for t in (gamma, coef, coef))

    def add(self, b: slice, share: float, u: Tensor, k: Tensor, p: Tensor, spare: Tensor) -> None:
        """Where dk/dgamma or dk/dcoef is no multiple of the slope: p is the gradient of K."""
        if self.gamma.shape[1] != 1:
            for q in range(self.gamma.shape[1]):
                e = torch.mul(u, self.gamma[b, q, None, None], out=spare).exp_().mul_(u).mul_(p)
                self.weighted[b, q] += share * e.sum((1, 2))
        elif self.kernel == "rational_quadratic":
            torch.log1p(u, out=spare).sub_(u / (1 + u)).mul_(k).mul_(p)
            self.direct[b] -= share * spare.sum((1, 2))

    def add_weights(self, b: slice, share: float, u: Tensor, w: Tensor, spare: Tensor) -> None:
        """w is the gradient of K times the slope."""
        if self.gamma.shape[1] == 1:
            self.weighted[b, 0] += share * torch.mul(w, u, out=spare).sum((1, 2))
            self.weights[b] += share * w.sum((1, 2))

    def result(self, factor: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of gamma (B, Q) and coef (B,)."""
        if self.gamma.shape[1] != 1:
            return self.weighted, self.direct
        weighted, per_gamma = self.weighted[:, 0], factor.flatten() / self.gamma[:, 0]
        if self.kernel in SHIFTED:
            weighted = weighted - self.coef * self.weights
            self.direct = per_gamma * self.weights
        return (per_gamma * weighted / rate(self.kernel, self.gamma, self.coef).flatten())[:, None], self.direct

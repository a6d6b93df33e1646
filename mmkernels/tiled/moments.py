"""Row sums and sums of products of the kernel matrices of several views of the same rows, in one sweep.

Arguments and results are those of `kernels/moments.py`. A view x_v is (B, N, D_v), its kernel matrix K_v has gammas[v]
(B, Q), coefs[v] (B,), kernels[v] and degrees[v], as in `_pair.py`; centres[v] (B,) is subtracted from all its entries
first, so that sums whose terms cancel keep their digits. Tiles on and above the diagonal stand for all.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mmkernels.tiled._pair import over_pairs, values
from mmkernels.tiled._sweep import PairGradients, Step, steps, tile_size
from mmkernels.tiled._tiles import compute_dtype, scratch, tile_side


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
    V, (B, N, _), dtype = len(views), views[0].shape, compute_dtype(views[0].dtype)
    want_rows, want_pairs, want_product, want_square = wants
    rows = views[0].new_zeros((B, V, N) if want_rows else (0,), dtype=dtype)
    pairs = views[0].new_zeros((B, V, V) if want_pairs else (0,), dtype=torch.float64)
    product, square = (
        views[0].new_zeros((B,) if want else (0,), dtype=torch.float64) for want in (want_product, want_square)
    )
    for step, tiles, spare in _tiles(views, gammas, coefs, centres, kernels, degrees, 3):
        b, i, j, count = step[0].batch, step[0].rows, step[0].cols, 2 if step[0].mirrored else 1
        for v, k in enumerate(tiles):
            if want_rows:
                rows[b, v, i] += k.sum(2)
                if count == 2:
                    rows[b, v, j] += k.sum(1)
            if want_pairs:
                for u in range(v + 1):
                    pairs[b, u, v] += count * _dot(tiles[u], k)
        if want_product or want_square:
            p = tiles[0]
            for k in tiles[1:-1]:
                p = torch.mul(p, k, out=spare)
            if want_product:
                product[b] += count * (_dot(p, tiles[-1]) if V > 1 else p.double().sum((1, 2)))
            if want_square:
                p = torch.mul(p, tiles[-1], out=spare) if V > 1 else p
                square[b] += count * _dot(p, p)
    if want_pairs:
        pairs = pairs.triu() + pairs.triu(1).mT
    return rows, pairs, product, square


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The sums of a * b (n,) of tiles (n, height, width): float64 sums of rows, or float32 would keep five digits."""
    return torch.einsum("nij,nij->ni", a, b).sum(1, dtype=torch.float64)


def _tiles(
    views: Sequence[Tensor],
    gammas: Sequence[Tensor],
    coefs: Sequence[Tensor],
    centres: Sequence[Tensor],
    kernels: Sequence[str],
    degrees: Sequence[int],
    buffers: int,
) -> Iterator[tuple[tuple[Step, ...], list[Tensor], Tensor]]:
    """Yield every view's step, its tile of K less the centre, and scratch of the tiles' shape.

    With five buffers a step keeps u in the first of them and K in the second, as `PairGradients` takes them.
    """
    B, N, _ = views[0].shape
    _, size = tile_size(B, N, N, tile_side(views[0].dtype))
    block = scratch(views[0], len(views) * buffers, size, compute_dtype(views[0].dtype))
    sweeps = [
        steps(kernel, x, None, gamma, coef, buffers, block[v * buffers : (v + 1) * buffers])
        for v, (x, gamma, coef, kernel) in enumerate(zip(views, gammas, coefs, kernels, strict=True))
    ]
    for step in zip(*sweeps, strict=True):
        tiles = []
        for v, s in enumerate(step):
            u, spare = s.buffers[0], s.buffers[-1]
            k = u if buffers == 3 and gammas[v].shape[1] == 1 else s.buffers[1]  # in place: half the memory to touch
            k = values(kernels[v], degrees[v], gammas[v][s.batch], coefs[v][s.batch], u, k, spare)
            tiles.append(k)
        for k, centre in zip(tiles, centres, strict=True):
            k -= over_pairs(centre[step[0].batch])
        yield step, tiles, step[0].buffers[-1]


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
    V = len(views)
    wanted = [[needs[v], False, needs[V + v], needs[2 * V + v]] for v in range(V)]
    sums = [
        PairGradients(x, None, gamma, coef, kernel, degree, need)
        for x, gamma, coef, kernel, degree, need in zip(views, gammas, coefs, kernels, degrees, wanted, strict=True)
    ]
    dtype = compute_dtype(views[0].dtype)
    grads = [g.to(dtype) for g in (grad_rows, grad_pairs, grad_product, grad_square)]
    for step, tiles, _ in _tiles(views, gammas, coefs, centres, kernels, degrees, 5):
        weights = [
            _weights(step[v], tiles, v, grads, step[v].buffers[3], step[v].buffers[4]) if any(wanted[v]) else None
            for v in range(V)
        ]
        for v, p in enumerate(weights):
            if p is not None:
                k = tiles[v].add_(over_pairs(centres[v][step[v].batch]))
                sums[v].add(step[v], k, p)
    results = [s.result() for s in sums]
    return [results[v][at] for at in (0, 2, 3) for v in range(V)]


def _weights(
    step: Step,
    tiles: Sequence[Tensor],
    v: int,
    grads: Sequence[Tensor],
    out: Tensor,
    spare: Tensor,
) -> Tensor:
    """The gradient of the pairs (i, j) and (j, i) of K_v together, written into out."""
    b, i, j = step.batch, step.rows, step.cols
    grad_rows, grad_pairs, grad_product, grad_square = grads
    if grad_rows.numel():
        torch.add(grad_rows[b, v, i, None], grad_rows[b, v, None, j], out=out)
    else:
        out.zero_()
    if grad_pairs.numel():
        both = 2 * (grad_pairs[b] + grad_pairs[b].mT)
        for u, k in enumerate(tiles):
            out.addcmul_(k, both[:, u, v, None, None])
    if grad_product.numel() or grad_square.numel():
        others = [k for u, k in enumerate(tiles) if u != v]
        rest = spare.copy_(others[0]) if others else spare.fill_(1)
        for k in others[1:]:
            rest.mul_(k)
        if grad_product.numel():
            out.addcmul_(rest, 2 * grad_product[b, None, None])
        if grad_square.numel():
            out.addcmul_(rest.square_().mul_(tiles[v]), 4 * grad_square[b, None, None])
    return out

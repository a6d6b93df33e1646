"""Nearest neighbours and counts within a radius by distances, tile by tile.

Arguments and results are those of `kernels/nearest.py`. Views are (N, D_v); two rows are as far apart as in the view
where they are farthest, by the maximum norm or the Euclidean one, whose squares are meant then. Both functions form the
same differences in the same order, so that a distance from the one ties with itself in the other.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mmkernels.tiled._tiles import compute_dtype, scratch, slices, tile, tile_side


def _tiles(views: Sequence[Tensor], euclidean: bool) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Yield the rows and columns of each tile, its distances, NaN on the diagonal, and scratch of its shape."""
    N, dtype = len(views[0]), compute_dtype(views[0].dtype)
    side = tile_side(dtype)
    columns = [x.to(dtype).mT.contiguous() for x in views]
    buffers = scratch(views[0], 3, min(N, side) ** 2, dtype)
    for rows in slices(N, side):
        for cols in slices(N, side):
            far, own, difference = tile(buffers, rows.stop - rows.start, cols.stop - cols.start)
            for v, x in enumerate(columns):
                out = far if v == 0 else own
                for f, feature in enumerate(x):
                    target = out if f == 0 else difference
                    torch.sub(feature[rows, None], feature[cols], out=target)
                    target.square_() if euclidean else target.abs_()
                    if f > 0:
                        out.add_(target) if euclidean else torch.maximum(out, target, out=out)
                if v > 0:
                    torch.maximum(far, own, out=far)
            if rows == cols:
                far.fill_diagonal_(torch.nan)
            yield rows, cols, far, difference


def nearest_topk(views: Sequence[Tensor], k: int, euclidean: bool, precision: str) -> tuple[Tensor, Tensor]:
    """Return the k smallest distances of each row to others, ascending, and their rows: (N, k) each.

    Infinity and -1 where overflow and NaN left too few.
    """
    N, dtype = len(views[0]), compute_dtype(views[0].dtype)
    values = views[0].new_full((N, k), torch.inf, dtype=dtype)
    found = views[0].new_full((N, k), -1, dtype=torch.int64)
    for rows, cols, far, _ in _tiles(views, euclidean):
        far.nan_to_num_(torch.inf, torch.inf)
        v, j = values[rows], found[rows]
        better = (far.amin(1) < v[:, -1]).nonzero().squeeze(1)  # few rows after the first tiles
        new, at = far[better].topk(min(k, far.shape[1]), largest=False)
        best, chosen = torch.cat([v[better], new], 1).topk(k, largest=False)
        v[better], j[better] = best, torch.cat([j[better], at + cols.start], 1).gather(1, chosen)
    return values, found.masked_fill_(values == torch.inf, -1)


def nearest_count(views: Sequence[Tensor], radii: Tensor, euclidean: bool, strict: bool, precision: str) -> Tensor:
    """Return how many others are nearer than its radius to each row (strict), or no farther: int64 (N,)."""
    count = radii.new_zeros(len(radii), dtype=torch.int64)
    for rows, _, far, _ in _tiles(views, euclidean):
        edge = radii[rows, None]
        count[rows] += (far < edge if strict else far <= edge).sum(1)
    return count

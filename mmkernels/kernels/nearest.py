"""Nearest neighbours and counts within a radius by distances.

The launchers, of one or two views. Arguments and results are those of `tiled/nearest.py`. Distances are direct
differences in float32, whatever the precision of products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from mmkernels.kernels._configs import nearest_tile, on_device, slices, split
from mmkernels.kernels._nearest import nearest_count_kernel, nearest_distances_kernel, nearest_topk_kernel

_MOST = 16  # the k up to which registers hold a row's k nearest
_STORED = 2**28  # bytes of distances stored at once for a larger k


def _arguments(views: Sequence[Tensor], euclidean: bool) -> dict[str, Any]:
    """What all kernels are launched with."""
    tile = nearest_tile(views[0])
    side = max(tile.BLOCK_M, tile.BLOCK_N)
    columns = torch.cat([x.mT for x in views]).float()
    x = pad(columns, (0, -columns.shape[1] % side), value=torch.nan)
    return {
        "x_ptr": x,
        "stride": x.shape[1],
        "D_x": views[0].shape[1] if euclidean else len(x),  # the larger of two maxima is one maximum
        "D": len(x),
        "EUCLIDEAN": euclidean,
        "TWO": euclidean and len(views) == 2,
        "BLOCK_M": tile.BLOCK_M,
        "BLOCK_N": tile.BLOCK_N,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
        "enable_fp_fusion": False,  # distances must be rounded alike in every kernel
    }


def _grid(N: int, x: Tensor) -> tuple[int, int, int]:
    """How many row tiles there are, how many column tiles a program takes, and how many programs a row tile has.

    Programs of one warp must be four times as many as others to fill the device.
    """
    tile = nearest_tile(x)
    tiles = triton.cdiv(N, tile.BLOCK_M)
    return tiles, *split(triton.cdiv(tiles * tile.num_warps, 4), N, tile, x.device)


def nearest_topk(views: Sequence[Tensor], k: int, euclidean: bool, precision: str) -> tuple[Tensor, Tensor]:
    """Return the k smallest distances of each row to others, ascending, and their rows: (N, k) each.

    Infinity and -1 where overflow and NaN left too few.
    """
    N, new = len(views[0]), views[0].new_empty
    if N == 0 or k == 0:
        return new(N, k, dtype=torch.float32), new(N, k, dtype=torch.int64)
    arguments = _arguments(views, euclidean)
    with on_device(views[0]):
        if k > _MOST:
            return _stored_topk(arguments, N, k)
        tiles, span, across = _grid(N, views[0])
        values, rows = new(N, across, k, dtype=torch.float32), new(N, across, k, dtype=torch.int32)
        nearest_topk_kernel[(tiles * across,)](
            **arguments,
            values_ptr=values,
            indices_ptr=rows,
            N=N,
            span=span,
            k=k,
            BLOCK_K=max(2, triton.next_power_of_2(k)),
        )
        best, at = values.flatten(1).topk(k, largest=False)
        return best, rows.flatten(1).gather(1, at).long()


def _stored_topk(arguments: dict[str, Any], N: int, k: int) -> tuple[Tensor, Tensor]:
    """The same from stored distances of some rows at a time."""
    x, height = arguments["x_ptr"], arguments["BLOCK_N"]  # of a tile of rows: its columns lie along BLOCK_M
    values, rows = x.new_full((N, k), torch.inf), x.new_full((N, k), -1, dtype=torch.int64)
    width, tiles = x.shape[1], triton.cdiv(N, height)
    step = min(tiles, max(1, _STORED // (4 * width * height)))
    far = x.new_empty(step * height, width)
    for part in slices(tiles, step):
        count = part.stop - part.start
        nearest_distances_kernel[(count * (width // arguments["BLOCK_M"]),)](
            **arguments, out_ptr=far, first=part.start, tiles=count
        )
        own = slice(part.start * height, min(N, part.stop * height))
        best, at = far[: own.stop - own.start].nan_to_num_(torch.inf, torch.inf).topk(min(k, width), largest=False)
        values[own, : best.shape[1]] = best
        rows[own, : best.shape[1]] = at.masked_fill_(best == torch.inf, -1)
    return values, rows


def nearest_count(views: Sequence[Tensor], radii: Tensor, euclidean: bool, strict: bool, precision: str) -> Tensor:
    """Return how many others are nearer than its radius to each row (strict), or no farther: int64 (N,)."""
    N = len(radii)
    if N == 0:
        return radii.new_empty(0, dtype=torch.int64)
    arguments = _arguments(views, euclidean)
    tiles, span, across = _grid(N, radii)
    parts = radii.new_empty(across, N, dtype=torch.int32)
    with on_device(radii):
        nearest_count_kernel[(tiles * across,)](
            **arguments, radii_ptr=radii.contiguous(), out_ptr=parts, N=N, span=span, STRICT=strict
        )
    return parts.sum(0)

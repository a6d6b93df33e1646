"""Which tile each kernel runs with, by chip, kind of arithmetic and width. Tables, no tuning: results are reproducible.

The tables hold what compiles without spilling registers and fits the chip's shared memory (`mmkernels.aot` checks it).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

WAVE = 8192  # rows that a sweep takes at a time: at D = 768 in 16 bit they take 12 MB and stay in the L2 cache
_SPAN = 16  # column tiles per program where there is work for all


class Tile(NamedTuple):
    """The shape of one step of a kernel, passed by keyword at the launch."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_D: int
    num_warps: int
    num_stages: int


# By chip and kind of arithmetic: 'half' is fp16 and bf16, 'single' fp32 on tensor cores (tf32, tf32x3, bf16x6), 'ieee'
# fp32 without them. _NARROW has one tile per width: BLOCK_D is the whole width, rounded up to a power of two.
_SCORES = {
    "sm_80": {"half": Tile(128, 128, 32, 8, 3), "single": Tile(64, 64, 16, 4, 2), "ieee": Tile(64, 64, 16, 4, 2)},
    "sm_90": {"half": Tile(128, 128, 64, 4, 3), "single": Tile(128, 64, 32, 8, 2), "ieee": Tile(64, 64, 16, 4, 2)},
    "sm_100": {"half": Tile(128, 128, 64, 8, 3), "single": Tile(128, 64, 32, 8, 2), "ieee": Tile(64, 64, 16, 4, 2)},
    "gfx942": {"half": Tile(128, 128, 32, 4, 2), "single": Tile(64, 64, 32, 4, 2), "ieee": Tile(64, 64, 32, 4, 2)},
    "interpreter": dict.fromkeys(("half", "single", "ieee"), Tile(64, 128, 128, 4, 1)),
}
# The kernels of neighbors hold row and column thresholds, or a row's best, beside the tile.
_NEIGHBORS = {
    "sm_80": {"half": Tile(128, 128, 32, 8, 3), "single": Tile(64, 64, 16, 8, 2), "ieee": Tile(64, 64, 16, 8, 2)},
    "sm_90": {"half": Tile(128, 128, 64, 8, 3), "single": Tile(128, 64, 32, 8, 2), "ieee": Tile(64, 64, 16, 4, 2)},
    "sm_100": {"half": Tile(64, 128, 64, 8, 3), "single": Tile(128, 64, 32, 8, 2), "ieee": Tile(64, 64, 16, 4, 2)},
    "gfx942": _SCORES["gfx942"],
    "interpreter": _SCORES["interpreter"],
}
_NARROW = {
    "sm_80": {
        "half": (Tile(128, 32, 64, 4, 3), Tile(128, 32, 128, 8, 2), Tile(64, 64, 256, 8, 2)),
        "single": (Tile(32, 32, 64, 4, 2),),
        "ieee": (Tile(32, 32, 64, 4, 1),),
    },
    "sm_90": {
        "half": (Tile(128, 64, 64, 8, 3), Tile(128, 64, 128, 8, 2), Tile(128, 32, 256, 8, 2)),
        "single": (Tile(64, 32, 64, 4, 2),),
        "ieee": (Tile(32, 32, 64, 4, 1),),
    },
    "sm_100": {
        "half": (
            Tile(64, 64, 32, 4, 2),
            Tile(128, 32, 64, 8, 3),
            Tile(128, 32, 128, 8, 2),
            Tile(64, 64, 256, 8, 2),
        ),
        "single": (Tile(64, 32, 64, 8, 2),),
        "ieee": (Tile(32, 32, 64, 4, 1),),
    },
    "gfx942": {
        "half": (Tile(64, 64, 64, 4, 1), Tile(64, 32, 128, 4, 1), Tile(64, 16, 256, 8, 1)),
        "single": (Tile(64, 32, 64, 4, 1),),
        "ieee": (Tile(64, 32, 64, 4, 1),),
    },
    "interpreter": dict.fromkeys(("half", "single", "ieee"), tuple(Tile(64, 128, d, 4, 1) for d in (64, 128, 256))),
}


# Kernel products: a tile of kernel values on its way into the second product, and that product's accumulator, share the
# registers.
_MATMUL = {
    "sm_80": {"half": Tile(128, 32, 32, 8, 2), "single": Tile(64, 32, 32, 4, 2), "ieee": Tile(32, 32, 16, 4, 1)},
    "sm_90": {"half": Tile(128, 64, 64, 8, 3), "single": Tile(64, 32, 32, 4, 2), "ieee": Tile(32, 32, 16, 4, 1)},
    "sm_100": {"half": Tile(64, 64, 64, 4, 2), "single": Tile(64, 32, 32, 4, 2), "ieee": Tile(32, 32, 16, 4, 1)},
    "gfx942": {"half": Tile(64, 64, 32, 4, 1), "single": Tile(64, 32, 32, 4, 1), "ieee": Tile(64, 32, 32, 4, 1)},
    "interpreter": _SCORES["interpreter"],
}
_MATMUL_NARROW: dict[str, dict[str, tuple[Tile, ...]]] = {
    "sm_80": {
        "half": (Tile(64, 32, 64, 8, 2), Tile(64, 32, 128, 8, 2)),
        "single": (Tile(32, 16, 64, 4, 2),),
        "ieee": (),
    },
    "sm_90": {
        "half": (Tile(128, 32, 64, 8, 2), Tile(64, 32, 128, 8, 2)),
        "single": (Tile(64, 16, 64, 4, 2),),
        "ieee": (),
    },
    "sm_100": {
        "half": (Tile(64, 32, 64, 4, 2), Tile(64, 32, 128, 8, 2)),
        "single": (Tile(32, 16, 64, 4, 2),),
        "ieee": (),
    },
    "gfx942": {
        "half": (Tile(64, 32, 64, 4, 1), Tile(64, 32, 128, 4, 1)),
        "single": (Tile(64, 32, 64, 4, 1),),
        "ieee": (Tile(64, 32, 64, 4, 1),),
    },
    "interpreter": _NARROW["interpreter"],
}

# Scatter matrices: BLOCK_M x BLOCK_M features, BLOCK_D rows a step; operands are centred in registers on their way into
# the product. The gradient: BLOCK_M rows x BLOCK_N features, and float32 operands whatever the inputs.
_COVARIANCE = {
    "sm_80": {"half": Tile(64, 64, 32, 4, 2), "single": Tile(64, 64, 32, 4, 2), "ieee": Tile(64, 64, 16, 8, 2)},
    "sm_90": {"half": Tile(128, 128, 32, 8, 3), "single": Tile(64, 64, 32, 4, 2), "ieee": Tile(64, 64, 16, 4, 2)},
    "sm_100": {"half": Tile(128, 128, 32, 8, 3), "single": Tile(64, 64, 32, 8, 2), "ieee": Tile(64, 64, 16, 4, 2)},
    "gfx942": {"half": Tile(64, 64, 32, 4, 2), "single": Tile(64, 64, 32, 4, 2), "ieee": Tile(64, 64, 32, 4, 2)},
    "interpreter": dict.fromkeys(("half", "single", "ieee"), Tile(128, 128, 256, 4, 1)),
}
_COVARIANCE_GRAD = {
    "sm_80": {"single": Tile(64, 64, 16, 8, 2), "ieee": Tile(64, 64, 16, 4, 2)},
    "sm_90": {"single": Tile(128, 64, 32, 8, 2), "ieee": Tile(64, 64, 16, 4, 2)},
    "sm_100": {"single": Tile(64, 64, 32, 8, 2), "ieee": Tile(64, 64, 16, 4, 2)},
    "gfx942": {"single": Tile(64, 64, 32, 4, 2), "ieee": Tile(64, 64, 32, 4, 2)},
    "interpreter": dict.fromkeys(("single", "ieee"), Tile(256, 128, 128, 4, 1)),
}

# Two kernel matrices side by side: square tiles, of which those below the diagonal are left out.
_MOMENTS = {
    "sm_80": {"half": Tile(64, 64, 32, 8, 2), "single": Tile(32, 32, 32, 4, 2), "ieee": Tile(32, 32, 16, 8, 1)},
    "sm_90": {"half": Tile(64, 64, 64, 8, 3), "single": Tile(64, 64, 32, 8, 2), "ieee": Tile(32, 32, 16, 8, 1)},
    "sm_100": {"half": Tile(64, 64, 64, 8, 3), "single": Tile(64, 64, 32, 8, 2), "ieee": Tile(32, 32, 16, 4, 1)},
    "gfx942": {"half": Tile(64, 64, 32, 4, 1), "single": Tile(32, 32, 32, 4, 1), "ieee": Tile(32, 32, 32, 4, 1)},
    "interpreter": dict.fromkeys(("half", "single", "ieee"), Tile(128, 128, 128, 4, 1)),
}

# Distances, a feature at a time: no product. A warp's threads have a row each, and its distances to BLOCK_N columns.
_NEAREST = {
    "sm_80": Tile(32, 32, 1, 1, 1),
    "sm_90": Tile(32, 32, 1, 1, 1),
    "sm_100": Tile(32, 32, 1, 1, 1),
    "gfx942": Tile(64, 32, 1, 1, 1),
    "interpreter": Tile(64, 128, 1, 4, 1),
}


@lru_cache
def chip(device: torch.device) -> str:
    """Return the key of the tables that serves the device: its own chip or the nearest one below.

    Ampere and Ada, and Blackwell without data-centre tensor cores (sm_120), share sm_80's tiles, which stay below the
    99 KB of shared memory that the smallest of them have.
    """
    if triton.knobs.runtime.interpret:
        return "interpreter"
    target = triton.runtime.driver.active.get_current_target()
    if target.backend == "hip":
        return "gfx942"
    return {9: "sm_90", 10: "sm_100", 11: "sm_100"}.get(target.arch // 10, "sm_80")


@lru_cache
def multiprocessors(device: torch.device) -> int:
    """Return how many programs the device runs side by side at least (1 in the interpreter)."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def on_device(x: Tensor) -> AbstractContextManager[None]:
    """Make x's device the current one, which is where Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _kind(x: Tensor, precision: str) -> str:
    if x.element_size() == 2:
        return "half"
    return "ieee" if precision == "ieee" else "single"


def scores_tile(x: Tensor, precision: str) -> Tile:
    """The tile of kernels that walk the width in steps of BLOCK_D: forward, and the weight tile of the backward."""
    return _fit(_SCORES[chip(x.device)][_kind(x, precision)], x)


def neighbors_tile(x: Tensor, precision: str) -> Tile:
    """The tile of all kernels of neighbors: one for all, or their scores would round differently.

    A product in one step has nothing to load ahead, and stages would only take registers.
    """
    tile = _fit(_NEIGHBORS[chip(x.device)][_kind(x, precision)], x)
    return tile if x.shape[1] > tile.BLOCK_D else tile._replace(num_stages=1)


def _fit(tile: Tile, x: Tensor) -> Tile:
    return tile._replace(BLOCK_D=min(tile.BLOCK_D, max(16, triton.next_power_of_2(x.shape[-1]))))


def matmul_tile(x: Tensor, precision: str) -> Tile:
    """The tile of kernels that make kernel values of the scores, and multiply by them."""
    return _fit(_MATMUL[chip(x.device)][_kind(x, precision)], x)


def matmul_narrow_tile(x: Tensor, precision: str, programs_of: int) -> Tile | None:
    """`narrow_tile` of kernel products; None for float16, which may not hold the weights."""
    return None if x.dtype == torch.float16 else narrow_tile(x, precision, programs_of, _MATMUL_NARROW)


def narrow_tile(
    x: Tensor, precision: str, programs_of: int, table: dict[str, dict[str, tuple[Tile, ...]]] = _NARROW
) -> Tile | None:
    """The tile of the backward that keeps whole rows in registers, None where storing weight tiles is faster.

    That is where rows are too wide for registers, and where `programs_of` rows make too few programs to fill the chip.
    """
    for tile in table[chip(x.device)][_kind(x, precision)]:
        if x.shape[-1] <= tile.BLOCK_D:
            tile = tile._replace(BLOCK_D=max(32, triton.next_power_of_2(x.shape[-1])))
            return tile if programs_of >= tile.BLOCK_M * multiprocessors(x.device) else None
    return None


def covariance_tile(x: Tensor, D: int, precision: str) -> Tile:
    """The tile of scatter matrices of views with up to D features."""
    tile = _COVARIANCE[chip(x.device)][_kind(x, precision)]
    side = min(tile.BLOCK_M, max(64, triton.next_power_of_2(D)))  # tensor cores of Hopper take 64 rows at least
    return tile._replace(BLOCK_M=side, BLOCK_N=side)


def covariance_grad_tile(x: Tensor, precision: str) -> Tile:
    """The tile of their gradients, whose operands are float32."""
    return _fit(_COVARIANCE_GRAD[chip(x.device)]["ieee" if precision == "ieee" else "single"], x)


def moments_tile(x: Tensor, D: int, precision: str) -> Tile:
    """The tile of sums over kernel matrices of views with up to D features."""
    tile = _MOMENTS[chip(x.device)][_kind(x, precision)]
    if D <= tile.BLOCK_D:  # one step: nothing to load ahead
        return tile._replace(BLOCK_D=max(16, triton.next_power_of_2(D)), num_stages=1)
    return tile


def nearest_tile(x: Tensor) -> Tile:
    """The tile of distances by direct differences."""
    return _NEAREST[chip(x.device)]


def row_tile(x: Tensor) -> dict[str, int]:
    """The tile of kernels that read each row once: 4,096 elements of it, more in the interpreter."""
    block_d = min(512, triton.next_power_of_2(x.shape[1]))
    return {"BLOCK_M": (65536 if triton.knobs.runtime.interpret else 4096) // block_d, "BLOCK_D": block_d}


def spans(N: int, M: int, tile: Tile, device: torch.device) -> tuple[int, int]:
    """How many column tiles each program of a wave takes, and how many programs that makes along the columns.

    Long spans write less, but the grid must hold a few programs per multiprocessor.
    """
    row_tiles, column_tiles = triton.cdiv(min(N, WAVE), tile.BLOCK_M), triton.cdiv(M, tile.BLOCK_N)
    span = min(_SPAN, max(1, row_tiles * column_tiles // (4 * multiprocessors(device))))
    return span, triton.cdiv(column_tiles, span)


def split(programs: int, M: int, tile: Tile, device: torch.device) -> tuple[int, int]:
    """How many column tiles each program takes, and how many programs that makes along the columns.

    All of them where the other programs fill the device a few times over: what spans find has to be added.
    """
    column_tiles = triton.cdiv(M, tile.BLOCK_N)
    span = triton.cdiv(column_tiles, triton.cdiv(4 * multiprocessors(device), programs))
    return span, triton.cdiv(column_tiles, span)


def slices(size: int, step: int) -> Iterator[slice]:
    """Cut range(size) into slices of length step, the last one shorter."""
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def aligned(x: Tensor) -> Tensor:
    """x, copied with zeros to a width of whole 32 or 64 bytes where its rows are not laid out for vector loads."""
    steps = (x.data_ptr(), *(stride * x.element_size() for stride in x.stride()[:-1]))
    if x.shape[-1] % 16 == 0 and all(step % 16 == 0 for step in steps):
        return x
    return pad(x, (0, -x.shape[-1] % 16))

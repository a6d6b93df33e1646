"""How the pair matrix is cut into tiles, and how much memory the tiles may take."""

import math
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

_SIDE = 1024  # a float32 tile of this side stays in a CPU's cache; larger ones are no faster, smaller ones pay per call
_BUFFERS = 4  # tiles alive at once in the backward sweep, temporaries included

_budget = 64 * 2**20
_kept = threading.local()


def set_memory_budget(nbytes: int) -> None:
    """Set how many bytes of pairwise scores the tiled path may hold at once (default 64 MiB).

    Scores that fit as a whole are kept from the forward to the backward pass, which saves one matrix product;
    otherwise tiles are recomputed. Less memory means smaller tiles. Outputs, gradients and one float32 accumulator
    of the size of `y` come on top. On a CPU each thread keeps its tiles from call to call (20 MiB at the default, 40 in
    float64).

    Args:
        nbytes: at least 65,536.

    Raises:
        TypeError: nbytes is no int.
        ValueError: nbytes is below 65,536.
    """
    global _budget
    if not isinstance(nbytes, int) or isinstance(nbytes, bool):
        raise TypeError(f"nbytes must be an int, got {type(nbytes).__name__}")
    if nbytes < 65536:
        raise ValueError(f"nbytes must be at least 65536, got {nbytes}")
    _budget = nbytes
    vars(_kept).clear()


def memory_budget() -> int:
    """Return the number of bytes of pairwise scores that the tiled path may hold at once."""
    return _budget


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for 16-bit and float32 inputs, float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def tile_side(dtype: torch.dtype) -> int:
    """Return the side of a square tile that the memory budget allows."""
    return min(_SIDE, math.isqrt(_budget // (_BUFFERS * compute_dtype(dtype).itemsize)))


def slices(size: int, side: int) -> Iterator[slice]:
    """Cut range(size) into the fewest slices no longer than side, of nearly equal length."""
    count = -(-size // side)
    for k in range(count):
        yield slice(size * k // count, size * (k + 1) // count)


def scratch(like: Tensor, count: int, size: int, dtype: torch.dtype) -> Tensor:
    """Return (count, size) uninitialised elements on like's device, this thread's until its next call.

    On a CPU one block is kept from call to call: fresh pages cost small problems as much as the arithmetic on them.
    """
    if like.device.type != "cpu":
        return like.new_empty(count, size, dtype=dtype)
    nbytes = count * size * dtype.itemsize
    block: Tensor | None = getattr(_kept, "block", None)
    if block is None or len(block) < nbytes:
        with torch.inference_mode(False):
            block = _kept.block = torch.empty(nbytes, dtype=torch.uint8)
    return block[:nbytes].view(dtype).view(count, size)


def tile(buffers: Tensor, *shape: int) -> tuple[Tensor, ...]:
    """Return each buffer's first elements in that shape."""
    return buffers[:, : math.prod(shape)].view(-1, *shape).unbind()

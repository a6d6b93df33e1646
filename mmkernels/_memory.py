"""Peak memory of a call."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import torch


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Run call and return the most memory held meanwhile above what was held before.

    On CUDA what the allocator gave out; on Linux this process's resident memory, so that a fresh process alone gives an
    honest answer; None on other systems.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if sys.platform != "linux":
        call()
        return None
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that the C library kept would be used again uncounted
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = _resident_peak()
    call()
    return _resident_peak() - before


def _resident_peak() -> int:
    """This process's peak resident memory. (ru_maxrss starts at the parent's peak, so it says nothing here.)"""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024

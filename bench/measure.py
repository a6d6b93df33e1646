"""Candidates that take turns on the same inputs: wall time, CPU-seconds, peak memory."""

from __future__ import annotations

import math
import multiprocessing
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from mmkernels._memory import peak_bytes

OURS, DENSE, FLOOR = "mmkernels", "dense", "bare products"
WARM_UP_ROWS = 128


class Case(NamedTuple):
    """One problem; dtype is the name of torch's, backward asks for the gradients of everything that has one."""

    N: int
    D: int
    dtype: str
    backward: bool

    def __str__(self) -> str:
        return f"N{self.N}-D{self.D}-{self.dtype}-{'forward+backward' if self.backward else 'forward'}"


Inputs = Callable[[Case, torch.device], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Candidate:
    """A way to compute the op.

    Args:
        name: in every table; OURS, DENSE and FLOOR have roles.
        function: the op's inputs to the loss, a module's own function. It raises ImportError where its library is
            missing.
        matrices: how many N x N matrices it holds at once, all told; it is not run where they do not fit.
        compiles: it takes seconds before the first result, too long for a smoke run.
    """

    name: str
    function: Callable[..., Tensor]
    matrices: int = 0
    compiles: bool = False


@dataclass
class Samples:
    """What one candidate took."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak: int | None = None


class Comparison:
    """One case: the candidates that can run it, each with its samples, and why the others cannot.

    Args:
        case: the problem.
        inputs: makes its tensors, on a device.
        candidates: OURS among them.
        smoke: leave out what compiles.
    """

    def __init__(self, case: Case, inputs: Inputs, candidates: tuple[Candidate, ...], smoke: bool) -> None:
        self.case = case
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.inputs = inputs
        self.tensors = inputs(case, self.device)
        self.skipped: dict[str, str] = {}
        self.samples: dict[str, Samples] = {}
        self.running: list[Candidate] = []
        expected = math.nan
        for candidate in sorted(candidates, key=lambda c: c.name != OURS):  # ours first: its loss is the others' check
            try:
                if smoke and candidate.compiles:
                    raise UnfitError("it compiles for seconds: not in a smoke run")
                loss = self._try(candidate)
                if candidate.name == OURS:
                    expected = loss
                elif candidate.name != FLOOR and not math.isclose(loss, expected, rel_tol=0.02):
                    raise UnfitError(f"its loss is {loss:.4g}, not {expected:.4g}")
            except Exception as error:
                if candidate.name == OURS:
                    raise
                self._drop(candidate, error)
            else:
                self.running.append(candidate)

    def _try(self, candidate: Candidate) -> float:
        """Run it once, small and then in full, and return the loss."""
        self._free()
        needed = candidate.matrices * self.case.N**2 * getattr(torch, self.case.dtype).itemsize
        if needed > (available := free_bytes(self.device)):
            raise UnfitError(f"it needs about {needed / 1e9:.3g} GB, {available / 1e9:.3g} GB are free")
        call(candidate, self.inputs(self.case._replace(N=WARM_UP_ROWS), self.device), self.case.backward)
        if self.device.type != "cuda":
            return self.sample(candidate)
        self._free()
        losses: list[float] = []
        # the allocator counts exactly, so that this process will do
        peak = peak_bytes(lambda: losses.append(self.sample(candidate)), self.device)
        self.samples[candidate.name].peak = peak
        return losses[0]

    def sample(self, candidate: Candidate) -> float:
        """Time one call, and return the loss."""
        samples = self.samples.setdefault(candidate.name, Samples())
        for t in self.tensors:
            t.grad = None
        wall, cpu = time.perf_counter(), time.process_time()
        loss = call(candidate, self.tensors, self.case.backward)
        samples.wall.append(time.perf_counter() - wall)
        samples.cpu.append(time.process_time() - cpu)
        return float(loss)

    def sample_others(self) -> None:
        """Time one call of every candidate but ours."""
        for candidate in self.running[1:]:
            try:
                self.sample(candidate)
            except Exception as error:  # memory is scarcer now than when it ran alone
                self.running.remove(candidate)
                self._drop(candidate, error)

    def rounds(self, seconds: float, left: float) -> int:
        """How many rounds fill the seconds, three at least unless one takes minutes; the first calls are forgotten."""
        once = sum(samples.wall[0] for samples in self.samples.values())
        for samples in self.samples.values():
            samples.wall.clear()
            samples.cpu.clear()
        return int(max(1, min(100, max(seconds / once, min(3, 120 / once)), left / once)))

    def peaks(self) -> None:
        """Measure what the allocator did not count: peak resident memory, in a fresh process each (Linux)."""
        if self.device.type != "cpu" or sys.platform != "linux":
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([self.inputs.__module__])  # imports once; each process is fresh all the same
        for candidate in self.running:
            try:
                with ProcessPoolExecutor(1, mp_context=context) as pool:
                    future = pool.submit(_resident_peak, candidate, self.inputs, self.case)
                    self.samples[candidate.name].peak = future.result()
            except Exception as error:  # a process killed for its memory among them: its time stands
                self.skipped[f"{candidate.name} (peak memory)"] = _reason(error)

    def results(self, flops: int) -> dict[str, dict[str, float | int | None]]:
        """A row a candidate: medians of its samples, peak, and what the op's flops and our time make of them."""
        ours = median(self.samples[OURS].wall)
        return {
            candidate.name: {
                "wall_seconds": (wall := median(samples.wall)),
                "cpu_seconds": median(samples.cpu),
                "peak_bytes": samples.peak,
                "tflops": flops / wall / 1e12,
                "ours_over_it": ours / wall,
                "rounds": len(samples.wall),
            }
            for candidate in self.running
            for samples in [self.samples[candidate.name]]
        }

    def _drop(self, candidate: Candidate, error: Exception) -> None:
        self.skipped[candidate.name] = _reason(error)
        self.samples.pop(candidate.name, None)

    def _free(self) -> None:
        for t in self.tensors:
            t.grad = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


class UnfitError(Exception):
    """A candidate that cannot run this case; the message says why."""


def call(candidate: Candidate, tensors: tuple[Tensor, ...], backward: bool) -> Tensor:
    """The loss, and the gradients if asked for, complete when this returns."""
    with torch.set_grad_enabled(backward):
        loss = candidate.function(*tensors)
    if backward:
        loss.backward()
    if loss.is_cuda:
        torch.cuda.synchronize()
    return loss.detach()


def free_bytes(device: torch.device) -> float:
    """How much memory a candidate may take; infinite where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    info = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s*(\d+) kB", info.read_text() if info.exists() else "")
    return int(found[1]) * 1024 if found else math.inf


def _resident_peak(candidate: Candidate, inputs: Inputs, case: Case) -> int | None:
    """Peak resident memory of one call above what the process holds with its inputs; gradients count."""
    cpu = torch.device("cpu")
    # thread pools, compiled code and library workspaces belong to the process, not to the op
    call(candidate, inputs(case._replace(N=WARM_UP_ROWS), cpu), case.backward)
    tensors = inputs(case, cpu)
    return peak_bytes(lambda: call(candidate, tensors, case.backward), cpu)


def _reason(error: Exception) -> str:
    """What went wrong, in a line without this machine's directories."""
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return "out of memory"
    line = re.sub(r"(?<![\w.])/(?:[^\s/:'\"]+/)+", "", str(error).partition("\n")[0])[:160]
    return line if isinstance(error, ImportError | UnfitError) else f"{type(error).__name__}: {line}"

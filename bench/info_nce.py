"""InfoNCE forward and backward on this machine's CPU against the dense formula and four bare matrix products.

    python -m bench.info_nce --sizes 512 4096 8192 16384 --features 512 --csv bench/results/info_nce_cpu.csv

Candidates take turns within a run; the median of each is reported, wall time and CPU-seconds of the process. Peak
memory is that of a fresh process each, above what it held with its inputs; gradients count.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import multiprocessing
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads distort CPU-seconds and starve each other

import torch
import torch.nn.functional as F
from torch import Tensor

import mmkernels
from reference.contrastive import cross_entropy_both_ways

CHUNK = 1024  # rows of scores that the bare products hold at once


def inputs(N: int, D: int) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised pairs and a learnable scale."""
    torch.manual_seed(0)
    x, y = (F.normalize(torch.randn(N, D), dim=1).requires_grad_() for _ in "xy")
    return x, y, torch.tensor(1 / 0.07, requires_grad=True)


def ours(x: Tensor, y: Tensor, scale: Tensor) -> None:
    """mmkernels.info_nce."""
    mmkernels.info_nce(x, y, scale=scale).backward()


def dense(x: Tensor, y: Tensor, scale: Tensor) -> None:
    """Cross-entropy of the whole score matrix, both ways."""
    cross_entropy_both_ways(x, y, scale).backward()


def four_products(x: Tensor, y: Tensor, scale: Tensor) -> None:
    """The floor: the scores twice, and the products with both sides, nothing else."""
    x, y = x.detach(), y.detach()
    dy = torch.zeros_like(y)
    s = x.new_empty(min(CHUNK, len(x)), len(y))
    for xi in x.split(CHUNK):
        torch.mm(xi, y.T, out=s[: len(xi)])
        torch.mm(xi, y.T, out=s[: len(xi)])
        torch.mm(s[: len(xi)], y)
        dy.addmm_(s[: len(xi)].T, xi)


CANDIDATES: dict[str, Callable[[Tensor, Tensor, Tensor], None]] = {
    "mmkernels": ours,
    "dense": dense,
    "four products": four_products,
}


def seconds(names: list[str], N: int, D: int, repeats: int) -> dict[str, tuple[float, float]]:
    """Median (wall, CPU) seconds of each candidate, taking turns, after one warm-up each."""
    tensors = inputs(N, D)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for repeat in range(repeats + 1):
        for name in names:
            for t in tensors:
                t.grad = None
            wall, cpu = time.perf_counter(), time.process_time()
            CANDIDATES[name](*tensors)
            if repeat:
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: tuple(map(statistics.median, zip(*t, strict=True))) for name, t in times.items()}  # type: ignore[misc]


def _peak_kilobytes() -> int:
    """This process's peak resident memory. (ru_maxrss starts at the parent's peak, so it says nothing here.)"""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def _measure_peak(name: str, N: int, D: int, queue: multiprocessing.Queue[int]) -> None:
    CANDIDATES[name](*inputs(64, D))  # thread pools and library workspaces belong to the process, not to the op
    tensors = inputs(N, D)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = _peak_kilobytes()
    CANDIDATES[name](*tensors)
    queue.put((_peak_kilobytes() - before) * 1024)


def peak_bytes(name: str, N: int, D: int) -> int:
    """Peak memory of one call in a fresh process, above its inputs (Linux)."""
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[int] = context.Queue()
    process = context.Process(target=_measure_peak, args=(name, N, D, queue))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"{name} at N = {N}, D = {D} ended with exit code {process.exitcode}")
    return queue.get()


def machine() -> dict[str, str]:
    """What the numbers belong to."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.date.today().isoformat(),
        "mmkernels": mmkernels.__version__,
        "torch": torch.__version__,
        "cpu": names[0] if names else platform.processor(),
        "threads": str(torch.get_num_threads()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 4096, 8192, 16384])
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--csv", type=pathlib.Path, help="append the results to this file")
    options = parser.parse_args()
    rows = []
    print("     N     D candidate         wall s     CPU s  ours/wall  ours/CPU  peak MB")
    for N in options.sizes:
        measured = seconds(
            options.candidates, N, options.features, options.repeats if N > 1024 else 20 * options.repeats
        )
        ours_wall, ours_cpu = measured.get("mmkernels", (float("nan"),) * 2)
        for name, (wall, cpu) in measured.items():
            peak = peak_bytes(name, N, options.features) / 1e6
            rows.append(
                {"op": "info_nce", "N": N, "D": options.features, "candidate": name, "wall_s": f"{wall:.5f}"}
                | {"cpu_s": f"{cpu:.5f}", "ours_over_it_wall": f"{ours_wall / wall:.3f}"}
                | {"ours_over_it_cpu": f"{ours_cpu / cpu:.3f}", "peak_mb": f"{peak:.1f}"}
                | machine()
            )
            print(
                f"{N:6} {options.features:5} {name:14} {wall:9.4f} {cpu:9.4f} {ours_wall / wall:10.3f} "
                f"{ours_cpu / cpu:9.3f} {peak:8.1f}",
                flush=True,
            )
    if options.csv:
        options.csv.parent.mkdir(parents=True, exist_ok=True)
        new = not options.csv.exists()
        with options.csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            if new:
                writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()

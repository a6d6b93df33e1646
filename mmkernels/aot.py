"""Compile every Triton kernel for every chip, with no GPU: registers, spills, shared memory, tensor cores.

The ordinary launchers run on small CPU tensors while a stand-in driver names the chip and every launch is turned into a
compilation, so what is compiled is what users run. Compiled kernels land in Triton's own cache.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from multiprocessing import get_context
from typing import Any

import torch

CHIPS = ("sm_80", "sm_90", "sm_100", "gfx942")

# Shared memory that one program may take, KiB.
_SHARED_LIMIT = {"sm_80": 163, "sm_90": 227, "sm_100": 227, "gfx942": 64}
_TENSOR_CORES = {"sm_80": r"HMMA", "sm_90": r"HGMMA", "sm_100": r"tcgen05\.mma", "gfx942": r"v_mfma"}
_EXPONENTIALS = {"cuda": r"MUFU\.EX2", "hip": r"v_exp_f32"}
_LISTED = ("kernel", "chip", "dtype", "D", "flags", "tile", "num_warps", "num_stages")
_MEASURED = ("registers", "spills", "shared", "tensor_cores", "exponentials")


@dataclass(frozen=True)
class _Case:
    """One call of a reduction's launchers; all options means log-weights, ids and a positive per row."""

    reduction: str
    dtype: torch.dtype
    D: int
    precision: str = "ieee"
    options: bool = False
    columns: bool = True
    aligned: bool = True
    N: int = 512


def _logsumexp(case: _Case) -> None:
    from mmkernels.kernels import logsumexp as room

    N, M = case.N, 512
    # One more column in memory makes the rows start off 16-byte boundaries.
    x, y = (torch.randn(size, case.D + (not case.aligned)).to(case.dtype)[:, : case.D] for size in (N, M))
    scale, g, h = torch.tensor(1.0), torch.ones(N), torch.ones(M)
    ids = torch.arange(M) if case.options else None
    log_weights = torch.zeros(M) if case.options else None
    offset = 0 if N == M else None
    shared = (x, y, scale, log_weights, ids, ids, offset)
    rows, columns, _, _, _, scores = room.logsumexp_fwd(*shared, case.columns, False, case.precision)
    room.logsumexp_bwd(
        *shared, rows, columns, scores, g, h if case.columns else None, g if offset == 0 else None,
        [True, True, True, case.options], case.precision,
    )  # fmt: skip
    if case.options:
        needs = [False, False, True, True]
        room.logsumexp_bwd(*shared, rows, columns, scores, g, h, g, needs, case.precision)


_REDUCTIONS: dict[str, Callable[[_Case], None]] = {"logsumexp": _logsumexp}


def _cases(chip: str, quick: bool) -> Iterator[_Case]:
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    accurate, fast = ("bf16x6", "ieee") if chip.startswith("gfx") else ("tf32x3", "tf32")
    for reduction in _REDUCTIONS:
        if quick:
            yield from (_Case(reduction, bf16, D) for D in (768, 128))
            continue
        for D in (32, 64, 128, 256, 768):
            yield _Case(reduction, bf16, D)
            yield _Case(reduction, bf16, D, options=True)
            yield _Case(reduction, fp32, D, accurate, options=True)
        for D in (64, 768):
            yield _Case(reduction, fp16, D, options=True)
            yield _Case(reduction, bf16, D, columns=False)
            yield _Case(reduction, fp32, D, fast)
            yield _Case(reduction, fp32, D, "ieee")
        for D in (1, 100, 300):
            yield _Case(reduction, bf16, D, options=True, aligned=False)
            yield _Case(reduction, fp32, D, accurate, aligned=False)
        yield _Case(reduction, bf16, 64, N=3 * 8192)  # several waves of rows


def _target(chip: str) -> Any:
    from triton.backends.compiler import GPUTarget

    return GPUTarget("hip", chip, 64) if chip.startswith("gfx") else GPUTarget("cuda", int(chip[3:]), 32)


class _Driver:
    """Stands in for a GPU's driver while kernels are compiled."""

    def __init__(self, chip: str) -> None:
        self.chip = chip

    def get_current_target(self) -> Any:
        return _target(self.chip)

    def get_current_device(self) -> int:
        return CHIPS.index(self.chip)  # Triton keeps compiled kernels by device number: one number per chip

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def _recording(chip: str, record: Callable[[Any, dict[str, Any], Callable[[], Any]], None]) -> Iterator[None]:
    """Inside, a launch calls record(kernel function, keyword arguments, compile) and runs nothing."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from mmkernels.kernels import _configs

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        record(self, kwargs, lambda: launch(self, *args, grid=grid, warmup=True, **kwargs))

    launch, active = JITFunction.run, driver._active
    _configs.chip.cache_clear()
    driver._active, JITFunction.run = _Driver(chip), run
    try:
        yield
    finally:
        driver._active, JITFunction.run = active, launch
        _configs.chip.cache_clear()


def _disassemble(cubin: bytes, *options: str) -> str:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, *options, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _measure(chip: str, kernel: Any) -> dict[str, int]:
    """Registers a thread, spilled bytes a thread, shared bytes a program, and counts of instructions in the code."""
    if chip.startswith("gfx"):
        code = mma = kernel.asm["amdgcn"]
        registers = int(re.findall(r"\.vgpr_count:\s+(\d+)", code)[0])
        spills = 4 * sum(map(int, re.findall(r"\.vgpr_spill_count:\s+(\d+)", code)))
    else:
        usage = _disassemble(kernel.asm["cubin"], "-res-usage")
        code = _disassemble(kernel.asm["cubin"], "-sass")
        mma = kernel.asm["ptx"] if chip == "sm_100" else code
        registers, spills = (int(re.findall(rf"{name}:(\d+)", usage)[0]) for name in ("REG", "STACK"))
    return {
        "registers": registers,
        "spills": spills,
        "shared": kernel.metadata.shared,
        "tensor_cores": len(re.findall(_TENSOR_CORES[chip], mma)),
        "exponentials": len(re.findall(_EXPONENTIALS[_target(chip).backend], code)),
    }


def _flags(arguments: dict[str, Any]) -> str:
    on = [name for name, value in arguments.items() if name.isupper() and value is True]
    precision = arguments.get("INPUT_PRECISION", "ieee")
    return " ".join(on + ([precision] if precision != "ieee" else []))


def _compile(chip: str, case: _Case, kernels: Sequence[str] | None, quick: bool) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []

    def record(function: Any, arguments: dict[str, Any], compile_kernel: Callable[[], Any]) -> None:
        name = function.fn.__name__
        row = {
            "kernel": name,
            "chip": chip,
            "dtype": str(case.dtype).removeprefix("torch."),
            "D": case.D,
            "flags": _flags(arguments) + ("" if case.aligned else " unaligned"),
            "tile": "x".join(str(v) for k, v in arguments.items() if k.startswith("BLOCK_")),
            "product": "BLOCK_N" in arguments,
        }
        known = any(row.items() <= r.items() or (quick and r["kernel"] == name) for r in rows)
        if known or (kernels and not any(name.startswith(k) for k in kernels)):
            return
        kernel = compile_kernel()
        row |= {"num_warps": kernel.metadata.num_warps, "num_stages": kernel.metadata.num_stages}
        rows.append(row | _measure(chip, kernel))

    torch.set_num_threads(1)
    with _recording(chip, record):
        _REDUCTIONS[case.reduction](case)
    return rows


def compile_kernels(
    chips: Sequence[str] = CHIPS, kernels: Sequence[str] | None = None, quick: bool = False
) -> list[dict[str, Any]]:
    """Compile kernels for chips that need not be there, in parallel, and measure what the compiler made of them.

    Args:
        chips: some of 'sm_80', 'sm_90', 'sm_100', 'gfx942'.
        kernels: beginnings of kernel names; None compiles all.
        quick: one configuration a kernel (bfloat16, one wide and one narrow width) instead of all.

    Returns:
        One row a kernel and configuration: kernel, chip, dtype, D, flags, tile, num_warps, num_stages, registers and
        spills (bytes) a thread, shared (bytes), tensor_cores and exponentials (instructions in the code), product
        (whether the kernel multiplies matrices).

    Raises:
        RuntimeError: Triton's interpreter is on, or Triton is not installed.
        ValueError: a chip is unknown, or no kernel has such a name.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("kernels cannot be compiled in Triton's interpreter: unset TRITON_INTERPRET and start again")
    if find_spec("triton") is None:
        raise RuntimeError("kernels are compiled by Triton, which runs on Linux: pip install triton")
    unknown = sorted(set(chips) - set(CHIPS))
    if unknown:
        raise ValueError(f"chips must be among {', '.join(CHIPS)}, got {', '.join(unknown)}")
    jobs = [(chip, case, kernels, quick) for chip in chips for case in _cases(chip, quick)]
    with ProcessPoolExecutor(min(len(jobs), os.cpu_count() or 1), mp_context=get_context("spawn")) as pool:
        rows = list(chain.from_iterable(pool.map(_compile, *zip(*jobs, strict=True))))
    if not rows:
        raise ValueError(f"no kernel's name begins with {' or '.join(kernels or ())}")
    unique = {tuple(row[k] for k in _LISTED): row for row in rows}
    if quick:
        unique = {(row["kernel"], row["chip"]): row for row in reversed(rows)}
    return sorted(unique.values(), key=lambda row: [str(row[k]) for k in _LISTED])


def limits(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Name every violated limit: spilled registers, too much shared memory, 16-bit products without tensor cores."""
    problems = []
    for row in rows:
        name = " ".join(str(row[k]) for k in _LISTED[:5])
        shared = _SHARED_LIMIT[row["chip"]] * 1024
        if row["spills"]:
            problems.append(f"{name}: {row['spills']} bytes of registers spilled")
        if row["shared"] > shared:
            problems.append(f"{name}: {row['shared']} bytes of shared memory, the chip has {shared}")
        if row["product"] and row["dtype"] != "float32" and not row["tensor_cores"]:
            problems.append(f"{name}: no tensor-core instruction")
    return problems


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Render rows as text."""
    names = _LISTED + _MEASURED
    lines = [names, *(tuple(str(row[k]) for k in names) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(v.ljust(w) for v, w in zip(line, widths, strict=True)).rstrip() for line in lines)

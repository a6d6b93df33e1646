"""Compile every Triton kernel for every chip, with no GPU: registers, spills, shared memory, tensor cores.

The ordinary launchers run on small CPU tensors while a stand-in driver names the chip and every launch is turned into a
compilation, so what is compiled is what users run. Compiled kernels land in Triton's own cache.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from itertools import chain
from math import ceil
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmkernels._cases import REDUCTIONS, Case, cases
from mmkernels._predict import CHIP, MULTIPROCESSORS, NOTHING, Launch, work

CHIPS = ("sm_80", "sm_90", "sm_100", "gfx942")

# Shared memory that one program may take, KiB.
_SHARED_LIMIT = {"sm_80": 163, "sm_90": 227, "sm_100": 227, "gfx942": 64}
_TENSOR_CORES = {"sm_80": r"HMMA", "sm_90": r"HGMMA", "sm_100": r"tcgen05\.mma", "gfx942": r"v_mfma"}
_EXPONENTIALS = {"cuda": r"MUFU\.EX2", "hip": r"v_exp_f32"}
_FP32 = {"cuda": r"\bF(?:ADD|MUL|FMA|MNMX|SEL|SETP)\b", "hip": r"\bv_(?:add|sub|mul|fma|fmac|max|min|cmp_\w+)_f32"}
_LISTED = ("kernel", "chip", "dtype", "D", "flags", "tile", "num_warps", "num_stages")
_MEASURED = ("registers", "spills", "shared", "tensor_cores", "exponentials", "fp32")


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
    """Inside, a launch calls record(kernel function, arguments with the grid, compile) and runs nothing."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from mmkernels.kernels import _configs

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        arguments = dict(zip(self.arg_names, args, strict=False)) | kwargs | {"grid": grid}
        record(self, arguments, lambda: launch(self, *args, grid=grid, warmup=True, **kwargs))

    launch, active = JITFunction.run, driver._active
    _configs.chip.cache_clear()
    driver._active, JITFunction.run = _Driver(chip), run
    try:
        yield
    finally:
        driver._active, JITFunction.run = active, launch
        _configs.chip.cache_clear()


@lru_cache(1)  # a prediction reads the same code twice
def _disassemble(cubin: bytes) -> str:
    """The resources that NVIDIA's machine code uses, and its instructions."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _measure(chip: str, kernel: Any) -> dict[str, int]:
    """Registers a thread, spilled bytes a thread, shared bytes a program, and counts of instructions in the code."""
    if chip.startswith("gfx"):
        code = mma = kernel.asm["amdgcn"]
        registers = int(re.findall(r"\.vgpr_count:\s+(\d+)", code)[0])
        spills = 4 * sum(map(int, re.findall(r"\.vgpr_spill_count:\s+(\d+)", code)))
    else:
        code = _disassemble(kernel.asm["cubin"])
        mma = kernel.asm["ptx"] if chip == "sm_100" else code
        registers, spills = (int(re.findall(rf"\b{name}:(\d+)", code)[0]) for name in ("REG", "STACK"))
    return {
        "registers": registers,
        "spills": spills,
        "shared": kernel.metadata.shared,
        "tensor_cores": len(re.findall(_TENSOR_CORES[chip], mma)),
        "exponentials": len(re.findall(_EXPONENTIALS[_target(chip).backend], code)),
        "fp32": len(re.findall(_FP32[_target(chip).backend], code)),
    }


def _flags(arguments: dict[str, Any]) -> str:
    on = [name for name, value in arguments.items() if name.isupper() and value is True]
    precision = arguments.get("INPUT_PRECISION", "ieee")
    kernel = [arguments["KERNEL"]] if "KERNEL" in arguments else []
    mixture = ["mixture"] if arguments.get("Q", 1) > 1 else []
    return " ".join(kernel + mixture + on + ([precision] if precision != "ieee" else []))


def _compile(chip: str, case: Case, kernels: Sequence[str] | None, quick: bool) -> list[dict[str, Any]]:
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
            # distances of features' absolute differences are no product
            "product": "INPUT_PRECISION" in arguments and arguments.get("KERNEL") != "laplacian",
        }
        known = any(row.items() <= r.items() or (quick and r["kernel"] == name) for r in rows)
        if known or (kernels and not any(name.startswith(k) for k in kernels)):
            return
        kernel = compile_kernel()
        row |= {"num_warps": kernel.metadata.num_warps, "num_stages": kernel.metadata.num_stages}
        rows.append(row | _measure(chip, kernel))

    torch.set_num_threads(1)
    with _recording(chip, record):
        REDUCTIONS[case.reduction](case)
    return rows


def compile_kernels(
    chips: Sequence[str] = CHIPS,
    kernels: Sequence[str] | None = None,
    quick: bool = False,
    track: Callable[[Iterable[Any], int], Iterable[Any]] = lambda jobs, total: jobs,
) -> list[dict[str, Any]]:
    """Compile kernels for chips that need not be there, in parallel, and measure what the compiler made of them.

    Args:
        chips: some of 'sm_80', 'sm_90', 'sm_100', 'gfx942'.
        kernels: beginnings of kernel names; None compiles all.
        quick: one configuration a kernel (bfloat16, one wide and one narrow width) instead of all.
        track: passes on what is compiled, of which there are `total`; for progress bars.

    Returns:
        One row a kernel and configuration: kernel, chip, dtype, D, flags, tile, num_warps, num_stages, registers and
        spills (bytes) a thread, shared (bytes), tensor_cores, exponentials and fp32 (instructions in the code; fp32
        counts float arithmetic, comparisons and selections), product (whether the kernel multiplies matrices).

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
    jobs = [(chip, case, kernels, quick) for chip in chips for case in cases(chip, quick)]
    with ProcessPoolExecutor(min(len(jobs), os.cpu_count() or 1), mp_context=get_context("spawn")) as pool:
        rows = list(chain.from_iterable(track(pool.map(_compile, *zip(*jobs, strict=True)), len(jobs))))
    if not rows:
        raise ValueError(f"no kernel's name begins with {' or '.join(kernels or ())}")
    unique = {tuple(row[k] for k in _LISTED): row for row in rows}
    if quick:
        unique = {(row["kernel"], row["chip"]): row for row in reversed(rows)}
    return sorted(unique.values(), key=lambda row: [str(row[k]) for k in _LISTED])


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, the library's products are recorded as launches: flops, operands of that many bytes, float32 sums."""

    def __init__(self, record: Callable[[Launch], None], itemsize: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.record, self.itemsize = record, itemsize

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.addmm_.default:
            total, a, b = args
            memory = self.itemsize * (a.numel() + b.numel()) + 2 * 4 * total.numel()
            self.record(Launch("product by the library", memory, flops=2 * a.numel() * b.shape[1]))
        return func(*args, **(kwargs or {}))


def launches(case: Case) -> list[Launch]:
    """Compile what a call launches on the chip of the prediction; count its instructions and bytes.

    The tensors are on the meta device, so that a call of any size takes no memory and no time.
    """
    from mmkernels.kernels import _configs
    from mmkernels.kernels._configs import Tile

    found: dict[Launch, int] = {}
    counts: dict[str, dict[str, Any]] = {}

    def add(launch: Launch) -> None:
        found[launch] = found.get(launch, 0) + 1

    def record(function: Any, arguments: dict[str, Any], compile_kernel: Callable[[], Any]) -> None:
        kernel = compile_kernel()
        multiplies = "INPUT_PRECISION" in arguments
        if kernel.hash not in counts:
            measured = _measure(CHIP, kernel)
            step, tile = work(_disassemble(kernel.asm["cubin"])) if multiplies else (NOTHING, NOTHING)
            counts[kernel.hash] = {k: measured[k] for k in ("registers", "shared")} | {"step": step, "tile": tile}
        product = {}
        if multiplies:
            N, M, D, BLOCK_M, BLOCK_N, BLOCK_D = (arguments[k] for k in ("N", "M", "D", *Tile._fields[:3]))
            walks = counts[kernel.hash]["step"].flops > 0  # along the width; else whole rows of x stay in registers
            product = {
                "tiles": ceil(N / BLOCK_M) * ceil(M / BLOCK_N),
                "steps": ceil(D / BLOCK_D) if walks else 0,
                "operands": case.dtype.itemsize * D * (BLOCK_N + (BLOCK_M if walks else 0)),
            }
        add(
            Launch(
                function.fn.__name__,
                memory=sum(a.numel() * a.element_size() for a in arguments.values() if isinstance(a, Tensor)),
                programs=arguments["grid"][0],
                num_warps=kernel.metadata.num_warps,
                **counts[kernel.hash],
                **product,
            )
        )

    chip_size = patch.object(_configs, "multiprocessors", lambda device: MULTIPROCESSORS)
    with _recording(CHIP, record), chip_size, torch.device("meta"), _Products(add, case.dtype.itemsize):
        REDUCTIONS[case.reduction](case)
    return [replace(launch, launches=count) for launch, count in found.items()]


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

"""What the library takes for granted of this machine's GPU, PyTorch and Triton, checked one by one in a few seconds.

    python -m bench.assumptions

Each check prints ok, FAILED or skipped, and the exit code is 1 if any failed. Two of them measure ceilings: no kernel
moves bytes faster than a copy or multiplies faster than the library.
"""

from __future__ import annotations

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic mode asks for it, before CUDA starts

import sys
import time
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.testing import do_bench

import mmkernels
from bench import machine
from reference.contrastive import cross_entropy_both_ways


def compiled_for_this_gpu() -> str:
    """PyTorch's and Triton's code runs on the GPU that is here."""
    properties = torch.cuda.get_device_properties()
    assert (torch.ones(2, device="cuda") + 1).sum().item() == 4
    return (
        f"{properties.name}, capability {properties.major}.{properties.minor}, "
        f"{properties.multi_processor_count} multiprocessors, L2 {properties.L2_cache_size / 2**20:.0f} MiB, "
        f"{torch.cuda.mem_get_info()[0] / 2**30:.1f} GiB free, CUDA {torch.version.cuda}, Triton {triton.__version__}"
    )


def float32_sums_of_16_bit_products() -> str:
    """`torch.addmm(total, a, b, out_dtype=torch.float32, out=total)` adds a @ b unrounded, and in place."""
    for dtype in (torch.float16, torch.bfloat16):
        a, b = (torch.randn(1000, 1040, device="cuda", dtype=dtype)[:, :1000] for _ in "ab")
        for left, right in ((a, b), (a.T, b)):
            total = torch.randn(1000, 1000, device="cuda")
            wanted = total.double() + left.double() @ right.double()
            address = total.data_ptr()
            torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
            assert total.data_ptr() == address
            _assert_close(total, wanted, 1e-5)
    return "fp16 and bf16, also transposed"


def products_of_bfloat16() -> str:
    """`tl.dot` of bf16 operands is the float32 product."""
    x, y = (torch.randn(64, 64, device="cuda", dtype=torch.bfloat16) for _ in "xy")
    out = torch.empty(64, 64, device="cuda")
    _product_kernel[(1,)](x, y, out, INPUT_PRECISION="ieee", BLOCK=64)
    _assert_close(out, x.double() @ y.double().T, 1e-5)
    return ""


def products_of_float32() -> str:
    """`tf32x3` is near float32, as distances and log-sum-exps need it."""
    x, y = (torch.randn(64, 64, device="cuda") for _ in "xy")
    errors = {}
    for precision, limit in (("tf32", 5e-3), ("tf32x3", 1e-5)):
        out = torch.empty(64, 64, device="cuda")
        _product_kernel[(1,)](x, y, out, INPUT_PRECISION=precision, BLOCK=64)
        errors[precision] = _assert_close(out, x.double() @ y.double().T, limit)
    return ", ".join(f"{name}: error {error:.1e}" for name, error in errors.items())


def integer_atomics() -> str:
    """`tl.atomic_add` on int32 and int64 loses nothing."""
    for dtype in (torch.int32, torch.int64):
        counts = torch.zeros(8, device="cuda", dtype=dtype)
        _count_kernel[(1000,)](counts, BLOCK=8)
        assert (counts == 1000).all(), counts.tolist()
    return ""


def deterministic_mode_fills_memory() -> str:
    """`torch.empty` holds NaN under deterministic algorithms, which is how the tests find unwritten results."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1000, device=machine.device()).isnan().all()
    finally:
        torch.use_deterministic_algorithms(False)
    return ""


def loss_and_gradients() -> str:
    """`info_nce` is the dense formula, forward and backward, in every dtype."""
    errors = {}
    for dtype, limit in ((torch.float32, 2e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)):
        x, y = (t.to(dtype) for t in _pairs(300, 768))
        wide = [t.double().requires_grad_() for t in (x, y)]
        truth = torch.autograd.grad(cross_entropy_both_ways(*wide, 20.0), wide)
        errors[dtype] = max(_assert_close(*pair, limit) for pair in zip(_gradients(x, y), truth, strict=True))
    return ", ".join(f"{str(dtype).removeprefix('torch.')} error {error:.1e}" for dtype, error in errors.items())


def cuda_graph() -> str:
    """Forward and backward are captured in a CUDA graph, so nothing waits for the GPU; a replay takes new inputs."""
    for D in (128, 768):
        x, y = (t.bfloat16() for t in _pairs(2048, D))
        _gradients(x, y)  # compiles, which no capture may do
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = _gradients(x, y)
        for t in (x, y):
            t.copy_(t.flip(0) + 0.5 * t)
        graph.replay()
        assert all(map(torch.equal, captured, _gradients(x, y)))
    return "replays are bitwise the same as calls"


def copy_bandwidth() -> str:
    """The ceiling of what is bound by memory."""
    source = torch.randn(2**30, device="cuda")
    target = torch.empty_like(source)
    milliseconds = do_bench(lambda: target.copy_(source), warmup=20, rep=60, return_mode="median")
    return f"{2 * source.nbytes / milliseconds / 1e9:.2f} TB/s read and written"


def product_rate() -> str:
    """The ceiling of what is bound by products."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in "ab")
    milliseconds = do_bench(lambda: a @ b, warmup=50, rep=100, return_mode="median")
    return f"{2 * 8192**3 / milliseconds / 1e9:.0f} TFLOP/s, 8192 x 8192 x 8192 in bf16"


@triton.jit
def _product_kernel(x_ptr, y_ptr, out_ptr, INPUT_PRECISION: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    square = offs[:, None] * BLOCK + offs[None, :]
    x, y = tl.load(x_ptr + square), tl.load(y_ptr + square)
    tl.store(out_ptr + square, tl.dot(x, y.T, input_precision=INPUT_PRECISION))


@triton.jit
def _count_kernel(count_ptr, BLOCK: tl.constexpr):
    tl.atomic_add(count_ptr + tl.arange(0, BLOCK), 1)


def _pairs(N: int, D: int) -> tuple[Tensor, Tensor]:
    x, y = (torch.nn.functional.normalize(torch.randn(N, D, device=machine.device()), dim=1) for _ in "xy")
    return x, y


def _gradients(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    leaves = [t.detach().requires_grad_() for t in (x, y)]
    return torch.autograd.grad(mmkernels.info_nce(*leaves, scale=20.0), leaves)


def _assert_close(got: Tensor, wanted: Tensor, limit: float) -> float:
    """The error of got relative to wanted, by norm; NaN is never below the limit."""
    error = ((got.double() - wanted).norm() / wanted.norm()).item()
    assert error <= limit, f"relative error {error:.2g}, at most {limit:.2g} was expected"
    return error


ANYWHERE = (deterministic_mode_fills_memory, loss_and_gradients)
ON_A_GPU = (
    compiled_for_this_gpu,
    float32_sums_of_16_bit_products,
    products_of_bfloat16,
    products_of_float32,
    integer_atomics,
    *ANYWHERE,
    cuda_graph,
    copy_bandwidth,
    product_rate,
)


def check(function: Callable[[], str]) -> bool:
    """Print what became of one check; whether it passed."""
    torch.manual_seed(0)
    start, name = time.perf_counter(), function.__name__.replace("_", " ")
    try:
        note, word = function(), "ok"
    except Exception as error:  # the other checks still run
        note, word = f"{type(error).__name__}: {error}", "FAILED"
    print(f"{word:8}{time.perf_counter() - start:5.1f} s  {name}{': ' * bool(note)}{note}", flush=True)
    return word == "ok"


def main() -> int:
    """Run every check that this machine can run."""
    here = ON_A_GPU if torch.cuda.is_available() else ANYWHERE
    passed = [check(function) for function in here]
    for function in ON_A_GPU:
        if function not in here:
            print(f"{'skipped':17}{function.__name__.replace('_', ' ')}: no GPU")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())

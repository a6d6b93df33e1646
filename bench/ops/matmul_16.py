"""K @ v of an RBF kernel with 16 columns, as `matmul.py` with one."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.measure import Case
from bench.ops import matmul

TESTS = matmul.TESTS
SIZES = [(65536, 64, "bfloat16"), (65536, 64, "float32")] if torch.cuda.is_available() else [(20000, 64, "float32")]
CASES = [Case(*size, backward) for size in SIZES for backward in (True, False)]
E = 16


def inputs(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """Those of `matmul.py`, with more columns."""
    x, y, v, gamma = matmul.inputs(case, device)
    return x, y, torch.randn(case.N, E, device=device).to(v.dtype), gamma


def flops(case: Case) -> int:
    """With the gradient of K in one more product of its width."""
    return matmul.flops(case, E) + (2 * case.N**2 * E if case.backward else 0)


def test_kernel_matmul_16(compare):
    compare(inputs, matmul.CANDIDATES, flops)

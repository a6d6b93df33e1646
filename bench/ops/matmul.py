"""K @ v of an RBF kernel, never stored, and the gradient of x: one N x N x D product forward, two more backward."""

from __future__ import annotations

import torch
from torch import Tensor

import mmkernels
from bench import kernel_peers
from bench.measure import DENSE, FLOOR, OURS, Candidate, Case

TESTS = ("tests/ops/test_matmul.py",)
E = 1  # columns of v

if torch.cuda.is_available():
    SIZES = [(262144, 64, "bfloat16"), (262144, 64, "float32")]
    SIZES += [(65536, D, dtype) for D in (8, 64, 512) for dtype in ("bfloat16", "float32")]
    SIZES += [(N, 64, "float32") for N in (4096, 16384)]
else:
    SIZES = [(20000, D, "float32") for D in (8, 64, 512)] + [(N, 64, "float32") for N in (2000, 5000, 10000)]
    SIZES.append((5000, 512, "float32"))  # KeOps takes minutes with more
CASES = [Case(*size, backward) for size in SIZES for backward in (True, False)]
if not torch.cuda.is_available():
    CASES.append(Case(200_000, 32, "float32", False))


def inputs(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """Two standard normal samples, and a bandwidth at which about a third of the kernel is left."""
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    x, y = (torch.randn(case.N, case.D, device=device).to(dtype) for _ in "xy")
    v = torch.randn(case.N, E, device=device).to(dtype)
    return x.requires_grad_(case.backward), y, v, torch.tensor(0.5 / case.D, device=device)


def flops(case: Case, columns: int = E) -> int:
    """The distances, the product with v, and for the gradient the distances again and one more product."""
    return 2 * case.N**2 * ((3 if case.backward else 1) * case.D + columns)


def ours(x: Tensor, y: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    """mmkernels.kernel_matmul."""
    return mmkernels.kernel_matmul(x, y, v, "rbf", gamma=gamma).square().mean()


CANDIDATES: tuple[Candidate, ...] = (
    Candidate(OURS, ours),
    Candidate(DENSE, kernel_peers.dense, matrices=5),
    Candidate("KeOps, tuned", kernel_peers.keops_tuned, compiles=True),
    Candidate("KeOps", kernel_peers.keops, compiles=True),
    Candidate("gpytorch", kernel_peers.gpytorch, matrices=5),
    Candidate("scikit-learn", kernel_peers.scikit_learn, matrices=3),
    Candidate(FLOOR, kernel_peers.bare_products),
)


def test_kernel_matmul(compare):
    compare(inputs, CANDIDATES, flops)

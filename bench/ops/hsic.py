"""HSIC of two samples with RBF kernels, and its gradients."""

from __future__ import annotations

import torch
from torch import Tensor

import mmkernels
from bench import dependence_peers
from bench.measure import DENSE, FLOOR, OURS, Candidate, Case

TESTS = ("tests/ops/test_moments.py", "tests/ops/test_dependence.py")
if torch.cuda.is_available():
    SIZES = [(65536, 128, "bfloat16"), (65536, 128, "float32"), (16384, 128, "float32")]
else:
    SIZES = [(N, 64, "float32") for N in (1000, 2500, 5000, 10_000)]
CASES = [Case(*size, backward) for size in SIZES for backward in (True, False)]


def inputs(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """Two standard normal samples, the second with as much of the first, and a bandwidth that leaves a third."""
    torch.manual_seed(0)
    x = torch.randn(case.N, case.D, device=device)
    y = x + torch.randn_like(x)
    x, y = (t.to(getattr(torch, case.dtype)).requires_grad_(case.backward) for t in (x, y))
    return x, y, torch.tensor(0.5 / case.D, device=device)


def flops(case: Case) -> int:
    """Half of two kernel matrices; backward again, and two products of each half."""
    return 2 * case.N**2 * case.D * (4 if case.backward else 1)


def ours(x: Tensor, y: Tensor, gamma: Tensor) -> Tensor:
    """mmkernels.hsic."""
    return mmkernels.hsic(x, y, gamma=gamma)


CANDIDATES = (
    Candidate(OURS, ours),
    Candidate(DENSE, dependence_peers.dense_hsic, matrices=8),
    Candidate(FLOOR, dependence_peers.bare_products),
)


def test_hsic(compare):
    compare(inputs, CANDIDATES, flops)

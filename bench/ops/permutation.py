"""The permutation test of HSIC with all N - 1 cyclic shifts, against one HSIC of stored kernel matrices."""

from __future__ import annotations

import torch
from torch import Tensor

import mmkernels
from bench import dependence_peers
from bench.measure import DENSE, FLOOR, OURS, Candidate, Case

TESTS = ("tests/ops/test_permutation.py",)
CASES = [Case(N, 16, "float32", False) for N in (1000, 2500, 5000, 10_000)]


def inputs(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """Two standard normal samples, the second with as much of the first, and a bandwidth that leaves a third."""
    torch.manual_seed(0)
    x = torch.randn(case.N, case.D, device=device)
    return x, x + torch.randn_like(x), torch.tensor(0.5 / case.D, device=device)


def flops(case: Case) -> int:
    """Both kernel matrices; the transforms are not counted."""
    return 4 * case.N**2 * case.D


def ours(x: Tensor, y: Tensor, gamma: Tensor) -> Tensor:
    """The statistic of mmkernels.permutation_test, which has all shifts."""
    return torch.tensor(mmkernels.permutation_test("hsic", x, y, gamma=gamma).statistic)


CANDIDATES = (
    Candidate(OURS, ours),
    Candidate(DENSE, dependence_peers.dense_hsic, matrices=8),
    Candidate(FLOOR, dependence_peers.bare_products),
)


def test_permutation(compare):
    compare(inputs, CANDIDATES, flops)

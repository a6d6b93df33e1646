"""Debiased linear CKA of two representations of the same rows."""

from __future__ import annotations

import torch
from torch import Tensor

import mmkernels
from bench import dependence_peers
from bench.measure import DENSE, FLOOR, OURS, Candidate, Case

TESTS = ("tests/ops/test_dependence.py",)
CASES = [Case(N, D, "float32", False) for N, D in ((1024, 512), (4096, 512), (4096, 2048), (8192, 512))]


def inputs(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """Two standard normal samples, the second with as much of the first."""
    torch.manual_seed(0)
    x = torch.randn(case.N, case.D, device=device)
    return x, x + torch.randn_like(x)


def flops(case: Case) -> int:
    """The covariances of all features."""
    return 4 * case.N * case.D**2


def ours(x: Tensor, y: Tensor) -> Tensor:
    """mmkernels.cka."""
    return mmkernels.cka(x, y, debiased=True)


CANDIDATES = (
    Candidate(OURS, ours),
    Candidate(DENSE, dependence_peers.dense_cka, matrices=8),
    Candidate("ckatorch", dependence_peers.ckatorch_cka, matrices=16),
    Candidate("torch_cka", dependence_peers.torch_cka, matrices=8),
    Candidate(FLOOR, dependence_peers.bare_products),
)


def test_cka(compare):
    compare(inputs, CANDIDATES, flops)

"""Mutual information by nearest neighbours (KSG-1) of two samples of D features each."""

from __future__ import annotations

import torch
from torch import Tensor

import mmkernels
from bench import dependence_peers
from bench.measure import DENSE, OURS, Candidate, Case

TESTS = ("tests/ops/test_mutual_information.py",)
if torch.cuda.is_available():
    SIZES = [(65536, 5, "float32"), (16384, 5, "float32"), (16384, 16, "float32")]
else:
    SIZES = [(N, D, "float64") for D in (1, 3, 5) for N in (1000, 5000, 20_000)] + [(20_000, 10, "float32")]
CASES = [Case(*size, backward=False) for size in SIZES]


def inputs(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """Two standard normal samples, the second with as much of the first."""
    torch.manual_seed(0)
    x = torch.randn(case.N, case.D, device=device)
    return tuple(t.to(getattr(torch, case.dtype)) for t in (x, (x + torch.randn_like(x)) / 2**0.5))


def flops(case: Case) -> int:
    """A subtraction and a comparison for each pair and feature: once for the neighbours, once for the counts."""
    return 8 * case.N**2 * case.D


def ours(x: Tensor, y: Tensor) -> Tensor:
    """mmkernels.mutual_information."""
    return mmkernels.mutual_information(x, y, "ksg1")


CANDIDATES = (
    Candidate(OURS, ours),
    Candidate(DENSE, dependence_peers.dense_ksg, matrices=5),
    Candidate("scikit-learn", dependence_peers.sklearn_ksg),
)


def test_ksg(compare):
    compare(inputs, CANDIDATES, flops)

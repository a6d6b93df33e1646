"""Ranks of the right answers, both ways: one N x N x D product, and every score compared twice."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import mmkernels
from bench import peers
from bench.measure import DENSE, FLOOR, OURS, Candidate, Case

TESTS = ("tests/ops/test_neighbors.py",)

if torch.cuda.is_available():
    SIZES = [(262144, 768, "bfloat16")] + [(N, 512, "bfloat16") for N in (65536, 32768, 16384, 4096)]
else:
    SIZES = [(N, 256, "float32") for N in (1000, 4096, 16384, 100_000)]
CASES = [Case(*size, backward=False) for size in SIZES]


def inputs(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """Normalised pairs that agree a little."""
    torch.manual_seed(0)
    x = F.normalize(torch.randn(case.N, case.D, device=device), dim=1)
    y = F.normalize(x + 0.2 * torch.randn(case.N, case.D, device=device), dim=1)
    dtype = getattr(torch, case.dtype)
    return x.to(dtype), y.to(dtype)


def flops(case: Case) -> int:
    """The products; comparisons are not counted."""
    return 2 * case.N**2 * case.D


def ours(x: Tensor, y: Tensor) -> Tensor:
    """The mean of mmkernels.ranks."""
    return torch.cat(mmkernels.ranks(x, y)).mean()


def floor(x: Tensor, y: Tensor) -> Tensor:
    """The products alone."""
    return peers.BareProducts.apply(x, y)


CANDIDATES = (
    Candidate(OURS, ours),
    Candidate(DENSE, peers.compared_ranks, matrices=3),
    Candidate("argsort", peers.sorted_ranks, matrices=12),
    Candidate(FLOOR, floor),
)


def test_ranks(compare):
    compare(inputs, CANDIDATES, flops)

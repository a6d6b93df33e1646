"""Means and covariances of two views in one read, and their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

import mmkernels
from bench import cca_peers
from bench.measure import DENSE, FLOOR, OURS, Candidate, Case

TESTS = ("tests/ops/test_covariance.py",)
if torch.cuda.is_available():
    SIZES = [(N, D, dtype) for N, D in ((1_000_000, 256), (65536, 1024)) for dtype in ("bfloat16", "float32")]
else:
    SIZES = [(100_000, 256, "float32"), (100_000, 64, "float32"), (4096, 256, "float32"), (16384, 256, "float32")]
CASES = [Case(*size, backward) for size in SIZES for backward in (True, False)]


def inputs(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """Two standard normal samples, the second with a third of the first."""
    torch.manual_seed(0)
    x = torch.randn(case.N, case.D, device=device)
    y = x / 3 + torch.randn(case.N, case.D, device=device)
    return tuple(t.to(getattr(torch, case.dtype)).requires_grad_(case.backward) for t in (x, y))


def flops(case: Case) -> int:
    """Upper triangles of 2 D x 2 D, rows of 2 D backward."""
    return 2 * case.N * case.D**2 * (2 + (4 if case.backward else 0))


def ours(x: Tensor, y: Tensor) -> Tensor:
    """mmkernels.covariance."""
    return mmkernels.covariance(x, y).cov.square().mean()


CANDIDATES = (
    Candidate(OURS, ours),
    Candidate(DENSE, cca_peers.stacked_cov),
    Candidate(FLOOR, cca_peers.bare_products),
)


def test_covariance(compare):
    compare(inputs, CANDIDATES, flops)

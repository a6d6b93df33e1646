"""The loss of deep CCA, minus the sum of squared correlations, and its gradients."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

import mmkernels
from bench import cca_peers
from bench.measure import DENSE, FLOOR, OURS, Candidate, Case

TESTS = ("tests/ops/test_cca.py",)
REG = 1e-4
SIZES = [(1024, 64), (4096, 64), (16384, 64), (4096, 512), (16384, 512)]
CASES = [Case(*size, "float32", True) for size in SIZES]


def inputs(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """Two standard normal samples, the second with as much of the first."""
    torch.manual_seed(0)
    D = min(case.D, case.N // 4)
    x = torch.randn(case.N, D, device=device)
    return x.requires_grad_(), (x.detach() + torch.randn_like(x)).requires_grad_()


def flops(case: Case) -> int:
    """Upper triangles of 2 D x 2 D, rows of 2 D backward."""
    return 2 * case.N * case.D**2 * 6


def ours(x: Tensor, y: Tensor) -> Tensor:
    """mmkernels.cca_loss."""
    return mmkernels.cca_loss(x, y, reg=REG, objective="sum_squares")


CANDIDATES = (
    Candidate(OURS, ours),
    Candidate(DENSE, partial(cca_peers.dense_loss, reg=REG)),
    Candidate("cca_zoo", partial(cca_peers.cca_zoo_loss, reg=REG)),
    Candidate(FLOOR, cca_peers.bare_products),
)


def test_cca_loss(compare):
    compare(inputs, CANDIDATES, flops)

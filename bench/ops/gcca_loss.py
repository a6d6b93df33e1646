"""The loss of deep generalized CCA of three views, and its gradients."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

import mmkernels
from bench import cca_peers
from bench.measure import FLOOR, OURS, Candidate, Case

TESTS = ("tests/ops/test_cca.py",)
REG = 1e-4
CASES = [Case(N, 64, "float32", True) for N in (512, 1024, 2048)]


def inputs(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """Three standard normal samples with a common part."""
    torch.manual_seed(0)
    shared = torch.randn(case.N, min(case.D, case.N // 4), device=device)
    return tuple((shared + torch.randn_like(shared)).requires_grad_() for _ in range(3))


def flops(case: Case) -> int:
    """Upper triangles of 3 D x 3 D, rows of 3 D backward."""
    return 2 * case.N * case.D**2 * (9 // 2 + 9)


def ours(*views: Tensor) -> Tensor:
    """mmkernels.gcca_loss."""
    return mmkernels.gcca_loss(views, reg=REG)


CANDIDATES = (
    Candidate(OURS, ours),
    Candidate("cca_zoo", partial(cca_peers.cca_zoo_gcca_loss, reg=REG), matrices=6),
    Candidate(FLOOR, cca_peers.bare_products),
)


def test_gcca_loss(compare):
    compare(inputs, CANDIDATES, flops)

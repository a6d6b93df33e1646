"""The inverse square root of a D x D covariance and its gradient: eigenvectors against Newton-Schulz iterations."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

import mmkernels
from bench.measure import DENSE, FLOOR, OURS, Candidate, Case

TESTS = ("tests/ops/test_whitening.py",)
CASES = [Case(D, D, "float32", True) for D in (64, 256, 512, 1024) + ((2048,) if torch.cuda.is_available() else ())]


def inputs(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """A covariance of condition number 100."""
    torch.manual_seed(0)
    Q = torch.linalg.qr(torch.randn(case.N, case.N, device=device)).Q
    S = (Q * torch.logspace(0, -2, case.N, device=device)) @ Q.mT
    return (((S + S.mT) / 2).requires_grad_(),)


def flops(case: Case) -> int:
    """P from the eigenvectors, and the five products of its gradient."""
    return 2 * case.N**3 * 6


def ours(S: Tensor, method: str) -> Tensor:
    """mmkernels.inverse_sqrt."""
    return mmkernels.inverse_sqrt(S, method).square().sum()


def through_eigh(S: Tensor) -> Tensor:
    """Eigenvectors, and their derivative by autograd, which divides by differences of eigenvalues."""
    values, vectors = torch.linalg.eigh(S)
    return ((vectors * values.rsqrt()) @ vectors.mT).square().sum()


def bare_products(S: Tensor) -> Tensor:
    """Six products with the gradient's."""
    return (S @ S).sum() + (S @ S.detach() @ S.detach()).sum()


CANDIDATES = (
    Candidate(OURS, partial(ours, method="eigh")),
    Candidate("mmkernels, Newton-Schulz", partial(ours, method="newton_schulz")),
    Candidate(DENSE, through_eigh),
    Candidate(FLOOR, bare_products),
)


def test_inverse_sqrt(compare):
    compare(inputs, CANDIDATES, flops)

"""Linear CCA: the largest canonical correlation of two views, from data to result."""

from __future__ import annotations

import torch
from torch import Tensor

import mmkernels
from bench import cca_peers
from bench.measure import DENSE, FLOOR, OURS, Candidate, Case

TESTS = ("tests/ops/test_cca.py", "tests/estimators/test_cca.py")
if torch.cuda.is_available():
    SIZES = [(1_000_000, 256, "float32"), (1_000_000, 256, "bfloat16"), (65536, 1024, "float32")]
else:
    SIZES = [(10_000, 64, "float32"), (100_000, 64, "float32"), (10_000, 256, "float32"), (100_000, 256, "float32")]
CASES = [Case(*size, False) for size in SIZES]


def inputs(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """Two standard normal samples, unrelated, of at most a quarter as many features as rows."""
    torch.manual_seed(0)
    D = min(case.D, case.N // 4)
    x, y = (torch.randn(case.N, D, device=device).to(getattr(torch, case.dtype)) for _ in "xy")
    return x, y


def flops(case: Case) -> int:
    """Upper triangles of 2 D x 2 D."""
    return 4 * case.N * case.D**2


def ours(x: Tensor, y: Tensor) -> Tensor:
    """mmkernels.canonical_correlations."""
    return mmkernels.canonical_correlations(x, y)[0]


def estimator(x: Tensor, y: Tensor) -> Tensor:
    """mmkernels.estimators.CCA, with a decomposition in float64."""
    from mmkernels.estimators import CCA

    return torch.tensor(CCA(min(cca_peers.COMPONENTS, x.shape[1])).fit(x, y).correlations_[0])


CANDIDATES = (
    Candidate(OURS, ours),
    Candidate("mmkernels' CCA", estimator),
    Candidate(DENSE, cca_peers.dense_correlation),
    Candidate("cca_zoo", cca_peers.cca_zoo),
    Candidate("scikit-learn, one component", cca_peers.scikit_learn),
    Candidate(FLOOR, cca_peers.bare_products),
)


def test_cca(compare):
    compare(inputs, CANDIDATES, flops)

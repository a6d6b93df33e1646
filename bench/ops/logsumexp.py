"""InfoNCE, symmetric, with a learnable scale: one streamed log-sum-exp, four N x N x D products with gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import mmkernels
from bench import peers
from bench.measure import DENSE, FLOOR, OURS, Candidate, Case
from reference.contrastive import cross_entropy_both_ways

TESTS = ("tests/ops/test_logsumexp.py", "tests/ops/test_info_nce.py")

if torch.cuda.is_available():  # the largest first: a budget takes its toll at the end
    SIZES = [(65536, 768, "bfloat16")] + [
        (N, 512, dtype) for N in (65536, 32768, 16384, 4096) for dtype in ("bfloat16", "float32")
    ]
else:
    SIZES = [(N, 512, "float32") for N in (512, 2048, 4096, 8192, 16384)]
CASES = [Case(*size, backward) for size in SIZES for backward in (True, False)]


def inputs(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """Normalised pairs, and the scale."""
    torch.manual_seed(0)
    x, y = (F.normalize(torch.randn(case.N, case.D, device=device), dim=1) for _ in "xy")
    dtype = getattr(torch, case.dtype)
    scale = torch.tensor(1 / peers.TEMPERATURE, device=device)
    return x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_(), scale.requires_grad_()


def flops(case: Case) -> int:
    """Forward one product, with gradients four, the scores' recomputation included."""
    return 2 * case.N**2 * case.D * (4 if case.backward else 1)


def ours(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """mmkernels.info_nce."""
    return mmkernels.info_nce(x, y, scale=scale)


CANDIDATES: tuple[Candidate, ...] = (
    Candidate(OURS, ours),
    Candidate(DENSE, cross_entropy_both_ways, matrices=5),
    Candidate("torch.compile", peers.compiled_cross_entropy, matrices=4, compiles=True),
    Candidate("linear_cross_entropy", peers.torch_linear_cross_entropy),
    Candidate("open_clip", peers.open_clip, matrices=5),
    Candidate(FLOOR, peers.bare_products),
)
if torch.cuda.is_available():
    CANDIDATES += (
        Candidate("memeff", peers.memeff),
        Candidate("Inf-CL", peers.inf_cl),
        Candidate("cut_cross_entropy", peers.cut_cross_entropy),
    )


def test_info_nce(compare):
    compare(inputs, CANDIDATES, flops)

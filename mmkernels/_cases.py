"""The calls whose kernels are compiled ahead of time: a reduction is one function here and one entry of REDUCTIONS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One call of a reduction's launchers.

    All options means log-weights, ids and a positive per row for logsumexp, a mixture of kernels for matmul and gram,
    weights and missing views for covariance.
    """

    reduction: str
    dtype: torch.dtype
    D: int
    precision: str = "ieee"
    options: bool = False
    columns: bool = True
    aligned: bool = True
    N: int = 512
    M: int = 512
    kernel: str = "rbf"
    E: int = 32  # columns that a kernel matrix multiplies
    symmetric: bool = False


# What --predict predicts: the sizes that the benchmark takes on a GPU, and a width narrow enough to store no weights.
PREDICTED = {
    f"InfoNCE forward and backward, N = 65,536, D = {D}, bfloat16": Case(
        "logsumexp", torch.bfloat16, D, N=65536, M=65536
    )
    for D in (768, 512, 128)
}


def _inputs(case: Case) -> tuple[Tensor, Tensor]:
    # One more column in memory makes the rows start off 16-byte boundaries.
    x, y = (torch.randn(size, case.D + (not case.aligned)).to(case.dtype)[:, : case.D] for size in (case.N, case.M))
    return x, y


def _logsumexp(case: Case) -> None:
    from mmkernels.kernels import logsumexp as room

    N, M = case.N, case.M
    x, y = _inputs(case)
    scale, g, h = torch.tensor(1.0), torch.ones(N), torch.ones(M)
    ids = torch.arange(M) if case.options else None
    log_weights = torch.zeros(M) if case.options else None
    offset = 0 if N == M else None
    shared = (x, y, scale, log_weights, ids, ids, offset)
    rows, columns, _, _, _, scores = room.logsumexp_fwd(*shared, case.columns, False, case.precision)
    room.logsumexp_bwd(
        *shared, rows, columns, scores, g, h if case.columns else None, g if offset == 0 else None,
        [True, True, True, case.options], case.precision,
    )  # fmt: skip
    if case.options:
        needs = [False, False, True, True]
        room.logsumexp_bwd(*shared, rows, columns, scores, g, h, g, needs, case.precision)


def _neighbors(case: Case) -> None:
    from mmkernels.kernels import neighbors as room

    x, y = _inputs(case)
    row_ids, column_ids = (torch.arange(len(t)) if case.options else None for t in (x, y))
    best = room.neighbors_best(x, y, row_ids, column_ids, case.precision)
    room.neighbors_count(x, y, row_ids, column_ids, *best, case.precision)
    for k in (4, 16):
        room.neighbors_topk(x, y, k, case.precision)


def _matmul(case: Case) -> None:
    from mmkernels.kernels import matmul as room

    x, y = _inputs(case)
    v = torch.randn(1, case.M, case.E).to(case.dtype)
    shared = (x[None], None if case.symmetric else y[None], v, *_kernel(case))
    out = room.matmul_fwd(*shared, case.precision)
    room.matmul_bwd(*shared, out, [True] * 5, case.precision)


def _gram(case: Case) -> None:
    from mmkernels.kernels import gram as room

    x, y = _inputs(case)
    shared = (x[None], None if case.symmetric else y[None], *_kernel(case))
    K = room.gram_fwd(*shared, case.precision)
    room.gram_bwd(*shared, K, [True] * 4, case.precision)


def _covariance(case: Case) -> None:
    from mmkernels.kernels import covariance as room

    x, y = (t[None] for t in _inputs(case))
    for views in ((x,), (x, y), (x, y, x)):
        D = case.D * len(views)
        factors = torch.ones(1, len(views), case.N) if case.options else None
        shared = (views, torch.zeros(1, D), factors)
        room.covariance_fwd(*shared, case.precision)
        grads = torch.zeros(1, D, D), torch.zeros(1, len(views) if case.options else 1, D)
        room.covariance_bwd(*shared, *grads, [True] * len(views), case.precision)


def _moments(case: Case) -> None:
    from mmkernels.kernels import moments as room

    x, y = (t[None] for t in _inputs(case))
    for views in ((x, y), (x,)):
        V = len(views)
        gamma, coef, kernel, degree = _kernel(case)
        shared = (views, [gamma] * V, [coef] * V, [torch.zeros(1)] * V, [kernel] * V, [degree] * V)
        for squares in (False, True):
            rows, pairs, product, square = room.moments_fwd(*shared, [True, squares, True, squares], case.precision)
        room.moments_bwd(*shared, rows, pairs, product, square, [True] * (3 * V), case.precision)


def _nearest(case: Case) -> None:
    from mmkernels.kernels import nearest as room

    x, y = _inputs(case)
    for views, euclidean in (((x,), False), ((x,), True), ((x, y), True)):
        for k in (4, 16, 20):
            values, _ = room.nearest_topk(views, k, euclidean, case.precision)
        for strict in (False, True):
            room.nearest_count(views, values[:, -1], euclidean, strict, case.precision)


def _kernel(case: Case) -> tuple[Tensor, Tensor, str, int]:
    degree = 3 if case.kernel == "polynomial" else 1
    return torch.ones(1, 2 if case.options else 1), torch.ones(1), case.kernel, degree


REDUCTIONS: dict[str, Callable[[Case], None]] = {
    "logsumexp": _logsumexp,
    "neighbors": _neighbors,
    "matmul": _matmul,
    "gram": _gram,
    "covariance": _covariance,
    "moments": _moments,
    "nearest": _nearest,
}
_KERNELS = (
    *("polynomial", "exponential", "sigmoid", "matern12", "matern32", "matern52", "rational_quadratic", "energy"),
    "laplacian",
)


def cases(chip: str, quick: bool) -> Iterator[Case]:
    """The calls that together reach every kernel with every configuration of a chip; quick: every kernel."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    accurate, fast = ("bf16x6", "ieee") if chip.startswith("gfx") else ("tf32x3", "tf32")
    if quick:
        precisions = dict.fromkeys(REDUCTIONS, "ieee") | {"covariance": accurate}
        yield from (Case(reduction, bf16, D, precisions[reduction]) for reduction in REDUCTIONS for D in (768, 128))
        yield Case("matmul", bf16, 64, kernel="laplacian")
        return
    for reduction in ("logsumexp", "neighbors"):
        for D in (32, 64, 128, 256, 768):
            yield Case(reduction, bf16, D)
            yield Case(reduction, bf16, D, options=True)
            yield Case(reduction, fp32, D, accurate, options=True)
        for D in (64, 768):
            yield Case(reduction, fp16, D, options=True)
            yield Case(reduction, bf16, D, columns=False)
            yield Case(reduction, fp32, D, fast)
            yield Case(reduction, fp32, D, "ieee")
        for D in (1, 100, 300):
            yield Case(reduction, bf16, D, options=True, aligned=False)
            yield Case(reduction, fp32, D, accurate, aligned=False)
        yield Case(reduction, bf16, 64, N=3 * 8192)  # several waves of rows
    for dtype, precision in ((bf16, "ieee"), (fp32, accurate)):
        for D in (32, 64, 128, 768):
            yield Case("matmul", dtype, D, precision)
            yield Case("matmul", dtype, D, precision, E=1)
        for kernel in _KERNELS:
            yield Case("matmul", dtype, 64, precision, kernel=kernel)
        yield Case("matmul", dtype, 64, precision, options=True, symmetric=True)
        yield Case("matmul", dtype, 100, precision, E=100, aligned=False)
        for D in (64, 768):
            yield Case("gram", dtype, D, precision)
        yield Case("gram", dtype, 64, precision, symmetric=True)
    for dtype, precision in ((bf16, accurate), (fp16, accurate), (fp32, accurate), (fp32, fast), (fp32, "ieee")):
        for D in (16, 64, 256):
            yield Case("covariance", dtype, D, precision)
        yield Case("covariance", dtype, 256, precision, options=True)
    for dtype in (bf16, fp32):
        yield Case("covariance", dtype, 100, accurate, options=True, aligned=False)
    for dtype, precision in ((bf16, "ieee"), (fp16, "ieee"), (fp32, accurate), (fp32, fast), (fp32, "ieee")):
        for D in (16, 64, 768):
            yield Case("moments", dtype, D, precision)
        for kernel in ("energy", "matern52", "polynomial", "laplacian"):
            yield Case("moments", dtype, 64, precision, kernel=kernel)
    yield Case("moments", bf16, 100, aligned=False)
    for D in (1, 3, 64):
        yield Case("nearest", fp32, D)
    for D in (64, 768):
        yield Case("matmul", fp16, D)
        yield Case("matmul", fp32, D, fast)
        yield Case("matmul", fp32, D, "ieee")

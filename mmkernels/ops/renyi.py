"""Matrix-based Renyi entropy of any order, exact or by stochastic Lanczos quadrature, in O(N) memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmkernels import _check
from mmkernels._dispatch import compute_dtype
from mmkernels.ops._autocast import without_autocast
from mmkernels.ops._entries import data_driven
from mmkernels.ops._sums import Options, check_samples, several
from mmkernels.ops.information import kernel_options, matrix_entropy
from mmkernels.ops.kernel import kernel_matmul, kernel_matrix

METHODS = ("auto", "eigenvalues", "lanczos")
_EXACT = 2000  # rows up to which "auto" takes eigenvalues
_WIDE = 16  # probes in one kernel product


class RenyiEstimate(NamedTuple):
    """An entropy and its standard error.

    Attributes:
        value: nats, 0-dimensional.
        error: a standard error: that of the probes, and what half of the steps change; 0 where the value is exact.
    """

    value: Tensor
    error: Tensor


@without_autocast
def renyi_entropy(
    views: Tensor | Sequence[Tensor],
    alpha: float = 2.0,
    method: str = "auto",
    *,
    kernel: str | Sequence[str] = "rbf",
    gamma: Any = "median",
    parameters: Any = None,
    probes: int = 32,
    steps: int = 30,
    seed: int = 0,
) -> RenyiEstimate:
    r"""Matrix-based entropy of order alpha of the normalised kernel matrix, in nats.

    .. math::
        S_\alpha(A) = \frac{1}{1 - \alpha} \log \sum_i \lambda_i(A)^\alpha, \qquad
        A = \frac1N K^1 \circ \dots \circ K^V

    and :math:`-\sum \lambda_i \log \lambda_i` for alpha = 1. Order 2 is one sweep, exact at any size, with gradients.
    Others are exact from all eigenvalues, in float64, where rows are few, and estimated where they are many:

    .. math::
        \mathrm{tr} f(A) = \mathrm{tr}\, Q^\top f(A)\, Q + \mathrm{tr}\, (1 - QQ^\top) f(A) (1 - QQ^\top)

    with Q a basis of about the largest eigenvectors, whose part is exact, and the rest from random sign vectors
    (Hutch++), corrected by what they miss of tr A = 1. Each :math:`v^\top f(A)\, v` is a quadrature by Lanczos'
    iteration, on products with A that is never stored.

    Args:
        views: (N, D) in float16, bfloat16, float32 or float64, or several such: the joint entropy.
        alpha: the order, above 0.
        method: "eigenvalues" (N x N memory, N^3 time), "lanczos", or "auto": eigenvalues up to 2,000 rows. Order 2
            needs neither.
        kernel, gamma, parameters: as in `hsic`, one or one for each view; kernels with k(x, x) = 1. Several views by
            Lanczos take "rbf" kernels, whose product is one again.
        probes: random sign vectors, 3 or more, and as many vectors of Q.
        steps: of Lanczos, 2 to N: more where the order is small and eigenvalues decay slowly. Orders below 1 are
            computed in float64.
        seed: of the probes.

    Returns:
        A `RenyiEstimate`. Order 2 has derivatives of any order, "eigenvalues" those of torch.linalg.eigvalsh; "lanczos"
        raises a NotImplementedError where a gradient is asked for.

    Raises:
        TypeError, ValueError: arguments that do not fit.

    Cost: order 2: N^2 D / 2. "lanczos": N^2 (D + 16) each step for 16 vectors, 16 N steps memory.

    Source: Sanchez Giraldo, Rao and Principe 2015 (arXiv 1211.2459); Yu et al. 2019 (1808.07912); Gong et al. 2021
    (2112.13720) for randomised estimates; Ubaru, Chen and Saad 2017 for the quadrature; Meyer, Musco, Musco and
    Woodruff 2021 (Hutch++, 2010.09649).

    Example:
        >>> import torch, mmkernels
        >>> x = torch.randn(500, 3)
        >>> exact = mmkernels.renyi_entropy(x, 1.5, "eigenvalues").value
        >>> estimate = mmkernels.renyi_entropy(x, 1.5, "lanczos")
        >>> bool((estimate.value - exact).abs() < 5 * estimate.error + 1e-3)
        True
    """
    checked = check_samples([views] if isinstance(views, Tensor) else several(views, 1), 1)
    for v, view in enumerate(checked):
        _check.tensor(f"views[{v}]", view, 2)
    alpha = _check.number("alpha", alpha, 0)
    _check.choice("method", method, METHODS)
    options = kernel_options(checked, kernel, gamma, parameters)
    if alpha == 2:
        value = matrix_entropy(checked, options)
        return RenyiEstimate(value, torch.zeros_like(value))
    N, dtype = len(checked[0]), checked[0].dtype
    if method == "eigenvalues" or (method == "auto" and N <= _EXACT):
        return _by_eigenvalues(checked, options, alpha)
    _check.integer("probes", probes, 3)
    steps = min(_check.integer("steps", steps, 2), N)
    seed = _check.seed(seed)
    tensors = [*checked, *(t for _, own in options for t in own.values() if isinstance(t, Tensor))]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        raise NotImplementedError(
            "Lanczos estimates have no gradient: take order 2 or 'eigenvalues', or detach the views"
        )
    if alpha < 1:  # the many small eigenvalues, which float32 does not resolve, have a say
        checked = [v.double() for v in checked]
    found = _by_lanczos(_one_kernel(checked, options), N, checked[0], alpha, probes, steps, seed)
    return RenyiEstimate(*(t.to(compute_dtype(dtype)) for t in found))


def _by_eigenvalues(views: Sequence[Tensor], options: Options, alpha: float) -> RenyiEstimate:
    """In float64: rounding makes many small eigenvalues, which count much where alpha is small."""
    A = torch.ones((), dtype=torch.float64, device=views[0].device)
    for view, (name, own) in zip(views, options, strict=True):
        A = A * kernel_matrix(view.double(), kernel=name, **own)
    eigenvalues = torch.linalg.eigvalsh(A / len(views[0]))
    positive = eigenvalues > 0  # what rounding made negative is 0
    logs = torch.where(positive, eigenvalues, 1).log()
    weights = torch.where(positive, eigenvalues, 0)
    if alpha == 1:
        value = -(weights * logs).sum()
    elif abs(alpha - 1) < 0.1:  # they sum to 1: what differs from it keeps its digits
        value = torch.log1p((weights * torch.expm1((alpha - 1) * logs)).sum()) / (1 - alpha)
    else:
        value = torch.where(positive, alpha * logs, -torch.inf).logsumexp(0) / (1 - alpha)
    value = value.to(compute_dtype(views[0].dtype))
    return RenyiEstimate(value, torch.zeros_like(value))


def _one_kernel(views: Sequence[Tensor], options: Options) -> Callable[[Tensor], Tensor]:
    """The product with the entrywise product of all kernel matrices."""
    if len(views) == 1:
        name, own = options[0]
        fixed = data_driven(views[0], None, name, own)
        return lambda v: kernel_matmul(views[0], None, v, name, **fixed)
    if any(name != "rbf" or set(own) - {"gamma"} for name, own in options):
        raise ValueError("several views by Lanczos take 'rbf' kernels with a gamma each")
    scaled = []
    for view, (name, own) in zip(views, options, strict=True):
        g = data_driven(view, None, name, own).get("gamma", 1 / view.shape[1])
        scaled.append((view - view.mean(0)) * (g.reshape(()) if isinstance(g, Tensor) else g) ** 0.5)
    z = torch.cat(scaled, 1)
    return lambda v: kernel_matmul(z, None, v, "rbf", gamma=1.0)


@torch.no_grad()
def _by_lanczos(
    product: Callable[[Tensor], Tensor], N: int, like: Tensor, alpha: float, probes: int, steps: int, seed: int
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32

    def times(v: Tensor) -> Tensor:
        parts = [product(part.to(like.dtype).contiguous()) for part in v.split(_WIDE, 1)]  # type: ignore[no-untyped-call]
        return torch.cat(parts, 1).to(dtype) / N

    def rules(v: Tensor) -> list[Tensor]:
        """Nodes and weights of the quadratures of every column, with all steps and with half of them."""
        found = [_quadratures(times, part, steps) for part in v.split(_WIDE, 1)]  # type: ignore[no-untyped-call]
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    def signs(count: int) -> Tensor:
        return torch.randint(0, 2, (N, count), generator=generator).mul_(2).sub_(1).to(like.device, dtype)

    Q = torch.linalg.qr(times(times(signs(min(probes, N))))).Q
    rest = signs(probes)
    rest = rest - Q @ (Q.mT @ rest)
    largest, others = rules(Q), rules(rest)
    scale = max(largest[0].max(), others[0].max())

    def trace(half: int) -> tuple[Tensor, Tensor]:
        """tr f(A / scale) and its standard error."""
        (of_largest, first), (of_others, second) = (
            ((w * _power(nodes / scale, alpha)).sum(1), (w * nodes).sum(1) / scale)
            for nodes, w in (largest[2 * half : 2 * half + 2], others[2 * half : 2 * half + 2])
        )
        # the trace of A is 1, which says what the random vectors miss, and so what f misses with them
        apart = second - second.mean()
        slope = (apart * of_others).sum() / apart.square().sum().clamp(min=torch.finfo(apart.dtype).tiny)
        missed = 1 / scale - first.sum() - second.mean()
        left = of_others - of_others.mean() - slope * apart
        error = left.square().sum().div(probes * (probes - 2)).sqrt()
        return of_largest.sum() + of_others.mean() + slope * missed, error

    (value, error), (rough, _) = trace(0), trace(1)
    error = error.hypot(value - rough)  # the quadrature's own error is less than what half of its steps change
    if alpha == 1:  # sum of -l log l, of l = scale m
        return -scale * value - scale.log(), scale * error
    return (alpha * scale.log() + value.log()) / (1 - alpha), error / (value * abs(1 - alpha))


def _power(nodes: Tensor, alpha: float) -> Tensor:
    """l^alpha, or for order 1 l log l; what rounding made negative is 0."""
    positive = nodes > 0
    safe = torch.where(positive, nodes, 1)
    return torch.where(positive, safe * safe.log() if alpha == 1 else safe**alpha, 0)


def _quadratures(product: Callable[[Tensor], Tensor], v: Tensor, steps: int) -> list[Tensor]:
    """Nodes and weights (P, steps) of v' f(A) v for the columns of v (N, P), float64, and those of half the steps.

    By Lanczos' iteration with reorthogonalisation.
    """
    N, P = v.shape
    tiny = torch.finfo(v.dtype).tiny
    basis = v.new_zeros(steps, N, P)
    diagonal, beside = (v.new_zeros(P, steps, dtype=torch.float64) for _ in range(2))
    norms = v.norm(dim=0)
    q = v / norms.clamp(min=tiny)
    for k in range(steps):
        basis[k] = q
        r = product(q)
        diagonal[:, k] = (q * r).sum(0)
        size = r.norm(dim=0)
        for _ in range(2):
            for other in basis[: k + 1]:
                r -= other * (other * r).sum(0)
        norm = r.norm(dim=0)
        ended = norm <= 10 * torch.finfo(v.dtype).eps * size  # an invariant subspace: what is left is rounding
        beside[:, k] = torch.where(ended, 0, norm)
        q = torch.where(ended, 0, r / norm.clamp(min=tiny))
    T = torch.diag_embed(diagonal) + torch.diag_embed(beside[:, :-1], 1) + torch.diag_embed(beside[:, :-1], -1)
    found = []
    for part in (T, T[:, : (steps + 1) // 2, : (steps + 1) // 2]):
        nodes, vectors = torch.linalg.eigh(part)
        found += [nodes, norms.double().square()[:, None] * vectors[:, 0].square()]
    return found

"""Linear systems with a kernel matrix that is never stored: preconditioned conjugate gradients, with gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mmkernels import _check
from mmkernels._dispatch import no_autocast
from mmkernels.ops._entries import entries
from mmkernels.ops._kernels import broadcast
from mmkernels.ops.kernel import kernel_matmul, kernel_matrix

if TYPE_CHECKING:
    from mmkernels.ops.operator import KernelOperator

Matmul = Callable[..., Tensor]
Report = Callable[[int, float], None]


class Solution(NamedTuple):
    """What conjugate gradients reached."""

    x: Tensor
    residual: float
    """|b - K x| / |b|, computed from x itself, of the worst column."""
    iterations: int


class ConvergenceError(RuntimeError):
    """A linear system is not solved to the tolerance; `solution` is where the iteration stopped."""

    def __init__(self, message: str, solution: Solution) -> None:
        super().__init__(message)
        self.solution = solution


def solve(K: KernelOperator, b: Tensor, tol: float, max_iter: int, rank: int, report: Report | None = None) -> Solution:
    """`KernelOperator.solve`, with what was reached; report is called with the iteration and the residual."""
    _check.number("tol", tol, 0)
    _check.integer("max_iter", max_iter, 1)
    _check.integer("rank", rank, 0)
    columns = _right_side(K, b)
    if columns.numel() == 0:
        return _like(Solution(columns, 0.0, 0), b)
    fields = {"x": K.x.to(K.dtype), "diag": K.added, **K.parameters}  # 16-bit rows multiply 16-bit vectors: too coarse
    names = [name for name, value in fields.items() if isinstance(value, Tensor)]

    def build(tensors: Sequence[Tensor]) -> Matmul:
        return partial(kernel_matmul, y=None, kernel=K.kernel, **fields | dict(zip(names, tensors, strict=True)))

    with torch.no_grad(), no_autocast(b):
        precondition = preconditioner(K, rank)
    options = (tol, max_iter, report)
    try:
        solution = Solution(*_Solve.apply(build, precondition, options, columns, *(fields[name] for name in names)))  # type: ignore[no-untyped-call]
    except ConvergenceError as error:
        error.solution = _like(error.solution, b)
        raise
    return _like(solution, b)


def _like(solution: Solution, b: Tensor) -> Solution:
    """The solution as a vector where b is one."""
    return solution._replace(x=solution.x.squeeze(-1)) if b.ndim == 1 else solution


def _right_side(K: KernelOperator, b: Tensor) -> Tensor:
    """b as (..., N, E) in K's dtype, with all batch dimensions."""
    N, M = K.shape[-2:]
    if K.y is not None:
        raise ValueError("only a symmetric K is solved with: make the operator with y=None")
    t = _check.floating("b", b, max(1, b.ndim) if isinstance(b, Tensor) else 1)
    columns = t[:, None] if t.ndim == 1 else t
    if columns.shape[-2] != M:
        raise ValueError(f"b must have as many rows as K, {N}, got shape {tuple(t.shape)}")
    if t.dtype not in (K.x.dtype, K.dtype):
        raise TypeError(f"b must have x's dtype or K's, got {t.dtype}, {K.x.dtype} and {K.dtype}")
    _check.on_device("b", t, K.x)
    if t.ndim == 1 and len(K.shape) > 2:
        raise ValueError(f"b must be (..., N, E) where K has batch dimensions, got shape {tuple(t.shape)}")
    batch = broadcast("b", K.shape[:-2], columns, 2)
    return columns.to(K.dtype).expand(*batch, *columns.shape[-2:])


class _Solve(torch.autograd.Function):
    """x = K^-1 b. With w = K^-1 grad, b's gradient is w, and K's is that of -w' K x with w and x held."""

    @staticmethod
    def forward(
        build: Callable[[Sequence[Tensor]], Matmul],
        precondition: Matmul,
        options: tuple[float, int, Report | None],
        b: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, float, int]:
        exact = build([t.to(_wide(b)) for t in tensors])

        def residual(x: Tensor) -> Tensor:
            return (b - exact(v=x)).to(b.dtype)

        with no_autocast(b):
            return tuple(conjugate_gradients(build(tensors), b, precondition, residual, *options))  # type: ignore[return-value]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, float, int]) -> None:
        ctx.build, ctx.precondition, ctx.options, _, *tensors = inputs
        ctx.save_for_backward(output[0], *tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: None) -> Any:
        x, *tensors = ctx.saved_tensors
        w = _Solve.apply(ctx.build, ctx.precondition, ctx.options, grad, *tensors)[0]  # type: ignore[no-untyped-call]
        needs = ctx.needs_input_grad[4:]
        wanted = [t for t, need in zip(tensors, needs, strict=True) if need]

        def product(*variables: Tensor) -> Tensor:
            left = iter(variables)
            matmul: Matmul = ctx.build([next(left) if need else t for t, need in zip(tensors, needs, strict=True)])
            return matmul(v=x)

        gradients = iter(())
        if wanted:
            with no_autocast(x):
                gradients = iter(torch.func.vjp(product, *wanted)[1](-w))
        return (
            None,
            None,
            None,
            w if ctx.needs_input_grad[3] else None,
            *(next(gradients) if n else None for n in needs),
        )


def conjugate_gradients(
    matmul: Matmul,
    b: Tensor,
    precondition: Matmul,
    true_residual: Matmul,
    tol: float,
    max_iter: int,
    report: Report | None = None,
) -> Solution:
    """Solve K x = b for all columns of b at once, K symmetric and positive definite.

    The residual that the recurrence carries along drifts from b - K x by rounding. Where it claims convergence, or has
    fallen as far as it can be believed, true_residual(x) takes its place and the iteration starts again from there, as
    long as that helps: iterative refinement, in float64 where the products are in float32.

    Raises:
        ConvergenceError: the residual is above tol after max_iter products, or cannot be reduced further.
    """
    size = _norm(b)
    x, residual, direction = torch.zeros_like(b, dtype=_wide(b)), b, torch.zeros_like(b)
    rho = torch.zeros_like(size)
    believed = 100 * torch.finfo(b.dtype).eps
    start, iteration, problem = 1.0, 0, ""
    while True:
        z = precondition(residual)
        previous, rho = rho, _dot(residual, z)
        direction = z + _ratio(rho, previous) * direction
        product = matmul(v=direction)
        curvature = _dot(direction, product)
        step = _ratio(rho, curvature)
        x = x + step * direction
        residual = residual - step * product
        iteration += 1
        norm = _norm(residual)
        indefinite = (curvature <= 0) & (norm > tol * size)
        checks = (_relative(norm, size), (~norm.isfinite()).any(), indefinite.any())
        relative, broken, stuck = torch.stack(checks).tolist()  # the only wait for a GPU
        if report is not None:
            report(iteration, relative)
        if broken:
            problem = "K or b holds NaN or infinity"
        elif stuck:
            problem = f"K with its diag is not positive definite in {b.dtype}: give a larger diag"
        elif iteration >= max_iter:
            problem = "give more iterations (max_iter), a preconditioner of higher rank (rank) or a larger diag"
        if relative <= max(tol, believed * start) or problem:
            residual = true_residual(x)
            relative = _relative(_norm(residual), size).item()
            if relative <= tol:
                return Solution(x.to(b.dtype), relative, iteration)
            if not problem and relative > start / 2:
                problem = "rounding lets it fall no further: give a larger diag, a larger tol or float64 inputs"
            if problem:
                reached = f"relative residual {relative:.1e} after {iteration} iterations, above tol = {tol:.1e}"
                raise ConvergenceError(f"{reached}; {problem}", Solution(x.to(b.dtype), relative, iteration))
            start, rho = relative, torch.zeros_like(rho)


def preconditioner(K: KernelOperator, rank: int) -> Matmul:
    """Return r -> (L L' + D)^-1 r with the pivoted Cholesky factor L of K without its diag, and D that diag.

    Where diag is not positive, D is the mean of what L leaves of K's diagonal.

    With D^-1/2 L = U S V' the inverse is D^-1/2 (I - U (S^2 / (1 + S^2)) U') D^-1/2. Taken literally, rounding drowns
    what it leaves in the range of U. Projected out, twice, and put back with its factor 1 / (1 + S^2), it survives, and
    the result is positive definite whatever U is.
    """
    x, dtype = K.x.to(K.dtype), K.dtype
    diagonal = entries(x, x, K.kernel, K.parameters)

    def rows(i: Tensor) -> Tensor:
        own = torch.take_along_dim(x.expand(*i.shape[:-1], *x.shape[-2:]), i[..., None], -2)
        return kernel_matrix(own, x, K.kernel, **K.parameters)

    factor, left = pivoted_cholesky(rows, diagonal, min(rank, diagonal.shape[-1]))
    added = torch.as_tensor(0.0 if K.added is None else K.added, dtype=dtype, device=K.device)
    rest = torch.maximum(left.mean(-1, keepdim=True), torch.finfo(dtype).eps * diagonal.mean(-1, keepdim=True))
    rest = torch.where(rest > 0, rest, 1)
    root = torch.where(added > 0, added, rest).rsqrt()[..., None]
    q, r = torch.linalg.qr(root * factor.mT)
    p, s, _ = torch.linalg.svd(r)
    u, kept = q @ p, 1 / (1 + s.square())[..., None]

    def apply(r: Tensor) -> Tensor:
        scaled = root * r
        inside = u.mT @ scaled
        outside = scaled - u @ inside
        outside = outside - u @ (u.mT @ outside)
        result: Tensor = root * (outside + u @ (kept * inside))
        return result

    return apply


def pivoted_cholesky(rows: Callable[[Tensor], Tensor], diagonal: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return L' (..., rank, N) with L L' nearly K, and what is left of the diagonal (..., N).

    Each step takes the row whose diagonal has most left (Harbrecht, Peters and Schneider 2012). rows(i) returns rows i
    (..., 1) of K. Beyond K's numerical rank the rest of L is 0.
    """
    left = diagonal.clamp(min=0)
    factor = diagonal.new_zeros(*diagonal.shape[:-1], rank, diagonal.shape[-1])
    smallest = torch.finfo(diagonal.dtype).eps * left.amax(-1, keepdim=True)
    for k in range(rank):
        pivot = left.argmax(-1, keepdim=True)
        most = left.gather(-1, pivot)
        known = factor[..., :k, :]
        row = rows(pivot) - torch.take_along_dim(known, pivot[..., None], -1).mT @ known
        row = torch.where(most > smallest, row.squeeze(-2) / most.sqrt(), 0)
        factor[..., k, :] = row
        left = (left - row.square()).clamp(min=0).scatter(-1, pivot, 0)
    return factor, left


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Of every column, (..., 1, E)."""
    return (a * b).sum(-2, keepdim=True)


def _norm(a: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(a, dim=-2, keepdim=True)
    return norm


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, 0 where b is not positive: columns that are solved stand still."""
    return torch.where(b > 0, a / b, 0)


def _relative(norm: Tensor, size: Tensor) -> Tensor:
    """The largest of the columns' relative norms, 0 for b = 0."""
    return torch.where(size > 0, norm / size, norm).amax()


def _wide(b: Tensor) -> torch.dtype:
    """float64, but on Apple's GPUs, which have none."""
    return b.dtype if b.device.type == "mps" else torch.float64

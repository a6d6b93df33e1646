"""S^(-1/2) by eigenvectors or by products alone, with derivatives of any order that divide by sums of eigenvalues only.

P S P = 1, and so with R = P^-1: R dP + dP R = -P dS P. The gradient of S is -P X P where R X + X R = G, a Sylvester
equation, and the derivatives of its solution are Sylvester equations with the same R.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from mmkernels.autograd._once import once

STEPS = 50  # enough for any condition number below 1 / eps


class InverseSqrt(torch.autograd.Function):
    """The symmetric P with P S P = 1, for symmetric positive definite S (..., D, D)."""

    @staticmethod
    def forward(S: Tensor, products: bool, regularized: bool) -> tuple[Tensor, Tensor, Tensor]:
        if products:
            P = _newton_schulz(S)
            if P is not None:
                return P, S.new_empty(0), S.new_empty(0)
        values, vectors = torch.linalg.eigh(S)
        values = _positive(values, regularized)
        return (vectors * values.rsqrt()[..., None, :]) @ vectors.mT, values.sqrt(), vectors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0], *output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        if grad is None:
            return None, None, None
        S, P, roots, vectors = ctx.saved_tensors
        X = Sylvester.apply(S @ P, grad + grad.mT, roots, vectors)  # type: ignore[no-untyped-call]
        return P @ X @ P / -2, None, None


class Sylvester(torch.autograd.Function):
    """The X of R X + X R = G: R symmetric with eigenvalues `roots` and eigenvectors, or with none given by products."""

    @staticmethod
    def forward(R: Tensor, G: Tensor, roots: Tensor, vectors: Tensor) -> Tensor:
        if roots.numel() == 0:
            return _sylvester(R, G)
        sums = roots[..., :, None] + roots[..., None, :]
        return vectors @ ((vectors.mT @ G @ vectors) / sums) @ vectors.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        R, _, roots, vectors = inputs
        ctx.save_for_backward(R, roots, vectors, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        R, roots, vectors, X = ctx.saved_tensors
        dG = Sylvester.apply(R, grad, roots, vectors)  # type: ignore[no-untyped-call]
        return -(dG @ X.mT + X.mT @ dG), dG, None, None


class Eigenvectors(torch.autograd.Function):
    """The eigenvectors (..., D, D) of S in columns, of the largest eigenvalue first, their largest entry positive.

    roots and vectors are those of InverseSqrt. The derivative divides by differences of eigenvalues, as it must; where
    two agree to rounding the plane of their vectors is held fixed, so that gradients are always finite.
    """

    @staticmethod
    def forward(S: Tensor, roots: Tensor, vectors: Tensor) -> Tensor:
        V = vectors.flip(-1)
        return V * torch.where(V.gather(-2, V.abs().argmax(-2, keepdim=True)) < 0, -1, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        S, roots, V = ctx.saved_tensors
        values = roots.square().flip(-1)
        gaps = values[..., None, :] - values[..., :, None]
        repeated = gaps.abs() <= V.shape[-1] * torch.finfo(V.dtype).eps * values[..., :1, None]
        inside = torch.where(repeated, 0, (V.mT @ grad) / torch.where(repeated, 1, gaps))
        dS = V @ inside @ V.mT
        return *once("an eigenvector", [(dS + dS.mT) / 2], grad, S), None, None


def _positive(values: Tensor, regularized: bool) -> Tensor:
    """The ascending eigenvalues of a positive definite matrix.

    What is below the rounding of the largest is raised to it where the matrix was regularised. Elsewhere there is no
    inverse: ValueError on a CPU, NaN on other devices.
    """
    least = values.shape[-1] * torch.finfo(values.dtype).eps * values[..., -1:]
    if regularized:
        return torch.maximum(values, least)
    singular = values[..., :1] <= least
    if values.device.type == "cpu" and not torch.compiler.is_compiling():
        if singular.any():
            raise ValueError(
                "the covariance must be positive definite: with constant or dependent features, or fewer rows than "
                "features, give a reg or a shrinkage"
            )
        return values
    return torch.where(singular, torch.nan, values)


def newton_schulz(S: Tensor, steps: int) -> Tensor:
    """Some steps of the coupled iteration Z -> S^(-1/2), from a multiple of 1; differentiable by autograd."""
    norm = _norm(S)
    Y, Z = S / norm, _eye(S)
    for _ in range(steps):
        Y, Z = _step(Y, Z)
    return Z * norm.rsqrt()


def _newton_schulz(S: Tensor) -> Tensor | None:
    """S^(-1/2), or None if the iteration does not converge; the device is waited for."""
    norm, eye = _norm(S), _eye(S)
    Y, Z = S / norm, eye
    close = torch.finfo(S.dtype).eps ** 0.5  # convergence is quadratic: one step more reaches rounding
    for _ in range(STEPS):
        error = (eye - Z @ Y).norm(dim=(-2, -1)).amax() if S.numel() else S.new_zeros(())
        Y, Z = _step(Y, Z)
        if error <= close * S.shape[-1] ** 0.5:
            Z = (Z + Z.mT) / 2
            return Z * norm.rsqrt()
    warnings.warn(
        f"Newton-Schulz did not converge in {STEPS} steps: the matrix is singular or not finite, or its condition "
        f"number exceeds what {S.dtype} resolves; eigenvectors are used instead",
        stacklevel=6,
    )
    return None


def _step(Y: Tensor, Z: Tensor) -> tuple[Tensor, Tensor]:
    half = 1.5 * _eye(Y) - 0.5 * (Z @ Y)
    return Y @ half, half @ Z


def _sylvester(R: Tensor, G: Tensor) -> Tensor:
    """X of R X + X R = G by the iteration for the sign of [[R, -G], [0, -R]] (Higham 2008, chapter 5)."""
    norm, eye = _norm(R), _eye(R)
    A, Q = R / norm, G / norm
    for _ in range(STEPS):
        square = A @ A
        Q = 1.5 * Q - 0.5 * (square @ Q + Q @ square - A @ Q @ A)
        A = 1.5 * A - 0.5 * (square @ A)
        if R.numel() == 0 or (eye - A).norm(dim=(-2, -1)).amax() <= R.shape[-1] * torch.finfo(R.dtype).eps:
            break
    return Q / 2


def _norm(S: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.matrix_norm(S, keepdim=True)
    return norm


def _eye(S: Tensor) -> Tensor:
    return torch.eye(S.shape[-1], dtype=S.dtype, device=S.device)


def inverse_sqrt(S: Tensor, products: bool = False, regularized: bool = False) -> Tensor:
    """The symmetric S^(-1/2), by eigenvectors or by matrix products alone."""
    out: Tensor = InverseSqrt.apply(S, products, regularized)[0]  # type: ignore[no-untyped-call]
    return out


def principal(S: Tensor, regularized: bool = False) -> Tensor:
    """Lambda^(-1/2) V' for S = V Lambda V', the largest eigenvalue first."""
    P, roots, vectors = InverseSqrt.apply(S, False, regularized)  # type: ignore[no-untyped-call]
    V: Tensor = Eigenvectors.apply(S, roots, vectors)  # type: ignore[no-untyped-call]
    W: Tensor = V.mT @ P
    return W

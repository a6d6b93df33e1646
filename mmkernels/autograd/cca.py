"""Canonical correlations and generalized eigenvalues, with gradients that divide by no difference of eigenvalues."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmkernels.autograd._cholesky import cholesky
from mmkernels.autograd._once import once


def coherence(Sxx: Tensor, Syy: Tensor, Sxy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """T = Lx^-1 Sxy Ly^-T, whose singular values are the canonical correlations, and the factors Lx and Ly."""
    Lx, Ly = cholesky(Sxx), cholesky(Syy, "the covariance of y")
    left = torch.linalg.solve_triangular(Lx, Sxy, upper=False)
    return torch.linalg.solve_triangular(Ly, left.mT, upper=False).mT, Lx, Ly


class CanonicalCorrelations(torch.autograd.Function):
    """Correlations (..., K), and the weights a (..., Dx, K) and b (..., Dy, K) of the variates, K = min(Dx, Dy).

    Variates have variance 1: a'Sxx a = b'Syy b = 1, and a'Sxy b is the correlations on a diagonal. These, as functions
    of the covariances, have the gradients a_i b_i' of Sxy and -rho_i a_i a_i' / 2 of Sxx (Andrew et al. 2013). The
    weights carry no gradient. At correlations of 0, where there is a kink, the gradient is 0.
    """

    @staticmethod
    def forward(Sxx: Tensor, Syy: Tensor, Sxy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        T, Lx, Ly = coherence(Sxx, Syy, Sxy)
        U, rho, Vh = torch.linalg.svd(T, full_matrices=False)
        a = torch.linalg.solve_triangular(Lx.mT, U, upper=True)
        b = torch.linalg.solve_triangular(Ly.mT, Vh.mT, upper=True)
        return rho, a, b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        rho, a, b = output
        ctx.mark_non_differentiable(a, b)
        ctx.save_for_backward(rho, a, b, *inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        rho, a, b, *covariances = ctx.saved_tensors
        g = torch.where(rho > max(a.shape[-2], b.shape[-2]) * torch.finfo(rho.dtype).eps, grad, 0)
        ag, bg = a * (-g * rho / 2)[..., None, :], b * (-g * rho / 2)[..., None, :]
        gradients = ag @ a.mT, bg @ b.mT, (a * g[..., None, :]) @ b.mT
        return once("a canonical correlation", gradients, grad, *covariances)


class GeneralizedEigenvalues(torch.autograd.Function):
    """The eigenvalues of A w = lambda B w, largest first (..., K), and w (..., D, K), w'Bw = 1; B is block-diagonal.

    A is (..., D, D), B its blocks (..., D_v, D_v). The gradients are w_i w_i' of A and -lambda_i w_i w_i' of B. The
    vectors carry no gradient.
    """

    @staticmethod
    def forward(k: int, A: Tensor, *blocks: Tensor) -> tuple[Tensor, Tensor]:
        sizes = [block.shape[-1] for block in blocks]
        factors = [cholesky(block, f"the covariance of views[{v}]") for v, block in enumerate(blocks)]
        C = A
        for _ in range(2):  # rows, then columns
            parts = zip(factors, torch.split(C, sizes, -2), strict=True)
            C = torch.cat([torch.linalg.solve_triangular(L, part, upper=False) for L, part in parts], -2).mT
        values, vectors = torch.linalg.eigh(C)
        values, vectors = values.flip(-1)[..., :k], vectors.flip(-1)[..., :k]
        back = zip(factors, torch.split(vectors, sizes, -2), strict=True)
        return values.contiguous(), torch.cat(
            [torch.linalg.solve_triangular(L.mT, part, upper=True) for L, part in back], -2
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.sizes = [block.shape[-1] for block in inputs[2:]]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*output, *inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        values, w, *matrices = ctx.saved_tensors
        blocks = ((part * (-grad * values)[..., None, :]) @ part.mT for part in torch.split(w, ctx.sizes, -2))
        gradients = (w * grad[..., None, :]) @ w.mT, *blocks
        return None, *once("an eigenvalue", gradients, grad, *matrices)


def canonical_correlations(Sxx: Tensor, Syy: Tensor, Sxy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Correlations and weights of two views with these covariances."""
    out: tuple[Tensor, Tensor, Tensor] = CanonicalCorrelations.apply(Sxx, Syy, Sxy)  # type: ignore[no-untyped-call]
    return out


def correlations(Sxx: Tensor, Syy: Tensor, Sxy: Tensor) -> Tensor:
    """The correlations alone, without singular vectors where nobody asks for a gradient."""
    if torch.is_grad_enabled() and any(S.requires_grad for S in (Sxx, Syy, Sxy)):
        return canonical_correlations(Sxx, Syy, Sxy)[0]
    rho: Tensor = torch.linalg.svdvals(coherence(Sxx, Syy, Sxy)[0])
    return rho


def generalized_eigenvalues(k: int, A: Tensor, blocks: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues of A w = lambda B w and their vectors, B given by its diagonal blocks."""
    out: tuple[Tensor, Tensor] = GeneralizedEigenvalues.apply(k, A, *blocks)  # type: ignore[no-untyped-call]
    return out

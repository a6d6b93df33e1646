"""How other libraries compute K @ v of an RBF kernel, none of them required.

Every function takes x and y (N, D), v (N, E) and gamma, and returns the mean square of K @ v. A library that is missing
raises ImportError.
"""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path

import torch
from torch import Tensor

from bench.measure import UnfitError

TUNED = "-march=native -ffast-math"
CACHE = Path(__file__).parent.parent / "build" / "keops"  # its own: elsewhere a formula may be built with other flags
LARGEST = 10_000  # rows for peers that take as long as the dense formula


class BareProducts(torch.autograd.Function):
    """The floor: x y' and tiles of it times v; for the gradient of x the scores again, and tiles of them times y."""

    SIDE = 1024

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """One product of width D, one of width E."""
        ctx.save_for_backward(x, y)
        out, s = v.new_zeros(len(x), v.shape[1]), x.new_empty(BareProducts.SIDE, BareProducts.SIDE)
        for rows, total in zip(x.split(BareProducts.SIDE), out.split(BareProducts.SIDE), strict=True):
            for columns, vectors in zip(y.split(BareProducts.SIDE), v.split(BareProducts.SIDE), strict=True):
                tile = torch.mm(rows, columns.T, out=s.view(-1)[: len(rows) * len(columns)].view(len(rows), -1))
                total.addmm_(tile, vectors)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        """Two products of width D."""
        x, y = ctx.saved_tensors
        dx, s = torch.zeros_like(x), x.new_empty(BareProducts.SIDE, BareProducts.SIDE)
        for rows, total in zip(x.split(BareProducts.SIDE), dx.split(BareProducts.SIDE), strict=True):
            for columns in y.split(BareProducts.SIDE):
                tile = torch.mm(rows, columns.T, out=s.view(-1)[: len(rows) * len(columns)].view(len(rows), -1))
                total.addmm_(tile, columns)
        return dx, None, None


def bare_products(x: Tensor, y: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    """Matrix products alone: no distance, no exponential."""
    return BareProducts.apply(x, y, v).square().mean()


def dense(x: Tensor, y: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    """torch.cdist, exp and a product."""
    return (torch.exp(-gamma * torch.cdist(x, y).square()) @ v).square().mean()


def keops(x: Tensor, y: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    """pykeops as its wheel is."""
    _no_more_than(x, features=8)
    _keops_flags("")
    return _keops(x, y, v, -gamma, -1)


def keops_tuned(x: Tensor, y: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    """pykeops compiled for this processor, with fast arithmetic."""
    _no_more_than(x, features=64)
    _keops_flags(TUNED)
    return _keops(x, y, v, -gamma, 1)


def _keops(x: Tensor, y: Tensor, v: Tensor, rate: Tensor, sign: int) -> Tensor:
    """exp(rate d^2) @ v, the sign taken through the formula: two builds of one formula would share one library."""
    from pykeops.torch import LazyTensor

    if x.is_cuda and sign < 0:
        raise UnfitError("compiler flags are for the CPU")
    d2 = ((LazyTensor(x[:, None]) - LazyTensor(y[None])) ** 2).sum(-1)
    return ((sign * d2 * (sign * rate).item()).exp() @ v).square().mean()


@functools.cache
def _keops_base_flags() -> str:
    os.environ.setdefault("KEOPS_CACHE_FOLDER", str(CACHE))
    try:
        import pykeops

        pykeops.set_verbose(False)
        from keopscore.config import config
    except ImportError:
        raise ImportError("pykeops is not installed") from None
    return config.cpp_flags


def _keops_flags(flags: str) -> None:
    """Compile what is compiled from now on with these flags (CXXFLAGS is read once, when keopscore is imported)."""
    base = _keops_base_flags()
    import pykeops.config
    from keopscore.binders import LinkCompile
    from keopscore.config import config

    config.cpp_flags = pykeops.config.pykeops_base.cpp_flags = LinkCompile.cpp_flags = f"{flags} {base}"


def gpytorch(x: Tensor, y: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    """gpytorch's own RBFKernel."""
    _no_more_than(x)
    try:
        from gpytorch.kernels import RBFKernel
    except ImportError:
        raise ImportError("gpytorch is not installed") from None
    kernel = RBFKernel().to(x)
    kernel.lengthscale = math.sqrt(0.5 / gamma.item())
    kernel.requires_grad_(False)
    return (kernel(x, y) @ v).square().mean()


def scikit_learn(x: Tensor, y: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    """sklearn.metrics.pairwise.rbf_kernel; it has no gradients."""
    _no_more_than(x)
    if torch.is_grad_enabled() or x.is_cuda:
        raise UnfitError("it has no gradients and no GPU")
    try:
        from sklearn.metrics.pairwise import rbf_kernel
    except ImportError:
        raise ImportError("scikit-learn is not installed") from None
    K = rbf_kernel(x.detach().numpy(), y.numpy(), gamma.item())
    return torch.from_numpy(K @ v.numpy()).square().mean()


def _no_more_than(x: Tensor, features: int | None = None) -> None:
    """Refuse more than LARGEST rows on a CPU, or what takes longer than 20,000 rows of so many features."""
    if x.is_cuda:
        return
    if features is None and len(x) > LARGEST:
        raise UnfitError(f"it takes what dense takes: not run above N = {LARGEST:,} on a CPU")
    if features is not None and len(x) ** 2 * x.shape[1] > 20_000**2 * features:
        raise UnfitError(f"it takes minutes: not run above N = 20,000 with D = {features} on a CPU")

"""How HSIC, CKA and KSG are computed by the textbook, which stores N x N matrices, and by other libraries."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from bench.measure import UnfitError


def dense_hsic(x: Tensor, y: Tensor, gamma: Tensor) -> Tensor:
    """tr(KHLH) / N^2 from stored kernel matrices, centred entry by entry."""
    K, L = (torch.exp(-gamma * torch.cdist(t, t).square()) for t in (x, y))
    K = K - K.mean(0) - K.mean(1, keepdim=True) + K.mean()
    return (K * L).mean()


def dense_cka(x: Tensor, y: Tensor) -> Tensor:
    """The debiased linear CKA from stored Gram matrices, as the packages of that name have it."""
    K, L = (t @ t.T for t in (x, y))
    K, L = (G - torch.diag(G.diagonal()) for G in (K, L))

    def hsic(K: Tensor, L: Tensor) -> Tensor:
        n = len(K)
        product = (K * L).sum() + K.sum() * L.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (K.sum(0) @ L.sum(0))
        return product / (n * (n - 3))

    return hsic(K, L) / (hsic(K, K) * hsic(L, L)).sqrt()


def ckatorch_cka(x: Tensor, y: Tensor) -> Tensor:
    """ckatorch's minibatch CKA of one batch: unbiased, in float64."""
    from ckatorch.core import cka_batch

    return cka_batch(x[None], y[None])


def torch_cka(x: Tensor, y: Tensor) -> Tensor:
    """torch_cka's HSIC, which multiplies the N x N matrices, and the ratio that its comparison of layers forms."""
    from torch_cka import CKA

    grams = [(t @ t.T).fill_diagonal_(0) for t in (x, y)]
    class_ = SimpleNamespace(device=x.device)
    xy, xx, yy = (CKA._HSIC(class_, grams[i], grams[j]) for i, j in ((0, 1), (0, 0), (1, 1)))
    return torch.tensor(xy / (xx**0.5 * yy**0.5))


def bare_products(x: Tensor, y: Tensor, *_: Tensor) -> Tensor:
    """The floor of pairwise measures: half of x x' and of y y', and of the products with either for gradients."""
    return _Half.apply(x) + _Half.apply(y)


class _Half(torch.autograd.Function):
    SIDE = 1024

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        """Tiles of x x' on and above the diagonal."""
        ctx.save_for_backward(x)
        for i, rows in enumerate(x.split(_Half.SIDE)):
            for columns in x.split(_Half.SIDE)[i:]:
                rows @ columns.T
        return x.new_zeros(())

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        """The tiles again, and a product of each with its rows and its columns."""
        (x,) = ctx.saved_tensors
        dx = torch.zeros_like(x)
        for i, (rows, out) in enumerate(zip(x.split(_Half.SIDE), dx.split(_Half.SIDE), strict=True)):
            for columns, other in list(zip(x.split(_Half.SIDE), dx.split(_Half.SIDE), strict=True))[i:]:
                tile = rows @ columns.T
                out.addmm_(tile, columns)
                other.addmm_(tile.T, rows)
        return dx


def dense_ksg(x: Tensor, y: Tensor, k: int = 3) -> Tensor:
    """KSG-1 from stored distances."""
    n = len(x)
    if x.device.type == "cpu" and n > 10_000:
        raise UnfitError("it takes minutes")
    distances = [torch.cdist(t, t, p=float("inf")).fill_diagonal_(float("inf")) for t in (x, y)]
    radii = torch.maximum(*distances).kthvalue(k, 1, keepdim=True).values
    counts = torch.stack([(d < radii).sum(1) for d in distances]).double()
    return _ksg(k, n, counts)


def sklearn_ksg(x: Tensor, y: Tensor, k: int = 3) -> Tensor:
    """scikit-learn's steps for continuous variables, which take one feature of each there: a tree for each view."""
    from sklearn.neighbors import KDTree, NearestNeighbors

    views = [t.double().numpy() for t in (x, y)]
    search = NearestNeighbors(metric="chebyshev", n_neighbors=k).fit(np.hstack(views))
    radii = np.nextafter(search.kneighbors()[0][:, -1], 0)
    found = [KDTree(t, metric="chebyshev").query_radius(t, radii, count_only=True) - 1 for t in views]
    return _ksg(k, len(x), torch.from_numpy(np.stack(found)).double())


def _ksg(k: int, n: int, counts: Tensor) -> Tensor:
    psi = torch.digamma(torch.tensor([k, n], dtype=torch.float64)).sum()
    return psi - torch.digamma(counts + 1).mean(1).sum().cpu()

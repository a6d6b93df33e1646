"""How other libraries compute covariances and canonical correlations, none of them required.

Every function takes views x, y, ... (N, D). A library that is missing raises ImportError.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from bench.measure import UnfitError

COMPONENTS = 10


def bare_products(*views: Tensor) -> Tensor:
    """The floor of everything here: x'x, x'y, y'y, and a product more of each with either side for gradients."""
    products = [u.mT @ v for j, v in enumerate(views) for u in views[: j + 1]]
    return torch.stack([p.sum() for p in products]).sum()


def stacked_cov(x: Tensor, y: Tensor) -> Tensor:
    """torch.cov of both views side by side."""
    return torch.cov(torch.cat([x, y], 1).mT).square().mean()


def dense_correlation(x: Tensor, y: Tensor) -> Tensor:
    """The largest correlation, from centred copies, products, Cholesky factors and a singular value decomposition."""
    return torch.linalg.svdvals(_coherence(x, y, 0.0))[0]


def dense_loss(x: Tensor, y: Tensor, reg: float) -> Tensor:
    """Minus the sum of squared correlations, by autograd through Cholesky factors and triangular systems."""
    return -_coherence(x, y, reg).square().sum()


def _coherence(x: Tensor, y: Tensor, reg: float) -> Tensor:
    x, y = x - x.mean(0), y - y.mean(0)
    eye = reg * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    n = len(x) - 1
    Lx, Ly = torch.linalg.cholesky(x.mT @ x / n + eye), torch.linalg.cholesky(y.mT @ y / n + eye)
    left = torch.linalg.solve_triangular(Lx, x.mT @ y / n, upper=False)
    return torch.linalg.solve_triangular(Ly, left.mT, upper=False)


def cca_zoo(x: Tensor, y: Tensor) -> Tensor:
    """cca_zoo's linear CCA, which whitens by singular value decompositions of both views."""
    from cca_zoo.linear import CCA

    views = _arrays(x, y)
    model = CCA(min(COMPONENTS, x.shape[1])).fit(views)
    return _first_correlation(*model.transform(views))


def scikit_learn(x: Tensor, y: Tensor) -> Tensor:
    """scikit-learn's CCA with one component: power iterations over the rows (NIPALS)."""
    from sklearn.cross_decomposition import CCA

    views = _arrays(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the number of iterations
        model = CCA(1, scale=False).fit(*views)
    return _first_correlation(*model.transform(*views))


def cca_zoo_loss(x: Tensor, y: Tensor, reg: float) -> Tensor:
    """cca_zoo's CCALoss, the sum of squared correlations, by autograd through eigenvectors."""
    from cca_zoo.deep.objectives import CCALoss

    return CCALoss(reg)([x, y])


def cca_zoo_gcca_loss(*views: Tensor, reg: float) -> Tensor:
    """cca_zoo's GCCALoss, by eigenvalues of an N x N matrix."""
    from cca_zoo.deep.objectives import GCCALoss

    return GCCALoss(reg)(list(views))


def _arrays(*views: Tensor) -> list:
    if views[0].is_cuda:
        raise UnfitError("it runs on CPUs")
    return [v.numpy() for v in views]


def _first_correlation(x, y) -> Tensor:
    return torch.corrcoef(torch.stack([torch.as_tensor(t[:, 0]) for t in (x, y)]))[0, 1].abs()

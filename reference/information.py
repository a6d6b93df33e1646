"""Entropy and mutual information from samples as their papers write them, on matrices of all distances; in nats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from reference.kernel import differences, squared_distances


def digamma(n: Tensor | float) -> Tensor:
    """psi, in float64."""
    return torch.digamma(torch.as_tensor(n, dtype=torch.float64))


def distances(views: Sequence[Tensor], euclidean: bool = False) -> Tensor:
    """(N, N), in the view where two rows are farthest, by the maximum norm or the Euclidean one; infinite to itself."""
    d = [differences(v, v).square().sum(-1).sqrt() if euclidean else differences(v, v).abs().amax(-1) for v in views]
    return torch.stack(d).amax(0).fill_diagonal_(math.inf)


def kth(d: Tensor, k: int) -> Tensor:
    """The k-th smallest of each row."""
    return d.sort(1)[0][:, k - 1]


def within(views: Sequence[Tensor], radii: Tensor, strict: bool) -> Tensor:
    """How many others are nearer than a row's radius, or no farther."""
    d = distances(views)
    return (d < radii[:, None] if strict else d <= radii[:, None]).sum(1)


def inside(views: Sequence[Tensor], radii: Tensor) -> Tensor:
    """How many are nearer than a row's radius, itself too; of radius 0 all that coincide (Gao et al. 2017)."""
    return torch.where(radii == 0, within(views, radii, strict=False), within(views, radii, strict=True)) + 1


def near(views: Sequence[Tensor], radii: Tensor, k: int) -> Tensor:
    """k, or of radius 0 all that coincide, itself too."""
    return torch.where(radii == 0, inside(views, radii), k)


def kozachenko_leonenko(x: Tensor, k: int, euclidean: bool) -> Tensor:
    """psi(N) - psi(k) + log of the unit ball's volume + D <log of the distance to the k-th neighbour>."""
    N, D = x.shape
    volume = math.pi ** (D / 2) / math.gamma(D / 2 + 1) if euclidean else 2.0**D
    return digamma(N) - digamma(k) + math.log(volume) + D * kth(distances([x], euclidean), k).log().mean()


def ksg1(views: Sequence[Tensor], k: int) -> Tensor:
    """Kraskov, Stogbauer and Grassberger 2004, equations 8 and 23."""
    radii = kth(distances(views), k)
    terms = torch.stack([digamma(inside([v], radii)) for v in views]).sum(0)
    return (digamma(near(views, radii, k)) - terms).mean() + (len(views) - 1) * digamma(len(radii))


def ksg2(views: Sequence[Tensor], k: int) -> Tensor:
    """Equations 9 and 30."""
    near = distances(views).argsort(1)[:, :k]
    terms = []
    for v in views:
        radii = distances([v]).gather(1, near).amax(1)
        terms.append(digamma(within([v], radii, strict=False)))
    V = len(views)
    return digamma(k) - (V - 1) / k + (V - 1) * digamma(len(near)) - torch.stack(terms).sum(0).mean()


def frenzel_pompe(x: Tensor, y: Tensor, z: Tensor, k: int) -> Tensor:
    """psi(k) - <psi(n_xz + 1) + psi(n_yz + 1) - psi(n_z + 1)>."""
    radii = kth(distances([x, y, z]), k)
    of_xz, of_yz, of_z = (digamma(inside(group, radii)) for group in ([x, z], [y, z], [z]))
    return (digamma(near([x, y, z], radii, k)) - (of_xz + of_yz - of_z)).mean()


def ross(x: Tensor, labels: Tensor, k: int) -> Tensor:
    """psi(N) + <psi(k)> - <psi(N_label)> - <psi(m)>, m of all rows, itself too, nearer than the k-th of its label."""
    same = labels[:, None] == labels
    kept = same.sum(1) > 1
    x, same = x[kept], same[kept][:, kept]
    of_label = same.sum(1)
    own = (of_label - 1).clamp(max=k)
    d = distances([x])
    radii = d.masked_fill(~same, math.inf).sort(1)[0].gather(1, own[:, None] - 1)[:, 0]
    m = inside([x], radii)
    own = torch.where(radii == 0, ((d == 0) & same).sum(1) + 1, own)
    return digamma(len(x)) + (digamma(own) - digamma(of_label) - digamma(m)).mean()


def plug_in_entropy(labels: Tensor) -> Tensor:
    """-sum p log p."""
    p = torch.stack([(labels == c).double().mean() for c in torch.unique(labels)])
    return -(p * p.log()).sum()


def plug_in_information(x: Tensor, y: Tensor) -> Tensor:
    """sum p_xy log p_xy / (p_x p_y) over the cells of the contingency table that are not empty."""
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for a in torch.unique(x):
        for b in torch.unique(y):
            p, p_x, p_y = (t.double().mean() for t in ((x == a) & (y == b), x == a, y == b))
            if p > 0:
                total = total + p * (p / (p_x * p_y)).log()
    return total


def log_density(x: Tensor, h: Tensor) -> Tensor:
    """log of the mean of the Gaussian densities of width h (D,) about all other rows, (N,)."""
    N, D = x.shape
    logs: Tensor = -squared_distances(x / h, x / h) / 2 - h.log().sum() - D / 2 * math.log(2 * math.pi)
    own = torch.eye(N, dtype=torch.bool, device=x.device)
    total: Tensor = torch.logsumexp(logs.masked_fill(own, -math.inf), 1)
    return total - math.log(N - 1)


def scott(x: Tensor) -> Tensor:
    """N^(-1 / (D + 4)) times the standard deviation of each feature."""
    return x.std(0) * math.pow(len(x), -1 / (x.shape[1] + 4))


def kde_entropy(x: Tensor, h: Tensor) -> Tensor:
    """-<log density at each row, left out itself>."""
    return -log_density(x, h).mean()


def kde_total_correlation(views: Sequence[Tensor], h: Sequence[Tensor]) -> Tensor:
    """<log of the joint density over the product of the marginal ones>."""
    marginals = torch.stack([log_density(v, b) for v, b in zip(views, h, strict=True)]).sum(0)
    return (log_density(torch.cat(list(views), 1), torch.cat(list(h))) - marginals).mean()


def matrix_renyi(kernels: Sequence[Tensor], base: float = math.e) -> Tensor:
    """-log tr A^2 of the entrywise product of all kernel matrices over its trace."""
    A = torch.stack(list(kernels)).prod(0)
    A = A / A.trace()
    return -(A @ A).trace().log() / math.log(base)


def potentials(K: Tensor, L: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Joint, marginal and cross information potential (Principe 2010)."""
    return (K * L).mean(), K.mean() * L.mean(), (K.mean(1) * L.mean(1)).mean()


def cauchy_schwarz(K: Tensor, L: Tensor) -> Tensor:
    """log V_J V_M / V_C^2."""
    joint, marginal, cross = potentials(K, L)
    return (joint * marginal / cross**2).log()


def euclidean(K: Tensor, L: Tensor) -> Tensor:
    """V_J - 2 V_C + V_M."""
    joint, marginal, cross = potentials(K, L)
    return joint - 2 * cross + marginal


def gaussian_entropy(x: Tensor) -> Tensor:
    """1/2 log det 2 pi e S."""
    S = x.mT.cov().reshape(x.shape[1], x.shape[1])
    return torch.as_tensor(0.5 * torch.linalg.slogdet(2 * math.pi * math.e * S)[1])

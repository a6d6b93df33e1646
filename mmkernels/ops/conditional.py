"""Entropy and mutual information given other variables, in nats and in O(N) memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmkernels import _check
from mmkernels.autograd._cholesky import cholesky
from mmkernels.ops._autocast import without_autocast
from mmkernels.ops._density import log_densities, scaled
from mmkernels.ops._knn import frenzel_pompe
from mmkernels.ops._sums import check_samples, each
from mmkernels.ops.covariance import covariance
from mmkernels.ops.information import ENTROPIES, entropy, kernel_options, matrix_entropy, mutual_information

CONDITIONAL = ("knn", "gaussian")


@without_autocast
def conditional_entropy(
    x: Tensor,
    y: Tensor,
    method: str = "knn",
    *,
    k: int = 3,
    norm: str = "max",
    bandwidth: Any = "scott",
    reg: float = 0.0,
    kernel: str | Sequence[str] = "rbf",
    gamma: Any = "median",
    parameters: Any = None,
) -> Tensor:
    r"""Entropy that x has left once y is known, in nats.

    .. math::
        H(x \mid y) = H(x, y) - H(y)

    both by the same estimator, a joint kernel being the product of the two. By "gaussian", "kde" and "renyi"
    :math:`H(x) - H(x \mid y)` is `mutual_information`; by "knn" the two entropies are over balls of different size, and
    their errors do not cancel.

    Args:
        x: (N, D_x) in float16, bfloat16, float32 or float64.
        y: (N, D_y), x's dtype and device.
        method, k, norm, reg: as in `entropy`.
        bandwidth: as in `entropy`; one, or a list or tuple with one for x and one for y. "scott" is that of each alone.
        kernel, gamma, parameters: as in `hsic`; kernels with k(x, x) = 1.

    Returns, raises and cost: as two calls of `entropy`.

    Source: as `entropy`; Sanchez Giraldo, Rao and Principe 2015 (arXiv 1211.2459) for "renyi".

    Example:
        >>> import torch, mmkernels
        >>> x = torch.randn(1000, 1)
        >>> near, far = x + 0.1 * torch.randn(1000, 1), torch.randn(1000, 1)
        >>> bool(mmkernels.conditional_entropy(x, near) < mmkernels.conditional_entropy(x, far))
        True
    """
    views = _check_rows([x, y])
    _check.choice("method", method, ENTROPIES)
    if method == "kde":
        (z, of_z), (w, of_w) = (scaled(v, h) for v, h in zip(views, each("bandwidth", bandwidth, 2), strict=True))
        return (log_densities(w, of_w) - log_densities(torch.cat([z, w], 1), of_z + of_w)).mean()
    if method == "renyi":
        options = kernel_options(views, kernel, gamma, parameters)
        return matrix_entropy(views, options) - matrix_entropy(views[1:], options[1:])
    joint, given = (entropy(t, method, k=k, norm=norm, reg=reg) for t in (torch.cat(views, 1), views[1]))
    return joint - given


@without_autocast
def conditional_mutual_information(
    x: Tensor, y: Tensor, z: Tensor, method: str = "knn", *, k: int = 3, reg: float = 0.0
) -> Tensor:
    r"""Mutual information that x and y have once z is known, in nats.

    | method | estimate |
    |---|---|
    | `knn` | :math:`\psi(k) + \langle\psi(n_z + 1) - \psi(n_{xz} + 1) - \psi(n_{yz} + 1)\rangle` |
    | `gaussian` | :math:`\frac12 \log \frac{\det \Sigma_{xz} \det \Sigma_{yz}}{\det \Sigma_z \det \Sigma_{xyz}}` |

    with :math:`n_z` how many others are nearer in z, by the maximum norm, than the k-th neighbour is in all three
    variables, and so on.

    Args:
        x: (N, D_x) in float16, bfloat16, float32 or float64.
        y: (N, D_y), x's dtype and device.
        z: (N, D_z), x's dtype and device.
        method: as above; "gaussian" is exact for normal data.
        k: which neighbour.
        reg: added to the variances.

    Returns:
        0-dimensional, float32, or float64 for float64. "knn" raises a NotImplementedError where a gradient is asked
        for: counts have none. "gaussian" has derivatives of any order.

    Raises:
        TypeError, ValueError: arguments that do not fit; too few rows; for "gaussian", on a CPU, a singular covariance.

    Cost: "gaussian" N D^2 / 2 with D the sum of all features; "knn" N^2 D, N log N with SciPy's tree up to about 12
    dimensions on a CPU.

    Source: Frenzel and Pompe 2007 (Physical Review Letters 99).

    Example:
        >>> import torch, mmkernels
        >>> z = torch.randn(1000, 1)
        >>> x, y = z + 0.5 * torch.randn(1000, 1), z + 0.5 * torch.randn(1000, 1)  # independent once z is known
        >>> bool(mmkernels.conditional_mutual_information(x, y, z) < mmkernels.mutual_information(x, y))
        True
    """
    views = _check_rows([x, y, z])
    _check.choice("method", method, CONDITIONAL)
    if method == "knn":
        return frenzel_pompe(views[0], views[1], views[2], k)
    x, y, z = views
    S = covariance(x, z, y).cov
    S = S + _check.number("reg", reg, 0, with_low=True) * torch.eye(len(S), dtype=S.dtype, device=S.device)
    a, b = x.shape[1], x.shape[1] + z.shape[1]
    blocks = {"joint": S, "xz": S[:b, :b], "yz": S[a:, a:], "z": S[a:b, a:b]}
    h = {name: cholesky(B, f"the {name} covariance").diagonal().log().sum() for name, B in blocks.items()}
    return h["xz"] + h["yz"] - h["z"] - h["joint"]


@without_autocast
def interaction_information(
    x: Tensor, y: Tensor, z: Tensor, method: str = "knn", *, k: int = 3, reg: float = 0.0
) -> Tensor:
    r"""What any two of three variables share because of the third, in nats.

    .. math::
        I(x; y; z) = I(x; y) - I(x; y \mid z)

    Positive where the three say the same (redundancy), negative where two of them say together what neither says alone
    (synergy); some authors take the opposite sign. The same whatever the order of the variables, up to the errors of
    estimates.

    Args:
        x, y, z, k, reg: as in `conditional_mutual_information`.
        method: "knn" ("ksg1" for the first term) or "gaussian".

    Returns, raises and cost: as `mutual_information` and `conditional_mutual_information` together.

    Source: McGill 1954; the sign is that of Yeung 1991 (I-measure).

    Example:
        >>> import torch, mmkernels
        >>> x, y = torch.randn(2, 1000, 1)
        >>> bool(mmkernels.interaction_information(x, y, x + y + torch.randn(1000, 1), "gaussian") < 0)
        True
    """
    _check_rows([x, y, z])
    _check.choice("method", method, CONDITIONAL)
    given = conditional_mutual_information(x, y, z, method, k=k, reg=reg)
    return mutual_information(x, y, "ksg1" if method == "knn" else method, k=k, reg=reg) - given


def _check_rows(views: Sequence[object]) -> list[Tensor]:
    checked = check_samples(views, 2)
    _check.tensor("x", checked[0], 2)
    return checked

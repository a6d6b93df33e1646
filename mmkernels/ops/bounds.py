"""Variational bounds of mutual information in nats, from the scores of a critic that learns to tell pairs apart.

The critic is f(x_i, y_j) = scale <x_i, y_j> of embedded rows, and the N x N scores are never stored; or any other whose
scores are given as a matrix (`of_scores`). Pairs (i, i) are from the joint distribution, the others from the product of
the marginal ones. Gradients train the critic; see `mmkernels.models.mi_estimator` for the whole of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkernels import _check
from mmkernels._dispatch import compute_dtype, memory_budget, no_autocast, slices
from mmkernels.autograd.by_rows import by_rows
from mmkernels.autograd.logsumexp import logsumexp
from mmkernels.ops._autocast import autocast, without_autocast

__all__ = ["club", "dv", "info_nce_bound", "js", "mine", "nwj", "of_scores", "smile", "tuba"]

Scale = Tensor | float
_LINEAR = 80.0  # beyond which the exponential goes on as a line


class _Critic(NamedTuple):
    """What bounds are made of, of N pairs."""

    N: int
    positives: Callable[[], Tensor]  # f_ii, (N,)
    rows: Callable[[Tensor | None], Tensor]  # log sum_{j != i} exp(f_ij + w_j), (N,)
    clamped: Callable[[float], Tensor]  # the same of f clamped to [-tau, tau]
    softplus: Callable[[], Tensor]  # sum_{j != i} softplus(f_ij), (N,)
    mean: Callable[[], Tensor]  # of all f_ij

    def log_mean(self, weights: Tensor | None = None) -> Tensor:
        """log mean_{i != j} exp(f_ij + w_j)."""
        return self.rows(weights).logsumexp(0) - math.log(self.N * (self.N - 1))


def info_nce_bound(x: Tensor, y: Tensor, *, scale: Scale = 1.0) -> Tensor:
    r"""The InfoNCE bound :math:`\log N - L` with L the one-sided `mmkernels.info_nce` loss; at most log N.

    .. math::
        \hat I = \log N + \frac1N \sum_i \Big[ f_{ii} - \log \sum_j e^{f_{ij}} \Big]

    Args:
        x: (N, D), N >= 2, embedded rows in float16, bfloat16, float32 or float64.
        y: (N, D), x's dtype and device.
        scale: a positive number or a 0-dimensional tensor.

    Returns:
        0-dimensional, nats: a lower bound in expectation, of low variance. float32, or float64 for float64. Derivatives
        in x, y and scale, twice too.

    Raises:
        TypeError, ValueError: arguments that do not fit; fewer than 2 rows.

    Cost: N^2 D multiply-adds, three times that with gradients; O(N) memory.

    Source: van den Oord et al. 2018 (arXiv 1807.03748); Poole et al. 2019 (1905.06922).
    """
    return _info_nce(_separable(x, y, scale))


def dv(x: Tensor, y: Tensor, *, scale: Scale = 1.0) -> Tensor:
    r"""The bound of Donsker and Varadhan: a lower bound in the limit, biased upwards at finite N.

    .. math::
        \hat I = \frac1N \sum_i f_{ii} - \log \frac{1}{N(N-1)} \sum_{i \ne j} e^{f_{ij}}

    Args, returns, raises, cost: as `info_nce_bound`.

    Source: Donsker and Varadhan 1983; Belghazi et al. 2018 (MINE, arXiv 1801.04062).
    """
    return _dv(_separable(x, y, scale))


def mine(x: Tensor, y: Tensor, log_average: Tensor | float, *, scale: Scale = 1.0) -> Tensor:
    r"""`dv` with the gradient of MINE: the normaliser of the gradient is a moving average, which removes its bias.

    .. math::
        \nabla \hat I = \nabla \frac1N \sum_i f_{ii}
        - \frac{\nabla \frac{1}{N(N-1)} \sum_{i \ne j} e^{f_{ij}}}{e^{\mathrm{log\_average}}}

    Args:
        x, y, scale: as in `info_nce_bound`.
        log_average: the logarithm of the moving average of :math:`\frac{1}{N(N-1)} \sum_{i \ne j} e^{f_{ij}}`, a number
            or a 0-dimensional tensor; no gradient goes to it.

    Returns, raises, cost: as `info_nce_bound`; the value is that of `dv`.

    Source: Belghazi et al. 2018 (arXiv 1801.04062), section 3.2.
    """
    critic = _separable(x, y, scale)
    average = _check.number_or_scalar("log_average", log_average, x)
    log_mean = critic.log_mean()
    apart = log_mean - (average.detach().to(log_mean.dtype) if isinstance(average, Tensor) else average)
    ratio = apart.clamp(max=_LINEAR).exp() * (1 + (apart - _LINEAR).clamp(min=0))  # finite, and so is its gradient
    return critic.positives().mean() - (ratio - ratio.detach() + log_mean.detach())


def nwj(x: Tensor, y: Tensor, *, scale: Scale = 1.0) -> Tensor:
    r"""The bound of Nguyen, Wainwright and Jordan (f-GAN's KL, MINE-f): unbiased, of high variance.

    .. math::
        \hat I = \frac1N \sum_i f_{ii} - \frac{1}{e\, N(N-1)} \sum_{i \ne j} e^{f_{ij}}

    Args, returns, raises, cost: as `info_nce_bound`.

    Source: Nguyen, Wainwright and Jordan 2010; Poole et al. 2019 (arXiv 1905.06922).
    """
    return _nwj(_separable(x, y, scale))


def tuba(x: Tensor, y: Tensor, log_baseline: Tensor | float = 0.0, *, scale: Scale = 1.0) -> Tensor:
    r"""The unnormalised bound of Barber and Agakov with a baseline a(y): `nwj` where log a = 1.

    .. math::
        \hat I = 1 + \frac1N \sum_i \big[f_{ii} - \log a(y_i)\big]
        - \frac{1}{N(N-1)} \sum_{i \ne j} \frac{e^{f_{ij}}}{a(y_j)}

    Args:
        x, y, scale: as in `info_nce_bound`.
        log_baseline: log a, a number, a 0-dimensional tensor, or (N,): one for each y.

    Returns, raises, cost: as `info_nce_bound`; derivatives in log_baseline too.

    Source: Poole et al. 2019 (arXiv 1905.06922), equation 8.
    """
    critic = _separable(x, y, scale)
    positives = critic.positives()
    if isinstance(log_baseline, Tensor):
        _check.floating("log_baseline", log_baseline, log_baseline.ndim)
        if log_baseline.ndim > 1 or (log_baseline.ndim == 1 and len(log_baseline) != critic.N):
            raise ValueError(
                f"log_baseline must be 0-dimensional or of shape (N,) = ({critic.N},), got {tuple(log_baseline.shape)}"
            )
        a = log_baseline.to(positives.dtype).expand(critic.N)
    else:
        a = positives.new_full((critic.N,), _check.number("log_baseline", log_baseline))
    return 1 + (positives - a).mean() - critic.log_mean(-a).exp()


def smile(x: Tensor, y: Tensor, clip: float = 5.0, *, scale: Scale = 1.0) -> Tensor:
    r"""`dv` with the scores of the second term clamped to [-clip, clip]: less variance, some bias.

    .. math::
        \hat I = \frac1N \sum_i f_{ii} - \log \frac{1}{N(N-1)} \sum_{i \ne j} e^{\min(\max(f_{ij}, -\tau), \tau)}

    The paper trains the critic with `js` and reports this.

    Args:
        x, y, scale: as in `info_nce_bound`.
        clip: tau, above 0.

    Returns, raises: as `info_nce_bound`.

    Cost: N^2 D multiply-adds, three times that with gradients; O(N) memory.

    Source: Song and Ermon 2020 (arXiv 1910.06222).
    """
    return _smile(_separable(x, y, scale), _check.number("clip", clip, 0))


def js(x: Tensor, y: Tensor, *, scale: Scale = 1.0) -> Tensor:
    r"""The Jensen-Shannon objective of Deep InfoMax: trains a critic stably, and is no estimate of the information.

    .. math::
        -\frac1N \sum_i \mathrm{softplus}(-f_{ii}) - \frac{1}{N(N-1)} \sum_{i \ne j} \mathrm{softplus}(f_{ij})

    A critic trained by it approaches the log ratio of joint to product density: put its scores into `nwj` (with scores
    larger by 1) or `smile`.

    Args, returns, raises: as `info_nce_bound`.

    Cost: N^2 D multiply-adds, three times that with gradients; O(N) memory.

    Source: Hjelm et al. 2019 (arXiv 1808.06670); Nowozin, Cseke and Tomioka 2016.
    """
    return _js(_separable(x, y, scale))


def club(x: Tensor, y: Tensor, *, scale: Scale = 1.0) -> Tensor:
    r"""The contrastive log-ratio upper bound, where f(x, y) is log p(y | x) up to a function of x: O(N D).

    .. math::
        \hat I = \frac1N \sum_i f_{ii} - \frac{1}{N^2} \sum_{ij} f_{ij}

    Args, returns, raises: as `info_nce_bound`.

    Source: Cheng et al. 2020 (arXiv 2006.12013).
    """
    return _club(_separable(x, y, scale))


@without_autocast
def of_scores(scores: Tensor, bound: str, *, clip: float = 5.0) -> Tensor:
    """A bound from the stored scores of any critic, f(x_i, y_j) at (i, j).

    Args:
        scores: (N, N), N >= 2, in float16, bfloat16, float32 or float64.
        bound: "info_nce", "dv", "nwj", "smile", "js" or "club".
        clip: of "smile".

    Returns:
        As the function of that name, `info_nce_bound` for "info_nce".

    Raises:
        TypeError, ValueError: arguments that do not fit.

    Example:
        >>> import torch
        >>> from mmkernels.ops import bounds
        >>> x, y = torch.randn(2, 64, 8)
        >>> bool((bounds.of_scores(x @ y.T, "nwj") - bounds.nwj(x, y)).abs() < 1e-2 * bounds.nwj(x, y).abs())
        True
    """
    _check.floating("scores", scores, 2)
    if scores.shape[0] != scores.shape[1] or scores.shape[0] < 2:
        raise ValueError(f"scores must be square with at least 2 rows, got shape {tuple(scores.shape)}")
    _check.choice("bound", bound, ("info_nce", "dv", "nwj", "smile", "js", "club"))
    f = scores.to(compute_dtype(scores.dtype))
    N = len(f)
    off = ~torch.eye(N, dtype=torch.bool, device=f.device)
    critic = _Critic(
        N,
        f.diagonal,
        lambda w: (f if w is None else f + w).masked_fill(~off, -torch.inf).logsumexp(1),
        lambda tau: f.clamp(-tau, tau).masked_fill(~off, -torch.inf).logsumexp(1),
        lambda: F.softplus(f).masked_fill(~off, 0).sum(1),
        f.mean,
    )
    return _smile(critic, _check.number("clip", clip, 0)) if bound == "smile" else _BOUNDS[bound](critic)


def _separable(x: Tensor, y: Tensor, scale: Scale) -> _Critic:
    _check.embeddings("x", x)
    _check.embeddings("y", y, x)
    if x.shape != y.shape or x.shape[0] < 2:
        raise ValueError(
            f"x and y must have the same shape and at least 2 rows, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    factor = _check.number_or_scalar("scale", scale, x, low=0)
    x, y = autocast(x), autocast(y)
    N, dtype = len(x), compute_dtype(x.dtype)
    s = factor.to(dtype) if isinstance(factor, Tensor) else x.new_full((), factor, dtype=dtype)
    tiles = list(slices(N, max(1, memory_budget() // (8 * N * dtype.itemsize))))

    def reduced(reduce: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """reduce(scores of some rows, which of them are pairs) -> (rows,), some rows at a time."""

        def part(i: slice, rows: Tensor, y: Tensor, s: Tensor) -> Tensor:
            own = torch.arange(i.start, i.stop, device=rows.device)[:, None] == torch.arange(N, device=rows.device)
            with no_autocast(rows):
                return reduce(s * (rows.to(dtype) @ y.to(dtype).mT), own)

        return by_rows(part, tiles, x, {"y": y, "s": s})

    return _Critic(
        N,
        lambda: s * (x.to(dtype) * y.to(dtype)).sum(1),
        lambda w: logsumexp(x, y, s, w, None, None, 0, columns=False).rows,
        lambda tau: reduced(lambda f, own: f.clamp(-tau, tau).masked_fill(own, -torch.inf).logsumexp(1)),
        lambda: reduced(lambda f, own: F.softplus(f).masked_fill(own, 0).sum(1)),
        lambda: s * (x.mean(0, dtype=dtype) * y.mean(0, dtype=dtype)).sum(),
    )


def _info_nce(c: _Critic) -> Tensor:
    return math.log(c.N) - F.softplus(c.rows(None) - c.positives()).mean()


def _dv(c: _Critic) -> Tensor:
    return c.positives().mean() - c.log_mean()


def _nwj(c: _Critic) -> Tensor:
    return c.positives().mean() - (c.log_mean() - 1).exp()


def _js(c: _Critic) -> Tensor:
    return -F.softplus(-c.positives()).mean() - c.softplus().mean() / (c.N - 1)


def _club(c: _Critic) -> Tensor:
    return c.positives().mean() - c.mean()


def _smile(c: _Critic, clip: float) -> Tensor:
    return c.positives().mean() - (c.clamped(clip).logsumexp(0) - math.log(c.N * (c.N - 1)))


_BOUNDS = {"info_nce": _info_nce, "dv": _dv, "nwj": _nwj, "js": _js, "club": _club}

"""Contrastive losses: a few lines on vectors of length N around one streamed log-sum-exp."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkernels import _check
from mmkernels._dispatch import no_autocast
from mmkernels.autograd.logsumexp import logsumexp
from mmkernels.ops._autocast import autocast

_Ids = Tensor | tuple[Tensor, Tensor] | None


def logsumexp_scores(
    x: Tensor,
    y: Tensor,
    scale: Tensor | float = 1.0,
    *,
    log_weights: Tensor | None = None,
    ids: tuple[Tensor, Tensor] | None = None,
    offset: int | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Row and column log-sum-exps of pairwise scores, in one sweep that never stores them.

    .. math::
        s_{ij} = \mathrm{scale}\,\langle x_i, y_j\rangle + w_j, \qquad
        \mathrm{rows}_i = \log\sum_j e^{s_{ij}}, \qquad \mathrm{columns}_j = \log\sum_i e^{s_{ij}}

    The sums run over all pairs, or leave out those that `offset` and `ids` name. Differentiable, twice too, in x, y,
    scale and log_weights. The running maximum is exact, so any scale is safe; results are bitwise reproducible.

    Args:
        x: (N, D) in float16, bfloat16, float32 or float64; N >= 0, D >= 1.
        y: (M, D), x's dtype and device; M >= 0.
        scale: a finite number or a 0-dimensional floating tensor (whose value is not checked).
        log_weights: w, (M,) floating; -inf takes a column out of the rows' sums.
        ids: (row ids (N,), column ids (K,)) integers, K <= M: pairs of equal id are left out; columns from K on never.
        offset: leaves out the pairs (i, i + offset), the positives of a rectangular block; 0 <= offset <= M - N.

    Returns:
        rows (N,) and columns (M,), in nats, float32 (float64 for float64 inputs); -inf where nothing is left.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: ranks, sizes, devices that do not fit, a number that is not finite, an offset out of range.

    Cost: one N x M x D product forward, three backward; O(N + M) memory beside the tiles (`set_memory_budget`).
    """
    _check.embeddings("x", x)
    _check.embeddings("y", y, x)
    _check.number_or_scalar("scale", scale, x)
    N, M = x.shape[0], y.shape[0]
    if log_weights is not None:
        _check.vector("log_weights", log_weights, {"M": M}, x)
    row_ids, column_ids = _check.pair_of_ids(ids, {"N": N}, None, x)
    if column_ids is not None and column_ids.shape[0] > M:
        raise ValueError(f"ids[1] must be no longer than y, got {column_ids.shape[0]} and {M}")
    if offset is not None:
        if not isinstance(offset, int) or isinstance(offset, bool):
            raise TypeError(f"offset must be an int or None, got {type(offset).__name__}")
        if M < N:
            raise ValueError(f"offset has no value where y has fewer rows than x, got {M} and {N}")
        if not 0 <= offset <= M - N:
            raise ValueError(f"offset must be in [0, M - N] = [0, {M - N}], got {offset}")
    q = logsumexp(autocast(x), autocast(y), scale, log_weights, row_ids, column_ids, offset)
    return q.rows, q.columns


def info_nce(
    x: Tensor,
    y: Tensor,
    *,
    temperature: Tensor | float | None = None,
    scale: Tensor | float | None = None,
    symmetric: bool = True,
    negatives: Tensor | None = None,
    log_weights: Tensor | None = None,
    ids: _Ids = None,
    exclude_positive: bool = False,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""InfoNCE of N pairs (x_i, y_i), exact, in O(N) memory; symmetric, it is CLIP's loss.

    .. math::
        s_{ij} = \mathrm{scale}\,\langle x_i, y_j\rangle + w_j, \quad p_i = s_{ii}, \quad
        q_i = \log\sum_{j \ne i} e^{s_{ij}}, \quad \ell_i = \log(1 + e^{q_i - p_i})
        = -\log\frac{e^{s_{ii}}}{\sum_j e^{s_{ij}}}

    and with :math:`q'_i = \log\sum_{j \ne i} e^{s_{ji}}` for the columns, :math:`\tfrac12(\ell_i + \ell'_i)` if
    symmetric. The positive never enters the sum, so loss and gradient keep their digits however small they become.
    Rows are used as they are: normalise them first where cosine similarity is meant. Differentiable, twice too, in x,
    y, scale or temperature, negatives, log_weights and weight; only the gradients that are asked for are computed.
    Under autocast the inputs are cast as a matrix product's are; scores, statistics and loss stay in float32.

    Args:
        x: (N, D) in float16, bfloat16, float32 or float64.
        y: (N, D), x's dtype and device; y_i is x_i's positive.
        temperature: 1 / scale, a positive number or a 0-dimensional floating tensor (whose value is not checked);
            0.07 if neither is given.
        scale: instead of temperature, likewise (CLIP's `logit_scale.exp()`).
        symmetric: average both directions; else x's rows against y's alone.
        negatives: (M, D), further columns: hard negatives, a queue (MoCo). Columns' sums run over the N rows of x.
        log_weights: w, added to a column's scores: (N + M,), or (M,) for the negatives alone. With -log Q_j it
            corrects sampled softmax.
        ids: integers, (N,) for both sides or a pair (rows (N,), columns (N,) or (N + M,)): other pairs of equal id
            are false negatives and leave the sums. Negatives without ids always stay.
        exclude_positive: q_i - p_i instead of log(1 + e^(q_i - p_i)) (decoupled contrastive loss).
        label_smoothing: epsilon in [0, 1): adds epsilon (p_i - mean_j s_ij), the mean over all columns of the sum.
        weight: (N,) floating, a weight per pair.
        reduction: "mean" (weighted: sum of weight x loss over sum of weight), "sum", or "none".

    Returns:
        The loss in nats, 0-dimensional, or (N,) for "none"; float32 (float64 for float64 inputs). 0 with gradient 0
        where no negative is left.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: ranks, sizes, devices that do not fit; both temperature and scale; a number out of range;
            label_smoothing with ids or exclude_positive, for which it has no definition; a mean of no pairs.

    Cost: four N x (N + M) x D products with gradients (three where the memory budget holds the scores), one without;
    O(N) memory beside the tiles (`set_memory_budget`).

    Sources: van den Oord et al. 2018 (arXiv 1807.03748); Radford et al. 2021 (2103.00020); He et al. 2020 (MoCo,
    1911.05722); Yeh et al. 2022 (DCL, 2110.06848); Bengio and Senécal 2008 (log Q).

    Example:
        >>> import torch, mmkernels
        >>> x = torch.nn.functional.normalize(torch.randn(4096, 512), dim=1).requires_grad_()
        >>> y = torch.nn.functional.normalize(torch.randn(4096, 512), dim=1).requires_grad_()
        >>> mmkernels.info_nce(x, y, temperature=0.07).backward()
    """
    N = _check_pairs(x, y)
    _check.choice("reduction", reduction, ("mean", "sum", "none"))
    if reduction == "mean":
        _check_mean(N)
    M = 0 if negatives is None else _check.embeddings("negatives", negatives, x).shape[0]
    factor = _scale(temperature, scale, x)
    row_ids, column_ids = _check.pair_of_ids(ids, {"N": N}, None, x)
    if column_ids is not None:
        _check.length("ids", column_ids, {"N": N, "N + M": N + M})
    if log_weights is not None:
        _check.vector("log_weights", log_weights, {"N + M": N + M} | ({"M": M} if M else {}), x)
        log_weights = log_weights if log_weights.shape[0] == N + M else F.pad(log_weights, (N, 0))
    if weight is not None:
        _check.vector("weight", weight, {"N": N}, x)
    epsilon = _check.number("label_smoothing", label_smoothing, 0, 1, with_low=True)
    if epsilon and (ids is not None or exclude_positive):
        raise ValueError("label_smoothing has no definition together with ids or exclude_positive; got both")

    x, y = autocast(x), autocast(y)
    columns = y if negatives is None else torch.cat([y, autocast(negatives)])
    q = logsumexp(x, columns, factor, log_weights, row_ids, column_ids, 0, columns=symmetric)
    sums = torch.stack((q.rows, q.columns if negatives is None else q.columns[:N])) if symmetric else q.rows
    losses = _loss(sums, q.positives, exclude_positive)
    if epsilon:
        means = _mean_scores(x, columns, factor, q.rows.dtype, log_weights)
        if symmetric:
            column_means = _mean_scores(y, x, factor, q.rows.dtype)
            means = torch.stack((means, column_means if log_weights is None else column_means + log_weights[:N]))
        losses = losses + epsilon * (q.positives - means)
    if reduction == "mean" and weight is None:
        return losses.mean()
    if symmetric:
        losses = losses.mean(0)
    if weight is not None:
        weight = weight.to(losses.dtype)
        losses = losses * weight
        if reduction == "mean":
            return losses.sum() / weight.sum()
    return losses.sum() if reduction == "sum" else losses


def clip_loss_and_accuracy(x: Tensor, y: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor]:
    """`info_nce(x, y, scale=scale)` and the share of rows and columns whose positive scores highest.

    The second result carries no gradient and costs nothing: the sweep knows every row's and column's largest score.
    """
    _check_mean(_check_pairs(x, y))
    x, y = autocast(x), autocast(y)
    q = logsumexp(x, y, _scale(None, scale, x), None, None, None, 0)
    loss = _loss(torch.stack((q.rows, q.columns)), q.positives).mean()
    correct = torch.stack((q.positives > q.row_max, q.positives > q.column_max))
    return loss, correct.to(loss.dtype).mean()


def _loss(q: Tensor, p: Tensor, exclude_positive: bool = False) -> Tensor:
    """softplus(q - p), or q - p; 0 where no negative is left (q = -inf)."""
    if exclude_positive:
        return torch.where(q == -torch.inf, torch.zeros_like(q), q - p)
    return F.softplus(q - p, threshold=40)  # the identity above it, which e^-40 does not change in float64 either


def _mean_scores(
    x: Tensor, y: Tensor, scale: Tensor | float, dtype: torch.dtype, log_weights: Tensor | None = None
) -> Tensor:
    """mean_j s_ij = scale <x_i, mean y> + mean w: O(N D)."""
    with no_autocast(x):
        mean = scale * (x.to(dtype) @ y.mean(0, dtype=dtype))
    return mean if log_weights is None else mean + log_weights.to(dtype).mean()


def _check_pairs(x: Tensor, y: Tensor) -> int:
    _check.embeddings("x", x)
    _check.embeddings("y", y, x)
    if x.shape != y.shape:
        raise ValueError(f"x and y must have the same shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    return x.shape[0]


def _check_mean(N: int) -> None:
    if N == 0:
        raise ValueError("the mean over an empty batch is not defined, got N = 0 (reduction='sum' gives 0)")


def _scale(temperature: Tensor | float | None, scale: Tensor | float | None, x: Tensor) -> Tensor | float:
    if temperature is not None and scale is not None:
        raise ValueError("give either temperature or scale (= 1 / temperature), got both")
    if scale is not None:
        return _check.number_or_scalar("scale", scale, x, low=0)
    t = _check.number_or_scalar("temperature", 0.07 if temperature is None else temperature, x, low=0)
    return 1 / t

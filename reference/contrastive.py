"""Contrastive losses as their papers write them, on the whole score matrix."""

import torch
import torch.nn.functional as F
from torch import Tensor


def scores(x: Tensor, y: Tensor, scale: Tensor | float, log_weights: Tensor | None = None) -> Tensor:
    """s_ij = scale <x_i, y_j> + log_weights_j."""
    s = scale * (x @ y.T)
    return s if log_weights is None else s + log_weights


def left_out(s: Tensor, ids: tuple[Tensor, Tensor] | None = None, offset: int | None = None) -> Tensor:
    """The pairs that no sum counts: (i, i + offset), and those of equal id."""
    N, M = s.shape
    mask = torch.zeros(N, M, dtype=torch.bool, device=s.device)
    if offset is not None:
        mask |= torch.arange(M, device=s.device) == torch.arange(N, device=s.device)[:, None] + offset
    if ids is not None:
        mask[:, : len(ids[1])] |= ids[0][:, None] == ids[1]
    return mask


def logsumexp(s: Tensor, dim: int) -> Tensor:
    """log sum exp along dim; -inf, with gradient 0, where every entry is -inf or there is none."""
    if s.shape[dim] == 0:
        return s.sum(dim) - torch.inf
    nothing = (s == -torch.inf).all(dim, keepdim=True)
    return s.masked_fill(nothing, 0).logsumexp(dim).masked_fill(nothing.squeeze(dim), -torch.inf)


def logsumexp_scores(
    x: Tensor,
    y: Tensor,
    scale: Tensor | float,
    *,
    log_weights: Tensor | None = None,
    ids: tuple[Tensor, Tensor] | None = None,
    offset: int | None = None,
) -> tuple[Tensor, Tensor]:
    """(log sum_j e^{s_ij}, log sum_i e^{s_ij}) over the pairs that are not left out."""
    s = scores(x, y, scale, log_weights)
    s = s.masked_fill(left_out(s, ids, offset), -torch.inf)
    return logsumexp(s, 1), logsumexp(s, 0)


def info_nce(
    x: Tensor,
    y: Tensor,
    scale: Tensor | float,
    *,
    symmetric: bool = True,
    negatives: Tensor | None = None,
    log_weights: Tensor | None = None,
    ids: tuple[Tensor, Tensor] | None = None,
    exclude_positive: bool = False,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """InfoNCE (van den Oord et al. 2018), both ways for CLIP (Radford et al. 2021); log_weights for all columns."""
    N = len(x)
    s = scores(x, y if negatives is None else torch.cat([y, negatives]), scale, log_weights)
    negative = s.masked_fill(left_out(s, ids, 0), -torch.inf)
    p = s.diagonal()

    def loss(q: Tensor, mean: Tensor) -> Tensor:
        if exclude_positive:
            return torch.where(q == -torch.inf, torch.zeros_like(q), q - p)
        return -F.logsigmoid(p - q) + (label_smoothing * (p - mean) if label_smoothing else 0)

    each = loss(logsumexp(negative, 1), s.mean(1))
    if symmetric:
        each = (each + loss(logsumexp(negative[:, :N], 0), s[:, :N].mean(0))) / 2
    each = each if weight is None else weight * each
    if reduction == "mean":
        return each.sum() / (N if weight is None else weight.sum())
    return each.sum() if reduction == "sum" else each


def cross_entropy_both_ways(x: Tensor, y: Tensor, scale: Tensor | float) -> Tensor:
    """The dense symmetric loss as everyone writes it, open_clip among them: what info_nce is measured against."""
    s = scores(x, y, scale)
    labels = torch.arange(len(x), device=x.device)
    return (F.cross_entropy(s, labels) + F.cross_entropy(s.T, labels)) / 2

"""Retrieval on the whole score matrix."""

import torch
from torch import Tensor


def ranks(s: Tensor, right: Tensor) -> Tensor:
    """Wrong candidates above the best right one, ties half, along the rows; inf where a row has no right answer."""
    best = s.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    rank = ((s > best) & ~right).sum(1) + ((s == best) & ~right).sum(1) / 2
    return rank.masked_fill(~right.any(1), torch.inf)


def recall_at_k(s: Tensor, right: Tensor, ks: tuple[int, ...]) -> Tensor:
    """The share of rows with a rank of at most k - 1."""
    return torch.stack([(ranks(s, right) <= k - 1).double().mean() for k in ks])

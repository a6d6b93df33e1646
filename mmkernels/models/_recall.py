"""Recall@k with several right answers a query."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

KS = (1, 5, 10)


def recall_at_k(scores: Tensor, query_ids: Tensor, candidate_ids: Tensor, ks: Sequence[int] = KS) -> list[float]:
    """Return, for each k, the share of queries with a right answer among their k highest scores.

    A candidate is right if its id is the query's. A query's rank is the number of wrong candidates above its best
    right one, a tie with a wrong one counting one half, and k is reached by ranks up to k - 1: embeddings that
    collapsed to a point, where all scores tie, recall nothing.

    Args:
        scores: (N, M) floating, a row a query.
        query_ids: (N,) integers.
        candidate_ids: (M,) integers.
        ks: numbers of answers looked at.

    Raises:
        ValueError: a size that does not fit, or a query without a right answer.
    """
    if scores.shape != (len(query_ids), len(candidate_ids)) or scores.numel() == 0:
        raise ValueError(
            f"scores must be (queries, candidates) = ({len(query_ids)}, {len(candidate_ids)}) and not empty, "
            f"got {tuple(scores.shape)}"
        )
    right = query_ids[:, None] == candidate_ids[None, :]
    if not right.any(1).all():
        raise ValueError(f"every query must have a right answer, {int((~right.any(1)).sum())} have none")
    best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    above = ((scores > best) & ~right).sum(1)
    not_below = (~(scores < best) & ~right).sum(1)  # ties, and NaN, which must not pass for a good answer
    rank = (above + not_below) / 2
    return [(rank <= k - 1).float().mean().item() for k in ks]


def chance_at_k(query_ids: Tensor, candidate_ids: Tensor, ks: Sequence[int] = KS) -> list[float]:
    """Return what `recall_at_k` gives on average for scores that know nothing.

    With r right answers among M candidates, k random ones miss them all with probability C(M - r, k) / C(M, k).
    """
    right = (query_ids[:, None] == candidate_ids[None, :]).sum(1).double()
    M = len(candidate_ids)
    misses = [torch.stack([(M - right - i).clamp(min=0) / (M - i) for i in range(min(k, M))]).prod(0) for k in ks]
    return [1 - miss.mean().item() for miss in misses]

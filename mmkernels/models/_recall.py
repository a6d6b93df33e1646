"""What recall@k is for a model that knows nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

KS = (1, 5, 10)


def chance_at_k(query_ids: Tensor, candidate_ids: Tensor, ks: Sequence[int] = KS) -> list[float]:
    """Return what `recall_at_k` gives on average for scores that know nothing.

    With r right answers among M candidates, k random ones miss them all with probability C(M - r, k) / C(M, k).
    """
    right = (query_ids[:, None] == candidate_ids[None, :]).sum(1).double()
    M = len(candidate_ids)
    misses = [torch.stack([(M - right - i).clamp(min=0) / (M - i) for i in range(min(k, M))]).prod(0) for k in ks]
    return [1 - miss.mean().item() for miss in misses]

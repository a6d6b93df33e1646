"""Retrieval: which candidates score highest, and where the right ones rank, without the N x M scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmkernels import _check
from mmkernels.ops._autocast import autocast


def ranks(x: Tensor, y: Tensor, *, ids: Tensor | tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    r"""Rank of the right answer among all candidates by dot product, for every row of x and of y, in one sweep.

    .. math::
        \mathrm{rank}_i = \#\{j \notin P_i : s_{ij} > p_i\} + \tfrac12 \#\{j \notin P_i : s_{ij} = p_i\}, \qquad
        s_{ij} = \langle x_i, y_j\rangle, \quad p_i = \max_{j \in P_i} s_{ij}

    P_i is {i}, or with ids all candidates of the query's id: a query with several right answers has the rank of its
    best one, and the others do not compete with it. 0 is best. Ties count half, so embeddings that collapsed to a point
    rank in the middle; p_i is read from the same tile product as its rivals, so equal candidates do tie (but for a few
    in a hundred that a library's float64 product rounds apart).

    Args:
        x: (N, D) in float16, bfloat16, float32 or float64, used as it is: normalise first where cosine similarity is
            meant.
        y: (M, D), x's dtype and device; M = N without ids.
        ids: integers, one (N,) for both sides or a pair (x's (N,), y's (M,)); pairs of equal id are right.

    Returns:
        The ranks of x's rows among y's, (N,), and of y's among x's, (M,), in float32; inf where a query has no right
        answer or its score is NaN. They carry no gradient.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: ranks, sizes or devices that do not fit.

    Cost: one N x M x D product, two with ids; O(N + M) memory beside the tiles (`set_memory_budget`).
    """
    _check.embeddings("x", x)
    _check.embeddings("y", y, x)
    row_ids, column_ids = _check.pair_of_ids(ids, {"N": x.shape[0]}, {"M": y.shape[0]}, x)
    if ids is None and x.shape[0] != y.shape[0]:
        raise ValueError(f"x and y must have the same length without ids, got {x.shape[0]} and {y.shape[0]}")
    x, y = _prepared(x), _prepared(y)
    best = torch.ops.mmkernels.neighbors_best(x, y, row_ids, column_ids)
    counts = torch.ops.mmkernels.neighbors_count(x, y, row_ids, column_ids, *best)
    rows, columns = (
        (twice.to(torch.float32) / 2).masked_fill(p == -torch.inf, torch.inf)
        for twice, p in zip(counts, best, strict=True)
    )
    return rows, columns


def recall_at_k(
    x: Tensor,
    y: Tensor,
    ks: Sequence[int] = (1, 5, 10),
    *,
    ids: Tensor | tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Share of queries with a right answer among their k best candidates, x against y and y against x.

    .. math::
        \mathrm{recall@}k = \frac1N \sum_i [\mathrm{rank}_i \le k - 1]

    with the ranks of `ranks`: a tie with one wrong candidate counts half a place, so scores that are all equal recall
    nothing.

    Args:
        x: (N, D) in float16, bfloat16, float32 or float64, N >= 1.
        y: (M, D), x's dtype and device, M >= 1; M = N without ids.
        ks: integers >= 1.
        ids: integers, one (N,) for both sides or a pair (x's (N,), y's (M,)); pairs of equal id are right.

    Returns:
        The recalls of x's rows and of y's rows, (len(ks),) each, in float32.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: ranks, sizes or devices that do not fit; a k below 1; no query.

    Cost: that of `ranks`.

    Example:
        >>> import torch, mmkernels
        >>> image, text = torch.randn(1000, 64), torch.randn(1000, 64)
        >>> image_to_text, text_to_image = mmkernels.recall_at_k(image, text, ks=(1, 5, 10))
    """
    for k in ks:
        _check.integer("every k", k, 1)
    both = ranks(x, y, ids=ids)
    if any(r.shape[0] == 0 for r in both):
        raise ValueError(f"recall needs queries on both sides, got shapes {tuple(x.shape)} and {tuple(y.shape)}")
    rows, columns = (torch.stack([(r <= k - 1).float().mean() for k in ks]) for r in both)
    return rows, columns


def topk(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    r"""The k rows of y with the largest dot products, for every row of x.

    .. math::
        \mathrm{values}_{ir} = s_{i j_r}, \quad \mathrm{indices}_{ir} = j_r, \qquad
        s_{i j_1} \ge \dots \ge s_{i j_k} \ge s_{ij} \text{ for all other } j

    Which of equal scores come first is not specified, as in `torch.topk`. Nearest by cosine similarity: normalise the
    rows first.

    Args:
        x: (N, D) in float16, bfloat16, float32 or float64.
        y: (M, D), x's dtype and device.
        k: 0 <= k <= M.

    Returns:
        values (N, k), float32 (float64 for float64 inputs), in decreasing order, and indices (N, k), int64. Where NaN
        leaves fewer than k scores, the rest is -inf with index -1. They carry no gradient.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: ranks, sizes or devices that do not fit; k out of range.

    Cost: one N x M x D product; O(N k) memory beside the tiles (`set_memory_budget`).

    Example:
        >>> import torch, mmkernels
        >>> values, indices = mmkernels.topk(torch.randn(1000, 64), torch.randn(5000, 64), k=10)
    """
    _check.embeddings("x", x)
    _check.embeddings("y", y, x)
    _check.integer("k", k, 0, y.shape[0])
    values, indices = torch.ops.mmkernels.neighbors_topk(_prepared(x), _prepared(y), k)
    return values, indices


def _prepared(x: Tensor) -> Tensor:
    """x without its graph, as a matrix product under autocast would have it, rows in one piece."""
    x = autocast(x.detach())
    return x if x.stride(1) == 1 else x.contiguous()

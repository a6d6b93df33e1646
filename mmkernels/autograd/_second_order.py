"""Second derivatives of a reduction from the plain formula of its gradient, some rows at a time: O(N) memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


def vjp_by_rows(
    formula: Callable[..., Sequence[Tensor | None]],
    tiles: Iterable[slice],
    by_row: dict[str, Tensor],
    shared: dict[str, Tensor],
    cotangents: Sequence[Tensor | None],
    dim: int = 0,
) -> dict[str, Tensor]:
    """Pull cotangents of a gradient formula back to its tensors.

    Args:
        formula: formula(rows, **tensors) returns the results for those rows: the first belongs to them, the others are
            summed over all rows.
        tiles: the slices of rows.
        by_row: tensors of which the formula gets those rows.
        shared: tensors of which it gets everything.
        cotangents: one a result, None for those that nobody asked about.
        dim: where by_row and the first result have the rows.
    """

    def rows(t: Tensor, i: slice) -> Tensor:
        return t[(slice(None),) * dim + (i,)]

    # Written in place: small results that stay between large ones that go would keep the heap from shrinking.
    total = {name: torch.zeros_like(t) for name, t in (shared | by_row).items()}
    for i in tiles:

        def asked(tensors: dict[str, Tensor], i: slice = i) -> list[Tensor | None]:
            return [result for result, c in zip(formula(i, **tensors), cotangents, strict=True) if c is not None]

        vjp = torch.func.vjp(asked, shared | {name: rows(t, i) for name, t in by_row.items()})[1]
        first = None if cotangents[0] is None else rows(cotangents[0], i)
        (second,) = vjp([c for c in (first, *cotangents[1:]) if c is not None])
        for name, t in second.items():
            (rows(total[name], i) if name in by_row else total[name]).add_(t)
    return total

"""Covariances of data that arrives in pieces."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmkernels import _check
from mmkernels.ops._statistics import (
    Statistics,
    check_present,
    check_views,
    check_weights,
    of_view,
    statistics,
)
from mmkernels.ops.covariance import Covariance, finished


class RunningCovariance:
    """Means and covariances of views whose rows arrive in pieces, in any order and on any number of processes.

    The sums are float64 and about the running means (Chan, Golub and LeVeque 1983): pieces give what `covariance` of
    all rows together gives, whatever their sizes and however far their means drift. No gradients.

    Example:
        >>> import torch, mmkernels
        >>> running = mmkernels.RunningCovariance()
        >>> for x, y in torch.randn(10, 2, 100, 5):
        ...     running.update(x, y)
        >>> running.covariance().xy.shape, int(running.n[0, 1])
        (torch.Size([5, 5]), 1000)
    """

    def __init__(self) -> None:
        self._sums: _Sums | None = None

    def __repr__(self) -> str:
        if self._sums is None:
            return "RunningCovariance()"
        return f"RunningCovariance(sizes={self._sums.sizes}, n={self._sums.n.tolist()})"

    @property
    def n(self) -> Tensor:
        """The sum of weights (V, V) of the rows that have both views; (0, 0) before any row."""
        return torch.zeros(0, 0, dtype=torch.float64) if self._sums is None else self._sums.n

    @torch.no_grad()
    def update(
        self, *views: Tensor, weights: Tensor | None = None, present: Sequence[Tensor | None] | None = None
    ) -> None:
        """Add rows.

        Args:
            views: tensors (N, D_v), the same number of views with the same sizes in every call; N may be 0.
            weights: (N,), at least 0.
            present: as in `covariance`.

        Raises:
            TypeError, ValueError: arguments that do not fit each other or earlier calls.
        """
        checked = check_views(views)
        _check.tensor("x", checked[0], 2)
        w, p = check_weights(weights, checked[0]), check_present(present, checked)
        if len(checked[0]) == 0:
            return
        self._add(_Sums.of(statistics(checked, w, p)))

    def merge(self, other: RunningCovariance) -> None:
        """Add the rows that another one has seen; it may be on another device."""
        if other._sums is not None:
            self._add(other._sums)

    def all_reduce(self, group: Any = None) -> None:
        """Add the rows that all processes of a torch.distributed group have seen: equal on all of them afterwards."""
        import torch.distributed as dist

        states: list[dict[str, Any]] = [{}] * dist.get_world_size(group)
        dist.all_gather_object(states, self.state_dict(), group=group)
        merged, part = RunningCovariance(), RunningCovariance()
        for state in states:  # in the order of ranks, so that every process rounds alike
            part.load_state_dict(state)
            merged.merge(part)
        here = self._sums
        self._sums = merged._sums if here is None or merged._sums is None else merged._sums.to(here.means.device)

    def covariance(self, correction: float = 1) -> Covariance:
        """Return means and covariances of all rows so far, in float64, as `covariance` does.

        Raises:
            ValueError: there are no more rows than correction.
        """
        correction = _check.number("correction", correction, 0, with_low=True)
        if self._sums is None or (self._sums.n.diagonal() <= correction).any():
            rows = 0 if self._sums is None else float(self._sums.n.diagonal().min())
            raise ValueError(f"there must be more than {correction:g} row(s) of every view, got {rows:g}")
        n, means, scatter, sizes = self._sums
        complete = bool((n == n[0, 0]).all())
        s = Statistics(means[None, :1] if complete else means[None], scatter[None], n[None], sizes)
        s = s._replace(n=s.n[:, :1, :1]) if complete else s
        return finished(s._replace(scatter=s.scatter / (s.over_pairs(s.n) > 0)), torch.Size(), correction)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums as tensors on the CPU, for torch.save."""
        if self._sums is None:
            return {}
        n, means, scatter, sizes = self._sums.to(torch.device("cpu"))
        return {"n": n, "means": means, "scatter": scatter, "sizes": list(sizes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the sums of a state_dict instead of one's own.

        Raises:
            ValueError: entries are missing, or their shapes do not fit.
        """
        if not state:
            self._sums = None
            return
        missing = {"n", "means", "scatter", "sizes"} - set(state)
        if missing:
            raise ValueError(f"state must have the entries of a state_dict(), {', '.join(sorted(missing))} missing")
        sums = _Sums(state["n"].clone(), state["means"].clone(), state["scatter"].clone(), tuple(state["sizes"]))
        V, D = len(sums.sizes), sum(sums.sizes)
        for name, shape in (("n", (V, V)), ("means", (V, D)), ("scatter", (D, D))):
            if tuple(getattr(sums, name).shape) != shape:
                raise ValueError(f"state[{name!r}] must have shape {shape}, got {tuple(getattr(sums, name).shape)}")
        self._sums = sums

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the sums to a file, as a whole or not at all."""
        temporary = Path(f"{os.fspath(path)}.{os.getpid()}.tmp")
        try:
            torch.save(self.state_dict(), temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RunningCovariance:
        """Return what `save` has written; tensors are on the CPU."""
        running = cls()
        running.load_state_dict(torch.load(path, weights_only=True))
        return running

    def _add(self, new: _Sums) -> None:
        if self._sums is not None and self._sums.sizes != new.sizes:
            raise ValueError(f"views must have {list(self._sums.sizes)} features as before, got {list(new.sizes)}")
        self._sums = new if self._sums is None else self._sums.plus(new.to(self._sums.means.device))


class _Sums(NamedTuple):
    """Sums of V views, D features in all: float64."""

    n: Tensor  # (V, V), of the rows that have both views
    means: Tensor  # (V, D), of the rows that have the feature's view and view v
    scatter: Tensor  # (D, D), about those means
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, s: Statistics) -> _Sums:
        V = len(s.sizes)
        n, means = s.n[0].double().expand(V, V), s.means[0].double().expand(V, -1)
        # no rows with both views: no mean of theirs, and nothing to add
        empty = n[:, of_view(s.sizes, n.device)] == 0
        means = means.masked_fill(empty, 0)
        scatter = s.scatter[0].double().masked_fill(empty[of_view(s.sizes, n.device)], 0)
        return cls(n, means, scatter, s.sizes)

    def to(self, device: torch.device) -> _Sums:
        return _Sums(self.n.to(device), self.means.to(device), self.scatter.to(device), self.sizes)

    def plus(self, new: _Sums) -> _Sums:
        view = of_view(self.sizes, self.means.device)
        n = self.n + new.n
        share = new.n / torch.where(n > 0, n, 1)
        difference = new.means - self.means
        pairs = difference.mT[:, view]
        between = (self.n * share)[view][:, view] * (pairs * pairs.mT)
        return _Sums(n, self.means + share[:, view] * difference, self.scatter + new.scatter + between, self.sizes)

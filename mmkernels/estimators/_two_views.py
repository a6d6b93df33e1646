"""What estimators of two views share: all are the singular vectors of a cross-covariance between whitened views."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import assert_all_finite, check_consistent_length, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor
from torch.nn.functional import pad

from mmkernels import _check
from mmkernels.estimators._rows import array, check_view, check_weights, device_of, pieces, summed
from mmkernels.ops._progress import progress
from mmkernels.ops.covariance import Covariance
from mmkernels.ops.running import RunningCovariance


class PermutationTest(NamedTuple):
    """Result of a permutation test of each component.

    Attributes:
        statistic: (K,), the sum of squared correlations (for PLS covariances) from this component on.
        pvalue: (K,), nondecreasing; the smallest possible is 1 / (permutations + 1).
        null: (permutations, K), the statistic of permuted rows.
    """

    statistic: NDArray[Any]
    pvalue: NDArray[Any]
    null: NDArray[Any]


class TwoViews(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A subclass says how each view is whitened, and may map rows to features first."""

    n_components: int | None
    verbose: bool
    _spectrum = "correlations_"  # what the singular values are
    _width = 0  # how many features `_map` makes, of both views
    _y_features: int
    _eps: float

    @abstractmethod
    def _whitener(self, S: Tensor, n: float, view: int) -> Tensor:
        """K (D, r) such that K'SK, regularised, is the identity."""

    def _map(self, x: Tensor, view: int) -> Tensor:
        """The features of rows of a view, of which everything here is linear."""
        return x

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> TwoViews:
        """Fit to rows X (N, D_x), y (N, D_y) or (N,), and weights (N,) that say how often each row counts.

        Arrays mapped into memory from a file (`numpy.memmap`) are read in pieces.
        """
        self._running = RunningCovariance()
        return self._add(X, y, sample_weight, first=True)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> TwoViews:
        """Add rows to those that the model was fitted to; the result is that of all rows at once."""
        first = not hasattr(self, "_running")
        if first:
            self._running = RunningCovariance()
        return self._add(X, y, sample_weight, first)

    def _add(self, X: Any, y: Any, sample_weight: Any, first: bool) -> TwoViews:
        views = self._checked(X, y, reset=first)
        weights = check_weights(sample_weight, views[0])
        if first:
            if len(views[0]) < 2:
                raise ValueError(f"{type(self).__name__} needs at least 2 rows, got n_samples = {len(views[0])}")
            self._device = device_of(X)
            self._prepare(views, weights)
        # the products are rounded as the data is, whatever the dtype of their sums
        single = all(view.dtype == np.float32 for view in views)
        eps = float(np.finfo(np.float32 if single else np.float64).eps)
        self._eps = eps if first else max(eps, self._eps)
        with progress(self.verbose, "Covariance", len(views[0])) as show:
            new = summed(views, ("X", "y"), weights, self._device, show, self._map, self._width)
        self._running.merge(new)
        n = 0.0 if self._running.n.numel() == 0 else float(self._running.n[0, 0])
        if n <= 1:
            raise ValueError(f"{type(self).__name__} needs at least 2 rows, got n_samples = {n:g}")
        self.n_samples_seen_ = n
        self._solve(self._running.covariance(), n)
        return self

    def _prepare(self, views: list[NDArray[Any]], weights: NDArray[Any] | None) -> None:
        """See the first rows before their features are formed."""

    def _checked(self, X: Any, y: Any, reset: bool) -> list[NDArray[Any]]:
        if y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None: it is the second view"
            )
        X = validate_data(self, array(X), reset=reset, ensure_all_finite=False, dtype="numeric")
        second = check_view(y, "y", ensure_2d=False)
        if not reset and second.shape[1] != self._y_features:
            raise ValueError(f"y must have {self._y_features} features as before, got {second.shape[1]}")
        self._y_features = second.shape[1]
        return [X, second]

    def _solve(self, S: Covariance, n: float) -> None:
        Kx, Ky = (self._whitener(S.block(v, v), n, v) for v in range(2))
        U, values, Vh = torch.linalg.svd(Kx.mT @ S.xy @ Ky, full_matrices=False)
        a, b = Kx @ U, Ky @ Vh.mT
        most = min(S.sizes)
        k = most if self.n_components is None else _check.integer("n_components", self.n_components, 1, most)
        # signs by the largest weight, so that the same data gives the same variates however it was cut
        sign = torch.where(a.gather(0, a.abs().argmax(0, keepdim=True)) < 0, -1, 1)
        self._all = (a * sign, b * sign)
        # where directions without variance are left out there are fewer than most
        x_weights, y_weights, self._values = (
            pad(t, (0, most - len(values))).cpu().numpy() for t in (*self._all, values)
        )
        self.x_weights_, self.y_weights_ = x_weights[:, :k], y_weights[:, :k]
        setattr(self, self._spectrum, self._values[:k])
        self.x_mean_, self.y_mean_ = S.mean_x.cpu().numpy(), S.mean_y.cpu().numpy()
        self._covariance = S
        self._n_features_out = k

    def transform(self, X: Any, y: Any = None) -> Any:
        """Return the variates of X, (N, n_components), and those of y if given."""
        check_is_fitted(self)
        X = validate_data(self, array(X), reset=False, ensure_all_finite=True, dtype="numeric")
        scores = self._variates(X, 0)
        if y is None:
            return scores
        second = check_view(y, "y", ensure_2d=False)
        if second.shape[1] != self._y_features:
            raise ValueError(f"y must have {self._y_features} features, got {second.shape[1]}")
        return scores, self._variates(second, 1)

    def _variates(self, view: NDArray[Any], v: int) -> NDArray[Any]:
        weights, mean = ((self.x_weights_, self.x_mean_), (self.y_weights_, self.y_mean_))[v]
        out = np.empty((len(view), weights.shape[1]), dtype=np.float32 if view.dtype == np.float32 else np.float64)
        W, m = (torch.from_numpy(t).to(self._device) for t in (weights, mean))
        for rows, (x,) in pieces([view], self._device, self._width):
            features = self._map(x, v)
            out[rows] = ((features - m.to(features.dtype)) @ W.to(features.dtype)).cpu().numpy()
        return out

    def correlations(self, X: Any, y: Any) -> NDArray[Any]:
        """Return the correlation of the variates of these rows, component by component: (n_components,)."""
        check_is_fitted(self)
        views = self._checked(X, y, reset=False)
        with progress(self.verbose, "Correlations", len(views[0])) as show:
            S = summed(views, ("X", "y"), None, self._device, show, self._map, self._width).covariance(0)
        a, b = (torch.from_numpy(w).to(S.cov) for w in (self.x_weights_, self.y_weights_))
        variances = (a * (S.xx @ a)).sum(0) * (b * (S.yy @ b)).sum(0)
        cov = (a * (S.xy @ b)).sum(0)
        result: NDArray[Any] = torch.where(variances > 0, cov / variances.sqrt(), 0).cpu().numpy()
        return result

    def score(self, X: Any, y: Any) -> float:
        """Return the mean over components of the correlation between the variates of X and of y."""
        return float(self.correlations(X, y).mean())

    def permutation_test(
        self, X: Any, y: Any, n_permutations: int = 1000, random_state: int | np.random.RandomState | None = None
    ) -> PermutationTest:
        """Test whether variates from each component on are correlated at all, by permuting the rows of y.

        The statistic of component k is the sum of squared correlations from k on, of what the components before it
        leave over, so that a strong component does not hide weaker ones; p-values are made nondecreasing, which
        controls the familywise error. Nothing is refitted: covariances within views do not change, and a permutation
        is one product of N D_x D_y. verbose shows progress.

        Args:
            X, y: the rows that the model was fitted to.
            n_permutations: at least 1.
            random_state: seed.

        Source: Winkler et al. 2020, Permutation inference for canonical correlation analysis (arXiv 2002.10046).
        """
        check_is_fitted(self)
        _check.integer("n_permutations", n_permutations, 1)
        generator = check_random_state(random_state)
        x, y = self._all_variates(X, y)
        k, n = self._n_features_out, len(x)
        statistic, null = _tail_sums(x.mT @ y / (n - 1), k), np.empty((n_permutations, k))
        with progress(self.verbose, "Permutations", n_permutations) as show:
            for i in range(n_permutations):
                order = torch.from_numpy(generator.permutation(n)).to(self._device)
                null[i] = _tail_sums(x.mT @ y[order] / (n - 1), k)
                show(i + 1, f"{i + 1} of {n_permutations}")
        above = (null >= statistic * (1 - 1e-9)).sum(0)
        return PermutationTest(statistic, np.maximum.accumulate((1 + above) / (1 + n_permutations)), null)

    def _all_variates(self, X: Any, y: Any) -> list[Tensor]:
        """The variates of every component there is, centred."""
        out = []
        for v, (view, W) in enumerate(zip(self._checked(X, y, reset=False), self._all, strict=True)):
            assert_all_finite(view, input_name="Xy"[v])
            parts = [self._map(x, v) @ W.to(x.dtype) for _, (x,) in pieces([view], self._device, self._width)]
            variates = torch.cat(parts)
            out.append(variates - variates.mean(0))
        check_consistent_length(*out)
        return out


def _tail_sums(C: Tensor, k: int) -> NDArray[Any]:
    """The sums of squares of C[i:, i:] for i < k."""
    tails = C.double().square().flip(0, 1).cumsum(0).cumsum(1).flip(0, 1).diagonal()[:k]
    sums: NDArray[Any] = pad(tails, (0, k - len(tails))).cpu().numpy()
    return sums

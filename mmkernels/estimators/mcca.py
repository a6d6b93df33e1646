"""Canonical correlation analysis of more than two views, in one read of the data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import assert_all_finite, check_consistent_length, check_random_state
from sklearn.utils.validation import check_array, check_is_fitted
from torch import Tensor
from torch.nn.functional import pad

from mmkernels import _check
from mmkernels.estimators._rows import array, check_view, check_weights, device_of, fourth_powers, pieces, summed
from mmkernels.estimators._two_views import PermutationTest
from mmkernels.estimators.cca import feature_correlations, reconstruction, whitener
from mmkernels.ops._progress import progress
from mmkernels.ops._regularize import Shrinkage, check_reg, check_shrinkage, regularized
from mmkernels.ops.covariance import Covariance
from mmkernels.ops.running import RunningCovariance


class _ManyViews(BaseEstimator):  # type: ignore[misc]
    """The largest eigenvalues of A w = lambda B w, B the regularised covariances of the views on the diagonal."""

    def __init__(
        self,
        n_components: int | None = None,
        *,
        reg: float | Sequence[float] = 0.0,
        shrinkage: Shrinkage | Sequence[Shrinkage] = None,
        verbose: bool = False,
    ) -> None:
        self.n_components = n_components
        self.reg = reg
        self.shrinkage = shrinkage
        self.verbose = verbose

    n_features_in_: list[int]
    _eps: float

    @abstractmethod
    def _between(self, S: Covariance) -> Tensor:
        """A, of the stacked views."""

    def fit(self, views: Sequence[Any], y: Any = None, sample_weight: Any = None) -> _ManyViews:
        """Fit to V >= 2 views (N, D_v) of the same rows, and weights (N,) that say how often each row counts.

        Arrays mapped into memory from a file (`numpy.memmap`) are read in pieces. y is ignored.
        """
        self._running = RunningCovariance()
        return self._add(views, sample_weight, first=True)

    def partial_fit(self, views: Sequence[Any], y: Any = None, sample_weight: Any = None) -> _ManyViews:
        """Add rows to those that the model was fitted to; the result is that of all rows at once."""
        first = not hasattr(self, "_running")
        if first:
            self._running = RunningCovariance()
        return self._add(views, sample_weight, first)

    def _add(self, views: Sequence[Any], sample_weight: Any, first: bool) -> _ManyViews:
        checked = self._checked(views, None if first else self.n_features_in_)
        weights = check_weights(sample_weight, checked[0])
        single = all(view.dtype == np.float32 for view in checked)
        eps = float(np.finfo(np.float32 if single else np.float64).eps)
        if first:
            self._device = device_of(views[0])
            self.n_features_in_ = [view.shape[1] for view in checked]
        self._eps = eps if first else max(eps, self._eps)
        shrinkages = check_shrinkage(self.shrinkage, len(checked))
        whole = first and weights is None and "ledoit_wolf" in shrinkages
        fourth = fourth_powers(checked, self._device) if whole else None
        names = [f"views[{v}]" for v in range(len(checked))]
        with progress(self.verbose, "Covariance", len(checked[0])) as show:
            self._running.merge(summed(checked, names, weights, self._device, show))
        n = 0.0 if self._running.n.numel() == 0 else float(self._running.n[0, 0])
        if n <= 1:
            raise ValueError(f"{type(self).__name__} needs at least 2 rows, got n_samples = {n:g}")
        self.n_samples_seen_ = n
        self._solve(self._running.covariance(), n, shrinkages, fourth)
        return self

    def _checked(self, views: Sequence[Any], features: list[int] | None) -> list[NDArray[Any]]:
        if not isinstance(views, list | tuple) or len(views) < 2:
            raise ValueError(f"views must be a list of at least 2 arrays, got {type(views).__name__}")
        checked = [check_view(view, f"views[{v}]") for v, view in enumerate(views)]
        got = [view.shape[1] for view in checked]
        if features is not None and got != features:
            raise ValueError(f"views must have {features} features as before, got {got}")
        check_consistent_length(*checked)
        return checked

    def _solve(self, S: Covariance, n: float, shrinkages: list[Shrinkage], fourth: list[Tensor] | None) -> None:
        V, most = len(S.sizes), min(S.sizes)
        k = most if self.n_components is None else _check.integer("n_components", self.n_components, 1, most)
        whiteners = []
        for v, reg in enumerate(check_reg(self.reg, V)):
            sums = None if fourth is None else lambda v=v: fourth[v].to(S.cov)
            B = regularized(S.block(v, v), S.cov.new_tensor(n), reg, shrinkages[v], sums)
            whiteners.append(whitener(B, f"views[{v}]", self._eps))
        self._whiteners = torch.block_diag(*whiteners)  # type: ignore[no-untyped-call]
        values, vectors = torch.linalg.eigh(self._whiteners.mT @ self._between(S) @ self._whiteners)
        # variances that average to 1 over the views; signs by the largest weight
        w = self._whiteners @ vectors.flip(1)[:, :k] * V**0.5
        w = w * torch.where(w.gather(0, w.abs().argmax(0, keepdim=True)) < 0, -1, 1)
        w, values = (pad(t, (0, k - t.shape[-1])) for t in (w, values.flip(0)[:k]))
        self.eigenvalues_ = values.cpu().numpy()
        self.weights_ = [w[S.features(v)].cpu().numpy() for v in range(V)]
        self.means_ = [S.mean[S.features(v)].cpu().numpy() for v in range(V)]
        self.loadings_ = [reconstruction(S.block(v, v), w[S.features(v)]).cpu().numpy() for v in range(V)]
        self._covariance = S

    def transform(self, views: Sequence[Any]) -> list[NDArray[Any]]:
        """Return the variates of every view, each (N, n_components)."""
        check_is_fitted(self)
        out = []
        for v, view in enumerate(self._checked(views, self.n_features_in_)):
            assert_all_finite(view, input_name=f"views[{v}]")
            scores = [
                ((x - torch.from_numpy(self.means_[v]).to(x)) @ torch.from_numpy(self.weights_[v]).to(x)).cpu()
                for _, (x,) in pieces([view], self._device)
            ]
            out.append(torch.cat(scores).numpy())
        return out

    def fit_transform(self, views: Sequence[Any], y: Any = None, sample_weight: Any = None) -> list[NDArray[Any]]:
        """Fit, and return the variates of every view."""
        return self.fit(views, y, sample_weight).transform(views)

    def score(self, views: Sequence[Any], y: Any = None) -> float:
        """Return the mean over components and pairs of views of the correlation between variates."""
        check_is_fitted(self)
        checked = self._checked(views, self.n_features_in_)
        with progress(self.verbose, "Correlations", len(checked[0])) as show:
            names = [f"views[{v}]" for v in range(len(checked))]
            S = summed(checked, names, None, self._device, show).covariance(0)
        W = [torch.from_numpy(w).to(S.cov) for w in self.weights_]
        total, pairs = S.cov.new_zeros(self.eigenvalues_.shape), 0
        for v in range(len(W)):
            for u in range(v):
                variances = (W[u] * (S.block(u, u) @ W[u])).sum(0) * (W[v] * (S.block(v, v) @ W[v])).sum(0)
                cov = (W[u] * (S.block(u, v) @ W[v])).sum(0)
                total += torch.where(variances > 0, cov / variances.sqrt(), 0)
                pairs += 1
        return float((total / pairs).mean())

    def loadings(self) -> list[NDArray[Any]]:
        """Return for each view the correlation of every feature with every variate of the view, (D_v, K)."""
        check_is_fitted(self)
        out = []
        for v, W in enumerate(self.weights_):
            out.append(feature_correlations(self._covariance.block(v, v).cpu().numpy(), W))
        return out

    def inverse_transform(self, scores: Sequence[Any]) -> list[NDArray[Any]]:
        """Return the features that variates (N, n_components) of each view stand for: least squares."""
        check_is_fitted(self)
        if len(scores) != len(self.weights_):
            raise ValueError(f"there are {len(self.weights_)} views, got variates of {len(scores)}")
        checked = [check_array(array(s), dtype=[np.float64, np.float32], input_name="scores") for s in scores]
        return [s @ L.T + mean for s, L, mean in zip(checked, self.loadings_, self.means_, strict=True)]

    def permutation_test(
        self,
        views: Sequence[Any],
        n_permutations: int = 1000,
        random_state: int | np.random.RandomState | None = None,
    ) -> PermutationTest:
        """Test whether views share each component at all, by permuting the rows of every view but the first.

        The statistic is the eigenvalue, and its null the largest eigenvalue of permuted rows, which controls the
        familywise error. Nothing is refitted: covariances within views do not change. verbose shows progress.

        Args:
            views: the rows that the model was fitted to.
            n_permutations: at least 1.
            random_state: seed.
        """
        check_is_fitted(self)
        _check.integer("n_permutations", n_permutations, 1)
        generator = check_random_state(random_state)
        checked = self._checked(views, self.n_features_in_)
        S, rows = self._covariance, []
        for v, view in enumerate(checked):
            parts = [x - torch.from_numpy(self.means_[v]).to(x) for _, (x,) in pieces([view], self._device)]
            rows.append(torch.cat(parts).to(S.cov.dtype))
        null = np.empty((n_permutations, len(self.eigenvalues_)))
        with progress(self.verbose, "Permutations", n_permutations) as show:
            for i in range(n_permutations):
                orders = [torch.from_numpy(generator.permutation(len(rows[0]))).to(self._device) for _ in rows[1:]]
                z = torch.cat([rows[0], *(t[order] for t, order in zip(rows[1:], orders, strict=True))], 1)
                A = self._between(S._replace(cov=z.mT @ z / (len(z) - 1)))
                null[i] = torch.linalg.eigvalsh(self._whiteners.mT @ A @ self._whiteners)[-1].cpu().numpy()
                show(i + 1, f"{i + 1} of {n_permutations}")
        above = (null >= self.eigenvalues_ * (1 - 1e-9)).sum(0)
        return PermutationTest(self.eigenvalues_, (1 + above) / (1 + n_permutations), null)


class MCCA(_ManyViews):
    r"""Multi-set canonical correlation analysis (SUMCOR): variates whose covariances between views are largest.

    .. math::
        \sum_{u \ne v} \Sigma_{vu}\, w_u = \lambda\, B_v\, w_v, \qquad
        B_v = (1 - s_v)\,\Sigma_{vv} + (s_v\,\mathrm{tr}(\Sigma_{vv})/D_v + \mathrm{reg})\, 1

    With two views it is `CCA` (or `RidgeCCA`); :math:`\lambda = V - 1` where V views agree. Directions without variance
    are left out, with a warning.

    Args:
        n_components: how many, at most the smallest D_v; None gives all.
        reg: added to the variances, at least 0; one number, or one for each view.
        shrinkage: s in [0, 1], or "ledoit_wolf" (another read of the data, not with partial_fit or weights) or "oas",
            which choose it from the data; one, or one for each view.
        verbose: show progress, where rich is installed.

    Attributes:
        eigenvalues_: (K,), largest first.
        weights_, means_: for each view (D_v, K) and (D_v,): variates are (X_v - means_[v]) @ weights_[v]. Their
            variances (regularised) average to 1 over the views.
        loadings_: for each view (D_v, K), least-squares coefficients of the features on the variates.
        n_samples_seen_: rows so far, or the sum of their weights.

    Input and dtypes: as `CCA`.

    Source: Kettenring 1971; Nielsen 2002.

    Example:
        >>> import numpy as np
        >>> from mmkernels.estimators import MCCA
        >>> shared, noise = np.random.default_rng(0).normal(size=(2, 3, 500, 4))
        >>> views = [shared[0] + noise[v] for v in range(3)]
        >>> [scores.shape for scores in MCCA(n_components=2).fit_transform(views)]
        [(500, 2), (500, 2), (500, 2)]
    """

    def _between(self, S: Covariance) -> Tensor:
        A = S.cov.clone()
        for v in range(len(S.sizes)):
            A[S.features(v), S.features(v)] = 0
        return A


class GCCA(_ManyViews):
    r"""Generalized canonical correlation analysis (MAXVAR): variates that all views predict best.

    .. math::
        \max_G \sum_v \mathrm{tr}(G^\top P_v\, G), \qquad P_v = \tfrac{1}{N - 1} X_v B_v^{-1} X_v^\top

    with centred views, B_v as in `MCCA`, and G (N, K) of orthonormal columns. The eigenvectors of an N x N matrix that
    is never formed: they are :math:`\sum_v X_v w_v` with
    :math:`\Sigma w = \lambda\, \mathrm{blockdiag}(B_v)\, w`, D x D. Without regularisation it is `MCCA` with
    :math:`\lambda` larger by 1, V where the views agree.

    Args, attributes, input and dtypes: as `MCCA`.

    Source: Carroll 1968; Kettenring 1971.

    Example:
        >>> import numpy as np
        >>> from mmkernels.estimators import GCCA
        >>> shared, noise = np.random.default_rng(0).normal(size=(2, 3, 500, 4))
        >>> views = [shared[0] + noise[v] for v in range(3)]
        >>> GCCA(n_components=2).fit(views).shared(views).shape
        (500, 2)
    """

    def _between(self, S: Covariance) -> Tensor:
        return S.cov

    def shared(self, views: Sequence[Any]) -> NDArray[Any]:
        """Return G (N, n_components), the variates that the views share, of variance 1 on the rows of the fit."""
        scale = np.sqrt(len(self.weights_) * np.maximum(self.eigenvalues_, np.finfo(np.float64).tiny))
        total: NDArray[Any] = sum(self.transform(views)) / scale
        return total

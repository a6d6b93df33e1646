"""Canonical correlation analysis and partial least squares of two views, in one read of the data."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import chi2
from sklearn.utils.validation import check_array, check_is_fitted
from torch import Tensor

from mmkernels.estimators._rows import array, device_of, fourth_powers
from mmkernels.estimators._two_views import TwoViews
from mmkernels.ops._regularize import Shrinkage, check_reg, check_shrinkage, regularized
from mmkernels.ops.covariance import Covariance
from mmkernels.ops.whitening import inverse_sqrt


class Significance(NamedTuple):
    """Bartlett's test that the correlations from each component on are 0, for normal data.

    Attributes:
        wilks: (K,), Wilks' lambda, the product of 1 - rho^2 from this component on.
        statistic: (K,), -(n - 1 - (D_x + D_y + 1) / 2) log(wilks), asymptotically chi-squared.
        dof: (K,), its degrees of freedom.
        pvalue: (K,).
    """

    wilks: NDArray[Any]
    statistic: NDArray[Any]
    dof: NDArray[Any]
    pvalue: NDArray[Any]


class _Linear(TwoViews):
    """Variates are linear in the views' own features."""

    def _solve(self, S: Covariance, n: float) -> None:
        super()._solve(S, n)
        self.x_loadings_, self.y_loadings_ = (
            reconstruction(S.block(v, v), torch.from_numpy(W)).cpu().numpy()
            for v, W in enumerate((self.x_weights_, self.y_weights_))
        )

    def loadings(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the correlation of every feature with every variate of its own view, (D_x, K) and (D_y, K)."""
        check_is_fitted(self)
        out = []
        for v, weights in enumerate((self.x_weights_, self.y_weights_)):
            out.append(feature_correlations(self._covariance.block(v, v).cpu().numpy(), weights))
        return out[0], out[1]

    def inverse_transform(self, X: Any, y: Any = None) -> Any:
        """Return the features that variates stand for: least squares, exact where there are as many as features.

        Args:
            X: variates of X, (N, n_components).
            y: variates of y, or None.
        """
        check_is_fitted(self)
        sides = [(X, self.x_loadings_, self.x_mean_), (y, self.y_loadings_, self.y_mean_)]
        back = []
        for scores, loadings, mean in sides if y is not None else sides[:1]:
            scores = check_array(array(scores), dtype=[np.float64, np.float32], input_name="scores")
            if scores.shape[1] != loadings.shape[1]:
                raise ValueError(f"there are {loadings.shape[1]} variates, got {scores.shape[1]}")
            back.append(scores @ loadings.T + mean)
        return back[0] if y is None else tuple(back)


def feature_correlations(S: NDArray[Any], W: NDArray[Any]) -> NDArray[Any]:
    """The correlation (D, k) of every feature, of covariance S, with every variate W'x; 0 where one is constant."""
    scale = np.sqrt(np.outer(S.diagonal(), ((S @ W) * W).sum(0)))
    found: NDArray[Any] = np.divide(S @ W, scale, out=np.zeros_like(scale), where=scale > 0)
    return found


def reconstruction(S: Tensor, W: Tensor) -> Tensor:
    """L (D, k) of the least-squares reconstruction L w'x of x, whose covariance is S."""
    W = W.to(S)
    L: Tensor = S @ W @ torch.linalg.pinv(W.mT @ S @ W, hermitian=True)
    return L


class CCA(_Linear):
    r"""Canonical correlation analysis, exact, in one read of the data: scikit-learn's `CCA` without its iteration.

    .. math::
        \rho_i = \max_{a_i, b_i} \mathrm{corr}(X a_i, Y b_i), \quad \text{uncorrelated with the } i - 1 \text{ before}

    One sweep for the covariances (`mmkernels.covariance`), then Cholesky factors and a singular value decomposition in
    float64. Variates have variance 1 (over N - 1), and any two of different components are uncorrelated. Directions
    without variance are left out, with a warning; features may be constant, dependent, or more than rows, but
    correlations are then 1 by construction: see `RidgeCCA`.

    Args:
        n_components: how many, at most min(D_x, D_y); None gives all.
        verbose: show progress, where rich is installed.

    Attributes:
        correlations_: (K,), largest first.
        x_weights_, y_weights_: (D_x, K), (D_y, K): variates are (X - x_mean_) @ x_weights_.
        x_loadings_, y_loadings_: (D_x, K), (D_y, K): least-squares coefficients of the features on the variates.
        x_mean_, y_mean_: (D_x,), (D_y,).
        n_samples_seen_: rows so far, or the sum of their weights.

    X and y are arrays, or tensors, which may be on a GPU: then the work is done there. If both are float32 so are the
    products, and sums are float64; everything else is float64. Files mapped into memory are read in pieces.

    Source: Hotelling 1936.

    Example:
        >>> import numpy as np
        >>> from mmkernels.estimators import CCA
        >>> X = np.random.default_rng(0).normal(size=(500, 3))
        >>> model = CCA(n_components=2).fit(X, X[:, :2] ** 2 + X[:, :2])
        >>> model.transform(X).shape
        (500, 2)
    """

    def __init__(self, n_components: int | None = None, *, verbose: bool = False) -> None:
        self.n_components = n_components
        self.verbose = verbose

    def _whitener(self, S: Tensor, n: float, view: int) -> Tensor:
        return whitener(S, "Xy"[view], self._eps)

    def fit_transform(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fit, and return the variates of X and of y, as scikit-learn's CCA does."""
        return self.fit(X, y, sample_weight).transform(X, y)

    def significance(self) -> Significance:
        """Test by Wilks' lambda and Bartlett's chi-squared whether each component, and those after it, are correlated.

        Source: Bartlett 1941. For data that is not normal see `permutation_test`.
        """
        check_is_fitted(self)
        rho, n = self._values, self.n_samples_seen_
        p, q = self._covariance.sizes
        k = np.arange(self._n_features_out)
        with np.errstate(divide="ignore"):
            logs = np.log1p(-(np.minimum(rho, 1) ** 2))[::-1].cumsum()[::-1][: len(k)]
        statistic, dof = -(n - 1 - (p + q + 1) / 2) * logs, (p - k) * (q - k)
        return Significance(np.exp(logs), statistic, dof, chi2.sf(statistic, dof))


class RidgeCCA(_Linear):
    r"""Canonical correlation analysis with regularised covariances, between `CCA` and `PLS`.

    Variates maximise :math:`a^\top \Sigma_{xy}\, b` with :math:`a^\top B_x a = b^\top B_y b = 1`, where
    :math:`B = (1 - s)\,\Sigma + (s\,\mathrm{tr}(\Sigma)/D + \mathrm{reg})\, 1`.

    Args:
        n_components: how many, at most min(D_x, D_y); None gives all.
        reg: added to the variances, at least 0; one number or a pair. Absolute: scale features to comparable variances.
        shrinkage: s in [0, 1], or "ledoit_wolf" (a second read of the data, not with partial_fit or weights) or "oas",
            which choose it from the data; one or a pair.
        verbose: show progress, where rich is installed.

    Attributes, input and dtypes: as `CCA`; correlations_ are the maxima above, which a shrinkage can take
    above 1; `correlations(X, y)` gives the correlations themselves.

    Source: Vinod 1976; Ledoit and Wolf 2004; Chen et al. 2010 (OAS).

    Example:
        >>> import numpy as np
        >>> from mmkernels.estimators import RidgeCCA
        >>> X = np.random.default_rng(0).normal(size=(20, 50))
        >>> RidgeCCA(n_components=1, shrinkage="oas").fit(X, X[:, :30]).transform(X).shape
        (20, 1)
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        reg: float | tuple[float, float] = 0.0,
        shrinkage: Shrinkage | tuple[Shrinkage, Shrinkage] = "oas",
        verbose: bool = False,
    ) -> None:
        self.n_components = n_components
        self.reg = reg
        self.shrinkage = shrinkage
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> RidgeCCA:
        """Fit to rows X (N, D_x), y (N, D_y) or (N,), and weights (N,) that say how often each row counts."""
        self._fourth: list[Tensor] | None = None
        if "ledoit_wolf" in check_shrinkage(self.shrinkage, 2) and y is not None and sample_weight is None:
            views = self._checked(X, y, reset=True)
            self._fourth = fourth_powers(views, device_of(X))
        super().fit(X, y, sample_weight)
        self._fourth = None
        return self

    def _whitener(self, S: Tensor, n: float, view: int) -> Tensor:
        fourth = getattr(self, "_fourth", None)
        B = regularized(
            S,
            S.new_tensor(n),
            check_reg(self.reg, 2)[view],
            check_shrinkage(self.shrinkage, 2)[view],
            None if fourth is None else lambda: fourth[view].to(S),
        )
        return whitener(B, "Xy"[view], self._eps)


class PLS(_Linear):
    r"""Partial least squares: the directions of largest covariance, `sklearn.cross_decomposition.PLSSVD` unscaled.

    Weights are the singular vectors of :math:`\Sigma_{xy}`, of length 1 and orthogonal.

    Args:
        n_components: how many, at most min(D_x, D_y); None gives all.
        verbose: show progress, where rich is installed.

    Attributes, input and dtypes: as `CCA`, but covariances_, (K,), of the variates, instead of correlations_.

    Source: Wegelin 2000.

    Example:
        >>> import numpy as np
        >>> from mmkernels.estimators import PLS
        >>> X = np.random.default_rng(0).normal(size=(20, 50))
        >>> PLS(n_components=2).fit(X, X[:, :30]).transform(X).shape
        (20, 2)
    """

    _spectrum = "covariances_"

    def __init__(self, n_components: int | None = None, *, verbose: bool = False) -> None:
        self.n_components = n_components
        self.verbose = verbose

    def _whitener(self, S: Tensor, n: float, view: int) -> Tensor:
        return torch.eye(len(S), dtype=S.dtype, device=S.device)


def whitener(B: Tensor, name: str, eps: float) -> Tensor:
    """K (D, r) with K'BK = 1: the inverse Cholesky factor, or where B is singular its eigenvectors with variance.

    eps is the relative rounding of B.
    """
    try:
        W = inverse_sqrt(B, "cholesky")
        if (W.diagonal().square() * B.diagonal() * len(B) * eps < 1).all():
            return W.mT
    except ValueError:
        pass
    values, vectors = torch.linalg.eigh(B)
    kept = values > len(B) * eps * values[-1].clamp(min=0)
    warnings.warn(
        f"{len(B) - int(kept.sum())} of {len(B)} directions of {name} have no variance of their own and are left out: "
        "constant or dependent features, or fewer rows than features",
        stacklevel=2,
    )
    scaled: Tensor = vectors[:, kept] / values[kept].sqrt()
    return scaled

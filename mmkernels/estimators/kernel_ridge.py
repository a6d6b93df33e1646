"""Kernel ridge regression in O(N) memory."""

from __future__ import annotations

import math
import warnings
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state, check_scalar
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor

from mmkernels.estimators._rows import array
from mmkernels.ops._entries import data_driven
from mmkernels.ops._kernels import PARAMETERS, check_kernel
from mmkernels.ops._progress import progress
from mmkernels.ops._solve import ConvergenceError, solve
from mmkernels.ops.kernel import kernel_matmul, kernel_matrix
from mmkernels.ops.operator import KernelOperator, memory_budget


class KernelRidge(MultiOutputMixin, RegressorMixin, BaseEstimator):  # type: ignore[misc]
    r"""Kernel ridge regression, for data whose kernel matrix does not fit: `sklearn.kernel_ridge.KernelRidge`.

    .. math::
        c = (K + \alpha W^{-1})^{-1} y, \qquad f(x) = \sum_j k(x, x_j)\, c_j

    with W the sample weights. Exact, by conjugate gradients on products with K that is never stored; or with
    n_landmarks, f a combination of k(x, z) for that many rows z, fitted to all rows by least squares with the penalty
    :math:`\alpha \lVert f\rVert^2` (Nyström): one sweep of N n_landmarks pairs.

    Args:
        alpha: the penalty, at least 0; one number, or one for each target.
        kernel: a name listed at `mmkernels.kernel_matrix` ("poly" too), or scikit-learn's default, "linear".
        gamma, degree, coef0, length_scale, nu: the kernel's parameters, those that it has. None is the kernel's own
            default. gamma may be "scale" or "median", length_scale "median".
        kernel_params: further parameters by name: {"alpha": ...} of "rational_quadratic".
        n_landmarks: None for the exact solution, or how many training rows, drawn at random, carry it.
        tol: relative residual at which the exact solution ends. Predictions on the training rows are then exact to tol
            times the norm of y.
        max_iter: iterations at most; each is a sweep over all pairs of rows.
        rank: of the preconditioner: more rank, fewer iterations (`KernelOperator.solve`).
        random_state: of the draw of landmarks.
        verbose: show progress, where rich is installed.

    Attributes:
        dual_coef_: c, (N,) or (N, targets); with landmarks (n_landmarks, ...).
        X_fit_: the rows that dual_coef_ belongs to.
        n_iter_: iterations taken, 1 with landmarks.
        residual_: relative residual reached, of the worst target; 0 with landmarks.

    X is an array, or a tensor, which may be on a GPU: then the work is done there. float32 stays, everything else is
    float64. Predictions are NumPy arrays. An exact solution that misses tol gives a ConvergenceWarning.

    Sources: Saunders, Gammerman and Vovk 1998; Rudi, Carratino and Rosasco 2017 (Falkon, arXiv 1705.10958).

    Example:
        >>> import numpy as np
        >>> from mmkernels.estimators import KernelRidge
        >>> X = np.random.default_rng(0).normal(size=(500, 3))
        >>> KernelRidge(alpha=0.1, kernel="rbf").fit(X, np.sin(X[:, 0])).predict(X[:2]).shape
        (2,)
    """

    def __init__(
        self,
        alpha: float | ArrayLike = 1.0,
        *,
        kernel: str = "linear",
        gamma: float | str | None = None,
        degree: int = 3,
        coef0: float = 1.0,
        length_scale: float | ArrayLike | str | None = None,
        nu: float = 1.5,
        kernel_params: dict[str, Any] | None = None,
        n_landmarks: int | None = None,
        tol: float = 1e-6,
        max_iter: int = 1000,
        rank: int = 100,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.alpha = alpha
        self.kernel = kernel
        self.gamma = gamma
        self.degree = degree
        self.coef0 = coef0
        self.length_scale = length_scale
        self.nu = nu
        self.kernel_params = kernel_params
        self.n_landmarks = n_landmarks
        self.tol = tol
        self.max_iter = max_iter
        self.rank = rank
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> KernelRidge:
        """Fit to rows X (N, D), targets y (N,) or (N, targets) and sample weights (N,), at least 0."""
        self._device = X.device if isinstance(X, Tensor) else torch.device("cpu")
        X, y = validate_data(
            self, array(X), array(y), dtype=[np.float64, np.float32], multi_output=True, y_numeric=True
        )
        weights = _check_sample_weight(array(sample_weight), X, dtype=X.dtype, ensure_non_negative=True)
        alpha = np.atleast_1d(np.asarray(self.alpha, dtype=X.dtype))
        targets = y.reshape(len(y), -1)
        if alpha.ndim > 1 or alpha.size not in (1, targets.shape[1]) or not (np.isfinite(alpha) & (alpha >= 0)).all():
            message = (
                f"alpha must be a number >= 0, or one for each of {targets.shape[1]} target(s), got {self.alpha!r}"
            )
            raise ValueError(message)
        used = weights > 0
        rows, columns, w, penalty = (
            self._tensor(a) for a in (X[used], targets[used].astype(X.dtype), weights[used], alpha)
        )
        kernel, given = self._given(rows)
        self._parameters = data_driven(rows, None, kernel, given)
        if self.n_landmarks is None:
            dual = np.zeros(targets.shape, dtype=X.dtype)
            dual[used] = self._exact(rows, columns, w, penalty).cpu().numpy()
            self.X_fit_ = X
        else:
            check_scalar(self.n_landmarks, "n_landmarks", Integral, min_val=1)
            chosen = check_random_state(self.random_state).permutation(len(rows))[: self.n_landmarks]
            dual = self._by_landmarks(rows, columns, w, penalty, chosen).cpu().numpy()
            self.X_fit_ = X[used][chosen]
            self.n_iter_, self.residual_ = 1, 0.0
        self.dual_coef_ = dual.reshape(-1) if y.ndim == 1 else dual
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Return f of the rows X, (M,) or (M, targets)."""
        check_is_fitted(self)
        X = validate_data(self, array(X), dtype=[np.float64, np.float32], reset=False)
        dtype = self.dual_coef_.dtype
        x, y, c = (self._tensor(a.astype(dtype)) for a in (X, self.X_fit_, self.dual_coef_))
        parameters = _as(self._parameters, c.dtype)
        out: NDArray[Any] = kernel_matmul(x, y, c, self._name(), **parameters).cpu().numpy()
        return out

    def _exact(self, x: Tensor, y: Tensor, weights: Tensor, alpha: Tensor) -> Tensor:
        """The coefficients (N, targets) of all rows."""
        together = len(alpha) == 1  # one system for all targets, or one for each of them
        diag = alpha / weights if together else alpha[:, None] / weights
        K = KernelOperator(x, kernel=self._name(), diag=diag, **self._parameters)
        with progress(self.verbose, "Conjugate gradients", -math.log10(self.tol)) as show:
            try:
                solution = solve(
                    K, y if together else y.T[..., None], self.tol, self.max_iter, self.rank,
                    lambda i, residual: show(-math.log10(max(residual, self.tol)), f"{i}: residual {residual:.1e}"),
                )  # fmt: skip
            except ConvergenceError as error:
                warnings.warn(str(error), ConvergenceWarning, stacklevel=3)
                solution = error.solution
        self.n_iter_, self.residual_ = solution.iterations, solution.residual
        return solution.x if together else solution.x.squeeze(-1).T

    def _by_landmarks(self, x: Tensor, y: Tensor, weights: Tensor, alpha: Tensor, chosen: NDArray[Any]) -> Tensor:
        """The coefficients (n_landmarks, targets), from the normal equations in float64."""
        x, y, weights, alpha = (t.double() for t in (x, y, weights, alpha))
        z, kernel = x[torch.as_tensor(chosen, device=x.device)], self._name()
        parameters = _as(self._parameters, x.dtype)
        # In the functions of norm 1 that the landmarks span, those above rounding, the penalty is the identity.
        values, vectors = torch.linalg.eigh(kernel_matrix(z, kernel=kernel, **parameters))
        kept = values > len(z) * torch.finfo(x.dtype).eps * values[-1]
        basis = vectors[:, kept] / values[kept].sqrt()
        gram, right = x.new_zeros(len(z), len(z)), x.new_zeros(len(z), y.shape[1])
        step = max(1, memory_budget() // (2 * x.itemsize * len(z)))
        with progress(self.verbose, "Landmarks", len(x)) as show:
            for i in range(0, len(x), step):
                rows = slice(i, i + step)
                block = kernel_matrix(x[rows], z, kernel, **parameters)
                weighted = block.mT * weights[rows]
                gram.addmm_(weighted, block)
                right.addmm_(weighted, y[rows])
                show(min(i + step, len(x)), "rows")
        values, vectors = torch.linalg.eigh(basis.mT @ gram @ basis)
        shrunk = values.clamp(min=0)[:, None] + alpha
        inverse = torch.where(shrunk > 0, 1 / shrunk, 0)
        coefficients: Tensor = basis @ (vectors @ (inverse * (vectors.mT @ (basis.mT @ right))))
        return coefficients

    def _name(self) -> str:
        return "polynomial" if self.kernel == "poly" else self.kernel  # scikit-learn admits both

    def _given(self, x: Tensor) -> tuple[str, dict[str, Any]]:
        """The kernel and the parameters that it has."""
        kernel = self._name()
        check_kernel(kernel, {})
        own = {name: getattr(self, name, None) for name in PARAMETERS[kernel] if name != "alpha"}
        given = {name: value for name, value in own.items() if value is not None} | (self.kernel_params or {})
        return kernel, {name: _parameter(value, x) for name, value in given.items()}

    def _tensor(self, a: NDArray[Any]) -> Tensor:
        return torch.tensor(np.ascontiguousarray(a), device=self._device)


def _parameter(value: Any, x: Tensor) -> Any:
    """NumPy's numbers as Python's, arrays as tensors."""
    if isinstance(value, np.generic):
        return value.item()
    return torch.as_tensor(value, dtype=x.dtype, device=x.device) if isinstance(value, np.ndarray | list) else value


def _as(parameters: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {name: value.to(dtype) if isinstance(value, Tensor) else value for name, value in parameters.items()}

"""Kernel canonical correlation analysis without the kernel matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import assert_all_finite, check_random_state
from torch import Tensor

from mmkernels import _check
from mmkernels.estimators._two_views import TwoViews
from mmkernels.estimators.cca import whitener
from mmkernels.ops._entries import data_driven
from mmkernels.ops._kernels import PARAMETERS, check_kernel
from mmkernels.ops.kernel import kernel_matrix


class KernelCCA(TwoViews):
    r"""Kernel canonical correlation analysis, exact or with landmarks, streaming over the rows.

    .. math::
        \max_{f, g}\; \mathrm{cov}(f(x), g(y)) \quad\text{with}\quad
        \mathrm{var}(f(x)) + \mathrm{reg}\, \lVert f\rVert^2 = \mathrm{var}(g(y)) + \mathrm{reg}\, \lVert g\rVert^2 = 1

    over functions of the kernels' spaces: linear CCA with a ridge of the features :math:`K_{zz}^{-1/2} k(z, x)`, z the
    landmarks. With all rows as landmarks this is exact; with m of them (Nystrom) a fit costs one sweep of N m kernel
    values for each view and m x m matrices.

    Args:
        n_components: how many, at most the smaller number of landmarks that are not redundant; None gives 2.
        kernel: a name listed at `mmkernels.kernel_matrix`; one for both views, or a pair.
        gamma: "median", "scale", a positive number, or None for the kernel's own default; one, or a pair.
        kernel_params: further parameters of the kernels by name.
        reg: above 0; one number, or a pair.
        n_landmarks: rows, drawn at random from those of the first fit, that carry the functions; all of them if there
            are no more.
        random_state: of the draw.
        verbose: show progress, where rich is installed.

    Attributes:
        correlations_: (K,), the maxima above, largest first; `correlations(X, y)` gives those of the variates alone.
        x_landmarks_, y_landmarks_: (m, D_x), (m, D_y).
        x_weights_, y_weights_: of the features.
        n_samples_seen_: rows so far, or the sum of their weights.

    Input and dtypes: as `CCA`.

    Source: Bach and Jordan 2002; Hardoon, Szedmak and Shawe-Taylor 2004; Williams and Seeger 2001.

    Example:
        >>> import numpy as np
        >>> from mmkernels.estimators import KernelCCA
        >>> X = np.random.default_rng(0).normal(size=(500, 2))
        >>> float(KernelCCA(n_components=1).fit(X, X[:, :1] ** 2).correlations_[0]) > 0.9
        True
    """

    def __init__(
        self,
        n_components: int | None = 2,
        *,
        kernel: str | tuple[str, str] = "rbf",
        gamma: float | str | tuple[Any, Any] | None = "median",
        kernel_params: dict[str, Any] | None = None,
        reg: float | tuple[float, float] = 1e-3,
        n_landmarks: int = 500,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.n_components = n_components
        self.kernel = kernel
        self.gamma = gamma
        self.kernel_params = kernel_params
        self.reg = reg
        self.n_landmarks = n_landmarks
        self.random_state = random_state
        self.verbose = verbose

    def _prepare(self, views: list[NDArray[Any]], weights: NDArray[Any] | None) -> None:
        """Draw landmarks, the same rows of both views, and find the square root of their kernel matrix."""
        m = _check.integer("n_landmarks", self.n_landmarks, 1)
        used = np.arange(len(views[0])) if weights is None else np.flatnonzero(weights)
        chosen = np.sort(check_random_state(self.random_state).permutation(used)[:m])
        # a row that occurs twice says nothing new, and would count twice in the median
        rows = np.concatenate([np.asarray(view[chosen], dtype=np.float64) for view in views], 1)
        chosen = chosen[np.unique(rows, axis=0, return_index=True)[1]]
        self._kernels, self._bases, self._landmarks = [], [], []
        for v, view in enumerate(views):
            assert_all_finite(view[chosen], input_name="Xy"[v])
            z = torch.from_numpy(np.array(view[chosen], dtype=np.float64)).to(self._device)
            kernel, parameters = self._kernel(z, v)
            values, vectors = torch.linalg.eigh(kernel_matrix(z, kernel=kernel, **parameters))
            kept = values > len(z) * torch.finfo(z.dtype).eps * values[-1]
            self._kernels.append((kernel, parameters))
            self._bases.append(vectors[:, kept] / values[kept].sqrt())
            self._landmarks.append(z)
        self._width = sum(len(z) for z in self._landmarks)
        self.x_landmarks_, self.y_landmarks_ = (z.cpu().numpy() for z in self._landmarks)

    def _kernel(self, z: Tensor, v: int) -> tuple[str, dict[str, Any]]:
        """The kernel of a view and its parameters, those that depend on data from the landmarks."""
        kernel = self.kernel if isinstance(self.kernel, str) else self.kernel[v]
        gamma = self.gamma[v] if isinstance(self.gamma, tuple | list) else self.gamma
        check_kernel(kernel, {})
        given = dict(self.kernel_params or {})
        if gamma is not None and "gamma" in PARAMETERS[kernel] and "length_scale" not in given:
            given["gamma"] = gamma
        if isinstance(given.get("gamma"), str) and bool((z == z[0]).all()):
            raise ValueError(f"{'Xy'[v]} must not be constant for gamma = {given['gamma']!r}: give a number")
        return kernel, data_driven(z, None, kernel, given)

    def _map(self, x: Tensor, view: int) -> Tensor:
        kernel, parameters = self._kernels[view]
        features: Tensor = kernel_matrix(x.double(), self._landmarks[view], kernel, **parameters) @ self._bases[view]
        return features

    def _whitener(self, S: Tensor, n: float, view: int) -> Tensor:
        reg = self.reg[view] if isinstance(self.reg, tuple | list) else self.reg
        ridge = _check.number("reg", reg, 0)
        return whitener(S + ridge * torch.eye(len(S), dtype=S.dtype, device=S.device), "Xy"[view], self._eps)

"""gpytorch's kernels, with products that stream: `from mmkernels.integrations.gpytorch import RBFKernel`.

Parameters, priors, constraints, ARD and batch shapes are gpytorch's own; only `forward` differs. An exact Gaussian
process trains in O(N) memory where gpytorch solves by conjugate gradients, which is from
`gpytorch.settings.max_cholesky_size` rows on (800; `with gpytorch.settings.max_cholesky_size(0)` for always). Below,
it stores the matrix as it does with its own kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmkernels.ops.kernel import kernel_matmul, kernel_matrix

try:
    import gpytorch.kernels
    from linear_operator.operators import DenseLinearOperator, KernelLinearOperator, LinearOperator
except ImportError as error:
    raise ImportError("this needs gpytorch: pip install 'mmkernels[integrations]'") from error

__all__ = ["MaternKernel", "PolynomialKernel", "RBFKernel", "RQKernel"]


class StreamedLinearOperator(KernelLinearOperator):  # type: ignore[misc]
    """A kernel matrix whose products with tensors never store it.

    Args:
        x1: (*batch, N, D).
        x2: (*batch, M, D).
        covar_func: `kernel_matrix`, for the entries that are asked for one by one.
        **params: the kernel's name and its parameters, as `kernel_matrix` takes them.
    """

    def _matmul(self, rhs: Tensor) -> Tensor:
        x, y = self._rows()
        return kernel_matmul(x, y, rhs, **self.tensor_params, **self.nontensor_params).to(rhs.dtype)

    def to_dense(self) -> Tensor:
        """The matrix, stored."""
        x, y = self._rows()
        return kernel_matrix(x, y, **self.tensor_params, **self.nontensor_params).to(x.dtype)

    def _mul_matrix(self, other: LinearOperator) -> LinearOperator:
        """The entrywise product, stored: linear_operator would approximate it by matrices of low rank."""
        return DenseLinearOperator(self.to_dense() * other.to_dense())

    def _rows(self) -> tuple[Tensor, Tensor | None]:
        """Both sides; None for the second where it is the first, which linear_operator passes as two tensors."""
        x1, x2 = self.x1, self.x2
        if torch.is_grad_enabled() and (x1.requires_grad or x2.requires_grad):
            return x1, x2  # the same numbers, but the one's gradient need not be the other's: kernel(x, x.detach())
        same = x1.data_ptr() == x2.data_ptr() and x1.shape == x2.shape and x1.stride() == x2.stride()
        return x1, None if same else x2


def _lazy(x1: Tensor, x2: Tensor, diag: bool, **kernel: Any) -> Any:
    operator = StreamedLinearOperator(x1, x2, covar_func=kernel_matrix, **kernel)
    return operator.diagonal(dim1=-1, dim2=-2) if diag else operator


class RBFKernel(gpytorch.kernels.RBFKernel):  # type: ignore[misc]
    """`gpytorch.kernels.RBFKernel`: exp(-|x - y|^2 / (2 lengthscale^2))."""

    def forward(
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False, **params: Any
    ) -> Any:
        """Return a linear operator, or its diagonal."""
        if last_dim_is_batch:
            return super().forward(x1, x2, diag=diag, last_dim_is_batch=True, **params)
        return _lazy(x1, x2, diag, kernel="rbf", length_scale=self.lengthscale)


class MaternKernel(gpytorch.kernels.MaternKernel):  # type: ignore[misc]
    """`gpytorch.kernels.MaternKernel`, nu = 0.5, 1.5 or 2.5."""

    def forward(
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False, **params: Any
    ) -> Any:
        """Return a linear operator, or its diagonal."""
        if last_dim_is_batch:
            return super().forward(x1, x2, diag=diag, last_dim_is_batch=True, **params)
        return _lazy(x1, x2, diag, kernel="matern", length_scale=self.lengthscale, nu=self.nu)


class RQKernel(gpytorch.kernels.RQKernel):  # type: ignore[misc]
    """`gpytorch.kernels.RQKernel`: (1 + |x - y|^2 / (2 alpha lengthscale^2))^-alpha."""

    def forward(
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False, **params: Any
    ) -> Any:
        """Return a linear operator, or its diagonal."""
        if last_dim_is_batch:
            return super().forward(x1, x2, diag=diag, last_dim_is_batch=True, **params)
        alpha = self.alpha.unsqueeze(-1)
        return _lazy(x1, x2, diag, kernel="rational_quadratic", length_scale=self.lengthscale, alpha=alpha)


class PolynomialKernel(gpytorch.kernels.PolynomialKernel):  # type: ignore[misc]
    """`gpytorch.kernels.PolynomialKernel`: (<x, y> + offset)^power, streamed for powers 1, 2, 3, ..."""

    def forward(
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False, **params: Any
    ) -> Any:
        """Return a linear operator, or its diagonal."""
        if last_dim_is_batch or self.power < 1 or self.power != int(self.power):
            return super().forward(x1, x2, diag=diag, last_dim_is_batch=last_dim_is_batch, **params)
        offset = self.offset.view(*self.batch_shape, 1, 1)
        return _lazy(x1, x2, diag, kernel="polynomial", gamma=1.0, coef0=offset, degree=int(self.power))

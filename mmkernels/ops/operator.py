"""A kernel matrix as an object: products, reductions, entries and linear systems, without storing it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmkernels import _check
from mmkernels._dispatch import compute_dtype, slices
from mmkernels._dispatch import memory_budget as memory_budget  # for estimators, which see ops alone
from mmkernels.autograd.by_rows import by_rows
from mmkernels.ops._entries import data_driven, entries
from mmkernels.ops._kernels import Parameter, check_kernel, check_pairs, together
from mmkernels.ops._solve import Solution, solve
from mmkernels.ops.kernel import diagonal_entries, kernel_matmul, kernel_matrix

_ALIVE = 4  # blocks of K at once while its rows are reduced


class KernelOperator:
    r"""The kernel matrix K of x and y, never stored: what `kernel_matrix` returns, as an operator.

    `K @ v` multiplies, `K.solve(b)` solves, `K[i, j]` computes entries, `K.T` transposes, `K.dense()` is the matrix.
    All of it is differentiable in x, y, diag and the kernel's parameters, which are read at each use: an operator made
    of Parameters serves a whole training run. (What "median" and "scale" stand for is worked out once.)

    Args:
        x: (..., N, D) in float16, bfloat16, float32 or float64.
        y: (..., M, D), x's dtype and device; None for x itself. Leading dimensions broadcast.
        kernel: a name listed at `kernel_matrix`.
        diag: added to the diagonal of a square K: a number, or a floating tensor, 0-dimensional or (..., N).
        **parameters: the kernel's, as for `kernel_matrix`.

    Attributes:
        shape: (..., N, M), with the batch dimensions of all arguments.
        dtype: float32, or float64 for float64 inputs.
        device: that of x.

    Raises:
        TypeError: an argument of the wrong type or dtype, or a parameter that the kernel does not have.
        ValueError: ranks, sizes, devices that do not fit, an unknown kernel, a number out of range, a diag where K is
            not square.

    Example:
        >>> import torch, mmkernels
        >>> K = mmkernels.KernelOperator(torch.randn(2000, 8), kernel="matern", diag=0.1)
        >>> weights = K.solve(torch.randn(2000)).x
        >>> K
        KernelOperator('matern', shape=(2000, 2000), dtype=torch.float32, device='cpu')
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor | None = None,
        kernel: str = "rbf",
        *,
        diag: Parameter | None = None,
        **parameters: Any,
    ) -> None:
        x, y = check_pairs(x, y)
        check_kernel(kernel, parameters)
        self.x, self.y, self.kernel, self.added = x, y, kernel, diag
        self.parameters = data_driven(x, y, kernel, parameters)
        N, M = x.shape[-2], self._other.shape[-2]
        with torch.no_grad():  # no row at all is enough to check the parameters
            batch = self._block(x[..., :0, :], self._other[..., :0, :]).shape[:-2]
        if diag is not None:
            if N != M:
                raise ValueError(f"diag needs a square kernel matrix, got {N} x {M}")
            diagonal = diagonal_entries(diag, N, x)
            batch = together(batch, diagonal.shape[:-2] if isinstance(diagonal, Tensor) else ())
        self.shape = torch.Size((*batch, N, M))
        self.dtype, self.device = compute_dtype(x.dtype), x.device

    def __repr__(self) -> str:
        shape = tuple(self.shape)
        return f"KernelOperator({self.kernel!r}, shape={shape}, dtype={self.dtype}, device={str(self.device)!r})"

    def __matmul__(self, v: Tensor) -> Tensor:
        """K v, (..., N, E) for v (..., M, E), (..., N) for v (M,): `kernel_matmul`."""
        return kernel_matmul(self.x, self.y, v, self.kernel, diag=self.added, **self.parameters)

    def __getitem__(self, index: Any) -> Tensor:
        """The entries `K.dense()[index]`: a block, or where both indices are tensors single entries, each on its own.

        An index is an int, a slice, or a list or tensor of integers or booleans. With batch dimensions: K[..., i, j].
        """
        rows, columns = self._rows_and_columns(index)
        i, j = self._range(-2)[rows], self._range(-1)[columns]
        if not isinstance(rows, int | slice) and not isinstance(columns, int | slice):
            i, j = torch.broadcast_tensors(i, j)  # type: ignore[no-untyped-call]
            i, j, shape = i.reshape(-1), j.reshape(-1), i.shape
            values = entries(self.x[..., i, :], self._other[..., j, :], self.kernel, self.parameters)
            return self._with_diag(values, self.added, i, j).reshape((*self.shape[:-2], *shape))
        x, y = (
            t[..., k if isinstance(k, slice) else n.reshape(-1), :]
            for t, k, n in ((self.x, rows, i), (self._other, columns, j))
        )
        out = self._with_diag(self._block(x, y), self.added, i.reshape(-1, 1), j.reshape(-1))
        return out.reshape((*self.shape[:-2], *i.shape, *j.shape))

    @property
    def T(self) -> KernelOperator:  # noqa: N802 - torch's name
        """The transpose of the last two dimensions."""
        if self.y is None:
            return self
        return KernelOperator(self.y, self.x, self.kernel, diag=self.added, **self.parameters)

    def dense(self) -> Tensor:
        """The matrix, (..., N, M)."""
        K = kernel_matrix(self.x, self.y, self.kernel, **self.parameters).expand(self.shape)
        return K if self.added is None else torch.diagonal_scatter(K, self.diag(), dim1=-2, dim2=-1)

    def diag(self) -> Tensor:
        """The diagonal of a square K, (..., N), in O(N D)."""
        if self.shape[-1] != self.shape[-2]:
            raise ValueError(f"diag needs a square kernel matrix, got {self.shape[-2]} x {self.shape[-1]}")
        i = self._range(-2)
        return self._with_diag(entries(self.x, self._other, self.kernel, self.parameters), self.added, i, i).expand(
            self.shape[:-1]
        )

    def sum(self, dim: int) -> Tensor:
        """`K.dense().sum(dim)`, dim -1 or -2, in O(N + M) memory."""
        if self._is_rows(dim):
            return self.T.sum(-1)
        return (self @ self.x.new_ones(self.shape[-1], 1)).squeeze(-1).expand(self.shape[:-1])

    def logsumexp(self, dim: int) -> Tensor:
        """`K.dense().logsumexp(dim)`, dim -1 or -2, from some rows of K at a time."""
        if self._is_rows(dim):
            return self.T.logsumexp(-1)
        fields = {"y": self._other, "diag": self.added, **self.parameters}
        shared = {name: value for name, value in fields.items() if isinstance(value, Tensor)}

        def part(i: slice, rows: Tensor, **tensors: Tensor) -> Tensor:
            given = fields | tensors
            y, diag = given.pop("y"), given.pop("diag")
            block = kernel_matrix(rows, y, self.kernel, **given)
            return self._with_diag(block, diag, self._range(-2)[i, None], self._range(-1)).logsumexp(-1)

        return by_rows(part, self._tiles(), self.x.expand(*self.shape[:-1], -1), shared)

    def topk(self, k: int) -> tuple[Tensor, Tensor]:
        """The k largest entries of each row in decreasing order, and their columns, from some rows of K at a time.

        Both are (..., N, k); the values are differentiable. Which of equal entries (to rounding) come first is not
        specified, as in `torch.topk`.
        """
        _check.integer("k", k, 0, self.shape[-1])
        indices = torch.empty(*self.shape[:-1], k, dtype=torch.int64, device=self.device)
        with torch.no_grad():
            for i in self._tiles():
                indices[..., i, :] = self[..., i, :].topk(k).indices
        n, j = self._range(-2).repeat_interleave(k), indices.flatten(-2)
        y = self._other.expand(*self.shape[:-2], *self._other.shape[-2:])
        values = entries(self.x[..., n, :], torch.take_along_dim(y, j[..., None], -2), self.kernel, self.parameters)
        return self._with_diag(values, self.added, n, j).reshape(indices.shape), indices

    def solve(self, b: Tensor, *, tol: float = 1e-6, max_iter: int = 1000, rank: int = 100) -> Solution:
        r"""Solve K x = b, diag included, for all columns of b at once, in O(N rank) memory.

        Conjugate gradients, preconditioned with a pivoted Cholesky factor of K. K must be symmetric (y None) and, with
        its diag, positive definite. Differentiable, twice too, in b, x, diag and all parameters: a gradient takes one
        more solve.

        Args:
            b: (N,) or (..., N, E), in x's dtype or K's.
            tol: the relative residual |b - K x| / |b| that every column is to have. It is computed from x itself:
                in float64 also for float32 rows, before x is rounded.
            max_iter: products with K before it gives up; each is a sweep over all pairs.
            rank: of the preconditioner, which takes N rank^2 operations once; 0 is none. More rank, fewer iterations.

        Returns:
            A named tuple: x, of b's shape, leading dimensions broadcast with K's, in K's dtype; the residual
            |b - K x| / |b| of the worst column, and the number of iterations.

        Raises:
            ConvergenceError: tol is not reached. The message says why, the attribute `solution` has what is.
            TypeError: an argument of the wrong type or dtype.
            ValueError: K is not symmetric, or b does not fit.

        Sources: Gardner et al. 2018 (GPyTorch, arXiv 1809.11165); Harbrecht, Peters and Schneider 2012 (pivoted
        Cholesky).
        """
        return solve(self, b, tol, max_iter, rank)

    @property
    def _other(self) -> Tensor:
        return self.x if self.y is None else self.y

    def _range(self, dim: int) -> Tensor:
        """The numbers of the rows (-2) or columns (-1)."""
        return torch.arange((self.x if dim == -2 else self._other).shape[-2], device=self.x.device)

    def _is_rows(self, dim: int) -> bool:
        """Whether a reduction over dim is one over the rows; raise if it is one over a batch dimension."""
        axis = dim - len(self.shape) if dim >= 0 else dim
        if axis not in (-1, -2):
            raise ValueError(f"dim must be that of the rows or the columns, -2 or -1, got {dim}")
        return axis == -2

    def _rows_and_columns(self, index: Any) -> tuple[Any, Any]:
        """The indices of rows and columns."""
        parts = index if isinstance(index, tuple) else (index,)
        if parts and parts[0] is ...:
            parts = (slice(None),) * (3 - len(parts)) + parts[1:]
        elif len(self.shape) > 2:
            raise IndexError("of a kernel matrix with batch dimensions, index rows and columns: K[..., i, j]")
        elif len(parts) == 2 and parts[1] is ...:
            parts = parts[:1]
        parts = parts + (slice(None),) * (2 - len(parts))
        if len(parts) != 2 or any(isinstance(p, bool) or not isinstance(p, int | slice | list | Tensor) for p in parts):
            raise IndexError("a kernel matrix takes K[i], K[i, j] or K[..., i, j] with ints, slices, lists or tensors")
        return parts[0], parts[1]

    def _block(self, x: Tensor, y: Tensor) -> Tensor:
        """The block of K, without diag, of some of its rows and columns."""
        return kernel_matrix(x, y, self.kernel, **self.parameters)

    def _with_diag(self, values: Tensor, diag: Parameter | None, i: Tensor, j: Tensor) -> Tensor:
        """The entries (i, j) of K with diag on the diagonal."""
        if diag is None:
            return values
        diag = torch.as_tensor(diag, dtype=self.dtype, device=self.device).expand(self.shape[:-1])
        return values + torch.where(i == j, diag[..., i], 0)

    def _tiles(self) -> list[slice]:
        """Rows of K that can be reduced at once within the memory budget."""
        row_bytes = _ALIVE * self.dtype.itemsize * max(1, self.shape[:-2].numel() * self.shape[-1])
        return list(slices(self.shape[-2], max(1, memory_budget() // row_bytes))) or [slice(0, 0)]

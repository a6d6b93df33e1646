"""KernelOperator: every method but solve is what the dense matrix gives, with gradients."""

import pytest
import torch

import mmkernels
from mmkernels import _memory
from mmkernels.ops.operator import KernelOperator
from tests.conftest import INTERPRETED

# What an operator is made of runs in the interpreter in test_matmul.py and test_gram.py.
pytestmark = pytest.mark.skipif(INTERPRETED, reason="made of products and matrices, thousands of launches")
DTYPE = torch.float64
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
KERNELS = [
    ("linear", {}),
    ("cosine", {}),
    ("polynomial", {"degree": 2, "coef0": 0.5}),
    ("exponential", {"gamma": 0.3}),
    ("sigmoid", {"gamma": 0.1}),
    ("rbf", {}),
    ("rbf", {"gamma": (0.1, 1.0)}),
    ("rbf", {"gamma": "scale"}),
    ("laplacian", {"gamma": "median"}),
    ("matern", {"nu": 0.5, "length_scale": "median"}),
    ("matern", {"nu": 2.5}),
    ("rational_quadratic", {"alpha": 0.7}),
    ("energy", {}),
]


def ids(cases):
    return [f"{kernel}-{'-'.join(map(str, parameters.values()))}" for kernel, parameters in cases]


def rows(device, *shape, dtype=DTYPE):
    return torch.randn(*shape, device=device, dtype=dtype)


@pytest.fixture
def small_budget():
    """Reductions take a few rows at a time."""
    before = mmkernels.memory_budget()
    mmkernels.set_memory_budget(65536)
    yield
    mmkernels.set_memory_budget(before)


@pytest.mark.parametrize(("kernel", "parameters"), KERNELS, ids=ids(KERNELS))
@pytest.mark.parametrize("symmetric", [True, False])
def test_methods_are_those_of_the_dense_matrix(kernel, parameters, symmetric, device, small_budget):
    x, y = rows(device, 130, 3), None if symmetric else rows(device, 120, 3)
    K = KernelOperator(x, y, kernel, **parameters)
    dense = mmkernels.kernel_matrix(x, y, kernel, **parameters)
    v = rows(device, dense.shape[1], 2)
    assert (K.shape, K.dtype, K.device) == (dense.shape, dense.dtype, dense.device)
    torch.testing.assert_close(K.dense(), dense, **CLOSE)
    torch.testing.assert_close(K @ v, dense @ v, **CLOSE)
    torch.testing.assert_close(K.T.dense(), dense.mT, **CLOSE)
    for dim in (-1, -2, 0, 1):
        torch.testing.assert_close(K.sum(dim), dense.sum(dim), **CLOSE)
        torch.testing.assert_close(K.logsumexp(dim), dense.logsumexp(dim), **CLOSE)
    values, indices = K.topk(4)
    torch.testing.assert_close(values, dense.topk(4).values, **CLOSE)
    torch.testing.assert_close(dense.gather(1, indices), values, **CLOSE)
    if symmetric:
        torch.testing.assert_close(K.diag(), dense.diagonal(), **CLOSE)


@pytest.mark.parametrize("diag", [0.5, "scalar", "vector"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_diag(diag, symmetric, device, small_budget):
    x, y = rows(device, 110, 3), None if symmetric else rows(device, 110, 3)
    added = {"scalar": torch.tensor(0.5, device=device), "vector": torch.rand(110, device=device, dtype=DTYPE)}
    added = added.get(diag, diag)
    K = KernelOperator(x, y, "laplacian", diag=added)
    dense = mmkernels.kernel_matrix(x, y, "laplacian")
    dense = dense + torch.diag_embed(torch.as_tensor(added, dtype=DTYPE, device=device).expand(110))
    v = rows(device, 110)
    for got, expected in (
        (K.dense(), dense),
        (K @ v, dense @ v),
        (K.T.dense(), dense.T),
        (K.diag(), dense.diagonal()),
        (K.sum(-1), dense.sum(-1)),
        (K.logsumexp(-2), dense.logsumexp(-2)),
        (K.topk(1)[0], dense.topk(1).values),
        (K[3:7], dense[3:7]),
        (K[[3, 4], [4, 4]], dense[[3, 4], [4, 4]]),
    ):
        torch.testing.assert_close(got, expected, **CLOSE)


A, B = torch.tensor([4, 0, 4]), torch.tensor([[1], [5]])
MASK = torch.arange(9) % 3 == 0
INDICES = [
    3, -1, slice(2, 5), A, [1, 2], MASK, ..., (slice(None), 2), (..., 2), (3, 4), (0, A), (A, 0), (A, slice(1, 4)),
    (slice(None), B), (slice(0, 8, 3), slice(4, 4)), (A, A), (A, B), (B, A), ([0, 1], [5, -1]), (MASK, A),
    (MASK, slice(None)), (B, slice(3)), (torch.tensor(2), A), (..., A, A), (..., B, slice(2)), (2, ...), (..., 2, MASK),
]  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
def test_indexing_is_that_of_the_dense_matrix(index, symmetric, device):
    x, y = rows(device, 9, 3), None if symmetric else rows(device, 9, 3)
    K = KernelOperator(x, y, "matern", diag=0.5, length_scale=torch.rand(3, dtype=DTYPE, device=device))
    torch.testing.assert_close(K[index], K.dense()[index], **CLOSE)


@pytest.mark.parametrize(
    "index", [None, True, (0, None), (0, 1, 2), 1.5, (..., 0, 1, 2), (0, ..., 1), (slice(0), (0,))]
)
def test_other_indices_are_refused(index, device):
    with pytest.raises(IndexError, match=r"takes K\[i\], K\[i, j\]"):
        KernelOperator(rows(device, 4, 2))[index]


def test_index_out_of_range(device):
    with pytest.raises(IndexError, match=r"out of (bounds|range)"):
        KernelOperator(rows(device, 4, 2))[0, 4]
    with pytest.raises(IndexError, match="index rows and columns"):
        KernelOperator(rows(device, 2, 4, 2))[0]


def batched(device):
    """Batch dimensions from x, y, a parameter and diag."""
    x, y = rows(device, 2, 1, 8, 3), rows(device, 3, 8, 3)
    gamma = torch.rand(2, 1, 1, 1, device=device, dtype=DTYPE) + 0.5
    return KernelOperator(x, y, "rbf", gamma=gamma, diag=torch.rand(4, 1, 1, 8, device=device, dtype=DTYPE))


@pytest.mark.parametrize(
    "index", [(..., A, A), (..., 0, A), (..., slice(2, 5), slice(3)), (..., 3, 4), (..., B, slice(1))], ids=str
)
def test_batches_are_indexed(index, device):
    K = batched(device)
    torch.testing.assert_close(K[index], K.dense()[index], **CLOSE)


def test_batches(device, small_budget):
    K = batched(device)
    dense, v = K.dense(), rows(device, 8, 2)
    assert K.shape == dense.shape == (4, 2, 3, 8, 8)
    torch.testing.assert_close(K @ v, dense @ v, **CLOSE)
    torch.testing.assert_close(K.sum(-1), dense.sum(-1), **CLOSE)
    torch.testing.assert_close(K.diag(), dense.diagonal(dim1=-2, dim2=-1), **CLOSE)
    torch.testing.assert_close(K.logsumexp(-2), dense.logsumexp(-2), **CLOSE)
    torch.testing.assert_close(K.topk(3)[0], dense.topk(3).values, **CLOSE)
    with pytest.raises(ValueError, match="dim must be that of the rows or the columns"):
        K.sum(0)


def gradients(out, tensors):
    """The gradients of the sum of sin(out) with a weight per entry, and of the sum of their sines."""
    weight = torch.linspace(1, 2, out.numel(), dtype=out.dtype, device=out.device).reshape(out.shape)
    first = torch.autograd.grad((out.sin() * weight).sum(), tensors, create_graph=True)
    second = torch.autograd.grad(sum(g.sin().sum() for g in first), tensors)
    return *first, *second


@pytest.mark.parametrize(
    ("of_operator", "of_dense"),
    [
        (lambda K: K.logsumexp(-1), lambda K: K.logsumexp(-1)),
        (lambda K: K.logsumexp(-2), lambda K: K.logsumexp(-2)),
        (lambda K: K.topk(3)[0], lambda K: K.topk(3)[0]),
        (lambda K: K.sum(-2), lambda K: K.sum(-2)),
        (lambda K: K.diag(), lambda K: K.diagonal()),
        (lambda K: K[:, 3], lambda K: K[:, 3]),
        (lambda K: K[A, A.flip(0)], lambda K: K[A, A.flip(0)]),
    ],
    ids=["rows", "columns", "topk", "sum", "diag", "column", "pairs"],
)
def test_gradients_are_those_of_the_dense_matrix(of_operator, of_dense, device, small_budget):
    x, y = rows(device, 90, 3).requires_grad_(), rows(device, 90, 3).requires_grad_()
    scale = torch.tensor([0.5, 1.0, 2.0], device=device, dtype=DTYPE, requires_grad=True)
    diag = torch.rand(90, device=device, dtype=DTYPE).requires_grad_()
    K = KernelOperator(x, y, "matern", length_scale=scale, diag=diag, nu=2.5)
    dense = mmkernels.kernel_matrix(x, y, "matern", length_scale=scale, nu=2.5) + torch.diag_embed(diag)
    tensors = (x, y, scale, diag)
    for got, expected in zip(gradients(of_operator(K), tensors), gradients(of_dense(dense), tensors), strict=True):
        torch.testing.assert_close(got, expected, **CLOSE)


def test_reductions_take_little_memory():
    """Values and gradients of 8,000 rows, 256 MB as a matrix of float32, in an eighth of that."""
    x = torch.randn(8000, 4, requires_grad=True)

    def call(n=8000):
        K = KernelOperator(x[:n])
        (K.logsumexp(-1).sum() + K.topk(3)[0].sum()).backward()

    call(100)  # what the first call imports is not counted
    mmkernels.set_memory_budget(2**23)
    try:
        assert _memory.peak_bytes(call, torch.device("cpu")) < 2**25
    finally:
        mmkernels.set_memory_budget(2**26)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: KernelOperator(x, x[:3], diag=1.0), ValueError, "square kernel matrix, got 6 x 3"),
        (lambda x: KernelOperator(x, x[:3]).diag(), ValueError, "square kernel matrix, got 6 x 3"),
        (lambda x: KernelOperator(x, diag=x[:3, 0]), ValueError, "diag must be 0-dimensional or"),
        (lambda x: KernelOperator(x, kernel="gauss"), ValueError, "kernel must be one of 'linear'"),
        (lambda x: KernelOperator(x, nu=1.5), TypeError, "no parameter 'nu'; it has gamma, length_scale"),
        (lambda x: KernelOperator(x, gamma=-1), ValueError, "gamma must be finite"),
        (lambda x: KernelOperator(x, length_scale="mean"), ValueError, "length_scale must be one of 'median'"),
        (lambda x: KernelOperator(x) @ x.double(), TypeError, "v must have x's dtype"),
        (lambda x: KernelOperator(x).topk(7), ValueError, r"k must be in \[0, 6\], got 7"),
        (lambda x: KernelOperator(x).sum(2), ValueError, "dim must be that of the rows or the columns"),
        (lambda x: KernelOperator(x, x.clone()).solve(x), ValueError, "make the operator with y=None"),
        (lambda x: KernelOperator(x).solve(x[:3]), ValueError, "b must have as many rows as K, 6, got"),
        (lambda x: KernelOperator(x).solve([1.0]), TypeError, "b must be a torch.Tensor, got list"),
        (lambda x: KernelOperator(x).solve(x.double()), TypeError, "b must have x's dtype or K's"),
        (lambda x: KernelOperator(x).solve(x, tol=0), ValueError, "tol must be finite and in"),
        (lambda x: KernelOperator(x).solve(x, max_iter=0), ValueError, "max_iter must be at least 1"),
        (lambda x: KernelOperator(x).solve(x, rank=-1), ValueError, "rank must be at least 0"),
        (lambda x: KernelOperator(x[None]).solve(x[:, 0]), ValueError, r"b must be \(..., N, E\) where K has batch"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.randn(6, 4))

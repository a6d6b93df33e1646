"""Batches that only a GPU reaches: several waves of rows, and rows enough for gradients whose weights are not stored.

The truth is the same op in float64, which tiles compute: small batches prove those against the dense formula.
"""

import pytest
import torch
import torch.nn.functional as F

import mmkernels
from tests.accuracy import WORKING_DTYPES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="kernels have large batches on a GPU alone")

LIMITS = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 5e-3}  # of gradients, relative, by norm


@pytest.fixture
def size():
    """Rows for two programs of 128 on every multiprocessor, and a few."""
    return 256 * torch.cuda.get_device_properties().multi_processor_count + 37


def compare(function, dtype, *shapes):
    """Values and gradients of the function of normalised matrices, in dtype and in float64."""
    tensors = [F.normalize(torch.randn(s, device="cuda"), dim=1).to(dtype) for s in shapes]
    results = []
    for kind in (dtype, torch.float64):
        leaves = [t.to(kind).requires_grad_() for t in tensors]
        values = function(*leaves)
        cotangents = [torch.linspace(1, 2, v.numel(), device="cuda", dtype=v.dtype).view_as(v) for v in values]
        results.append((values, torch.autograd.grad(values, leaves, cotangents)))
    (values, gradients), (true_values, true_gradients) = results
    for got, true in zip(values, true_values, strict=True):
        assert (got - true).norm() <= 1e-5 * true.norm()
    for got, true in zip(gradients, true_gradients, strict=True):
        assert (got - true).norm() <= LIMITS[dtype] * true.norm()


@pytest.mark.parametrize("dtype", WORKING_DTYPES)
@pytest.mark.parametrize("D", [20, 64, 100, 128, 256, 300])
def test_info_nce(D, dtype, size):
    # The loss is scaled as training in fp16 scales it: its gradients would be subnormal numbers.
    compare(lambda x, y: [4096 * mmkernels.info_nce(x, y, scale=20.0)], dtype, (size, D), (size, D))


@pytest.mark.parametrize("dtype", WORKING_DTYPES)
@pytest.mark.parametrize("D", [64, 300])
def test_every_option_of_scores(D, dtype, size):
    N, M = size, size + 1000
    ids = torch.randint(0, N, (N,), device="cuda"), torch.randint(0, N, (N + 100,), device="cuda")
    options = {"log_weights": torch.randn(M, device="cuda"), "ids": ids, "offset": 7}
    compare(lambda x, y: mmkernels.logsumexp_scores(x, y, 20.0, **options), dtype, (N, D), (M, D))


@pytest.mark.parametrize("dtype", WORKING_DTYPES)
@pytest.mark.parametrize("D", [20, 64, 128, 300])
@pytest.mark.parametrize("kernel", ["rbf", "matern", "sigmoid"])
def test_kernel_products(kernel, D, dtype, size):
    def products(x, y, v):
        return [mmkernels.kernel_matmul(x, y, v, kernel), mmkernels.kernel_matmul(x, None, x, kernel)]

    tensors = [F.normalize(torch.randn(n, d, device="cuda"), dim=1).to(dtype) for n, d in ((size, D), (size - 9, D))]
    tensors.append(torch.rand(size - 9, 3, device="cuda").to(dtype))
    results = []
    for kind in (dtype, torch.float64):
        leaves = [t.to(kind).requires_grad_() for t in tensors]
        values = products(*leaves)  # below, a loss whose gradients are normal numbers in float16
        results.append((*values, *torch.autograd.grad(4096 * sum(v.mean() for v in values), leaves)))
    for got, true in zip(*results, strict=True):
        assert (got - true).norm() <= LIMITS[dtype] * true.norm()

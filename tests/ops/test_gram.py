"""Stored kernel matrices: values and gradients against the textbook formulas in float64, and against scikit-learn."""

import numpy as np
import pytest
import torch

import mmkernels
from tests.accuracy import DTYPES
from tests.conftest import INTERPRETED
from tests.ops.kernels import KERNELS, SHAPES, compare, data, parameters


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_two_samples(name, dtype, device):
    for N, M, D in SHAPES if name == "matern 3/2" else SHAPES[2:3]:
        compare(name, *(data(n, D, dtype=dtype, device=device) for n in (N, M)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_one_sample(name, dtype, device):
    compare(name, data(71, 20, dtype=dtype, device=device))


@pytest.mark.parametrize("name", ["mixture", "sigmoid", "laplacian", "rational quadratic"])
def test_batches(name, device):
    x, y = data(3, 1, 20, 6, dtype=torch.float32, device=device), data(2, 30, 6, dtype=torch.float32, device=device)
    compare(name, x, y)
    if name != "mixture":
        half = torch.tensor([[[0.5]], [[1.0]]], device=device)
        compare(name, x, y, None, {k: t * half for k, t in parameters(name, torch.float32, device).items()})


def test_many_small_matrices(device):
    x, y = data(300, 5, 3, dtype=torch.float32, device=device), data(300, 4, 3, dtype=torch.float32, device=device)
    K = mmkernels.kernel_matrix(x, y, gamma=0.2)
    torch.testing.assert_close(K, torch.exp(-0.2 * torch.cdist(x, y).square()), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(INTERPRETED, reason="double precision goes by tiles")
def test_equal_to_scikit_learn(device):
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    gaussian = pytest.importorskip("sklearn.gaussian_process.kernels")
    x, y = np.random.default_rng(0).normal(size=(2, 30, 5))
    tensors = [torch.from_numpy(t).to(device) for t in (x, y)]
    same = [
        (mmkernels.linear_kernel(*tensors), pairwise.linear_kernel(x, y)),
        (mmkernels.cosine_kernel(*tensors), pairwise.cosine_similarity(x, y)),
        (mmkernels.polynomial_kernel(*tensors), pairwise.polynomial_kernel(x, y)),
        (mmkernels.polynomial_kernel(*tensors, 2, 0.7, 0.1), pairwise.polynomial_kernel(x, y, 2, 0.7, 0.1)),
        (mmkernels.sigmoid_kernel(*tensors), pairwise.sigmoid_kernel(x, y)),
        (mmkernels.sigmoid_kernel(*tensors, 0.3, -1.0), pairwise.sigmoid_kernel(x, y, 0.3, -1.0)),
        (mmkernels.rbf_kernel(*tensors), pairwise.rbf_kernel(x, y)),
        (mmkernels.rbf_kernel(*tensors, 0.3), pairwise.rbf_kernel(x, y, 0.3)),
        (mmkernels.laplacian_kernel(*tensors), pairwise.laplacian_kernel(x, y)),
        (mmkernels.rbf_kernel(*tensors, length_scale=1.7), gaussian.RBF(1.7)(x, y)),
        (mmkernels.rational_quadratic_kernel(*tensors), gaussian.RationalQuadratic()(x, y)),
        (mmkernels.rational_quadratic_kernel(*tensors, 0.6, 2.5), gaussian.RationalQuadratic(0.6, 2.5)(x, y)),
    ]
    ard = [0.5, 1.0, 2.0, 3.0, 0.7]
    length_scale = torch.tensor(ard, dtype=torch.float64, device=device)
    for nu in (0.5, 1.5, 2.5):
        same.append((mmkernels.matern_kernel(*tensors, nu=nu), gaussian.Matern(nu=nu)(x, y)))
        same.append((mmkernels.matern_kernel(*tensors, length_scale, nu), gaussian.Matern(ard, nu=nu)(x, y)))
    for ours, theirs in same:
        np.testing.assert_allclose(ours.cpu().numpy(), theirs, rtol=1e-12, atol=1e-14)
    named = mmkernels.exponential_kernel(*tensors, 0.3), mmkernels.energy_kernel(*tensors)
    dots, distances = x @ y.T, np.linalg.norm(x[:, None] - y, axis=-1)
    for ours, theirs in zip(named, (np.exp(0.3 * dots), -distances), strict=True):
        np.testing.assert_allclose(ours.cpu().numpy(), theirs, rtol=1e-12, atol=1e-14)


def test_bandwidths_from_the_data(device):
    x, y = data(40, 5, dtype=torch.float64, device=device), data(30, 5, dtype=torch.float64, device=device)
    scale = 1 / (5 * x.var(correction=0))
    torch.testing.assert_close(mmkernels.rbf_kernel(x, y, "scale"), mmkernels.rbf_kernel(x, y, scale))
    pooled = torch.cat([x, y])
    i, j = torch.triu_indices(70, 70, 1)
    for p, name in ((2, "rbf"), (1, "laplacian")):
        median = np.median(torch.linalg.vector_norm(pooled[i] - pooled[j], ord=p, dim=1).cpu())
        gamma = 1 / (2 * median**2) if name == "rbf" else 1 / median
        got = mmkernels.kernel_matrix(x, y, name, gamma="median")
        torch.testing.assert_close(got, mmkernels.kernel_matrix(x, y, name, gamma=float(gamma)))
    got = mmkernels.matern_kernel(x, length_scale="median")
    i, j = torch.triu_indices(40, 40, 1)
    median = float(np.median((x[i] - x[j]).norm(dim=1).cpu()))
    torch.testing.assert_close(got, mmkernels.matern_kernel(x, length_scale=median))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_median_is_of_rows_that_differ(dtype, device):
    """As labels are, of which most pairs agree; far from the origin too."""
    labels = torch.eye(3, dtype=dtype, device=device)[[0] * 30 + [1] * 4 + [2]]
    for name, gamma in (("rbf", 1 / 4), ("laplacian", 1 / 2)):  # distances are sqrt 2 or 0, by sums 2 or 0
        for x in (labels, labels + 1000):
            got = mmkernels.kernel_matrix(x, kernel=name, gamma="median")
            torch.testing.assert_close(got, mmkernels.kernel_matrix(labels, kernel=name, gamma=gamma))
    few = torch.tensor([[0.0], [0.0], [1.0], [5.0]], dtype=dtype, device=device)  # distances 1, 1, 4, 5, 5
    wanted = mmkernels.rbf_kernel(few, gamma=1 / 32)
    torch.testing.assert_close(mmkernels.rbf_kernel(few, gamma="median"), wanted)
    both = torch.stack([few, few[[2, 2, 2, 2]]])  # the second of equal rows alone
    got = mmkernels.rbf_kernel(both, gamma="median")
    torch.testing.assert_close(got, torch.stack([wanted, torch.ones_like(wanted)]))


def test_bandwidths_of_equal_rows(device):
    x = torch.full((5, 3), 7.0, device=device)
    for name in ("rbf", "laplacian"):
        for gamma in ("median", "scale"):
            assert (mmkernels.kernel_matrix(x, kernel=name, gamma=gamma) == 1).all()
    assert (mmkernels.matern_kernel(x, length_scale="median") == 1).all()


def test_the_median_of_many_rows_is_that_of_a_sample(device):
    """Of 50,000 rows, whose distances would take 10 GB: the squared ones are 2 chi^2 of 4 degrees, with median 6.71."""
    x = torch.randn(50_000, 4, device=device)
    state = torch.get_rng_state()
    second = torch.zeros(50_000, device=device)
    second[1] = 1
    value, again = (mmkernels.kernel_matmul(x[:1], x, second, gamma="median") for _ in range(2))
    assert torch.equal(value, again)
    assert torch.equal(state, torch.get_rng_state())
    gamma = -value.log().item() / (x[0] - x[1]).square().sum().item()
    assert 0.5 / gamma == pytest.approx(6.71, rel=0.05)

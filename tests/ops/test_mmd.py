"""Maximum mean discrepancy and energy distance: values and gradients against the textbook formulas in float64."""

import numpy as np
import pytest
import torch

import mmkernels
from reference import dependence as reference
from reference import kernel as kernels
from tests.accuracy import DTYPES, assert_accurate
from tests.conftest import INTERPRETED

only_tiles = pytest.mark.skipif(INTERPRETED, reason="float64, which goes by tiles")
CLOSE = {"rtol": 1e-10, "atol": 1e-13}
ESTIMATORS = {"biased": reference.mmd, "unbiased": reference.mmd_unbiased, "linear": reference.mmd_linear}


def samples(M, N, D=3, dtype=torch.float64, device=None, batch=()):
    x, y = (torch.randn(*batch, n, D, dtype=torch.float64, device=device) for n in (M, N))
    return x.to(dtype), (0.7 * y + 0.3).to(dtype)


def dense(estimator, x, y, k):
    return ESTIMATORS[estimator](k(x, x), k(y, y), k(x, y))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_values_and_gradients(estimator, dtype, device):
    x, y = samples(41, 41 if estimator == "linear" else 70, dtype=dtype, device=device)
    wide = torch.promote_types(dtype, torch.float32)

    def run(function, dtype):
        leaves = [t.to(dtype).detach().requires_grad_() for t in (x, y)]
        out = function(*leaves)
        return out, *torch.autograd.grad(out, leaves)

    got = run(lambda x, y: mmkernels.mmd(x, y, gamma=0.3, estimator=estimator), dtype)
    same, truth = (
        run(lambda x, y: dense(estimator, x, y, lambda a, b: kernels.rbf(a, b, 0.3)), t) for t in (wide, torch.float64)
    )
    assert got[0].dtype == wide
    for key, magnitude, result, narrow, wanted in zip("vxy", (1.0, 0.02, 0.02), got, same, truth, strict=True):
        # terms are means of entries up to 1, of which it is the difference
        assert_accurate(f"{estimator}: {key}", result, narrow.to(result.dtype), wanted, 8, magnitude)


@only_tiles
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_kernels(estimator, device):
    x, y = samples(12, 12, device=device, batch=(2,))
    gammas = torch.tensor([0.1, 1.0], dtype=x.dtype, device=device)
    both = torch.cat([x[0], y[0]])
    median = 0.5 / torch.pdist(both).quantile(0.5) ** 2
    for k, kernel, options in (
        (lambda a, b: kernels.laplacian(a, b, 0.3), "laplacian", {"gamma": 0.3}),
        (lambda a, b: kernels.polynomial(a, b, 0.3, 1.0, 3), "polynomial", {"gamma": 0.3}),
        (lambda a, b: kernels.matern(a, b, 2.0, 2.5), "matern", {"parameters": {"nu": 2.5, "length_scale": 2.0}}),
        (kernels.energy, "energy", {}),
        (kernels.linear, "linear", {}),
        (kernels.cosine, "cosine", {}),
        (lambda a, b: kernels.rbf_mixture(a, b, gammas), "rbf", {"gamma": gammas}),
        (lambda a, b: kernels.rbf_mixture(a, b, gammas), "rbf", {"gamma": (0.1, 1.0)}),
        (lambda a, b: kernels.rbf_mixture(a, b, gammas), "rbf", {"bandwidths": [5**0.5, 0.5**0.5]}),
        (lambda a, b: kernels.rbf(a, b, 1 / 3), "rbf", {"gamma": None}),
    ):
        got = mmkernels.mmd(x, y, kernel, estimator=estimator, **options)
        torch.testing.assert_close(got, dense(estimator, x, y, k), **CLOSE)
        single = mmkernels.mmd(x[1], y[1], kernel, estimator=estimator, **options)
        torch.testing.assert_close(single, got[1], **CLOSE)
    got = mmkernels.mmd(x[0], y[0], estimator=estimator)
    torch.testing.assert_close(got, dense(estimator, x[0], y[0], lambda a, b: kernels.rbf(a, b, median)), **CLOSE)
    batch = torch.tensor([0.2, 0.9], dtype=x.dtype, device=device).reshape(2, 1, 1)
    got = mmkernels.mmd(x, y, gamma=batch, estimator=estimator)
    torch.testing.assert_close(got, dense(estimator, x, y, lambda a, b: kernels.rbf(a, b, batch)), **CLOSE)


@only_tiles
def test_an_odd_number_of_rows_leaves_the_last_out(device):
    x, y = samples(9, 9, device=device)
    got = mmkernels.mmd(x, y, gamma=0.3, estimator="linear")
    assert torch.equal(got, mmkernels.mmd(x[:8], y[:8], gamma=0.3, estimator="linear"))


@pytest.mark.parametrize("dtype", [torch.float32] if INTERPRETED else [torch.float32, torch.bfloat16, torch.float64])
def test_weights_are_repeated_rows(dtype, device):
    x, y = samples(6, 9, dtype=dtype, device=device)
    u, v = torch.tensor([1, 2, 1, 3, 1, 1], device=device), torch.tensor([2, 1, 1, 1, 4, 1, 1, 1, 2], device=device)
    repeated = [t.repeat_interleave(w, 0) for t, w in ((x, u), (y, v))]
    wide = torch.promote_types(dtype, torch.float32)
    close = {"rtol": 1e-10, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    for weights, wanted in (
        ((u.to(wide), 0.1 * v.to(wide)), repeated),
        ((None, v.to(wide)), (x, repeated[1])),
        ((u.to(dtype), None), (repeated[0], y)),
        ((None, None), (x, y)),
    ):
        got = mmkernels.mmd(x, y, gamma=0.3, weights=weights)
        torch.testing.assert_close(got, mmkernels.mmd(*wanted, gamma=0.3), **close)


@only_tiles
def test_derivatives(device):
    x, y = (t.requires_grad_() for t in samples(5, 6, 2, device=device))
    weights = [(torch.rand(n, dtype=x.dtype, device=device) + 0.5).requires_grad_() for n in (5, 6)]
    g = torch.tensor(0.4, dtype=x.dtype, device=device, requires_grad=True)
    for function, tensors in (
        (lambda x, y, g: mmkernels.mmd(x, y, gamma=g), (x, y, g)),
        (lambda x, y, g: mmkernels.mmd(x, y, "polynomial", gamma=g, estimator="unbiased"), (x, y, g)),
        (lambda x, y, g: mmkernels.mmd(x[:5], y[:5], gamma=g, estimator="linear"), (x, y, g)),
        (lambda x, y, u, v: mmkernels.mmd(x, y, gamma=0.4, weights=(u, v)), (x, y, *weights)),
        (mmkernels.energy_distance, (x, y)),
        (lambda x, y: mmkernels.mmd(x, y, bandwidths=(0.5, 2.0)), (x, y)),
    ):
        assert torch.autograd.gradcheck(function, tensors)
        assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_samples(dtype, device):
    x = samples(60, 1, dtype=dtype, device=device)[0]
    y = x[torch.randperm(60, device="cpu").to(device)]
    eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    for kernel in ("rbf", "energy"):
        assert mmkernels.mmd(x, x, kernel).abs() <= 10 * eps
        assert mmkernels.mmd(x, y, kernel).abs() <= 10 * eps
    assert mmkernels.mmd(x, x, estimator="linear").abs() <= 10 * eps
    assert mmkernels.mmd(x, y, estimator="linear").abs() > 1e-3  # an estimate of 0 from pairs


@only_tiles
@pytest.mark.parametrize(("M", "N"), [(2, 2), (1, 3), (30, 17)])
def test_energy_distance(M, N, device):
    x, y = samples(M, N, device=device)
    mean = {
        (a, b): np.mean([[np.linalg.norm(p - q) for q in t.cpu().numpy()] for p in s.cpu().numpy()])
        for a, s in (("x", x), ("y", y))
        for b, t in (("x", x), ("y", y))
    }
    got = mmkernels.energy_distance(x, y)
    assert got.item() == pytest.approx(2 * mean["x", "y"] - mean["x", "x"] - mean["y", "y"], rel=1e-11)
    torch.testing.assert_close(got, reference.energy_distance(x, y), **CLOSE)
    assert got >= 0
    if min(M, N) > 1:
        got = mmkernels.energy_distance(x, y, estimator="unbiased").item()
        within = M / (M - 1) * mean["x", "x"] + N / (N - 1) * mean["y", "y"]
        assert got == pytest.approx(2 * mean["x", "y"] - within, rel=1e-11)


@only_tiles
def test_unbiased_means_unbiased(device):
    """Over 200 pairs of samples of one distribution; the biased estimator is far from 0."""
    torch.manual_seed(1)
    x, y = (torch.randn(200, n, 2, dtype=torch.float64, device=device) for n in (20, 20))
    for kernel, gamma in (("rbf", 0.5), ("energy", None)):
        biased = mmkernels.mmd(x, y, kernel, gamma=gamma)
        for estimator in ("unbiased", "linear"):
            values = mmkernels.mmd(x, y, kernel, gamma=gamma, estimator=estimator)
            error = values.std() / 200**0.5
            assert values.mean().abs() <= 4 * error
            assert biased.mean() >= 4 * error

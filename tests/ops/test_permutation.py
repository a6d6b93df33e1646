"""Tests of independence and of equal distributions: their statistics, their level, their power."""

import itertools

import pytest
import torch
from scipy import stats

import mmkernels
from mmkernels.ops.permutation import INDEPENDENCE, _all_shifts
from tests.conftest import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="made of products and matrices, thousands of launches")


def views(N, dependence=0.0, dtype=torch.float64, device=None, seed=0):
    """Two views, the second with so much of the first's square."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(N, d, generator=generator, dtype=torch.float64) for d in (2, 3))
    return x.to(device, dtype), (dependence * x[:, :1] ** 2 + y).to(device, dtype)


def uniform(pvalues):
    return stats.kstest(pvalues, "uniform").pvalue


@pytest.mark.parametrize(("N", "budget"), [(4, None), (30, None), (31, None), (80, 2**16), (301, 2**16), (300, 2**18)])
def test_every_shift(N, budget, device):
    """One transform gives the statistic of each shift, whatever the bands of diagonals and the blocks of rows."""
    x, y = views(N, 1.0, device=device)
    before = mmkernels.memory_budget()
    assert budget is None or budget // (6 * N * 8) < N // 2  # several bands
    for kernels in (
        [("rbf", {"gamma": 0.3}), ("laplacian", {"gamma": 0.2})],
        [("energy", {}), ("polynomial", {"degree": 2, "gamma": 0.2})],
        [("linear", {}), ("cosine", {})],
    ):
        try:
            mmkernels.set_memory_budget(budget or before)
            order = torch.arange(N, device=device)
            given = [(t, name, own) for t, (name, own) in zip((x, y), kernels, strict=True)]
            got = _all_shifts(given, order, order, False)
        finally:
            mmkernels.set_memory_budget(before)
        names, parameters = [name for name, _ in kernels], [own for _, own in kernels]
        assert got.shape == (N,)
        for s in range(0, N, max(1, N // 30)):
            # x's row i beside y's row i + s
            wanted = mmkernels.hsic(x, y.roll(-s, 0), names, gamma=None, parameters=parameters).item()
            assert got[s].item() == pytest.approx(wanted, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_statistics_are_those_of_the_measures(dtype, device):
    x, y = views(40, 1.0, dtype, device)
    z = y[:30, :2]
    close = 1e-10 if dtype == torch.float64 else 1e-4
    for name, wanted in (
        ("hsic", mmkernels.hsic(x, y)),
        ("cka", mmkernels.cka(x, y, "rbf")),
        ("distance_covariance", mmkernels.distance_covariance(x, y)),
        ("distance_correlation", mmkernels.distance_correlation(x, y)),
    ):
        found = mmkernels.permutation_test(name, x, y)
        assert found.statistic == pytest.approx(wanted.item(), rel=close)
        assert found.null.shape == (39,)
        assert found.interval is None
        assert found.pvalue == (1 + (found.null >= found.statistic).sum().item()) / 40
    for name, wanted in (("mmd", mmkernels.mmd(x, z)), ("energy_distance", mmkernels.energy_distance(x, z))):
        found = mmkernels.permutation_test(name, x, z, 300)
        assert found.statistic == pytest.approx(wanted.item(), rel=close)
        assert found.null.shape == (300,)
    options = {"kernel": "laplacian", "gamma": 0.2}
    assert mmkernels.permutation_test("hsic", x, y, **options).statistic == pytest.approx(
        mmkernels.hsic(x, y, **options).item(), rel=close
    )


def test_divisions_are_those_of_both_samples(device):
    """With M = N = 2 there are three divisions, and each is found."""
    x, y = (torch.tensor(t, dtype=torch.float64, device=device)[:, None] for t in ([0.0, 1.0], [3.0, 7.0]))
    found = mmkernels.permutation_test("mmd", x, y, 400, gamma=0.1)
    z = torch.cat([x, y])
    halves = (([0, 1], [2, 3]), ([0, 2], [1, 3]), ([0, 3], [1, 2]))
    wanted = [mmkernels.mmd(z[a], z[b], gamma=0.1).item() for a, b in halves]
    near = (found.null[:, None].cpu() - torch.tensor(wanted, dtype=torch.float64)).abs() < 1e-12
    assert near.any(1).all()
    assert (near.sum(0) > 90).all()
    assert found.statistic == pytest.approx(wanted[0])


@pytest.mark.parametrize("name", ["hsic", "distance_correlation", "mmd"])
def test_the_level(name, device):
    """p-values are uniform if there is nothing to find."""
    pvalues = []
    for seed in range(150):
        x, y = views(40, device=device, seed=seed)
        y = y[:, :2] if name == "mmd" else y
        pvalues.append(mmkernels.permutation_test(name, x, y, 60 if name == "mmd" else None, seed=seed).pvalue)
    assert uniform(pvalues) > 0.01
    assert min(pvalues) < 0.1
    assert max(pvalues) > 0.9


def test_more_permutations_than_shifts(device):
    pvalues = []
    for seed in range(150):
        x, y = views(20, device=device, seed=seed)
        found = mmkernels.permutation_test("hsic", x, y, 50, seed=seed)
        assert found.null.shape == (50,)
        pvalues.append(found.pvalue)
    assert uniform(pvalues) > 0.01
    few = mmkernels.permutation_test("hsic", x, y, 7)
    assert few.null.shape == (7,)
    many = mmkernels.permutation_test("hsic", x, y, 38)
    assert len(many.null.unique()) == 38  # shifts of two orders


@pytest.mark.parametrize("name", INDEPENDENCE)
def test_the_power_of_independence(name, device):
    kernel = {} if name.startswith("distance") else {"kernel": "rbf"}
    for seed in range(5):
        x, y = views(80, 2.0, device=device, seed=seed)
        assert mmkernels.permutation_test(name, x, y, **kernel).pvalue <= 0.05
    x, y = views(80, 20.0, torch.float32, device)
    assert mmkernels.permutation_test(name, x, y, **kernel).pvalue == 1 / 80


@pytest.mark.parametrize("name", ["mmd", "energy_distance"])
def test_the_power_of_two_samples(name, device):
    x, y = views(60, device=device)
    assert mmkernels.permutation_test(name, x, y[:50, :2] + 2, 200).pvalue == 1 / 201


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ties_count(dtype, device):
    """Equal statistics are equal whatever their rounding: labels of few values, small samples."""
    label = ((torch.arange(6) % 2)[:, None] * 1.7).to(device, dtype)
    for seed in range(3):
        # of 20 ways to put three labels beside three others, two keep them together
        found = mmkernels.permutation_test("hsic", label, label, 1500, gamma=0.3, seed=seed)
        assert found.pvalue == pytest.approx(0.1, abs=0.025)
        x = views(3, dtype=dtype, device=device, seed=seed)[0] + 0.1 * seed
        found = mmkernels.permutation_test("mmd", x, x + 9, 1000, seed=seed)
        assert found.pvalue == pytest.approx(0.1, abs=0.03)


def test_nan_is_no_evidence(device):
    x, y = (t[:, :2].clone() for t in views(30, 20.0, device=device))
    y[3] = torch.nan
    for name in ("hsic", "mmd"):
        found = mmkernels.permutation_test(name, x, y, 29, gamma=0.5)
        assert found.statistic != found.statistic
        assert found.pvalue == 1
        assert mmkernels.wild_bootstrap_test(name, x, y, 20, gamma=0.5).pvalue == 1
    for method in ("hsic_gamma", "cka_chi2", "distance_chi2", "mmd_normal"):
        pvalue = mmkernels.approximate_test(method, x, y).pvalue
        assert not pvalue < 1, method


def test_seeds(device):
    x, y = views(30, device=device)
    for name, other in (("hsic", y), ("mmd", y[:, :2])):
        state = torch.get_rng_state()
        first, again, second = (mmkernels.permutation_test(name, x, other, 20, seed=s) for s in (3, 3, 4))
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(first.null, again.null)
        assert first.pvalue == again.pvalue
        assert not torch.equal(first.null, second.null)
        assert first.statistic == pytest.approx(second.statistic)
    first, again, second = (mmkernels.wild_bootstrap_test("hsic", x, y, 20, seed=s) for s in (3, 3, 4))
    assert torch.equal(first.null, again.null)
    assert not torch.equal(first.null, second.null)


def test_the_gamma_approximation(device):
    """Close to permutations, moderate dependence or none; the statistic is HSIC."""
    for dependence in (0.0, 0.15, 0.2, 0.3):
        x, y = views(200, dependence, device=device, seed=1)
        exact = mmkernels.permutation_test("hsic", x, y, 3980)
        found = mmkernels.approximate_test("hsic_gamma", x, y)
        print(f"dependence {dependence}: permutations {exact.pvalue:.4f}, gamma {found.pvalue:.4f}")
        assert found.statistic == pytest.approx(exact.statistic)
        assert found.pvalue == pytest.approx(exact.pvalue, abs=0.03)
        assert found.null.numel() == 0
        narrow = mmkernels.approximate_test("hsic_gamma", x.float(), y.float())
        assert narrow.pvalue == pytest.approx(found.pvalue, rel=1e-3)


GAMMA_OPTIONS = ({"gamma": 0.3}, {"kernel": ("energy", "linear")}, {"gamma": ([0.1, 0.5], 0.2)})


@pytest.mark.parametrize("options", GAMMA_OPTIONS, ids=str)
def test_the_gamma_approximation_has_the_moments_of_all_permutations(options, device):
    N = 6
    x, y = views(N, 0.5, device=device)
    y = y + 1e3 * (options.get("kernel") is not None)  # a linear kernel's offset says nothing
    values = torch.stack([mmkernels.hsic(x, y[list(p)], **options) for p in itertools.permutations(range(N))])
    mean, variance = values.mean().item(), values.var(correction=0).item()
    got = mmkernels.approximate_test("hsic_gamma", x, y, **options)
    assert got.statistic == pytest.approx(values[0].item(), rel=1e-7)
    wanted = stats.gamma.sf(got.statistic, mean**2 / variance, scale=variance / mean)
    assert got.pvalue == pytest.approx(wanted, rel=1e-6)  # the digits of torch's incomplete gamma function


@pytest.mark.parametrize("method", ["cka_chi2", "distance_chi2"])
def test_the_chi_squared_approximation(method, device):
    x, y = views(50, 2.0, device=device)
    kernel = {"cka_chi2": "rbf", "distance_chi2": "energy"}[method]
    found = mmkernels.approximate_test(method, x, y)
    assert found.statistic == pytest.approx(mmkernels.cka(x, y, kernel, debiased=True).item())
    assert found.pvalue == pytest.approx(stats.chi2.sf(50 * found.statistic + 1, 1), rel=1e-9)
    assert found.pvalue < 0.05
    rejected = sum(
        mmkernels.approximate_test(method, *views(50, device=device, seed=seed)).pvalue <= 0.05 for seed in range(500)
    )
    print(f"{method} rejects {rejected} of 500 at 5 %")
    assert rejected <= 35


def test_the_interval_of_mmd(device):
    """It covers the truth about 95 times of 100; p-values are uniform at equal distributions."""
    truth = mmkernels.mmd(*(t.to(device) + 0.5 * k for k, t in enumerate(torch.randn(2, 2000, 2).double())), gamma=0.3)
    covered, pvalues = 0, []
    for seed in range(200):
        x, z = views(400, device=device, seed=seed)
        z = z[:, :2]
        found = mmkernels.approximate_test("mmd_normal", x, z + 0.5, gamma=0.3)
        low, high = found.interval
        assert found.statistic == pytest.approx(mmkernels.mmd(x, z + 0.5, gamma=0.3, estimator="linear").item())
        assert found.statistic == pytest.approx((low + high) / 2)
        covered += low <= truth.item() <= high
        pvalues.append(mmkernels.approximate_test("mmd_normal", x, z, gamma=0.3).pvalue)
    assert 180 <= covered <= 199
    assert uniform(pvalues) > 0.01
    assert mmkernels.approximate_test("mmd_normal", x, z + 2, gamma=0.3).pvalue < 1e-3


def series(N, seed, device):
    """Two independent autoregressions."""
    noise = torch.randn(2, N, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for t in range(1, N):
        noise[:, t] += 0.9 * noise[:, t - 1]
    return noise.to(device)


def test_the_wild_bootstrap(device):
    """It keeps the level on independent series, where permutations do not."""
    wild, permuted = [], []
    for seed in range(60):
        x, y = series(150, seed, device)
        wild.append(mmkernels.wild_bootstrap_test("hsic", x, y, 200, lag=20, seed=seed).pvalue <= 0.05)
        permuted.append(mmkernels.permutation_test("hsic", x, y).pvalue <= 0.05)
    print(f"rejected at 5 %: wild bootstrap {sum(wild)} of 60, permutations {sum(permuted)} of 60")
    assert sum(wild) <= 7
    assert sum(permuted) >= 15
    x, y = series(300, 0, device)
    assert mmkernels.wild_bootstrap_test("hsic", x, x + 0.1 * y, 200).pvalue <= 0.05
    assert mmkernels.wild_bootstrap_test("mmd", x, y, 200).pvalue > 0.05
    assert mmkernels.wild_bootstrap_test("mmd", x, y + 4, 200).pvalue <= 0.02


@pytest.mark.parametrize("budget", [None, 2**16])
def test_the_wild_bootstrap_with_matrices(budget, device):
    N = 40 if budget is None else 150
    x, y = series(N, 0, device)
    y = y + x
    K, L = (mmkernels.kernel_matrix(t, gamma=0.3) for t in (x, y))
    H = torch.eye(N, dtype=x.dtype, device=device) - 1 / N
    noise = torch.randn(N, 30, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    W = noise.clone()
    for t in range(1, N):
        W[t] = torch.exp(torch.tensor(-1 / 8)) * W[t - 1] + torch.sqrt(1 - torch.exp(torch.tensor(-2 / 8))) * noise[t]
    W = W.to(x)
    wanted = (W * ((H @ K @ H) * (H @ L @ H) @ W)).sum(0) / N**2
    before = mmkernels.memory_budget()
    try:
        mmkernels.set_memory_budget(budget or before)
        got = mmkernels.wild_bootstrap_test("hsic", x, y, 30, lag=8, gamma=0.3, seed=5)
    finally:
        mmkernels.set_memory_budget(before)
    torch.testing.assert_close(got.null, wanted, rtol=1e-6, atol=1e-8)
    assert got.statistic == pytest.approx(mmkernels.hsic(x, y, gamma=0.3).item())
    apart = (torch.arange(N)[:, None] - torch.arange(N)).abs()
    kept = 1 - torch.exp(-apart / 8.0).mean()  # of the variance, once the mean is gone
    Z, signs = torch.cat([x, y]), torch.cat([W - W.mean(0), W.mean(0) - W]) / N / kept.sqrt().to(x)
    got = mmkernels.wild_bootstrap_test("mmd", x, y, 30, lag=8, gamma=0.3, seed=5)
    wanted = (signs * (mmkernels.kernel_matrix(Z, gamma=0.3) @ signs)).sum(0)
    torch.testing.assert_close(got.null, wanted, rtol=1e-6, atol=1e-8)
    assert got.statistic == pytest.approx(mmkernels.mmd(x, y, gamma=0.3).item())

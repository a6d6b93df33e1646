"""Dependence measures and tests where digits cancel: constant views, offsets, scales; and how options are said."""

import numpy as np
import pytest
import torch

import mmkernels
from tests.conftest import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="made of sums and products that have tests of their own")
KERNELS = ("rbf", "polynomial", "exponential", "linear", "cosine", "energy")


def pair(N, D, device, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(N, D, generator=g, dtype=torch.float64) for _ in range(2))
    return x.to(device, dtype), (x + noise).to(device, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_constant_view_is_evidence_of_nothing(kernel, dtype, device):
    x = pair(31, 2, device, dtype)[0]
    constant = torch.full_like(x, 0.7)
    for debiased in (False, True):
        assert mmkernels.cka(x, constant, kernel, debiased=debiased).isnan()
    assert mmkernels.permutation_test("hsic", x, constant, kernel=kernel).pvalue == 1
    assert mmkernels.permutation_test("cka", x, constant, kernel=kernel).pvalue == 1
    assert mmkernels.permutation_test("mmd", constant, constant[:13], kernel=kernel).pvalue == 1
    assert mmkernels.wild_bootstrap_test("hsic", x, constant, 50, kernel=kernel).pvalue == 1
    assert mmkernels.approximate_test("hsic_gamma", x, constant, kernel=kernel).pvalue == 1
    assert mmkernels.approximate_test("cka_chi2", x, constant, kernel=kernel).pvalue == 1


def test_linear_kernels_do_not_see_an_offset(device):
    x, y = pair(50, 256, device)
    wide = x.double(), y.double()
    for function in (
        lambda a, b: mmkernels.cka(a, b),
        lambda a, b: mmkernels.cka(a, b, debiased=True),
        lambda a, b: mmkernels.hsic(a, b, "linear", estimator="unbiased"),
        lambda a, b: mmkernels.hsic(a, b, ("linear", "rbf")),
        lambda a, b: mmkernels.dhsic([a, b], "linear"),
        lambda a, b: mmkernels.mmd(a, b, "linear"),
        lambda a, b: mmkernels.mmd(a, b, "linear", estimator="unbiased"),
        lambda a, b: torch.tensor(mmkernels.permutation_test("hsic", a, b, kernel="linear").statistic),
    ):
        truth, shifted = function(*wide), function(x + 1000, y + 1000)
        torch.testing.assert_close(shifted.double(), truth.double(), rtol=2e-4, atol=0)


def test_the_scale_of_the_data_is_no_matter_to_ratios(device):
    x, y = pair(60, 2, device)
    for name, options in (("cka", {"kernel": "linear"}), ("distance_correlation", {})):
        wanted = mmkernels.permutation_test(name, x, y, **options)
        for scale in (1e-6, 1e5):
            got = mmkernels.permutation_test(name, scale * x, scale * y, **options)
            assert got[:2] == pytest.approx(wanted[:2], rel=1e-5)


def test_scale_is_of_both_samples(device):
    x, y = pair(40, 2, device, torch.float64)
    gamma = 1 / (2 * torch.cat([x, 5 * y]).var(correction=0)).item()
    got = mmkernels.mmd(x, 5 * y, gamma="scale")
    torch.testing.assert_close(got, mmkernels.mmd(x, 5 * y, gamma=gamma))
    torch.testing.assert_close(got, mmkernels.mmd(5 * y, x, gamma="scale"))


def test_gamma_among_the_parameters(device):
    x, y = pair(40, 2, device)
    for function in (mmkernels.hsic, mmkernels.mmd, mmkernels.cka):
        assert function(x, y, "rbf", parameters={"gamma": 0.5}) == function(x, y, "rbf", gamma=0.5)
        with pytest.raises(ValueError, match=r"give gamma once, got 0\.3 and 0\.5"):
            function(x, y, "rbf", gamma=0.3, parameters={"gamma": 0.5})
        with pytest.raises(TypeError, match="parameters must be a dict"):
            function(x, y, "rbf", parameters="gamma")


def test_one_row(device):
    x, y = pair(1, 2, device)
    assert mmkernels.hsic(x, y) == 0
    assert mmkernels.mmd(x, x) == 0


def test_refused(device):
    x, y = pair(20, 2, device)
    with pytest.raises(ValueError, match="distance_chi2 has no kernel"):
        mmkernels.approximate_test("distance_chi2", x, y, kernel="laplacian")
    with pytest.raises(ValueError, match="gamma must be one for all rows"):
        mmkernels.permutation_test("hsic", x, y, gamma=torch.ones(2, 1, 1, device=device))
    with pytest.raises(ValueError, match=r"seed must be in \[0"):
        mmkernels.permutation_test("hsic", x, y, seed=2**64)
    with pytest.raises(ValueError, match="at least 2 tensors, got 1"):
        mmkernels.dhsic([x])
    assert mmkernels.permutation_test("mmd", x, y, np.int64(50)).null.shape == (50,)


@pytest.mark.parametrize("N", [4, 6])
def test_more_permutations_than_shifts_keep_the_level(N, device):
    """Of four rows 24 permutations matter, and the statistic of some equals that of none: at most the level."""
    rejected = 0
    for seed in range(100):
        g = torch.Generator().manual_seed(seed)
        x, y = (torch.randn(N, 1, generator=g).to(device) for _ in range(2))
        rejected += mmkernels.permutation_test("hsic", x, y, 20, seed=seed).pvalue <= 0.1
    assert rejected <= 19  # 10 expected, standard deviation 3


@pytest.mark.parametrize("N", [20, 60])
def test_the_bootstrap_of_short_series(N, device):
    rejected = 0
    for seed in range(100):
        g = torch.Generator().manual_seed(seed)
        x, y = (torch.randn(N, 1, generator=g).to(device) for _ in range(2))
        rejected += mmkernels.wild_bootstrap_test("mmd", x, y, 100, seed=seed).pvalue <= 0.05
    assert rejected <= 16  # 15 to 47 with a null that had shrunk


def test_second_derivatives_stay_within_the_budget_whichever_view_is_wide(device):
    if device.type != "cpu":
        pytest.skip("counts resident memory")
    from mmkernels._memory import peak_bytes

    before = mmkernels.memory_budget()
    x, y = pair(200, 1, device)[0].requires_grad_(), pair(200, 256, device)[0].requires_grad_()

    def second(a, b, kernels):
        (grad,) = torch.autograd.grad(mmkernels.hsic(a, b, kernels, gamma=None), a, create_graph=True)
        grad.square().sum().backward()

    try:
        mmkernels.set_memory_budget(2**22)
        peaks = []
        for a, b, kernels in ((y, x, ("laplacian", "energy")), (x, y, ("energy", "laplacian"))):
            second(a, b, kernels)
            peaks.append(peak_bytes(lambda a=a, b=b, k=kernels: second(a, b, k), device))
    finally:
        mmkernels.set_memory_budget(before)
    assert peaks[1] <= 2 * peaks[0] + 2**24

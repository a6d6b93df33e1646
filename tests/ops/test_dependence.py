"""HSIC, CKA, distance covariance and dHSIC: values and gradients against the textbook formulas in float64."""

import numpy as np
import pytest
import torch

import mmkernels
from mmkernels.ops.dependence import matrix
from reference import dependence as reference
from reference import kernel as kernels
from tests.accuracy import DTYPES, assert_accurate
from tests.conftest import INTERPRETED

only_tiles = pytest.mark.skipif(INTERPRETED, reason="float64, which goes by tiles")
CLOSE = {"rtol": 1e-10, "atol": 1e-13}


def dependent(N, D=(3, 2), dtype=torch.float64, device=None, batch=()):
    """Two views of which the second is a noisy square of the first."""
    x, noise = (torch.randn(*batch, N, d, dtype=torch.float64, device=device) for d in D)
    return x.to(dtype), (x[..., :1] ** 2 + noise).to(dtype)


def rbf(x, gamma):
    return kernels.rbf(x, x, gamma)


MEASURES = {
    "biased": (lambda x, y: mmkernels.hsic(x, y, gamma=(0.1, 0.3)), reference.hsic),
    "unbiased": (lambda x, y: mmkernels.hsic(x, y, gamma=(0.1, 0.3), estimator="unbiased"), reference.hsic_unbiased),
    "cka": (lambda x, y: mmkernels.cka(x, y, "rbf", gamma=[0.1, 0.3]), reference.cka),
    "debiased": (
        lambda x, y: mmkernels.cka(x, y, "rbf", gamma=[0.1, 0.3], debiased=True),
        lambda K, L: reference.cka(K, L, debiased=True),
    ),
    "joint": (lambda x, y: mmkernels.dhsic([x, y], gamma=(0.1, 0.3)), lambda K, L: reference.dhsic([K, L])),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MEASURES)
def test_values_and_gradients(name, dtype, device):
    function, formula = MEASURES[name]
    x, y = dependent(50, dtype=dtype, device=device)
    wide = torch.promote_types(dtype, torch.float32)

    def run(function, dtype):
        leaves = [t.to(dtype).detach().requires_grad_() for t in (x, y)]
        out = function(*leaves)
        return out, *torch.autograd.grad(out, leaves)

    def dense(x, y):
        return formula(rbf(x, 0.1), rbf(y, 0.3))

    got, truth, same = run(function, dtype), run(dense, torch.float64), run(dense, wide)
    assert got[0].dtype == wide
    # what cancels: entries of 1 (of their mean less for HSIC, where the products are about 0.1), and of ratios nothing
    top = 0.1 if name in ("biased", "unbiased") else 1.0
    for key, magnitude, *three in zip("vxy", (top, top / 10, top / 10), got, same, truth, strict=True):
        result, dense_result, wanted = three
        assert_accurate(f"{name}: {key}", result, dense_result.to(result.dtype), wanted, 16, magnitude)


@only_tiles
@pytest.mark.parametrize("budget", [None, 65536])
@pytest.mark.parametrize("name", MEASURES)
def test_batches_and_many_tiles(name, budget, device):
    function, formula = MEASURES[name]
    x, y = dependent(90, device=device, batch=(2, 3))
    wanted = formula(rbf(x, 0.1), rbf(y, 0.3))
    before = mmkernels.memory_budget()
    try:
        mmkernels.set_memory_budget(budget or before)
        got = function(x, y)
        single = function(x[1, 2], y[1, 2])
    finally:
        mmkernels.set_memory_budget(before)
    torch.testing.assert_close(got, wanted, **CLOSE)
    torch.testing.assert_close(single, wanted[1, 2], **CLOSE)


@only_tiles
def test_kernels_and_their_parameters(device):
    x, y = dependent(40, device=device)
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=x.dtype, device=device)
    L = kernels.laplacian(y, y, 0.3)
    for K, (kernel, own) in (
        (kernels.matern(x, x, 1.3, 2.5), ("matern", {"nu": 2.5, "length_scale": 1.3})),
        (rbf(x / scale, 0.5), ("rbf", {"length_scale": scale})),
        (kernels.rational_quadratic(x, x, 0.7, 1.7), ("rational_quadratic", {"length_scale": 0.7, "alpha": 1.7})),
        (kernels.polynomial(x, x, 0.5, 1.0, 2), ("polynomial", {"gamma": 0.5, "degree": 2})),
        (kernels.cosine(x, x), ("cosine", None)),
        (kernels.energy(x, x), ("energy", {})),
        (kernels.linear(x, x), ("linear", None)),
    ):
        for estimator, formula in (("biased", reference.hsic), ("unbiased", reference.hsic_unbiased)):
            options = {"gamma": (None, 0.3), "parameters": [own, None], "estimator": estimator}
            torch.testing.assert_close(mmkernels.hsic(x, y, (kernel, "laplacian"), **options), formula(K, L), **CLOSE)
        got = mmkernels.cka(x, y, [kernel, "laplacian"], gamma=[None, 0.3], parameters=(own, {}))
        torch.testing.assert_close(got, reference.cka(K, L), **CLOSE)


@only_tiles
def test_bandwidths(device):
    """Every way to say gamma; a mixture is the sum of kernels."""
    x, y = dependent(41, device=device)
    medians = [0.5 / torch.pdist(t).quantile(0.5) ** 2 for t in (x, y)]
    scales = [1 / (t.shape[1] * t.var(correction=0)) for t in (x, y)]
    g = torch.tensor(0.2, dtype=x.dtype, device=device)
    mixture = torch.tensor([0.1, 1.0], dtype=x.dtype, device=device)
    for gamma, K, L in (
        ("median", rbf(x, medians[0]), rbf(y, medians[1])),
        (("scale", "median"), rbf(x, scales[0]), rbf(y, medians[1])),
        (g, rbf(x, 0.2), rbf(y, 0.2)),
        (None, rbf(x, 1 / 3), rbf(y, 1 / 2)),
        ([mixture, 0.2], kernels.rbf_mixture(x, x, mixture), rbf(y, 0.2)),
    ):
        torch.testing.assert_close(mmkernels.hsic(x, y, gamma=gamma), reference.hsic(K, L), **CLOSE)
        torch.testing.assert_close(mmkernels.dhsic([x, y], gamma=gamma), reference.hsic(K, L), **CLOSE)
    torch.testing.assert_close(mmkernels.hsic(x, y), reference.hsic(rbf(x, medians[0]), rbf(y, medians[1])), **CLOSE)


@only_tiles
def test_a_gamma_for_each_batch_entry(device):
    x, y = dependent(20, device=device)
    first = torch.tensor([0.1, 0.4], dtype=x.dtype, device=device).reshape(2, 1, 1, 1)
    second = torch.tensor([0.2, 0.3, 0.9], dtype=x.dtype, device=device).reshape(3, 1, 1)
    K, L = rbf(x, first), rbf(y, second)
    for estimator, formula in (("biased", reference.hsic), ("unbiased", reference.hsic_unbiased)):
        got = mmkernels.hsic(x, y, gamma=(first, second), estimator=estimator)
        torch.testing.assert_close(got, formula(*torch.broadcast_tensors(K, L)), **CLOSE)


@only_tiles
def test_parameters_have_gradients(device):
    x, y = dependent(7, device=device)
    g = torch.tensor(0.3, dtype=x.dtype, device=device, requires_grad=True)
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=x.dtype, device=device, requires_grad=True)

    def function(g, scale):
        own = [{"length_scale": scale}, {"coef0": g, "degree": 2}]
        return mmkernels.hsic(x, y, ("rbf", "polynomial"), gamma=(None, g), parameters=own)

    assert torch.autograd.gradcheck(function, (g, scale))
    assert torch.autograd.gradgradcheck(function, (g, scale))


@only_tiles
@pytest.mark.parametrize("kernel", ["rbf", "energy", "linear"])
def test_derivatives(kernel, device):
    x, y = (t.requires_grad_() for t in dependent(6, (2, 2), device=device))
    z = torch.randn(6, 1, dtype=x.dtype, device=device, requires_grad=True)
    gamma = None if kernel != "rbf" else 0.4
    functions = {
        "hsic": lambda x, y: mmkernels.hsic(x, y, kernel, gamma=gamma),
        "unbiased": lambda x, y: mmkernels.hsic(x, y, kernel, gamma=gamma, estimator="unbiased"),
        "cka": lambda x, y: mmkernels.cka(x, y, kernel, gamma=gamma),
        "dhsic": lambda x, y: mmkernels.dhsic([x, y, z], kernel, gamma=gamma),
    }
    for function in functions.values():
        assert torch.autograd.gradcheck(function, (x, y))
        assert torch.autograd.gradgradcheck(function, (x, y))


@only_tiles
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_linear_kernels_need_no_pairs(estimator, device):
    """Features instead of pairs: the same values and gradients, in batches too."""
    x, y = (t.requires_grad_() for t in dependent(30, device=device, batch=(2,)))
    polynomial = {"gamma": 1.0, "parameters": {"degree": 1, "coef0": 0.0}}
    results = [
        mmkernels.hsic(x, y, "linear", estimator=estimator),
        mmkernels.hsic(x, y, "polynomial", estimator=estimator, **polynomial),
        {"biased": reference.hsic, "unbiased": reference.hsic_unbiased}[estimator](x @ x.mT, y @ y.mT),
    ]
    ratios = [
        mmkernels.cka(x, y, debiased=estimator == "unbiased"),
        mmkernels.cka(x, y, "polynomial", debiased=estimator == "unbiased", **polynomial),
        reference.cka(x @ x.mT, y @ y.mT, estimator == "unbiased"),
    ]
    for first, *others in (results, ratios):
        wanted = torch.autograd.grad(first.sin().sum(), (x, y))
        for other in others:
            torch.testing.assert_close(other, first, **CLOSE)
            torch.testing.assert_close(torch.autograd.grad(other.sin().sum(), (x, y)), wanted, **CLOSE)
    few = [t[:, :4].detach() for t in (x, y)]  # more features than rows: by pairs
    few[0] = few[0].repeat(1, 1, 2)
    torch.testing.assert_close(mmkernels.cka(*few), reference.cka(*(t @ t.mT for t in few)), **CLOSE)


@only_tiles
def test_matrix_of_three_views(device):
    """Every pair of views from one sweep."""
    x, y = dependent(25, device=device)
    z = torch.randn(25, 1, dtype=x.dtype, device=device)
    views = [x, y, z]
    for kernel, grams in (
        ("linear", [t @ t.mT for t in views]),
        ("energy", [kernels.energy(t, t) for t in views]),
    ):
        for estimator, formula in (("biased", reference.hsic), ("unbiased", reference.hsic_unbiased)):
            wanted = torch.stack([torch.stack([formula(K, L) for L in grams]) for K in grams])
            torch.testing.assert_close(matrix(views, [(kernel, {})] * 3, estimator), wanted, **CLOSE)


def test_cka_of_the_same_shape_is_one(device):
    x = torch.randn(100, 6, device=device)
    rotation = torch.linalg.qr(torch.randn(6, 6, device=device)).Q
    for scale in (1.0, 1e-8, 1e8):
        assert mmkernels.cka(x * scale, 3 * scale * (x @ rotation) + scale).item() == pytest.approx(1, abs=2e-6)
    assert mmkernels.distance_correlation(x, 3 * x @ rotation + 1).item() == pytest.approx(1, abs=2e-6)
    assert mmkernels.cka(x, x[torch.randperm(100)], debiased=True).item() < 0.5


def test_constant_views(device):
    x, c = torch.randn(20, 3, device=device), torch.ones(20, 2, device=device)
    for kernel, gamma in (("rbf", 0.5), ("linear", None), ("polynomial", 0.5), ("energy", None)):
        for estimator in ("biased", "unbiased"):
            got = mmkernels.hsic(x, c, kernel, gamma=gamma, estimator=estimator)
            assert abs(got.item()) <= 1e-6, (kernel, estimator)
    assert mmkernels.cka(x, c).isnan()
    assert mmkernels.distance_correlation(x, c).isnan()


@only_tiles
@pytest.mark.parametrize("N", [4, 5, 40])
def test_distances(N, device):
    """Against loops over rows, and the U-centred estimator as it is written."""
    x, y = dependent(N, device=device)
    A, B = (np.array([[np.linalg.norm(a - b) for b in t] for a in t]) for t in (x.cpu().numpy(), y.cpu().numpy()))

    def centred(A, unbiased):
        n = len(A)
        r, t, cut = (n - 2, (n - 1) * (n - 2), 0) if unbiased else (n, n * n, None)
        out = A - A.sum(0) / r - A.sum(1)[:, None] / r + A.sum() / t
        if cut is not None:
            np.fill_diagonal(out, cut)
        return out

    for estimator, formula, over in (
        ("biased", reference.distance_covariance, N * N),
        ("unbiased", reference.distance_covariance_unbiased, N * (N - 3)),
    ):
        a, b = (centred(M, estimator == "unbiased") for M in (A, B))
        covariance = mmkernels.distance_covariance(x, y, estimator=estimator)
        torch.testing.assert_close(covariance, formula(x, y), **CLOSE)
        assert covariance.item() == pytest.approx((a * b).sum() / over, rel=1e-10, abs=1e-13)
        got = mmkernels.distance_correlation(x, y, estimator=estimator).item()
        assert got == pytest.approx((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()), rel=1e-10)
    assert mmkernels.distance_covariance(x, y) >= 0


def test_three_views(device):
    """Independent by pairs, dependent together: only dHSIC of all three sees it."""
    a, b = torch.randn(2, 300, 1, dtype=torch.float64, device=device).sign()
    views = [a, b, a * b]
    if not INTERPRETED:
        K = [rbf(t, 0.5) for t in views]
        torch.testing.assert_close(mmkernels.dhsic(views, gamma=0.5), reference.dhsic(K), **CLOSE)
    narrow = [t.float() for t in views]
    got = mmkernels.dhsic(narrow, gamma=0.5).item()
    assert got == pytest.approx(reference.dhsic([rbf(t, 0.5) for t in views]).item(), rel=1e-4)
    assert got > 10 * mmkernels.hsic(narrow[0], narrow[1], gamma=0.5).item()


@only_tiles
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_float32_keeps_the_digits_of_what_cancels(offset, device):
    """Biased HSIC at independence, of 2,000 rows: the sums it is the difference of are hundreds of times larger."""
    errors = []
    for seed in range(3):
        torch.manual_seed(seed)
        x, y = (torch.randn(2000, 16, device=device) + offset for _ in "xy")
        gammas = [1 / 32, 1 / 16]
        got = mmkernels.hsic(x, y, gamma=gammas).item()
        wanted = mmkernels.hsic(x.double(), y.double(), gamma=gammas).item()
        errors.append(abs(got / wanted - 1))
    print(f"relative errors at offset {offset:g}:", *(f"{e:.1e}" for e in errors))
    assert max(errors) <= 3e-6


@only_tiles
def test_unbiased_means_unbiased(device):
    """Over 200 independent samples; the biased estimator is far from 0."""
    torch.manual_seed(1)
    x, y = (torch.randn(200, 20, d, dtype=torch.float64, device=device) for d in (2, 3))
    for kernel, gamma in (("rbf", 0.5), ("energy", None), ("linear", None)):
        unbiased = mmkernels.hsic(x, y, kernel, gamma=gamma, estimator="unbiased")
        biased = mmkernels.hsic(x, y, kernel, gamma=gamma)
        error = unbiased.std() / 200**0.5
        assert unbiased.mean().abs() <= 4 * error
        assert biased.mean() >= 4 * error
    assert mmkernels.cka(x, y, debiased=True).mean().abs() <= 0.05
    assert mmkernels.cka(x, y).mean() >= 0.1

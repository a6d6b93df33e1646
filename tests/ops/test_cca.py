"""Canonical correlations and CCA losses against their textbook formulas in float64."""

import numpy as np
import pytest
import torch

import mmkernels
from mmkernels.ops.cca import OBJECTIVES
from reference import cca as reference
from tests.accuracy import WORKING_DTYPES, assert_accurate
from tests.conftest import INTERPRETED

only_tiles = pytest.mark.skipif(INTERPRETED, reason="float64, or nothing that the kernels serve")


def correlated(N, Dx, Dy, device, dtype=torch.float64, batch=()):
    """Two views of common rows, each with noise of its own."""
    common = torch.randn(*batch, N, min(Dx, Dy), dtype=torch.float64, device=device)
    noise = [torch.randn(*batch, N, D, dtype=torch.float64, device=device) for D in (Dx, Dy)]
    mixed = (common @ torch.randn(common.shape[-1], D, dtype=torch.float64, device=device) for D in (Dx, Dy))
    return [(m + n).to(dtype) for m, n in zip(mixed, noise, strict=True)]


def orthonormal(N, D, device):
    """Centred columns, orthonormal."""
    z = torch.randn(N, D, dtype=torch.float64, device=device)
    return torch.linalg.qr(z - z.mean(0))[0]


def gradients(loss, tensors):
    return torch.autograd.grad(loss.sum(), tensors)


@only_tiles
@pytest.mark.parametrize(("N", "Dx", "Dy"), [(5, 1, 1), (30, 5, 5), (200, 3, 17), (300, 33, 20)])
def test_correlations_by_qr(N, Dx, Dy, device):
    x, y = correlated(N, Dx, Dy, device)
    Q, P = (np.linalg.qr(t.cpu().numpy() - t.mean(0).cpu().numpy())[0] for t in (x, y))
    wanted = torch.as_tensor(np.linalg.svd(Q.T @ P, compute_uv=False), device=device)
    got = mmkernels.canonical_correlations(x, y)
    assert got.shape == (min(Dx, Dy),)
    assert (got - wanted).abs().max() <= 1e-10
    assert (reference.by_qr(x, y) - wanted).abs().max() <= 1e-12
    mixed = x @ torch.randn(Dx, Dx, dtype=x.dtype, device=device) * 3 - 7, y * torch.rand(Dy, device=device).add(0.1)
    assert (mmkernels.canonical_correlations(*mixed) - wanted).abs().max() <= 1e-8
    assert torch.equal(mmkernels.canonical_correlations(x, y, 1), got[:1])


@only_tiles
def test_correlations_of_a_population(device):
    """Known ones are found, up to the sample's error."""
    rho = torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64, device=device)
    x, noise = torch.randn(2, 200_000, 3, dtype=torch.float64, device=device)
    y = rho * x + (1 - rho**2).sqrt() * noise
    A, B = torch.randn(2, 3, 3, dtype=torch.float64, device=device)
    got = mmkernels.canonical_correlations(x @ A, y @ B)
    assert (got - rho).abs().max() <= 0.01
    mi = -mmkernels.cca_loss(x @ A, y @ B, reg=0, objective="gaussian_mi")
    assert abs(mi + 0.5 * (1 - rho**2).log().sum()) <= 0.02


@pytest.mark.parametrize("dtype", WORKING_DTYPES)
def test_identical_views(dtype, device):
    x = torch.randn(60, 4, device=device).to(dtype)
    rho = mmkernels.canonical_correlations(x, x)
    assert rho.dtype == torch.float32
    assert (rho - 1).abs().max() <= 1e-5
    values = torch.linalg.eigvalsh(x.double().T.cov())
    slack = 1e-2 if dtype != torch.float32 and (INTERPRETED or x.is_cuda) else 1e-5
    wanted = (values / (values + 0.5)).flip(0)
    assert (mmkernels.canonical_correlations(x, x, reg=0.5) - wanted).abs().max() <= slack


@pytest.mark.parametrize("dtype", WORKING_DTYPES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_and_gradients(objective, dtype, device):
    """As accurate as the dense formula in float32, or in the inputs' 16 bits where kernels multiply those."""
    rounded = dtype != torch.float32 and (INTERPRETED or device.type != "cpu")
    for k in (None, 2):
        views = [t.requires_grad_() for t in correlated(90, 5, 3, device, dtype)]
        wide = [t.detach().float().requires_grad_() for t in views]
        double = [t.detach().double().requires_grad_() for t in views]
        got = mmkernels.cca_loss(*views, k=k, reg=(0.1, 0.2), objective=objective)
        dense, truth = (reference.cca_loss(*v, (0.1, 0.2), objective, k) for v in (wide, double))
        assert got.dtype == torch.float32
        extra = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps if rounded else 0
        assert_accurate("loss", got, dense, truth, roundings=32 + extra)
        both = zip(*(gradients(*pair) for pair in ((got, views), (dense, wide), (truth, double))), strict=True)
        for g, d, t in both:
            assert_accurate("gradient", g, d.to(dtype), t, roundings=32)


@only_tiles
@pytest.mark.parametrize("k", [None, 1, 3])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_in_float64(objective, k, device):
    """With batches, weights and a regularisation for each view; weights repeat rows."""
    x, y = (t.requires_grad_() for t in correlated(25, 3, 4, device, batch=(2,)))
    counts = torch.randint(1, 4, (25,), device=device)
    weights = counts.double().requires_grad_()
    options = {"k": k, "objective": objective, "reg": (0.1, 0.02)}
    got = mmkernels.cca_loss(x, y, weights=weights, **options)
    wanted = reference.cca_loss(x, y, (0.1, 0.02), objective, k, weights)
    assert got.shape == (2,)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
    for g, t in zip(gradients(got, (x, y, weights)), gradients(wanted, (x, y, weights)), strict=True):
        torch.testing.assert_close(g, t, rtol=1e-8, atol=1e-11)
    repeated = [t.repeat_interleave(counts, 1) for t in (x, y)]
    torch.testing.assert_close(mmkernels.cca_loss(*repeated, **options), got)
    each = [mmkernels.cca_loss(x[b], y[b], weights=weights, **options) for b in range(2)]
    torch.testing.assert_close(torch.stack(each), got)
    per_entry = mmkernels.cca_loss(x, y, weights=torch.stack([weights, torch.ones_like(weights)]), **options)
    torch.testing.assert_close(per_entry[0], got[0])
    torch.testing.assert_close(per_entry[1], mmkernels.cca_loss(x[1], y[1], **options))


@only_tiles
def test_gaussian_mi_is_the_determinants(device):
    x, y = (t.requires_grad_() for t in correlated(40, 5, 3, device))
    got, wanted = -mmkernels.cca_loss(x, y, reg=0, objective="gaussian_mi"), reference.gaussian_mi(x, y)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=0)
    for g, t in zip(gradients(got, (x, y)), gradients(wanted, (x, y)), strict=True):
        torch.testing.assert_close(g, t, rtol=1e-8, atol=1e-12)


@only_tiles
@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_derivatives(objective, k, device):
    x, y = (t.requires_grad_() for t in correlated(7, 2, 3, device))

    def function(x, y):
        return mmkernels.cca_loss(x, y, k, 0.1, objective)

    assert torch.autograd.gradcheck(function, (x, y))
    if k is None and objective != "sum":
        assert torch.autograd.gradgradcheck(function, (x, y))
        return
    first = torch.autograd.grad(function(x, y), (x, y), create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        sum(g.square().sum() for g in first).backward()


@only_tiles
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_repeated_correlations(objective, device):
    """Sums over all of them are differentiable there."""
    x = orthonormal(8, 3, device)
    Q = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, device=device))[0]
    x, y = x.clone().requires_grad_(), (x @ Q).requires_grad_()
    rho = mmkernels.canonical_correlations(x, y, reg=0.1)
    assert rho.max() - rho.min() <= 1e-12
    assert torch.autograd.gradcheck(lambda x, y: mmkernels.cca_loss(x, y, None, 0.1, objective), (x, y))
    for k in (1, 2):  # some of them: finite
        assert all(g.isfinite().all() for g in gradients(mmkernels.cca_loss(x, y, k, 0.1, objective), (x, y)))


@only_tiles
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_correlations_of_zero(objective, device):
    """The kink of the sum has gradient 0."""
    z = orthonormal(9, 4, device)
    x, y = z[:, :2].clone().requires_grad_(), z[:, 2:].clone().requires_grad_()
    for k in (None, 2):
        for g in gradients(mmkernels.cca_loss(x, y, k, 0.1, objective), (x, y)):
            assert g.abs().max() <= 1e-12


@only_tiles
@pytest.mark.parametrize("trial", range(20))
def test_constant_features(trial, device):
    """With reg values and gradients are finite, and those of the dense formula for the other features."""
    torch.manual_seed(trial)
    x, y = correlated(40, 6, 5, device, torch.float32)
    x[:, trial % 6], y[:, 2] = 0.1 * trial, -3.7
    x, y = x.requires_grad_(), y.requires_grad_()
    double = [t.detach().double().requires_grad_() for t in (x, y)]
    for objective in OBJECTIVES:
        for k in (None, 3):
            got = mmkernels.cca_loss(x, y, k, 1e-2, objective)
            wanted = reference.cca_loss(*double, (1e-2, 1e-2), objective, k)
            torch.testing.assert_close(got, wanted.float(), rtol=1e-4, atol=1e-5)
            for t, g, w in zip(double, gradients(got, (x, y)), gradients(wanted, double), strict=True):
                assert g.isfinite().all()
                alive = t.var(0) > 1e-10
                assert alive.sum() == t.shape[1] - 1
                assert (g - w)[:, alive].norm() <= 1e-3 * w[:, alive].norm()
    for g in gradients(mmkernels.cca_loss(x, y), (x, y)):  # the default reg
        assert g.isfinite().all()


@only_tiles
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_fewer_rows_than_features(objective, dtype, device):
    x, y = (t.requires_grad_() for t in correlated(6, 10, 8, device, dtype))
    shrinkages = [{"reg": 0, "shrinkage": 0.3}, {"reg": 0, "shrinkage": "oas"}]
    for options in [{"reg": 0.05}, *(shrinkages if objective != "gaussian_mi" else [])]:
        for k in (None, 2):
            loss = mmkernels.cca_loss(x, y, k, objective=objective, **options)
            assert loss.isfinite()
            assert all(g.isfinite().all() for g in gradients(loss, (x, y)))
    wanted = reference.cca_loss(x.double(), y.double(), (0.05, 0.05), objective)
    got = mmkernels.cca_loss(x, y, reg=0.05, objective=objective)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-3 if dtype == torch.float32 else 1e-10, atol=0)


@only_tiles
def test_singular_covariances(device):
    if device.type != "cpu":
        pytest.skip("elsewhere the result is NaN")
    x, y = correlated(30, 4, 3, device, torch.float32)
    dependent, constant = x.clone(), x.clone()
    dependent[:, 3], constant[:, 3] = x[:, 0] - x[:, 1], 0.1
    for view in (dependent, constant, correlated(30, 40, 3, device, torch.float32)[0]):
        with pytest.raises(ValueError, match=r"covariance of x must be positive definite.*reg"):
            mmkernels.canonical_correlations(view, y)
        with pytest.raises(ValueError, match=r"covariance of y must be positive definite.*reg"):
            mmkernels.cca_loss(y, view, reg=(0.1, 0))
        with pytest.raises(ValueError, match=r"covariance of views\[1\] must be positive definite.*reg"):
            mmkernels.gcca_loss([y, view], reg=[0, 0])
    with pytest.raises(ValueError, match=r"1 - rho\^2 must be positive definite"):
        mmkernels.cca_loss(x, x, reg=0, objective="gaussian_mi")


@only_tiles
@pytest.mark.parametrize("name", ["oas", "ledoit_wolf", 0.4])
def test_shrinkage(name, device):
    from reference.covariance import ledoit_wolf, oas, shrunk

    x, y = correlated(20, 3, 4, device)
    S = torch.cat([x, y], 1).T.cov()
    intensities = [
        {"oas": oas(own, len(t)), "ledoit_wolf": ledoit_wolf(t)}.get(name, name)
        for t, own in ((x, S[:3, :3]), (y, S[3:, 3:]))
    ]
    left, right = (
        reference.inverse_factor(shrunk(own, s)) for own, s in zip((S[:3, :3], S[3:, 3:]), intensities, strict=True)
    )
    got = mmkernels.canonical_correlations(x, y, shrinkage=name)
    torch.testing.assert_close(got, torch.linalg.svdvals(left @ S[:3, 3:] @ right.mT))
    torch.testing.assert_close(mmkernels.canonical_correlations(x, y, shrinkage=(name, name)), got)
    alone = torch.linalg.svdvals(left @ S[:3, 3:] @ reference.inverse_factor(S[3:, 3:]).mT)
    torch.testing.assert_close(mmkernels.canonical_correlations(x, y, shrinkage=(name, None)), alone)
    for loss in (mmkernels.mcca_loss([x, y], reg=0, shrinkage=name), mmkernels.cca_loss(x, y, reg=0, shrinkage=name)):
        torch.testing.assert_close(loss, -got.sum())
    with pytest.raises(ValueError, match=r"'gaussian_mi' takes reg, no shrinkage, got"):
        mmkernels.cca_loss(x, y, objective="gaussian_mi", shrinkage=name)


@only_tiles
def test_missing_views(device):
    """The blocks are those of `covariance`."""
    x, y = correlated(200, 3, 2, device)
    present = [torch.rand(200, device=device) < 0.8, torch.rand(200, device=device) < 0.8]
    holed = [torch.where(p[:, None], t, torch.nan).requires_grad_() for p, t in zip(present, (x, y), strict=True)]
    S = mmkernels.covariance(*holed, present=present)
    T = reference.inverse_factor(S.xx) @ S.xy @ reference.inverse_factor(S.yy).mT
    got = mmkernels.canonical_correlations(*holed, present=present)
    torch.testing.assert_close(got, torch.linalg.svdvals(T))
    for objective in OBJECTIVES:
        for g, p in zip(
            gradients(mmkernels.cca_loss(*holed, present=present, objective=objective), holed), present, strict=True
        ):
            assert g.isfinite().all()
            assert (g[~p] == 0).all()
    both = present[0] & present[1]
    together = mmkernels.canonical_correlations(*holed, present=[both, both])
    torch.testing.assert_close(together, mmkernels.canonical_correlations(x[both], y[both]))

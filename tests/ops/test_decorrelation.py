"""Barlow Twins, VICReg and soft decorrelation against the formulas of their papers."""

import pytest
import torch

import mmkernels
from reference import cca as reference
from tests.accuracy import DTYPES, assert_accurate
from tests.conftest import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="no kernels of its own")
LOSSES = ["barlow_twins_loss", "vicreg_loss", "sdl_loss"]
OPTIONS = {
    "barlow_twins_loss": {"lambd": 0.3, "eps": 0.1},
    "vicreg_loss": {"invariance": 2.0, "variance": 3.0, "covariance": 0.7, "eps": 0.01},
    "sdl_loss": {"lambd": 0.2, "eps": 0.1},
}
SHAPES = [(5, 2), (4, 9), (7, 5), (8, 8), (300, 33), (20, 150)]


def two_views(N, D, dtype, device):
    x = torch.randn(N, D, dtype=torch.float64, device=device)
    return [(0.7 * t + 0.3).to(dtype).requires_grad_() for t in (x, x + 0.5 * torch.randn_like(x))]


def value_and_gradients(loss, views, options):
    value = loss(*views, **options)
    return [value, *torch.autograd.grad(value, views)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_against_the_formula(name, shape, dtype, device):
    """Fewer rows than features take N x N products, the others D x D ones."""
    wide = torch.promote_types(dtype, torch.float32)
    views = two_views(*shape, dtype, device)
    ours, formula = getattr(mmkernels, name), getattr(reference, name)
    for options in ({}, OPTIONS[name]):
        got = value_and_gradients(ours, views, options)
        dense, truth = (
            value_and_gradients(formula, [t.detach().to(d).requires_grad_() for t in views], options)
            for d in (wide, torch.float64)
        )
        assert got[0].dtype == wide
        for g, d, t in zip(got, dense, truth, strict=True):
            assert_accurate(name, g, d.to(g.dtype), t, roundings=32)


@pytest.mark.parametrize("N", [2, 3])
@pytest.mark.parametrize("name", LOSSES)
def test_one_feature(name, N, device):
    views = two_views(N, 1, torch.float64, device)
    got, wanted = (value_and_gradients(getattr(m, name), views, {}) for m in (mmkernels, reference))
    for g, t in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, t, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 2), (3, 5), (6, 3)], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_derivatives(name, shape, device):
    views = two_views(*shape, torch.float64, device)
    loss = getattr(mmkernels, name)
    assert torch.autograd.gradcheck(lambda x, y: loss(x, y, **OPTIONS[name]), views)
    assert torch.autograd.gradgradcheck(lambda x, y: loss(x, y, **OPTIONS[name]), views)


@pytest.mark.parametrize("shape", [(6, 9), (20, 4)], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_constant_features(name, shape, device):
    x, y = two_views(*shape, torch.float32, device)
    x.data[:, 1], y.data[:, 2], y.data[:, 1] = 0.1, -1e4, 3.0
    double = [t.detach().double().requires_grad_() for t in (x, y)]
    loss = getattr(mmkernels, name)(x, y, eps=1e-2)
    wanted = getattr(reference, name)(*double, eps=1e-2)
    torch.testing.assert_close(loss, wanted.float(), rtol=1e-4, atol=0)
    gradients = zip((x, y), torch.autograd.grad(loss, (x, y)), torch.autograd.grad(wanted, double), strict=True)
    for view, g, t in gradients:
        assert g.isfinite().all()
        alive = view.detach().double().var(0) > 1e-10  # |R| has a kink where a feature is constant
        assert (g - t)[:, alive].norm() <= 1e-3 * t[:, alive].norm()
    for g in torch.autograd.grad(getattr(mmkernels, name)(x, y), (x, y)):  # the default eps
        assert g.isfinite().all()
    same = torch.ones(5, 3, device=device, requires_grad=True)
    getattr(mmkernels, name)(same, same).backward()
    assert same.grad.isfinite().all()


def test_standardised_and_uncorrelated_features_lose_nothing(device):
    z = torch.randn(40, 6, dtype=torch.float64, device=device)
    x = torch.linalg.qr(z - z.mean(0))[0] * 40**0.5
    assert mmkernels.barlow_twins_loss(x, x, eps=0) <= 1e-24
    assert mmkernels.sdl_loss(x, x, eps=0) <= 1e-12
    assert mmkernels.vicreg_loss(x, x) <= 1e-24
    assert mmkernels.vicreg_loss(x, -x, invariance=1) == pytest.approx(4)  # mean squared distance, over N D


@pytest.mark.parametrize("shape", [(6, 9), (20, 4)], ids=str)
def test_parts_of_vicreg(shape, device):
    """Each weight alone, and their sum."""
    views = two_views(*shape, torch.float64, device)
    names = ("invariance", "variance", "covariance")
    parts = [mmkernels.vicreg_loss(*views, **(dict.fromkeys(names, 0.0) | {name: 2.0})) for name in names]
    assert all(part > 0 for part in parts)
    torch.testing.assert_close(mmkernels.vicreg_loss(*views, **dict.fromkeys(names, 2.0)), sum(parts))


def test_far_from_the_origin(device):
    """Float32 rows around 1e3 lose no more than their own rounding."""
    views = [t.detach() + 1e3 for t in two_views(50, 8, torch.float32, device)]
    for name in LOSSES:
        got, wanted = getattr(mmkernels, name)(*views), getattr(reference, name)(*(v.double() for v in views))
        assert abs(got - wanted) <= 1e-3 * wanted

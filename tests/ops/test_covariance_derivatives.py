"""Derivatives of covariances, of every order, against finite differences and autograd of the textbook formula."""

import pytest
import torch

import mmkernels
from reference import covariance as reference
from tests.conftest import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="float64, which goes by tiles")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighted", [None, "rows", "batch"])
def test_derivatives(weighted, masked, device):
    x, y = (torch.randn(2, 6, d, dtype=torch.float64, device=device, requires_grad=True) for d in (2, 1))
    shape = {"rows": (6,), "batch": (2, 6)}.get(weighted, (0,))
    weights = (torch.rand(shape, dtype=torch.float64, device=device) + 0.5).requires_grad_()
    present = None
    if masked:
        present = [torch.tensor([1, 1, 0, 1, 1, 1], device=device) > 0, torch.arange(6, device=device) > 0]

    def function(x, y, weights):
        S = mmkernels.covariance(x, y, weights=weights if weighted else None, present=present)
        return S.mean, S.cov

    assert torch.autograd.gradcheck(function, (x, y, weights))
    assert torch.autograd.gradgradcheck(function, (x, y, weights))


def test_derivatives_of_groups(device):
    x, y = (torch.randn(5, 4, dtype=torch.float64, device=device, requires_grad=True) for _ in "xy")
    weights = torch.rand(5, dtype=torch.float64, device=device, requires_grad=True)

    def function(x, y, w):
        return mmkernels.covariance(x, y, groups=2, weights=w, correction=0)[:2]

    assert torch.autograd.gradcheck(function, (x, y, weights))
    assert torch.autograd.gradgradcheck(function, (x, y, weights))


def test_third_derivative(device):
    """Beyond second order the formula is differentiated by autograd itself."""
    x = torch.randn(5, 2, dtype=torch.float64, device=device, requires_grad=True)
    weights = torch.rand(5, dtype=torch.float64, device=device, requires_grad=True)

    def third(cov):
        out = cov.sin().sum()
        for _ in range(2):
            gradients = torch.autograd.grad(out, (x, weights), create_graph=True)
            out = sum(g.sin().sum() for g in gradients)
        return torch.autograd.grad(out, (x, weights))

    got = third(mmkernels.covariance(x, weights=weights).cov)
    for g, t in zip(got, third(reference.covariance(x, weights)[1]), strict=True):
        torch.testing.assert_close(g, t)


def test_only_some_gradients(device):
    x, y, z = (torch.randn(9, d, dtype=torch.float64, device=device) for d in (2, 3, 1))
    y.requires_grad_()
    (got,) = torch.autograd.grad(mmkernels.covariance(x, y, z).xy.square().sum(), y)
    (wanted,) = torch.autograd.grad(torch.cat([x, y], 1).T.cov()[:2, 2:].square().sum(), y)
    torch.testing.assert_close(got, wanted)
    (got,) = torch.autograd.grad(mmkernels.covariance(x, y, z).mean_y.sin().sum(), y)
    torch.testing.assert_close(got, torch.cos(y.mean(0)).expand(9, 3) / 9)

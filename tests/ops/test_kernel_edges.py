"""Edges of kernel products: nothing to sum, near rows, equal rows, short rows, rows far from the origin."""

import pytest
import torch

import mmkernels
from tests.conftest import INTERPRETED
from tests.ops.kernels import KERNELS, STREAMED, data


@pytest.mark.parametrize("name", KERNELS)
def test_gradients_of_nothing(name, device):  # the mean of no rows is NaN: dy was
    kernel, _, options, _ = KERNELS[name]
    x = torch.empty(0, 3, device=device, requires_grad=True)
    y, v = (torch.randn(4, d, device=device, requires_grad=True) for d in (3, 2))
    K, out = mmkernels.kernel_matrix(x, y, kernel, **options), mmkernels.kernel_matmul(x, y, v, kernel, **options)
    first = torch.autograd.grad(K.sum() + out.sum(), (x, y, v), create_graph=True)
    assert all((g == 0).all() for g in first)


def test_gradients_of_nothing_with_a_length_scale_per_feature(device):  # the same, of the length-scales
    y, scale = torch.randn(4, 3, device=device, requires_grad=True), torch.ones(3, device=device, requires_grad=True)
    out = mmkernels.kernel_matmul(y[:0], y, y, length_scale=scale)
    assert all((g == 0).all() for g in torch.autograd.grad(out.sum(), (y, scale)))


def test_length_scales_whose_batch_does_not_fit():  # was a RuntimeError of PyTorch's
    with pytest.raises(ValueError, match=r"length_scale must have leading dimensions that broadcast with \(2,\)"):
        mmkernels.kernel_matrix(torch.randn(2, 6, 4), length_scale=torch.ones(3, 1, 4))


def test_far_from_the_origin_with_a_length_scale_per_feature(device):  # _scaled without centring
    x, y = (torch.randn(100, 16, device=device) + 1e3 for _ in "xy")
    scale = torch.linspace(0.7, 1.5, 16, device=device)
    K = mmkernels.kernel_matrix(x, y, length_scale=scale)
    exact = torch.exp(-0.5 * ((x.double()[:, None] - y.double()) / scale.double()).square().sum(-1))
    assert (K - exact).abs().max() <= 1e-5


def test_cosine_of_short_rows(device):  # a large eps in cosine_rows
    x, y = torch.randn(5, 4, device=device), torch.randn(6, 4, device=device)
    torch.testing.assert_close(mmkernels.cosine_kernel(1e-20 * x, y), mmkernels.cosine_kernel(x, y))
    assert (mmkernels.cosine_kernel(0 * x, y) == 0).all()


def test_near_rows_are_not_equal(device):  # a tolerance of more than four roundings
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], device=device)
    y = x + torch.tensor([0.0, 3e-3], device=device)  # squared distance 9e-6, nineteen times what counts as 0
    d = -mmkernels.energy_kernel(x, y).diagonal()
    assert ((d / 3e-3 - 1).abs() < 0.1).all()


@pytest.mark.skipif(INTERPRETED, reason="float64 goes by tiles")
@pytest.mark.parametrize(
    "name", [n for n in STREAMED if KERNELS[n][0] in ("matern", "energy", "rational_quadratic", "rbf")]
)
def test_second_derivatives_at_equal_rows(name, device):  # distances that are not exactly 0 in the formula
    kernel, _, options, _ = KERNELS[name]
    x = torch.cat([data(4, 3, dtype=torch.float64, device=device) + 50] * 2)
    x[4:] += 1e-9  # equal but for roundings
    x.requires_grad_()
    equal = x.detach().clone()
    equal[4:] = equal[:4]
    equal.requires_grad_()
    results = []
    for leaf in (x, equal):
        (g,) = torch.autograd.grad(
            mmkernels.kernel_matrix(leaf, None, kernel, **options).sin().sum(), leaf, create_graph=True
        )
        results.append(torch.autograd.grad(g.square().sum(), leaf)[0])
    assert results[0].isfinite().all()
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)

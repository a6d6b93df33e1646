"""Generalized and multi-set CCA against their textbook formulas in float64."""

import pytest
import torch

import mmkernels
from reference import cca as reference
from tests.accuracy import WORKING_DTYPES
from tests.conftest import INTERPRETED
from tests.ops.test_cca import correlated, gradients, only_tiles


@only_tiles
@pytest.mark.parametrize("sizes", [(3,), (3, 4, 2)])
@pytest.mark.parametrize("loss", ["gcca_loss", "mcca_loss"])
def test_many_views(loss, sizes, device):
    ours, formula = getattr(mmkernels, loss), getattr(reference, loss)
    common = torch.randn(30, 1, dtype=torch.float64, device=device)
    views = [(common + torch.randn(30, d, dtype=torch.float64, device=device)).requires_grad_() for d in sizes]
    for k in (None, 1):
        for reg in (0.0, 0.2):
            got, wanted = ours(views, k, reg), formula(views, k or min(sizes), reg)
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-11)
            if loss == "mcca_loss" and len(sizes) == 1:
                continue  # a constant
            for g, t in zip(gradients(got, views), gradients(wanted, views), strict=True):
                torch.testing.assert_close(g, t, rtol=1e-6, atol=1e-9)
    counts = torch.randint(1, 4, (30,), device=device)
    repeated = ours([v.repeat_interleave(counts, 0) for v in views])
    torch.testing.assert_close(ours(views, weights=counts.double()), repeated)
    batch = ours([torch.stack([v, v.flip(0) * 2]) for v in views], reg=0)
    torch.testing.assert_close(batch, ours(views, reg=0).expand(2))
    assert torch.autograd.gradcheck(lambda *v: ours(v, 1, 0.1), [v.detach()[:8].requires_grad_() for v in views])
    torch.testing.assert_close(ours(views, reg=[0.3] * len(sizes)), ours(tuple(views), reg=0.3))


@only_tiles
def test_losses_of_many_views_agree(device):
    x, y = correlated(50, 4, 3, device)
    z = correlated(50, 3, 3, device)[0]
    cca = mmkernels.cca_loss(x, y, reg=0.1)
    torch.testing.assert_close(mmkernels.mcca_loss([x, y], reg=0.1), cca)
    torch.testing.assert_close(mmkernels.gcca_loss([x, y], reg=0), mmkernels.mcca_loss([x, y], reg=0) - 3)
    torch.testing.assert_close(mmkernels.gcca_loss([x, y, z], 2, 0), mmkernels.mcca_loss([x, y, z], 2, 0) - 2)
    mixed = [z @ torch.randn(3, 3, dtype=z.dtype, device=device) for _ in range(4)]
    torch.testing.assert_close(mmkernels.gcca_loss(mixed, reg=0), torch.tensor(-12.0, dtype=z.dtype, device=device))
    torch.testing.assert_close(mmkernels.mcca_loss(mixed, reg=0), torch.tensor(-9.0, dtype=z.dtype, device=device))


@pytest.mark.parametrize("dtype", WORKING_DTYPES)
@pytest.mark.parametrize("loss", ["gcca_loss", "mcca_loss"])
def test_many_views_in_few_bits(loss, dtype, device):
    rounded = dtype != torch.float32 and (INTERPRETED or device.type != "cpu")
    views = [t.requires_grad_() for t in (*correlated(70, 4, 3, device, dtype), *correlated(70, 2, 2, device, dtype))]
    views[3].data[:, 0] = 0.1  # a constant feature
    double = [t.detach().double().requires_grad_() for t in views]
    got, wanted = getattr(mmkernels, loss)(views, 2, 0.1), getattr(reference, loss)(double, 2, 0.1)
    assert got.dtype == torch.float32
    assert (got - wanted).abs() <= (4 * torch.finfo(dtype).eps if rounded else 1e-5) * wanted.abs()
    for v, (g, t) in enumerate(zip(gradients(got, views), gradients(wanted, double), strict=True)):
        assert g.isfinite().all()
        alive = slice(1, None) if v == 3 else slice(None)
        bound = max(32 * torch.finfo(dtype).eps, 1e-4)
        assert (g.double() - t)[:, alive].norm() <= bound * t[:, alive].norm()


@only_tiles
def test_second_derivatives_of_many_views_are_refused(device):
    views = [t.requires_grad_() for t in correlated(9, 2, 3, device)]
    for loss in (mmkernels.gcca_loss, mmkernels.mcca_loss, lambda v: mmkernels.canonical_correlations(*v).sum()):
        first = torch.autograd.grad(loss(views), views, create_graph=True)
        with pytest.raises(RuntimeError, match="first derivatives only"):
            first[0].square().sum().backward()

"""Matrix-based entropies of any order: eigenvalues, one sweep, and Lanczos within its error bar."""

import math

import pytest
import torch

import mmkernels
from tests.conftest import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="products and sweeps have tests of their own")


def textbook(views, gammas, alpha):
    A = torch.ones((), dtype=torch.float64)
    for x, g in zip(views, gammas, strict=True):
        A = A * torch.exp(-g * torch.cdist(x, x).square())
    values = torch.linalg.eigvalsh(A / len(views[0])).clamp(min=0)
    values = values[values > 0]
    if alpha == 1:
        return -(values * values.log()).sum()
    return (values**alpha).sum().log() / (1 - alpha)


def data(n=80, sizes=(3,)):
    return [torch.randn(n, d, dtype=torch.float64) for d in sizes]


@pytest.mark.parametrize("alpha", [0.5, 1, 1.01, 2, 3.5])
@pytest.mark.parametrize("sizes", [(3,), (2, 4)])
def test_exact(alpha, sizes):
    views, gammas = data(sizes=sizes), [0.3, 0.2][: len(sizes)]
    result = mmkernels.renyi_entropy(views, alpha, gamma=gammas)
    torch.testing.assert_close(result.value, textbook(views, gammas, alpha), atol=1e-9, rtol=1e-9)
    assert result.error == 0
    alone = mmkernels.renyi_entropy(views[0], alpha, gamma=0.3)
    torch.testing.assert_close(alone.value, textbook(views[:1], gammas[:1], alpha), atol=1e-9, rtol=1e-9)


def test_orders_near_1_meet():
    x = data()[0]
    values = [mmkernels.renyi_entropy(x, alpha, gamma=0.3).value.item() for alpha in (0.999, 1, 1.001)]
    assert values[0] > values[1] > values[2]
    assert values[0] - values[2] < 0.01


def test_between_0_and_the_logarithm_of_the_rows():
    same, apart = torch.ones(50, 2), 1e3 * torch.arange(50.0)[:, None]
    for alpha in (0.7, 1, 2):
        assert mmkernels.renyi_entropy(same, alpha, gamma=1.0).value.item() == pytest.approx(0, abs=1e-4)
        assert mmkernels.renyi_entropy(apart, alpha, gamma=1.0).value.item() == pytest.approx(math.log(50), abs=1e-4)


@pytest.mark.parametrize("alpha", [0.5, 1, 1.5, 3])
@pytest.mark.parametrize("sizes", [(3,), (2, 4)])
def test_lanczos_is_within_its_error(alpha, sizes):
    views, gammas = data(400, sizes), [0.3, 0.2][: len(sizes)]
    truth = textbook(views, gammas, alpha).item()
    result = mmkernels.renyi_entropy(views, alpha, "lanczos", gamma=gammas, probes=64, steps=60)
    assert abs(result.value.item() - truth) < 5 * result.error.item() + 1e-3
    assert 0 < result.error.item() < 0.05
    again = mmkernels.renyi_entropy(views, alpha, "lanczos", gamma=gammas, probes=64, steps=60)
    assert torch.equal(again.value, result.value)


def test_as_many_steps_as_rows_leave_no_error_of_quadrature():
    """Of a multiple of the identity every probe gives the same."""
    apart = 1e3 * torch.arange(20.0, dtype=torch.float64)[:, None]
    result = mmkernels.renyi_entropy(apart, 1.5, "lanczos", gamma=1.0, steps=100)
    assert result.value.item() == pytest.approx(math.log(20))
    assert result.error.item() == pytest.approx(0, abs=1e-12)


def test_gradients():
    x = data(12)[0].requires_grad_()
    for alpha in (1.5, 2):
        assert torch.autograd.gradcheck(lambda x, a=alpha: mmkernels.renyi_entropy(x, a, gamma=0.3).value, x)
    with pytest.raises(NotImplementedError, match="Lanczos estimates have no gradient"):
        mmkernels.renyi_entropy(x, 1.5, "lanczos")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "alpha must be finite and in"),
        ({"method": "hutch"}, "method must be one of"),
        ({"kernel": "energy"}, r"kernels with k\(x, x\) = 1"),
        ({"alpha": 1.5, "method": "lanczos", "probes": 1}, "probes must be at least 3"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        mmkernels.renyi_entropy(data()[0], **options)


def test_the_error_of_lanczos_is_honest(device):
    """Within five errors of the truth for orders small, near 1 and large; rows that repeat too."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, generator=g, dtype=torch.float64).to(device)
    for rows in (x, x[:70].repeat(3, 1)):
        for alpha in (0.3, 0.9, 1.0, 1.0001, 1.5, 20.0):
            truth = mmkernels.renyi_entropy(rows, alpha, "eigenvalues").value
            for seed in range(3):
                found = mmkernels.renyi_entropy(rows, alpha, "lanczos", probes=16, seed=seed)
                assert (found.value - truth).abs() <= 8 * found.error + 1e-9
                assert found.error <= (0.6 if alpha == 0.3 else 5e-3)


def test_orders_where_rounding_counts(device):
    """Many small eigenvalues, an order next to 1, and eigenvalues whose powers are no numbers."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 1, generator=g).to(device)
    for alpha in (0.1, 0.3, 1 + 1e-6):
        wide = mmkernels.renyi_entropy(x.double(), alpha, gamma=0.5).value
        torch.testing.assert_close(mmkernels.renyi_entropy(x, alpha, gamma=0.5).value.double(), wide, rtol=1e-5, atol=0)
    far = 1e3 * torch.arange(300.0, device=device)[:, None]  # the identity
    for method in ("eigenvalues", "lanczos"):
        value = mmkernels.renyi_entropy(far, 30, method, gamma=1.0).value
        assert value.item() == pytest.approx(math.log(300), rel=1e-5)


def test_several_views_by_lanczos_take_bandwidths_from_the_data(device):
    g = torch.Generator().manual_seed(0)
    views = [torch.randn(150, 2, generator=g).to(device) for _ in range(2)]
    for gamma in ("median", "scale"):
        truth = mmkernels.renyi_entropy(views, 1.5, "eigenvalues", gamma=gamma).value
        found = mmkernels.renyi_entropy(views, 1.5, "lanczos", gamma=gamma)
        assert (found.value - truth).abs() <= 6 * found.error + 1e-4


def test_lanczos_has_no_gradient_in_gamma_either(device):
    gamma = torch.tensor(0.5, device=device, requires_grad=True)
    with pytest.raises(NotImplementedError, match="no gradient"):
        mmkernels.renyi_entropy(torch.randn(20, 2, device=device), 1.5, "lanczos", gamma=gamma)

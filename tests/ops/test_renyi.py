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
        ({"alpha": 1.5, "method": "lanczos", "probes": 1}, "probes must be at least 2"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        mmkernels.renyi_entropy(data()[0], **options)

"""Variational bounds: streamed against stored scores, closed forms of the optimal critic, gradients."""

import math

import pytest
import torch

from mmkernels.ops import bounds
from tests.conftest import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the log-sum-exp kernel has tests of its own")

STORED = ("info_nce", "dv", "nwj", "smile", "js", "club")


def embedded(n=40, d=5, dtype=torch.float64, device="cpu"):
    x, y = torch.randn(2, n, d, dtype=dtype, device=device)
    return x.requires_grad_(), (0.7 * x.detach() + y).requires_grad_()


def streamed(name):
    return bounds.info_nce_bound if name == "info_nce" else getattr(bounds, name)


def textbook(f, name, clip=5.0):
    """The formulas, from all scores."""
    n = len(f)
    off = f[~torch.eye(n, dtype=torch.bool)]
    p = f.diagonal()
    softplus = torch.nn.functional.softplus
    return {
        "info_nce": lambda: math.log(n) + (p - f.logsumexp(1)).mean(),
        "dv": lambda: p.mean() - off.exp().mean().log(),
        "nwj": lambda: p.mean() - off.exp().mean() / math.e,
        "smile": lambda: p.mean() - off.clamp(-clip, clip).exp().mean().log(),
        "js": lambda: -softplus(-p).mean() - softplus(off).mean(),
        "club": lambda: p.mean() - f.mean(),
        "tuba": lambda: 1 + p.mean() - off.exp().mean(),
    }[name]()


@pytest.mark.parametrize("name", [*STORED, "tuba"])
def test_streamed_stored_and_textbook(name, device):
    x, y = embedded(device=device)
    scale = torch.tensor(0.6, dtype=torch.float64, device=device, requires_grad=True)
    f = scale * x @ y.T
    wanted = textbook(f, name)
    got = [streamed(name)(x, y, scale=scale)]
    if name != "tuba":
        got.append(bounds.of_scores(f, name))
    for value in got:
        torch.testing.assert_close(value, wanted)
        for a, b in zip(
            torch.autograd.grad(value, (x, y, scale), retain_graph=True),
            torch.autograd.grad(wanted, (x, y, scale), retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("name", [*STORED, "tuba"])
def test_second_derivatives(name, device):
    x, y = embedded(6, 3, device=device)
    function = streamed(name)
    assert torch.autograd.gradgradcheck(lambda x, y: function(x, y, scale=0.5), (x, y))


def test_single_precision_and_16_bit(device):
    x, y = (t.detach() for t in embedded(200, 8, device=device))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.2)):
        for name in ("info_nce", "dv", "js", "smile"):
            wanted = textbook(x @ y.T, name)
            got = streamed(name)(x.to(dtype), y.to(dtype))
            assert got.dtype == torch.float32
            torch.testing.assert_close(got.double(), wanted, atol=tolerance, rtol=tolerance)


def test_clamping_counts(device):
    x, y = (10 * t.detach() for t in embedded(device=device))
    torch.testing.assert_close(bounds.smile(x, y, 2.0), textbook(x @ y.T, "smile", 2.0))
    torch.testing.assert_close(bounds.of_scores(x @ y.T, "smile", clip=2.0), textbook(x @ y.T, "smile", 2.0))
    assert bounds.smile(x, y, 2.0) > bounds.dv(x, y)


def test_a_baseline_of_each_column(device):
    x, y = (t.detach() for t in embedded(device=device))
    a = torch.randn(40, dtype=torch.float64, device=device, requires_grad=True)
    f = x @ y.T
    off = ~torch.eye(40, dtype=torch.bool, device=device)
    wanted = 1 + (f.diagonal() - a).mean() - ((f - a).exp() * off).sum() / (40 * 39)
    got = bounds.tuba(x, y, a)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(torch.autograd.grad(got, a), torch.autograd.grad(wanted, a))
    torch.testing.assert_close(bounds.tuba(x, y, 1.0), bounds.nwj(x, y))


def test_the_gradient_of_mine(device):
    x, y = embedded(device=device)
    average = 1.3
    value = bounds.mine(x, y, average)
    torch.testing.assert_close(value, bounds.dv(x, y))
    f = x @ y.T
    off = f[~torch.eye(40, dtype=torch.bool, device=device)]
    surrogate = f.diagonal().mean() - off.exp().mean() / math.exp(average)
    for a, b in zip(torch.autograd.grad(value, (x, y)), torch.autograd.grad(surrogate, (x, y)), strict=True):
        torch.testing.assert_close(a, b)
    current = (off.exp().mean().log()).item()
    for a, b in zip(
        torch.autograd.grad(bounds.mine(x, y, current), (x, y)),
        torch.autograd.grad(bounds.dv(x, y), (x, y)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_values_of_the_optimal_critic(device):
    """Of a Gaussian pair with correlation rho the log density ratio is known, and so is the information."""
    rho, n = 0.7, 3000
    x = torch.randn(n, 1, dtype=torch.float64, device=device)
    y = rho * x + math.sqrt(1 - rho**2) * torch.randn(n, 1, dtype=torch.float64, device=device)
    truth = -0.5 * math.log(1 - rho**2)
    inverse = 1 / (1 - rho**2)
    ratio = truth - 0.5 * inverse * (rho**2 * (x**2 + y.T**2) - 2 * rho * x @ y.T)
    assert bounds.of_scores(ratio, "dv").item() == pytest.approx(truth, abs=0.05)
    assert bounds.of_scores(ratio + 1, "nwj").item() == pytest.approx(truth, abs=0.05)
    assert bounds.of_scores(ratio, "info_nce").item() == pytest.approx(truth, abs=0.05)
    assert bounds.of_scores(ratio, "smile", clip=20.0).item() == pytest.approx(truth, abs=0.05)
    conditional = -0.5 * inverse * (y.T - rho * x) ** 2
    assert bounds.of_scores(conditional, "club").item() >= truth


def test_info_nce_is_at_most_the_logarithm_of_the_pairs(device):
    x = 100 * torch.eye(16, dtype=torch.float64, device=device)
    assert bounds.info_nce_bound(x, x).item() == pytest.approx(math.log(16))


def test_errors(device):
    x, y = (t.detach() for t in embedded(device=device))
    for bad in (lambda: bounds.dv(x, y[:-1]), lambda: bounds.nwj(x[:1], y[:1])):
        with pytest.raises(ValueError, match="same shape and at least 2 rows"):
            bad()
    with pytest.raises(ValueError, match="clip must be"):
        bounds.smile(x, y, 0.0)
    with pytest.raises(
        ValueError, match=r"log_baseline must be 0-dimensional or of shape \(N,\) = \(40,\), got \(3,\)"
    ):
        bounds.tuba(x, y, torch.zeros(3))
    with pytest.raises(ValueError, match="scores must be square"):
        bounds.of_scores(x, "dv")
    with pytest.raises(ValueError, match="bound must be one of"):
        bounds.of_scores(x @ y.T, "tuba")
    with pytest.raises(TypeError, match="must be float16"):
        bounds.js(x.long(), y.long())


def test_mine_at_scores_beyond_the_exponential(device):
    x, y = embedded(device=device)
    value = bounds.mine(x, y, 0.0, scale=500.0)
    torch.testing.assert_close(value, bounds.dv(x, y, scale=500.0))
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in torch.autograd.grad(value, (x, y)))
    for bad, error in ((torch.zeros(3, device=device), ValueError), (torch.tensor(1j, device=device), TypeError)):
        with pytest.raises(error, match="log_average must"):
            bounds.mine(x, y, bad)
    single = bounds.mine(x.detach().float(), y.detach().float(), torch.zeros((), dtype=torch.float64, device=device))
    assert single.dtype == torch.float32

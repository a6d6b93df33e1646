"""Trained critics: close to the true information of a Gaussian pair, and nothing where there is nothing."""

import math

import pytest
import torch

from mmkernels.models import mi_estimator
from mmkernels.models.mi_estimator import ConcatCritic, SeparableCritic, estimate_mi


def pair(rho, n=3000, d=2):
    generator = torch.Generator().manual_seed(1)
    x, noise = torch.randn(2, n, d, generator=generator)
    return x, rho * x + math.sqrt(1 - rho**2) * noise, -0.5 * d * math.log(1 - rho**2)


@pytest.mark.parametrize("bound", ["info_nce", "dv", "mine", "nwj", "smile", "js"])
def test_close_to_the_truth(bound):
    x, y, truth = pair(0.8)
    result = estimate_mi(x, y, bound=bound, max_steps=400, lr=1e-3)
    assert result.value == pytest.approx(truth, abs=0.3)
    assert result.value == max(result.history)
    assert isinstance(result.critic, SeparableCritic)


def test_one_network_for_both():
    x, y, truth = pair(0.8, 600)
    result = estimate_mi(x, y, "concat", batch_size=64, max_steps=150, evaluate_every=50, lr=2e-3)
    assert result.value == pytest.approx(truth, abs=0.45)
    assert isinstance(result.critic, ConcatCritic)


def test_independent_variables_have_none():
    """What a critic memorises of the training rows does not show on held-out ones."""
    x, y = torch.randn(2, 400, 3, generator=torch.Generator().manual_seed(2))
    result = estimate_mi(x, y, max_steps=600, evaluate_every=20, patience=5, lr=2e-3)
    assert result.value < 0.05
    assert result.steps < 600


def test_reproducible_and_alone():
    x, y, _ = pair(0.5, 200)
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    first = estimate_mi(x, y, max_steps=20, evaluate_every=10)
    assert torch.equal(torch.rand(1), wanted)
    assert estimate_mi(x, y, max_steps=20, evaluate_every=10).history == first.history


def test_a_critic_of_ones_own():
    x, y, truth = pair(0.8)

    class Quadratic(torch.nn.Module):
        """The log density ratio of normal pairs, in closed form."""

        def __init__(self):
            super().__init__()
            self.rho = torch.nn.Parameter(torch.tensor(0.1))

        def forward(self, x, y):
            inverse = 1 / (1 - self.rho**2)
            squares = x.square().sum(1)[:, None] + y.square().sum(1)
            return -0.5 * inverse * (self.rho**2 * squares - 2 * self.rho * x @ y.T) - torch.log(1 - self.rho**2)

    result = estimate_mi(x, y, Quadratic(), "dv", max_steps=300, lr=0.02)
    assert result.value == pytest.approx(truth, abs=0.12)
    with pytest.raises(ValueError, match="'mine' takes a critic of embedded rows"):
        estimate_mi(x, y, Quadratic(), "mine", max_steps=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bound": "club"}, "bound must be one of"),
        ({"critic": "mlp"}, "critic must be one of"),
        ({"held_out": 1.0}, "held_out must be finite and in"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"patience": 0}, "patience must be at least 1"),
    ],
)
def test_options(options, message):
    x, y, _ = pair(0.5, 50)
    with pytest.raises(ValueError, match=message):
        estimate_mi(x, y, **options)


def test_input():
    x, y, _ = pair(0.5, 50)
    with pytest.raises(ValueError, match="same number of rows, at least 10, got 50 and 49"):
        estimate_mi(x, y[1:])
    with pytest.raises(TypeError, match="must both be float32 or float64"):
        estimate_mi(x.half(), y.half())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_in_any_mode(mode):
    x, y, _ = pair(0.8, 300)
    options = {"max_steps": 40, "evaluate_every": 20}
    wanted = estimate_mi(x, y, **options).history
    with mode():
        assert estimate_mi(x, y, **options).history == wanted


def test_a_critic_is_left_as_it_was():
    x, y, _ = pair(0.8, 300)
    critic = SeparableCritic(2, 2, hidden=8)
    before = [p.detach().clone() for p in critic.parameters()]
    result = estimate_mi(x, y, critic, max_steps=20, evaluate_every=10)
    assert all(torch.equal(p, b) for p, b in zip(critic.parameters(), before, strict=True))
    assert critic.training
    assert not all(torch.equal(p, b) for p, b in zip(result.critic.parameters(), before, strict=True))


def test_the_seed_of_other_devices_is_left_alone(monkeypatch):
    x, y, _ = pair(0.8, 100)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("reseeded CUDA"))
    estimate_mi(x, y, max_steps=2)


def test_evaluation_of_all_pairs_in_parts():
    x, y, _ = pair(0.5, 900)
    critic = ConcatCritic(2, 2, hidden=4)
    with torch.no_grad():
        torch.testing.assert_close(mi_estimator._in_parts(critic, x, y), critic(x, y))


def test_what_can_not_be_trained_on():
    x, y, _ = pair(0.5, 100)
    for bad in (torch.nan, torch.inf):
        broken = x.clone()
        broken[3, 0] = bad
        with pytest.raises(ValueError, match="x must be finite"):
            estimate_mi(broken, y)
    with pytest.raises(ValueError, match="parameters that require gradients"):
        estimate_mi(x, y, torch.nn.Bilinear(2, 2, 1).requires_grad_(False))
    with pytest.raises(ValueError, match="seed must be in"):
        estimate_mi(x, y, seed=2**70)

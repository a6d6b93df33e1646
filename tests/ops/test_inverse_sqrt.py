"""Inverse square roots against eigenvectors in float64, with gradients where eigenvalues repeat."""

import pytest
import torch

import mmkernels
from mmkernels.autograd import inverse_sqrt as autograd
from reference import covariance as reference
from tests.accuracy import assert_accurate
from tests.conftest import INTERPRETED

only_tiles = pytest.mark.skipif(INTERPRETED, reason="float64, or nothing that the kernels serve")
SYMMETRIC = ["eigh", "newton_schulz"]


def orthogonal(D, device, dtype=torch.float64):
    return torch.linalg.qr(torch.randn(D, D, dtype=dtype, device=device))[0]


def with_eigenvalues(values, device):
    """A symmetric matrix with these eigenvalues."""
    Q = orthogonal(len(values), device)
    S = (Q * torch.tensor(values, dtype=torch.float64, device=device)) @ Q.T
    return (S + S.T) / 2


def symmetrised(function):
    return lambda S: function((S + S.mT) / 2)


REPEATED = {"identity": [1.0, 1.0, 1.0], "two": [2.0, 2.0, 0.5], "none": [3.0, 1.0, 0.4]}


@only_tiles
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["eigh", "newton_schulz", "cholesky"])
@pytest.mark.parametrize("D", [1, 2, 17, 60])
def test_inverse_sqrt(D, method, dtype, device):
    S = torch.randn(3, 1, 2 * D + 3, D, dtype=torch.float64, device=device)
    S = (S.mT @ S / (2 * D)).to(dtype)
    got = mmkernels.inverse_sqrt(S, method)
    dense = reference.inverse_factor if method == "cholesky" else reference.inverse_sqrt
    assert_accurate(method, got, dense(S), dense(S.double()), roundings=8 * D)
    identity = torch.eye(D, dtype=dtype, device=device)
    assert (got @ S @ got.mT - identity).abs().max() <= 100 * D * torch.finfo(dtype).eps
    if method == "cholesky":
        assert (got.triu(1) == 0).all()
    else:
        torch.testing.assert_close(got, got.mT)


@only_tiles
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["eigh", "newton_schulz"])
@pytest.mark.parametrize("condition", [1e1, 1e3, 1e5])
def test_condition_numbers(condition, method, dtype, device):
    """The relative error is some roundings times the condition number, as that of the dense formula is."""
    values = torch.logspace(0, -torch.tensor(condition).log10().item(), 20, dtype=torch.float64).tolist()
    S = with_eigenvalues(values, device).to(dtype)
    truth = reference.inverse_sqrt(S.double())
    error = (mmkernels.inverse_sqrt(S, method) - truth).norm() / truth.norm()
    assert error <= 10 * condition * torch.finfo(dtype).eps


@only_tiles
@pytest.mark.parametrize("method", ["eigh", "newton_schulz", "cholesky"])
@pytest.mark.parametrize("name", REPEATED)
def test_derivatives_of_inverse_sqrt(name, method, device):
    """Against finite differences, at repeated eigenvalues too."""
    S = with_eigenvalues(REPEATED[name], device).requires_grad_()
    function = symmetrised(lambda S: mmkernels.inverse_sqrt(S, method))
    assert torch.autograd.gradcheck(function, S)
    assert torch.autograd.gradgradcheck(function, S)


@only_tiles
@pytest.mark.parametrize("method", SYMMETRIC)
def test_derivatives_in_batches(method, device):
    S = torch.stack([with_eigenvalues(v, device) for v in REPEATED.values()])[:2, None].requires_grad_()
    function = symmetrised(lambda S: mmkernels.inverse_sqrt(S, method))
    assert torch.autograd.gradcheck(function, S)
    assert torch.autograd.gradgradcheck(function, S)


@only_tiles
@pytest.mark.parametrize("method", SYMMETRIC)
def test_gradients_of_ill_conditioned_matrices(method, device):
    """The gradient of trace(P C) by its formula in the eigenbasis."""
    values = torch.logspace(0, -3, 12, dtype=torch.float64, device=device)
    Q, C = orthogonal(12, device), torch.randn(12, 12, dtype=torch.float64, device=device)
    S = ((Q * values) @ Q.T).requires_grad_()
    (got,) = torch.autograd.grad((mmkernels.inverse_sqrt((S + S.T) / 2, method) * C).sum(), S)
    roots = values.sqrt()
    F = -1 / (roots[:, None] * roots * (roots[:, None] + roots))
    wanted = Q @ (F * (Q.T @ ((C + C.T) / 2) @ Q)) @ Q.T
    assert (got - wanted).norm() <= 1e-8 * wanted.norm()


@only_tiles
def test_a_fixed_number_of_steps(device):
    S = with_eigenvalues([2.0, 2.0, 0.5], device).requires_grad_()

    def five(S):
        return mmkernels.inverse_sqrt(S, "newton_schulz", iterations=5)

    assert torch.autograd.gradcheck(symmetrised(five), S)
    assert torch.autograd.gradgradcheck(symmetrised(five), S)
    # IterNorm's recurrence P <- (3 P - P^3 S) / 2, of the matrix over its norm
    A, P = S.detach() / S.detach().norm(), torch.eye(3, dtype=S.dtype, device=device)
    for _ in range(5):
        P = 1.5 * P - 0.5 * P @ P @ P @ A
    torch.testing.assert_close(five(S), P / S.detach().norm().sqrt())
    exact = reference.inverse_sqrt(S.detach())
    errors = [(mmkernels.inverse_sqrt(S.detach(), "newton_schulz", iterations=k) - exact).norm() for k in (1, 3, 5, 20)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] <= 1e-12


@only_tiles
def test_newton_schulz_that_does_not_converge(device, monkeypatch):
    """A warning, and what eigenvectors give."""
    monkeypatch.setattr(autograd, "STEPS", 5)
    S = with_eigenvalues([1.0, 0.3, 1e-4], device).requires_grad_()
    with pytest.warns(UserWarning, match=r"did not converge in 5 steps.*torch.float64.*eigenvectors are used"):
        got = mmkernels.inverse_sqrt(S, "newton_schulz")
    wanted = mmkernels.inverse_sqrt(S)
    assert torch.equal(got, wanted)
    (one,), (other,) = (torch.autograd.grad(W.square().sum(), S) for W in (got, wanted))
    assert torch.equal(one, other)


@only_tiles
@pytest.mark.parametrize("values", [[1.0, 0.0, 2.0], [1.0, -0.5, 2.0], [0.0, 0.0, 0.0]], ids=str)
def test_singular_matrices(values, device):
    if device.type != "cpu":
        pytest.skip("elsewhere the result is NaN")
    S = torch.diag(torch.tensor(values))
    for method in ("eigh", "cholesky"):
        with pytest.raises(ValueError, match="must be positive definite"):
            mmkernels.inverse_sqrt(S, method)
    with pytest.warns(UserWarning, match="did not converge"), pytest.raises(ValueError, match="positive definite"):
        mmkernels.inverse_sqrt(S, "newton_schulz")

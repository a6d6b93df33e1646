"""KernelOperator.solve: residuals, gradients of first and second order, failures that say what to do."""

import pytest
import torch

import mmkernels
from mmkernels.ops import _solve
from mmkernels.ops.operator import KernelOperator
from tests.conftest import INTERPRETED
from tests.ops.test_operator import CLOSE, DTYPE, KERNELS, ids, rows

pytestmark = pytest.mark.skipif(INTERPRETED, reason="made of products and matrices, thousands of launches")
POSITIVE = [case for case in KERNELS if case[0] not in ("sigmoid", "energy")]


@pytest.mark.parametrize(("kernel", "parameters"), POSITIVE, ids=ids(POSITIVE))
@pytest.mark.parametrize("rank", [0, 20])
def test_solve_reaches_its_tolerance(kernel, parameters, rank, device):
    """The residual, by the dense matrix in float64, and the solution, in float32."""
    x, b = rows(device, 200, 3, dtype=torch.float32), rows(device, 200, 3, dtype=torch.float32)
    b[:, 1] = 0
    solution = _solve.solve(KernelOperator(x, kernel=kernel, diag=0.1, **parameters), b, 1e-6, 1000, rank)
    K = mmkernels.kernel_matrix(x.double(), kernel=kernel, **parameters) + 0.1 * torch.eye(200, device=device)
    exact = torch.linalg.solve(K, b.double())
    assert solution.residual <= 1e-6
    error = (solution.x - exact).norm(dim=0)
    assert (error <= 2e-5 * exact.norm(dim=0)).all()
    assert solution.x.dtype == torch.float32


def test_a_preconditioner_saves_iterations(device):
    K, b = KernelOperator(rows(device, 300, 2), diag=1e-2), rows(device, 300)
    plain, better = (_solve.solve(K, b, 1e-6, 1000, rank).iterations for rank in (0, 50))
    assert better < plain / 4
    seen = []
    solution = _solve.solve(K, b, 1e-6, 1000, 50, lambda *state: seen.append(state))
    assert [i for i, _ in seen] == list(range(1, solution.iterations + 1))
    assert solution.iterations == better  # the same again
    torch.testing.assert_close(K @ solution.x, b, rtol=0, atol=1e-4)


def test_solve_of_every_shape(device):
    K = KernelOperator(rows(device, 3, 1, 20, 2), diag=torch.rand(2, 20, device=device, dtype=DTYPE) + 1)
    assert K.shape == (3, 2, 20, 20)
    for b in (rows(device, 20, 4), rows(device, 5, 1, 1, 20, 1)):
        expected = K.dense().inverse() @ b
        torch.testing.assert_close(K.solve(b, tol=1e-12).x, expected, **CLOSE)
    assert KernelOperator(rows(device, 0, 2), diag=1.0).solve(rows(device, 0)).x.shape == (0,)
    assert KernelOperator(rows(device, 5, 2), diag=1.0).solve(rows(device, 5, 0)).x.shape == (5, 0)


def test_solve_in_16_bit_is_that_of_the_rows_in_float32(device):
    x, b = rows(device, 100, 3, dtype=torch.float16), rows(device, 100, dtype=torch.float16)
    x16, x32 = (KernelOperator(t, diag=0.5).solve(b.to(t.dtype)).x for t in (x, x.float()))
    assert x16.dtype == torch.float32
    torch.testing.assert_close(x16, x32)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert torch.equal(KernelOperator(x.float(), diag=0.5).solve(b.float()).x, x32)


def test_solve_without_diag(device):
    """A Laplacian kernel interpolates."""
    x, b = rows(device, 100, 3), rows(device, 100)
    K = KernelOperator(x, kernel="laplacian")
    torch.testing.assert_close(K @ K.solve(b).x, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", ["rbf", "matern"])
def test_gradients_of_solve(kernel, device):
    x, b = rows(device, 7, 2).requires_grad_(), rows(device, 7, 2).requires_grad_()
    scale = torch.tensor(1.3, device=device, dtype=DTYPE, requires_grad=True)
    diag = (torch.rand(7, device=device, dtype=DTYPE) + 0.5).requires_grad_()

    def f(x, b, scale, diag):
        K = KernelOperator(x, kernel=kernel, length_scale=scale, diag=diag, **{"nu": 2.5} if kernel == "matern" else {})
        return K.solve(b, tol=1e-13, rank=3).x

    assert torch.autograd.gradcheck(f, (x, b, scale, diag))
    assert torch.autograd.gradgradcheck(f, (x, b, scale, diag))


def test_functional_gradient_of_solve(device):
    """A loss linear in the solution, whose second derivative must not lose the solve's own."""
    x, b = rows(device, 7, 2), rows(device, 7)

    def loss(scale, dense):
        K = KernelOperator(x, length_scale=scale, diag=0.5)
        return (torch.linalg.solve(K.dense(), b) if dense else K.solve(b, tol=1e-13).x).sum()

    scale = torch.tensor(1.3, device=device, dtype=DTYPE)
    for derivative in (torch.func.grad(loss), torch.func.grad(torch.func.grad(loss))):
        torch.testing.assert_close(derivative(scale, False), derivative(scale, True), **CLOSE)


def test_no_gradient_that_nobody_asked_for(device):
    x = rows(device, 20, 2)
    b = rows(device, 20).requires_grad_()
    K = KernelOperator(x, diag=1.0)
    (gradient,) = torch.autograd.grad(K.solve(b).x.sum(), b)
    torch.testing.assert_close(gradient, K.solve(torch.ones_like(b)).x, rtol=1e-4, atol=1e-5)
    assert not K.solve(b.detach()).x.requires_grad


def test_failures_say_what_to_do(device):
    x, b = rows(device, 200, 2, dtype=torch.float32), rows(device, 200, dtype=torch.float32)
    with pytest.raises(
        _solve.ConvergenceError, match=r"after 3 iterations, above tol = 1.0e-06; give more it"
    ) as error:
        KernelOperator(x, diag=1e-3).solve(b, max_iter=3, rank=0)
    assert error.value.solution.iterations == 3
    assert error.value.solution.residual > 1e-6
    assert error.value.solution.x.shape == (200,)
    with pytest.raises(_solve.ConvergenceError, match="not positive definite"):
        KernelOperator(x, kernel="energy").solve(b)
    with pytest.raises(_solve.ConvergenceError, match=r"fall no further|not positive definite"):
        KernelOperator(x, diag=1e-7).solve(b, tol=1e-12)
    with pytest.raises(_solve.ConvergenceError, match="NaN or infinity"):
        KernelOperator(x, diag=1.0).solve(b * torch.nan)

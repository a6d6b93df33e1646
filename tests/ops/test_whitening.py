"""Whitening against the formulas of each method, with gradients where eigenvalues repeat."""

import pytest
import torch
from sklearn.covariance import ledoit_wolf, oas

import mmkernels
from mmkernels.ops.whitening import METHODS
from reference import covariance as reference
from tests.conftest import INTERPRETED
from tests.ops.test_inverse_sqrt import SYMMETRIC, orthogonal

only_tiles = pytest.mark.skipif(INTERPRETED, reason="float64, or nothing that the kernels serve")


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32] if INTERPRETED else [torch.float32, torch.float64])
def test_whitened_rows_have_the_identity_for_a_covariance(dtype, method, groups, device):
    deviations = torch.logspace(0, -1, 6, dtype=dtype, device=device)  # condition number 100
    x = torch.randn(2, 90, 6, dtype=dtype, device=device) * deviations @ orthogonal(6, device, dtype) + 3
    z = mmkernels.whiten(x, method, groups=groups)
    assert z.shape == x.shape
    assert z.dtype == dtype
    D = 6 // groups
    for g in range(groups):
        part = z[..., g * D : (g + 1) * D]
        assert part.mean(-2).abs().max() <= 1e-4
        cov = reference.covariance(part)[1]
        assert (cov - torch.eye(D, dtype=dtype, device=device)).abs().max() <= 1e3 * torch.finfo(dtype).eps
        torch.testing.assert_close(part, mmkernels.whiten(x[..., g * D : (g + 1) * D], method), rtol=1e-3, atol=1e-3)


@only_tiles
@pytest.mark.parametrize("reg", [0.0, 0.3])
@pytest.mark.parametrize("method", METHODS)
def test_whitening_against_the_formula(method, reg, device):
    x = torch.randn(3, 40, 5, dtype=torch.float64, device=device) @ torch.randn(
        5, 5, dtype=torch.float64, device=device
    )
    torch.testing.assert_close(mmkernels.whiten(x, method, reg=reg), reference.whiten(x, method, reg))
    if method in ("zca", "zca_cor"):
        torch.testing.assert_close(
            mmkernels.whiten(x, method, reg=reg, solver="newton_schulz"), reference.whiten(x, method, reg)
        )


@only_tiles
@pytest.mark.parametrize("solver", SYMMETRIC)
@pytest.mark.parametrize("method", METHODS)
def test_derivatives_of_whitening(method, solver, device):
    if solver != "eigh" and method not in ("zca", "zca_cor"):
        pytest.skip("eigenvectors and factors alone")
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, device=device)
    x = (torch.randn(7, 3, dtype=torch.float64, device=device) * scale).requires_grad_()

    def function(x):
        return mmkernels.whiten(x, method, reg=0.1, solver=solver)

    assert torch.autograd.gradcheck(function, x)
    if method != "pca":
        assert torch.autograd.gradgradcheck(function, x)


@only_tiles
def test_second_derivatives_of_pca_are_refused(device):
    x = torch.randn(7, 3, dtype=torch.float64, device=device, requires_grad=True)
    (first,) = torch.autograd.grad(mmkernels.whiten(x, "pca").sin().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        first.square().sum().backward()


def with_equal_variances(N, D, device):
    """Rows whose covariance is a multiple of the identity."""
    z = torch.randn(N, D, dtype=torch.float64, device=device)
    return torch.linalg.qr(z - z.mean(0))[0]


@only_tiles
@pytest.mark.parametrize(
    "options", [{}, {"groups": 2}, {"reg": 0.1}, {"shrinkage": 0.2}, {"shrinkage": "oas"}], ids=str
)
@pytest.mark.parametrize("method", ["zca", "cholesky", "zca_cor"])
def test_derivatives_where_eigenvalues_repeat(method, options, device):
    x = (with_equal_variances(7, 4, device) * 2).requires_grad_()

    def function(x):
        return mmkernels.whiten(x, method, **options)

    assert torch.autograd.gradcheck(function, x)


@only_tiles
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pca_has_a_finite_gradient_where_eigenvalues_repeat(dtype, device):
    x = with_equal_variances(9, 4, device).to(dtype).requires_grad_()
    z = mmkernels.whiten(x, "pca")
    assert (z.T.cov() - torch.eye(4, dtype=dtype, device=device)).abs().max() <= 1e-5
    (gradient,) = torch.autograd.grad(z.square().sum() + z.sin().sum(), x)
    assert gradient.isfinite().all()
    S = with_equal_variances(9, 4, device).to(dtype)
    S = torch.block_diag(torch.eye(3, dtype=dtype), 4 * torch.eye(2, dtype=dtype)).to(device)
    x = (torch.linalg.cholesky(S) @ with_equal_variances(30, 5, device).to(dtype).T).T.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(mmkernels.whiten(x, "pca").sin().sum(), x)
    assert gradient.isfinite().all()
    assert gradient.norm() < 1e3


@only_tiles
def test_pca_comes_in_the_order_of_variances(device):
    scale = torch.tensor([1.0, 5.0, 0.2], device=device)
    x = torch.randn(500, 3, device=device) * scale
    z = mmkernels.whiten(x, "pca")
    correlation = torch.cat([x, z], 1).T.corrcoef()[:3, 3:]
    assert (correlation.abs().argmax(0) == torch.tensor([1, 0, 2], device=device)).all()
    assert (correlation.gather(0, correlation.abs().argmax(0, keepdim=True)) > 0.9).all()


@only_tiles
@pytest.mark.parametrize(("name", "theirs"), [("oas", oas), ("ledoit_wolf", ledoit_wolf)])
@pytest.mark.parametrize(("N", "D"), [(40, 6), (8, 20), (300, 3)])
def test_shrinkage_is_scikit_learns(N, D, name, theirs, device):
    x = torch.randn(N, D, dtype=torch.float64, device=device) * torch.linspace(0.5, 2, D, device=device)
    shrunk, intensity = theirs(x.cpu().numpy())
    ours = reference.ledoit_wolf(x) if name == "ledoit_wolf" else reference.oas(x.T.cov(correction=0), N)
    assert abs(ours.item() - intensity) <= 1e-12
    # scikit-learn divides by N; the intensity of oas is not of the same covariance, but of a multiple of it
    wanted = reference.shrunk(x.T.cov(), intensity)
    torch.testing.assert_close(wanted * (N - 1) / N, torch.as_tensor(shrunk, device=device), rtol=1e-10, atol=1e-12)
    z = mmkernels.whiten(x, "cholesky", shrinkage=name)
    L = torch.linalg.cholesky(wanted)
    torch.testing.assert_close(z, torch.linalg.solve_triangular(L, (x - x.mean(0)).T, upper=False).T)
    batch = mmkernels.whiten(torch.stack([x, 2 * x]), "cholesky", shrinkage=name)
    torch.testing.assert_close(batch, torch.stack([z, z]))


@only_tiles
@pytest.mark.parametrize("name", ["oas", "ledoit_wolf", 0.3])
def test_derivatives_of_shrinkage(name, device):
    x = torch.randn(6, 3, dtype=torch.float64, device=device, requires_grad=True)

    def function(x):
        return mmkernels.whiten(x, shrinkage=name)

    assert torch.autograd.gradcheck(function, x)


@only_tiles
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{"reg": 0.1}, {"shrinkage": 0.5}, {"shrinkage": "oas"}], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_fewer_rows_than_features(method, options, dtype, device):
    x = torch.randn(5, 12, dtype=dtype, device=device)
    x[:, 3] = 1.5  # and a constant one
    x.requires_grad_()
    z = mmkernels.whiten(x, method, **options)
    assert z.isfinite().all()
    z.sin().sum().backward()
    assert x.grad.isfinite().all()
    if device.type == "cpu":
        with pytest.raises(ValueError, match="must be positive definite"):
            mmkernels.whiten(x, method)


@only_tiles
@pytest.mark.parametrize("method", METHODS)
def test_constant_and_dependent_features(method, device):
    if device.type != "cpu":
        pytest.skip("elsewhere the result is NaN")
    x = torch.randn(50, 4, device=device)
    for last in (torch.full((50,), 0.1, device=device), x[:, 0] + x[:, 1]):
        x[:, 3] = last
        with pytest.raises(ValueError, match=r"must be positive definite.*shrinkage"):
            mmkernels.whiten(x, method)


@pytest.mark.parametrize("dtype", [torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16])
def test_16_bit(dtype, device):
    x = (torch.randn(100, 5, device=device) @ torch.randn(5, 5, device=device) * 0.5 + 1).to(dtype)
    z = mmkernels.whiten(x)
    assert z.dtype == dtype
    wanted = reference.whiten(x.double(), "zca")
    # the kernels round centred rows to 16 bits before they multiply them
    slack = 8 if INTERPRETED or x.is_cuda else 1
    assert (z - wanted).abs().max() <= slack * torch.finfo(dtype).eps * wanted.abs().max()


@only_tiles
def test_options(device):
    x, S = torch.randn(9, 4, device=device), torch.eye(3, device=device)
    for call, message in (
        (lambda: mmkernels.whiten(x, "ica"), "method must be one of 'zca'.*got 'ica'"),
        (lambda: mmkernels.whiten(x, solver="qr"), "solver must be one of 'eigh', 'newton_schulz', got 'qr'"),
        (
            lambda: mmkernels.whiten(x, "pca", solver="newton_schulz"),
            "belongs to 'zca' and 'zca_cor', got method 'pca'",
        ),
        (lambda: mmkernels.whiten(x, iterations=5), "iterations belong to 'newton_schulz', got 5 and 'eigh'"),
        (lambda: mmkernels.whiten(x, solver="newton_schulz", iterations=0), "iterations must be at least 1, got 0"),
        (lambda: mmkernels.whiten(x, groups=3), r"groups must divide the number of features, got 3 and shape \(9, 4\)"),
        (lambda: mmkernels.whiten(x[:1]), r"more than 1 row\(s\), got shape \(1, 4\)"),
        (lambda: mmkernels.inverse_sqrt(S, "qr"), "method must be one of 'eigh'.*got 'qr'"),
        (lambda: mmkernels.inverse_sqrt(S, iterations=5), "iterations belong to 'newton_schulz', got 5 and 'eigh'"),
        (lambda: mmkernels.inverse_sqrt(S[:2]), r"cov must be square.*got shape \(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match=r"cov must be float32 or float64, got torch\.float16"):
        mmkernels.inverse_sqrt(S.half())
    assert mmkernels.inverse_sqrt(S.expand(0, 3, 3)).shape == (0, 3, 3)

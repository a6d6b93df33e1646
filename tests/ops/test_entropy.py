"""Entropy against the textbook estimators, the entropies of known densities, and what holds for every sample."""

import math

import pytest
import torch

import mmkernels
from reference import information as reference
from reference import kernel as kernels
from tests.conftest import INTERPRETED

entropy = mmkernels.entropy
DIFFERENTIAL = [("gaussian", {}), ("knn", {}), ("knn", {"norm": "euclidean"}), ("kde", {})]
in_float64 = pytest.mark.skipif(INTERPRETED, reason="no Triton kernel serves float64")


def sample(N, D, device, dtype=torch.float64):
    """Correlated normal rows, not about 0."""
    x = torch.randn(N, D, dtype=torch.float64, device=device)
    return (x @ (torch.eye(D, dtype=x.dtype, device=device) + 0.3) + 2).to(dtype)


def assert_equal(got, wanted):
    assert got.ndim == 0
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@in_float64
@pytest.mark.parametrize("D", [1, 3, 15])
def test_the_textbook_estimators(D, device):
    x = sample(60, D, device)
    assert_equal(entropy(x, "gaussian"), reference.gaussian_entropy(x))
    for norm in ("max", "euclidean"):
        for k in (1, 3, 59):
            assert_equal(entropy(x, k=k, norm=norm), reference.kozachenko_leonenko(x, k, norm == "euclidean"))
    assert_equal(entropy(x, "kde"), reference.kde_entropy(x, reference.scott(x)))
    widths = torch.linspace(0.4, 0.9, D, dtype=x.dtype, device=device)
    for given in (0.7, widths[0], widths):
        h = torch.as_tensor(given, dtype=x.dtype, device=device).expand(D)
        assert_equal(entropy(x, "kde", bandwidth=given), reference.kde_entropy(x, h))


@in_float64
def test_regularised(device):
    x = torch.cat([sample(60, 2, device)] * 2, 1)
    with pytest.raises(ValueError, match="positive definite"):
        entropy(x, "gaussian")
    S = x.mT.cov() + 0.5 * torch.eye(4, dtype=x.dtype, device=device)
    wanted = 0.5 * torch.linalg.slogdet(2 * math.pi * math.e * S)[1]
    assert_equal(entropy(x, "gaussian", reg=0.5), wanted)


@in_float64
@pytest.mark.parametrize(
    ("kernel", "gamma", "parameters"),
    [
        ("rbf", 0.3, {}),
        ("laplacian", 0.2, {}),
        ("matern", None, {"length_scale": 2.0, "nu": 1.5}),
        ("cosine", None, {}),
    ],
)
def test_matrix_based(kernel, gamma, parameters, device):
    x = sample(60, 3, device)
    options = parameters | ({} if gamma is None else {"gamma": torch.tensor(gamma, dtype=x.dtype, device=device)})
    K = getattr(kernels, kernel)(x, x, **options)
    got = entropy(x, "renyi", kernel=kernel, gamma=gamma, parameters=parameters)
    assert_equal(got, reference.matrix_renyi([K]))
    assert_equal(got, reference.matrix_renyi([K], base=2) * math.log(2))
    assert 0 < got < math.log(60)


@in_float64
def test_matrix_based_limits(device):
    x = sample(40, 2, device)
    assert abs(entropy(x, "renyi", gamma=1e6) - math.log(40)) < 1e-12  # every row unlike all others
    assert abs(entropy(x, "renyi", gamma=1e-12)) < 1e-9  # all alike


@in_float64
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize(("method", "options"), DIFFERENTIAL)
def test_normal_data(method, options, D, device):
    """Within four standard deviations of a mean of N log densities, and the bias of a bandwidth."""
    x = torch.randn(4000, D, dtype=torch.float64, device=device)
    truth = D / 2 * math.log(2 * math.pi * math.e)
    assert abs(entropy(x, method, **options) - truth) < 4 * math.sqrt(D / 2 / 4000) + 0.01 * D


@in_float64
@pytest.mark.parametrize("D", [1, 2])
def test_uniform_data(D, device):
    x = torch.rand(4000, D, dtype=torch.float64, device=device)
    assert abs(entropy(x)) < 0.05
    assert 0 < entropy(x, "kde") < 0.1 * D  # its kernels reach beyond the edges
    assert abs(entropy(x, "gaussian") - D / 2 * math.log(2 * math.pi * math.e / 12)) < 0.05  # more than that of x, 0


@in_float64
@pytest.mark.parametrize(("method", "options"), DIFFERENTIAL)
def test_shift_and_scale(method, options, device):
    x = sample(80, 3, device)
    value = entropy(x, method, **options)
    torch.testing.assert_close(entropy(x + 100, method, **options), value)
    torch.testing.assert_close(entropy(2.5 * x, method, **options), value + 3 * math.log(2.5))
    order = torch.randperm(80, device=device)
    torch.testing.assert_close(entropy(x[order], method, **options), value)
    torch.testing.assert_close(entropy(x.flip(1), method, **options), value)


@in_float64
@pytest.mark.parametrize(("method", "options"), [*DIFFERENTIAL, ("renyi", {"gamma": 0.3})])
def test_gradients(method, options, device):
    x = sample(20, 2, device).requires_grad_()
    if method == "kde":
        options = options | {"bandwidth": 0.6}  # "scott" is held fixed
    assert torch.autograd.gradcheck(lambda x: entropy(x, method, **options), (x,))
    if method != "knn":
        assert torch.autograd.gradgradcheck(lambda x: entropy(x, method, **options), (x,))


@in_float64
@pytest.mark.parametrize(
    ("method", "name", "shape"), [("kde", "bandwidth", ()), ("kde", "bandwidth", (2,)), ("renyi", "gamma", ())]
)
def test_gradients_of_parameters(method, name, shape, device):
    x = sample(20, 2, device).requires_grad_()
    p = (torch.rand(shape, dtype=x.dtype, device=device) + 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, p: entropy(x, method, **{name: p}), (x, p))


@in_float64
def test_scott_is_detached(device):
    x = sample(30, 2, device).requires_grad_()
    fixed = reference.scott(x.detach())
    wanted, got = (torch.autograd.grad(entropy(x, "kde", bandwidth=h), x)[0] for h in (fixed, "scott"))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("method", "options"), [*DIFFERENTIAL, ("renyi", {"gamma": 0.3})])
def test_other_dtypes(method, options, dtype, device):
    x = sample(70, 2, device, dtype)
    got = entropy(x, method, **options)
    assert got.dtype == torch.float32
    # 16-bit rows less their mean are rounded again in a Triton kernel
    triton = dtype == torch.float16 and (INTERPRETED or device.type == "cuda")
    wanted = entropy(x.double(), method, **options)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=5e-4 if triton else 2e-5)


@in_float64
def test_equal_rows(device):
    x = sample(20, 2, device)
    x = torch.cat([x, x, x])
    if device.type == "cpu":
        with pytest.raises(ValueError, match=r"60 row\(s\) coincide with their 2 nearest"):
            entropy(x, k=2)
    assert entropy(x, k=3).isfinite()
    assert entropy(x, "kde").isfinite()


@in_float64
def test_labels(device):
    labels = torch.tensor([3, 3, -1, 7], device=device)
    wanted = torch.tensor(1.5 * math.log(2), dtype=torch.float64, device=device)
    for t in (labels, labels.to(torch.uint8), labels.int()):
        assert_equal(entropy(t), wanted)
    many = torch.randint(0, 9, (500,), device=device) // 2
    assert_equal(entropy(many), reference.plug_in_entropy(many))
    assert entropy(torch.zeros(5, dtype=torch.int64, device=device)) == 0


X = torch.randn(9, 2)


@in_float64
@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (X.numpy(), {}, TypeError, "x must be a torch.Tensor, got ndarray"),
        (X[0], {}, ValueError, r"x must have 2 dimension\(s\), got shape \(2,\)"),
        (X[None], {}, ValueError, r"x must have 2 dimension\(s\), got shape \(1, 9, 2\)"),
        (X.int(), {}, TypeError, "x must be float16.*got torch.int32"),
        (X[:, :0], {}, ValueError, "x must have at least one feature"),
        (X[:1], {}, ValueError, r"at least 2 row\(s\) must be given, got shape \(1, 2\)"),
        (X, {"method": "ksg1"}, ValueError, "method must be one of 'gaussian'.*got 'ksg1'"),
        (X, {"k": 9}, ValueError, r"k must be in \[1, 8\], got 9"),
        (X, {"k": 0}, ValueError, r"k must be in \[1, 8\], got 0"),
        (X, {"k": 2.0}, TypeError, "k must be an int, got float"),
        (X, {"norm": "l1"}, ValueError, "norm must be one of 'max', 'euclidean', got 'l1'"),
        (X, {"method": "kde", "bandwidth": 0.0}, ValueError, "bandwidth must be finite and in"),
        (X, {"method": "kde", "bandwidth": "best"}, ValueError, "bandwidth must be one of 'scott', got 'best'"),
        (X, {"method": "kde", "bandwidth": X[0, :1]}, ValueError, r"bandwidth must be .* \(D,\) = \(2,\), got \(1,\)"),
        (X, {"method": "kde", "bandwidth": X}, ValueError, r"bandwidth must be .* \(D,\) = \(2,\), got \(9, 2\)"),
        (X, {"method": "kde", "bandwidth": X[0].int()}, TypeError, "bandwidth must be float16.*got torch.int32"),
        (X, {"method": "gaussian", "reg": -1.0}, ValueError, r"reg must be finite and in \[0, inf\), got -1"),
        (X, {"method": "renyi", "kernel": "linear"}, ValueError, r"kernels with k\(x, x\) = 1, got 'linear'"),
        (X, {"method": "renyi", "gamma": torch.ones(2)}, ValueError, "one gamma for each view, got 2"),
        (X[:, 0].bool(), {}, TypeError, "x must be an integer tensor, got torch.bool"),
        (X[:1, 0].int(), {}, ValueError, "at least 2 rows must be given, got 1"),
        (X[:, 0].int(), {"method": "kde"}, ValueError, "labels have one estimate and no method.*got 'kde'"),
    ],
)
def test_errors(x, options, error, message):
    with pytest.raises(error, match=message):
        entropy(x, **options)

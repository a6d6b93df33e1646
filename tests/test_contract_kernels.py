"""What kernel products promise beside their numbers: derivatives, torch.compile, operators, autocast, errors."""

import pytest
import torch

import mmkernels
from tests.conftest import INTERPRETED
from tests.ops.kernels import KERNELS, STREAMED, parameters

pytestmark = pytest.mark.skipif(INTERPRETED, reason="float64 goes by tiles, and tracing does not enter the interpreter")


def doubles(device, *shapes):
    return [torch.randn(s, dtype=torch.float64, device=device, requires_grad=True) for s in shapes]


def function_of(name, itself, product):
    kernel, numbers, options, _ = KERNELS[name]

    def function(x, *rest):
        rest = list(rest)
        y = None if itself else rest.pop(0)
        v = rest.pop(0) if product else None
        values = dict(zip(numbers, rest, strict=True)) | options
        return (
            mmkernels.kernel_matmul(x, y, v, kernel, **values)
            if product
            else mmkernels.kernel_matrix(x, y, kernel, **values)
        )

    return function


@pytest.mark.parametrize("product", [True, False])
@pytest.mark.parametrize("itself", [True, False])
@pytest.mark.parametrize("name", KERNELS)
def test_first_and_second_derivatives(name, itself, product, device):
    values = [t.requires_grad_() for t in parameters(name, torch.float64, device).values()]
    tensors = doubles(device, (5, 3)) + ([] if itself else doubles(device, (4, 3)))
    tensors += doubles(device, (5 if itself else 4, 2)) if product else []
    function = function_of(name, itself, product)
    assert torch.autograd.gradcheck(function, (*tensors, *values))
    assert torch.autograd.gradgradcheck(function, (*tensors, *values), atol=1e-4)


def test_third_derivative(device):
    x, v = doubles(device, (4, 2), (4,))
    gamma = torch.tensor(0.7, dtype=torch.float64, device=device, requires_grad=True)

    def third(loss):
        for _ in range(3):
            (g,) = torch.autograd.grad(loss, x, create_graph=True)
            loss = g.sin().sum()
        return loss

    dense = torch.exp(-gamma * (x[:, None] - x).square().sum(-1)) @ v
    ours = mmkernels.kernel_matmul(x, None, v, gamma=gamma)
    torch.testing.assert_close(third(ours.square().sum()), third(dense.square().sum()))


def test_torch_func(device):
    x, y, v = (t.detach() for t in doubles(device, (9, 4), (7, 4), (7, 2)))

    def ours(x):
        return mmkernels.kernel_matmul(x, y, v).sin().sum()

    def dense(x):
        return (torch.exp(-(x[:, None] - y).square().sum(-1) / 4) @ v).sin().sum()

    torch.testing.assert_close(torch.func.grad(ours)(x), torch.func.grad(dense)(x))
    direction = torch.randn_like(x)
    twice = [torch.func.grad(lambda x, f=f: (torch.func.grad(f)(x) * direction).sum())(x) for f in (ours, dense)]
    torch.testing.assert_close(*twice)


@pytest.mark.parametrize("itself", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kernel", ["rbf", "sigmoid", "laplacian"])
def test_operators(kernel, dtype, itself, device):
    wide = torch.promote_types(dtype, torch.float32)
    x, y, v = (torch.randn(2, n, d, device=device).to(dtype) for n, d in ((9, 5), (7, 5), (9 if itself else 7, 3)))
    y = None if itself else y
    gamma, coef = torch.rand(2, 1, device=device, dtype=wide), torch.rand(2, device=device, dtype=wide)
    ops = torch.ops.mmkernels
    out, K = ops.matmul_fwd(x, y, v, gamma, coef, kernel, 1), ops.gram_fwd(x, y, gamma, coef, kernel, 1)
    checked = torch.library.opcheck(ops.matmul_fwd.default, (x, y, v, gamma, coef, kernel, 1))
    checked |= torch.library.opcheck(ops.gram_fwd.default, (x, y, gamma, coef, kernel, 1))
    for needs in ([True] * 5, [True, False, False, False, False], [False, True, True, False, True]):
        arguments = (x, y, v, gamma, coef, kernel, 1, out, needs)
        checked |= torch.library.opcheck(ops.matmul_bwd.default, arguments)
        arguments = (x, y, gamma, coef, kernel, 1, K, needs[1:])
        checked |= torch.library.opcheck(ops.gram_bwd.default, arguments)
    assert set(checked.values()) == {"SUCCESS"}


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend, device):
    torch._dynamo.reset()

    def step(x, y, v, log_gamma):
        product = mmkernels.kernel_matmul(x, y, v, gamma=log_gamma.exp(), normalize="rows")
        return product.sum() + mmkernels.kernel_matrix(x, kernel="matern", nu=2.5).sum()

    compiled = torch.compile(step, fullgraph=True, backend=backend)
    log_gamma = torch.tensor(-1.0, device=device, requires_grad=True)
    for N in (16, 24, 40):
        x, y, v = (torch.randn(N, d, device=device, requires_grad=True) for d in (4, 4, 2))
        wanted, got = step(x, y, v, log_gamma), compiled(x, y, v, log_gamma)
        torch.testing.assert_close(got, wanted)
        tensors = (x, y, v, log_gamma)
        for a, b in zip(torch.autograd.grad(got, tensors), torch.autograd.grad(wanted, tensors), strict=True):
            torch.testing.assert_close(a, b)


def test_compile_with_itself(device):
    torch._dynamo.reset()
    x = torch.randn(16, 8, device=device, requires_grad=True)
    step = lambda x: mmkernels.kernel_matmul(x, x, x).sum()  # noqa: E731
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    (got,), (wanted,) = (torch.autograd.grad(f(x), x) for f in (compiled, step))
    torch.testing.assert_close(got, wanted)


def test_autocast(device):
    """Operands are cast as a matrix product's are; results stay in float32."""
    x, y, v = (torch.randn(n, d, device=device) for n, d in ((9, 4), (7, 4), (7, 2)))
    half = [t.bfloat16() for t in (x, y, v)]
    with torch.autocast(device.type, dtype=torch.bfloat16):
        product, K = mmkernels.kernel_matmul(x, y, v), mmkernels.kernel_matrix(x, y, "cosine")
    assert product.dtype == K.dtype == torch.float32
    assert torch.equal(product, mmkernels.kernel_matmul(*half))
    assert torch.equal(K, mmkernels.kernel_matrix(*half[:2], "cosine"))


X, V = torch.randn(6, 3), torch.randn(6, 2)
WRONG = [
    (lambda: mmkernels.kernel_matrix(X, kernel="gauss"), ValueError, "kernel must be one of 'linear'.*got 'gauss'"),
    (lambda: mmkernels.kernel_matrix(X, kernel="rbf", degree=3), TypeError, "rbf kernel has no parameter 'degree'"),
    (lambda: mmkernels.kernel_matrix(X, kernel="energy", gamma=1), TypeError, "energy kernel has no parameter"),
    (lambda: mmkernels.kernel_matrix(X.numpy()), TypeError, "x must be a torch.Tensor, got ndarray"),
    (lambda: mmkernels.kernel_matrix(X.long()), TypeError, "x must be float16"),
    (lambda: mmkernels.kernel_matrix(X[0]), ValueError, r"at least 2 dimensions .*got shape \(3,\)"),
    (lambda: mmkernels.kernel_matrix(X[:, :0]), ValueError, "at least one feature"),
    (lambda: mmkernels.kernel_matrix(X, X[:, :2]), ValueError, "as many features as x"),
    (lambda: mmkernels.kernel_matrix(X, X.double()), TypeError, "y must have x's dtype"),
    (lambda: mmkernels.kernel_matrix(X, X.to("meta")), ValueError, "y must be on x's device"),
    (lambda: mmkernels.kernel_matrix(X.expand(2, 6, 3), X.expand(3, 6, 3)), ValueError, "broadcast"),
    (lambda: mmkernels.kernel_matrix(X, gamma=0), ValueError, r"gamma must be finite and in \(0, inf\), got 0"),
    (lambda: mmkernels.kernel_matrix(X, gamma=float("nan")), ValueError, "gamma must be finite"),
    (lambda: mmkernels.kernel_matrix(X, gamma="auto"), ValueError, "gamma must be one of 'scale', 'median'"),
    (lambda: mmkernels.kernel_matrix(X, gamma=[]), ValueError, "at least one bandwidth"),
    (lambda: mmkernels.kernel_matrix(X, gamma=[1.0, -1.0]), ValueError, r"gamma\[1\] must be finite"),
    (lambda: mmkernels.kernel_matrix(X, gamma=torch.ones(2, 2)), ValueError, r"0-dimensional or of shape \(\*batch"),
    (lambda: mmkernels.kernel_matrix(X, gamma=torch.tensor(1)), TypeError, "gamma must be float16"),
    (lambda: mmkernels.rbf_kernel(X, gamma=1.0, length_scale=1.0), ValueError, "either gamma or length_scale"),
    (lambda: mmkernels.rbf_kernel(X, length_scale=torch.ones(2)), ValueError, r"\(D,\).*D = 3, got shape \(2,\)"),
    (lambda: mmkernels.polynomial_kernel(X, degree=2.5), TypeError, "degree must be an int"),
    (lambda: mmkernels.polynomial_kernel(X, degree=0), ValueError, "degree must be at least 1"),
    (lambda: mmkernels.polynomial_kernel(X, gamma="median"), ValueError, "gamma must be one of 'scale'"),
    (lambda: mmkernels.matern_kernel(X, nu=1.0), ValueError, "nu must be 0.5, 1.5 or 2.5, got 1.0"),
    (lambda: mmkernels.rational_quadratic_kernel(X, alpha=-1), ValueError, "alpha must be finite"),
    (lambda: mmkernels.kernel_matmul(X, None, V[:4]), ValueError, r"as many rows as K has columns, 6, got shape"),
    (lambda: mmkernels.kernel_matmul(X, None, V.double()), TypeError, "v must have x's dtype"),
    (lambda: mmkernels.kernel_matmul(X, None, "v"), TypeError, "v must be a torch.Tensor"),
    (lambda: mmkernels.kernel_matmul(X, X[:4], V[:4], diag=1.0), ValueError, "diag needs a square .*got 6 x 4"),
    (lambda: mmkernels.kernel_matmul(X, None, V, diag=torch.ones(4)), ValueError, "diag must be .* N = 6"),
    (lambda: mmkernels.kernel_matmul(X, None, V, normalize="columns"), ValueError, "normalize must be one of 'rows'"),
    (lambda: mmkernels.kernel_matmul(X, None, normalize="rows"), ValueError, "give v"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[str(k) for k in range(len(WRONG))])
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_names_of_kernels():
    assert {KERNELS[name][0] for name in STREAMED} | {"linear", "cosine"} == {
        name.removesuffix("_kernel") for name in mmkernels.__all__ if name.endswith("_kernel")
    }

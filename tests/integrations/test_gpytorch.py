"""gpytorch with streaming kernels: the same matrices, gradients, training loss and predictions."""

import sys

import pytest
import torch

gpytorch = pytest.importorskip("gpytorch")

from mmkernels.integrations import gpytorch as ours  # noqa: E402
from tests.conftest import INTERPRETED  # noqa: E402

pytestmark = [
    pytest.mark.skipif(INTERPRETED, reason="double precision goes by tiles"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:linear_operator"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gpytorch"),
]
KERNELS = [("RBFKernel", {}), ("RQKernel", {}), ("PolynomialKernel", {"power": 3})] + [
    ("MaternKernel", {"nu": nu}) for nu in (0.5, 1.5, 2.5)
]
ARD = [(name, options) for name, options in KERNELS if name != "PolynomialKernel"]


def pair(name, **options):
    """Our kernel and gpytorch's, in float64 with the same parameters, none of them a default."""
    kernels = [getattr(module, name)(**options).double() for module in (ours, gpytorch.kernels)]
    for kernel in kernels:
        torch.manual_seed(1)
        for parameter in kernel.parameters():
            parameter.data.normal_(std=0.5)
    return kernels


def check_same(mine, theirs, x, y=None):
    """Values, products, and gradients of parameters and inputs."""
    results = []
    for kernel in (mine, theirs):
        a = x.clone().requires_grad_()
        b = None if y is None else y.clone().requires_grad_()
        v = torch.linspace(-1, 1, (x if y is None else y).shape[-2] * 2, dtype=x.dtype).view(-1, 2)
        product = kernel(a, b) @ v
        gradients = torch.autograd.grad(product.sin().sum(), [a, *kernel.parameters()] + ([] if b is None else [b]))
        results.append([kernel(x, y).to_dense(), product, *gradients])
        if y is None:
            results[-1].append(kernel(x, diag=True))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("name", "options"), KERNELS, ids=str)
def test_kernels(name, options):
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)
    check_same(*pair(name, **options), x, y)
    if options.get("nu") != 0.5:  # gpytorch's own gradient has no limit at distance 0
        check_same(*pair(name, **options), x)


@pytest.mark.parametrize(("name", "options"), ARD, ids=str)
def test_a_length_scale_per_feature_and_per_batch(name, options):
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)
    check_same(*pair(name, ard_num_dims=3, **options), x, y)
    check_same(*pair(name, batch_shape=torch.Size([2]), **options), x.expand(2, 12, 3), y.expand(2, 9, 3))
    check_same(*pair(name, active_dims=(0, 2), **options), x, y)


def test_parts_of_the_matrix():
    mine, theirs = pair("RBFKernel")
    x = torch.randn(12, 3, dtype=torch.float64)
    torch.testing.assert_close(mine(x)[2:5, 1:7].to_dense(), theirs(x).to_dense()[2:5, 1:7])
    torch.testing.assert_close(mine(x)[3, 4], theirs(x).to_dense()[3, 4])
    torch.testing.assert_close(mine(x, x[:4]).mT.to_dense(), theirs(x[:4], x).to_dense())


def test_one_side_detached():
    """Both sides share their numbers, not their gradients."""
    x = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    v = torch.randn(12, 2, dtype=torch.float64)
    for left, right in ((x, x.detach()), (x.detach(), x), (x, x)):
        one, other = (torch.autograd.grad((kernel(left, right) @ v).sin().sum(), x) for kernel in pair("RBFKernel"))
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("power", [0, 1.5, 2.0])
def test_a_power_that_is_no_integer(power):
    check_same(*pair("PolynomialKernel", power=power), torch.rand(12, 3, dtype=torch.float64))


@pytest.mark.parametrize("combine", ["sum", "prod"])
def test_sums_and_products_are_exact(combine):
    x, y, v = (torch.randn(n, 3, dtype=torch.float64) for n in (40, 9, 40))
    ours_and_theirs = zip(pair("RBFKernel", active_dims=(0,)), pair("MaternKernel", active_dims=(1, 2)), strict=True)
    results = []
    for a, b in ours_and_theirs:
        kernel = a + b if combine == "sum" else a * b
        with gpytorch.settings.max_cholesky_size(0):  # where linear_operator prefers approximations
            results.append((kernel(x) @ v, kernel(y, x) @ v, kernel(x).to_dense()))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_products_have_the_dtype_of_the_inputs():
    x = torch.randn(12, 3, dtype=torch.bfloat16)
    kernel = ours.RBFKernel().bfloat16()
    assert (kernel(x) @ x).dtype == kernel(x).to_dense().dtype == torch.bfloat16


def test_without_gpytorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "gpytorch", None)
    monkeypatch.delitem(sys.modules, "mmkernels.integrations.gpytorch")
    with pytest.raises(ImportError, match=r"pip install 'mmkernels\[integrations\]'"):
        import mmkernels.integrations.gpytorch  # noqa: F401


class Regression(gpytorch.models.ExactGP):
    def __init__(self, x, y, kernel):
        super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood())
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(kernel)

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def trained(kernel, x, y, steps):
    """The last loss, its gradients, and predictions."""
    torch.manual_seed(0)
    model = Regression(x, y, kernel).double()
    marginal = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -marginal(model(x), y)
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        predicted = model(x[::7] + 0.05)
    return [loss.detach(), *(p.grad for p in model.parameters()), predicted.mean, predicted.variance]


@pytest.mark.parametrize("name", ["RBFKernel", "MaternKernel"])
def test_an_exact_gaussian_process(name):
    x = torch.rand(120, 2, dtype=torch.float64)
    y = (4 * x[:, 0]).sin() + x[:, 1] ** 2
    for one, other in zip(*(trained(kernel, x, y, 5) for kernel in pair(name, ard_num_dims=2)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_by_conjugate_gradients(monkeypatch):
    """Products alone: the matrix of all training rows is never asked for."""
    x = torch.rand(120, 2, dtype=torch.float64)
    y = (4 * x[:, 0]).sin() + x[:, 1] ** 2
    settings, to_dense = gpytorch.settings, ours.StreamedLinearOperator.to_dense

    def small(self):
        assert self.shape != (120, 120), "the matrix was stored"
        return to_dense(self)

    monkeypatch.setattr(ours.StreamedLinearOperator, "to_dense", small)
    results = []
    for kernel in pair("RBFKernel"):
        with settings.max_cholesky_size(0), settings.cg_tolerance(1e-4), settings.eval_cg_tolerance(1e-4):
            results.append(trained(kernel, x, y, 3))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)

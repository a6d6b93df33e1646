"""What dependence measures and their tests promise beside their numbers: operators, torch.compile, autocast, errors."""

import pytest
import torch

import mmkernels
from mmkernels._memory import peak_bytes
from tests.conftest import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="float64 goes by tiles, and tracing does not enter the interpreter")
KERNELS = (["rbf", "energy", "polynomial"], [1, 1, 2])


@pytest.mark.parametrize(
    ("V", "dtype"), [(1, torch.float32), (2, torch.bfloat16), (3, torch.float32), (3, torch.float64)]
)
def test_operators(V, dtype, device):
    views = [torch.randn(2, 9, d, device=device, dtype=dtype) for d in (3, 1, 4)][:V]
    wide = torch.promote_types(dtype, torch.float32)
    gammas = [torch.rand(2, q, device=device, dtype=wide) for q in (2, 1, 1)][:V]
    coefs, centres = ([torch.rand(2, device=device, dtype=wide) for _ in views] for _ in range(2))
    arguments = (views, gammas, coefs, centres, *(k[:V] for k in KERNELS))
    for wants in ([True] * 4, [False, True, False, True]):
        out = torch.ops.mmkernels.moments_fwd(*arguments, wants)
        assert [t.numel() > 0 for t in out] == wants
        assert [t.dtype for t in out] == [wide] + [torch.float64] * 3
        checked = torch.library.opcheck(torch.ops.mmkernels.moments_fwd.default, (*arguments, wants))
        for needs in ([True] * 3 * V, [v > 0 for v in range(3 * V)]):
            checked |= torch.library.opcheck(torch.ops.mmkernels.moments_bwd.default, (*arguments, *out, needs))
        assert set(checked.values()) == {"SUCCESS"}


STEPS = {
    "hsic": lambda x, y: mmkernels.hsic(x, y, gamma=0.5),
    "unbiased": lambda x, y: mmkernels.hsic(x, y, gamma=0.5, estimator="unbiased"),
    "linear": lambda x, y: mmkernels.hsic(x, y, "linear"),
    "cka": lambda x, y: mmkernels.cka(x, y, "rbf", gamma=0.5),
    "distance": lambda x, y: mmkernels.distance_correlation(x, y),
    "dhsic": lambda x, y: mmkernels.dhsic([x, y, x[:, :2]], gamma=0.5),
    "mmd": lambda x, y: mmkernels.mmd(x[:, :4], y, gamma=0.5),
    "bandwidths": lambda x, y: mmkernels.mmd(x[:, :4], y, bandwidths=(0.5, 2.0), estimator="unbiased"),
}


@pytest.mark.parametrize("name", ["hsic", "linear", "cka", "dhsic", "mmd"])
def test_compile(name, device):
    torch._dynamo.reset()
    step = STEPS[name]
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for N in (16, 24):
        x, y = (torch.randn(N, d, device=device, requires_grad=True) for d in (6, 4))
        wanted, got = step(x, y), compiled(x, y)
        torch.testing.assert_close(got, wanted)
        for a, b in zip(*(torch.autograd.grad(t, (x, y)) for t in (got, wanted)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", STEPS)
def test_torch_func(name, device):
    x, y = (torch.randn(20, d, dtype=torch.float64, device=device, requires_grad=True) for d in (6, 4))
    wanted = torch.autograd.grad(STEPS[name](x, y), (x, y))
    got = torch.func.grad(STEPS[name], (0, 1))(x.detach(), y.detach())
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(dtype, device):
    x, y = (torch.randn(60, d, device=device).to(dtype).requires_grad_() for d in (6, 4))
    significance = {
        "permutations": lambda: mmkernels.permutation_test("hsic", x, y),
        "divisions": lambda: mmkernels.permutation_test("mmd", x[:, :4], y, 50),
        "gamma": lambda: mmkernels.approximate_test("hsic_gamma", x, y),
        "normal": lambda: mmkernels.approximate_test("mmd_normal", x[:, :4], y),
        "bootstrap": lambda: mmkernels.wild_bootstrap_test("hsic", x, y, 50),
        "bootstrapped mmd": lambda: mmkernels.wild_bootstrap_test("mmd", x[:, :4], y, 50),
    }
    wanted = [step(x, y) for step in STEPS.values()], [f()[:2] for f in significance.values()]
    with torch.autocast(device.type, dtype=torch.bfloat16):
        got = [step(x, y) for step in STEPS.values()], [f()[:2] for f in significance.values()]
    assert got[1] == wanted[1]
    for name, a, b in zip(STEPS, *(values[0] for values in (got, wanted)), strict=True):
        assert a.dtype == torch.float32, name
        assert torch.equal(a, b), name
        for s, t in zip(*(torch.autograd.grad(v, (x, y)) for v in (a, b)), strict=True):
            assert s.dtype == dtype
            assert torch.equal(s, t), name


@pytest.mark.parametrize("name", ["hsic", "cka", "linear", "mmd", "permutations", "gamma", "bootstrap"])
def test_memory_does_not_grow_with_the_matrix(name, device):
    N = 4000
    x, y = (torch.randn(N, 4, device=device, requires_grad=True) for _ in "xy")

    def step():
        if name == "permutations":
            mmkernels.permutation_test("hsic", x, y, gamma=0.5)
        elif name == "gamma":
            mmkernels.approximate_test("hsic_gamma", x, y, gamma=0.5)
        elif name == "bootstrap":
            mmkernels.wild_bootstrap_test("hsic", x, y, 10, gamma=0.5)
        else:
            torch.autograd.grad(STEPS[name](x, y), (x, y))

    before = mmkernels.memory_budget()
    try:
        mmkernels.set_memory_budget(2**22)
        peak = peak_bytes(step, x.device)
    finally:
        mmkernels.set_memory_budget(before)
    assert peak is None or peak < 0.4 * 4 * N * N


X, Y = torch.randn(8, 4), torch.randn(8, 3)
HSIC, CKA, DCOV, DCOR = mmkernels.hsic, mmkernels.cka, mmkernels.distance_covariance, mmkernels.distance_correlation
DHSIC, MMD, ENERGY = mmkernels.dhsic, mmkernels.mmd, mmkernels.energy_distance
PERMUTE, APPROXIMATE, WILD = mmkernels.permutation_test, mmkernels.approximate_test, mmkernels.wild_bootstrap_test


@pytest.mark.parametrize(
    ("function", "arguments", "options", "error", "message"),
    [
        (HSIC, (X.numpy(), Y), {}, TypeError, "x must be a torch.Tensor, got ndarray"),
        (HSIC, (X, Y[:5]), {}, ValueError, r"y must have as many rows.*got shapes \(5, 3\) and \(8, 4\)"),
        (HSIC, (X, Y.double()), {}, TypeError, "y must have the first view's dtype, got torch.float64"),
        (HSIC, (X, Y.to("meta")), {}, ValueError, "y must be on the first view's device"),
        (HSIC, (X.int(), Y.int()), {}, TypeError, "x must be float16.*got torch.int32"),
        (HSIC, (X[0], Y[0]), {}, ValueError, r"x must have 2 dimension\(s\), got shape \(4,\)"),
        (HSIC, (X[:0], Y[:0]), {}, ValueError, r"at least 1 row\(s\) must be given, got shape \(0, 4\)"),
        (HSIC, (X[:3], Y[:3]), {"estimator": "unbiased"}, ValueError, r"at least 4 row\(s\) must be given"),
        (HSIC, (X, Y), {"estimator": "linear"}, ValueError, "estimator must be one of 'biased', 'unbiased'"),
        (HSIC, (X, Y), {"estimator": True}, TypeError, "estimator must be a name, got bool"),
        (HSIC, (X, Y), {"kernel": "gauss"}, ValueError, "kernel must be one of 'linear'.*got 'gauss'"),
        (HSIC, (X, Y), {"kernel": ("rbf",)}, ValueError, "kernel must be one value or one for each of 2 views, got 1"),
        (HSIC, (X, Y), {"kernel": ("rbf", 3)}, TypeError, "kernel must be a name or one for each of 2 views, got 3"),
        (HSIC, (X, Y), {"gamma": (0.1, 0.2, 0.3)}, ValueError, "gamma must be one value or one for each of 2"),
        (HSIC, (X, Y), {"gamma": 0}, ValueError, r"gamma must be finite and in \(0, inf\), got 0"),
        (HSIC, (X, Y), {"gamma": (0.5, -1.0)}, ValueError, "gamma must be finite.*got -1"),
        (HSIC, (X, Y), {"gamma": "mean"}, ValueError, "gamma must be one of 'scale', 'median', got 'mean'"),
        (HSIC, (X, Y, "energy"), {"gamma": 0.5}, TypeError, "the energy kernel of view 0 has no gamma, got 0.5"),
        (HSIC, (X, Y), {"gamma": X}, ValueError, "gamma must be 0-dimensional or of shape"),
        (HSIC, (X, Y), {"parameters": {"nu": 1.5}}, TypeError, "the rbf kernel has no parameter 'nu'"),
        (HSIC, (X, Y), {"parameters": [None]}, ValueError, "parameters must be one value or one for each of 2 views"),
        (HSIC, (X, Y, "matern"), {"parameters": {"nu": 1.0}}, ValueError, "nu must be 0.5, 1.5 or 2.5, got 1.0"),
        (HSIC, (X, Y), {"gamma": 0.5, "parameters": {"length_scale": 1.0}}, ValueError, "either gamma or length_scale"),
        (CKA, (X[:1], Y[:1]), {}, ValueError, r"at least 2 row\(s\) must be given, got shape \(1, 4\)"),
        (CKA, (X[:3], Y[:3]), {"debiased": True}, ValueError, r"at least 4 row\(s\)"),
        (DCOV, (X, Y), {"estimator": "u"}, ValueError, "estimator must be one of 'biased', 'unbiased', got 'u'"),
        (DCOV, (X, Y[:7]), {}, ValueError, "y must have as many rows"),
        (DCOR, (X[:1], Y[:1]), {}, ValueError, r"at least 2 row\(s\)"),
        (DCOR, (X[:3], Y[:3]), {"estimator": "unbiased"}, ValueError, r"at least 4 row\(s\)"),
        (DHSIC, (X,), {}, TypeError, "views must be a list or tuple of at least 2 tensors, got Tensor"),
        (DHSIC, ([X],), {}, ValueError, "views must be at least 2 tensors, got 1"),
        (DHSIC, ([X, Y, X[:5]],), {}, ValueError, "z must have as many rows"),
        (DHSIC, ([X, Y, X],), {"gamma": (0.1, 0.2)}, ValueError, "one for each of 3 views, got 2"),
        (MMD, (X, Y), {}, ValueError, r"y must have as many features as x, got shapes \(8, 3\) and \(8, 4\)"),
        (MMD, (X, X.double()), {}, TypeError, "y must have x's dtype"),
        (MMD, (X, X[:0]), {"gamma": 1.0}, ValueError, r"x and y must have at least 1 row\(s\).*\(8, 4\) and \(0, 4\)"),
        (MMD, (X, X[:1]), {"estimator": "unbiased"}, ValueError, r"must have at least 2 row\(s\)"),
        (MMD, (X, X[:6]), {"estimator": "linear"}, ValueError, "as many rows of x as of y, got 8 and 6"),
        (MMD, (X, X), {"estimator": "best"}, ValueError, "estimator must be one of 'biased', 'unbiased', 'linear'"),
        (MMD, (X, X), {"estimator": None}, TypeError, "estimator must be a name, got NoneType"),
        (MMD, (X, X), {"bandwidths": (1.0, 0.0)}, ValueError, r"bandwidths\[1\] must be finite and in \(0, inf\)"),
        (MMD, (X, X), {"bandwidths": ()}, ValueError, "at least one bandwidth"),
        (MMD, (X, X), {"bandwidths": (1.0,), "gamma": 0.5}, ValueError, "bandwidths are those of RBF kernels"),
        (MMD, (X, X, "laplacian"), {"bandwidths": (1.0,)}, ValueError, "bandwidths are those of RBF kernels"),
        (MMD, (X, X, "energy"), {"gamma": 1.0}, TypeError, "the energy kernel has no gamma, got 1.0"),
        (MMD, (X, X), {"weights": X[:, 0]}, TypeError, "weights must be a pair.*got Tensor"),
        (MMD, (X, X), {"weights": (X[:5, 0], None)}, ValueError, "weights of x must have length rows of x = 8, got 5"),
        (MMD, (X, X), {"weights": (None, [1.0])}, TypeError, "weights of y must be a torch.Tensor, got list"),
        (MMD, (X, X), {"weights": (None, None), "estimator": "unbiased"}, ValueError, "belong to the biased"),
        (ENERGY, (X, X), {"estimator": "u"}, ValueError, "estimator must be one of"),
        (PERMUTE, ("mi", X, Y), {}, ValueError, "statistic must be one of 'hsic'.*got 'mi'"),
        (PERMUTE, ("hsic", X, Y, 0), {}, ValueError, "n must be at least 1, got 0"),
        (PERMUTE, ("hsic", X, Y, 10.0), {}, TypeError, "n must be an int, got float"),
        (PERMUTE, ("hsic", X, Y), {"seed": -1}, ValueError, r"seed must be in \[0, \d+\], got -1"),
        (PERMUTE, ("hsic", X[:3], Y[:3]), {}, ValueError, r"at least 4 row\(s\)"),
        (PERMUTE, ("hsic", X[None], Y[None]), {}, ValueError, r"x must have 2 dimension\(s\)"),
        (PERMUTE, ("hsic", X, Y[:7]), {}, ValueError, "y must have as many rows"),
        (PERMUTE, ("mmd", X, Y), {}, ValueError, "y must have as many features as x"),
        (PERMUTE, ("mmd", X, X[:1]), {}, ValueError, "x and y must have at least 2 rows"),
        (PERMUTE, ("distance_covariance", X, Y), {"gamma": 1.0}, ValueError, "distance_covariance has no kernel"),
        (PERMUTE, ("energy_distance", X, X), {"kernel": "linear"}, ValueError, "energy_distance has no kernel"),
        (APPROXIMATE, ("gamma", X, Y), {}, ValueError, "method must be one of 'hsic_gamma'.*got 'gamma'"),
        (APPROXIMATE, ("hsic_gamma", X[:5], Y[:5]), {}, ValueError, r"at least 6 row\(s\)"),
        (APPROXIMATE, ("cka_chi2", X, Y[:7]), {}, ValueError, "y must have as many rows"),
        (APPROXIMATE, ("mmd_normal", X, X[:6]), {}, ValueError, "as many rows of x as of y, got 8 and 6"),
        (APPROXIMATE, ("mmd_normal", X[:5], X[:5]), {}, ValueError, "at least 6 rows must be given, got 5"),
        (WILD, ("cka", X, Y), {}, ValueError, "statistic must be one of 'hsic', 'mmd', got 'cka'"),
        (WILD, ("hsic", X, Y, 0), {}, ValueError, "n must be at least 1, got 0"),
        (WILD, ("hsic", X, Y), {"lag": 0}, ValueError, r"lag must be finite and in \(0, inf\), got 0"),
        (WILD, ("hsic", X, Y), {"seed": 1.0}, TypeError, "seed must be an int, got float"),
        (WILD, ("hsic", X[:3], Y[:3]), {}, ValueError, r"at least 4 row\(s\)"),
        (WILD, ("mmd", X, X[:6]), {}, ValueError, "y must have as many rows"),
    ],
)
def test_errors(function, arguments, options, error, message):
    with pytest.raises(error, match=message):
        function(*arguments, **options)

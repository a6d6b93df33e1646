"""Conditional entropy and information against the textbook estimators and the chain rules that define them."""

import math

import pytest
import torch

import mmkernels
from mmkernels.ops import _knn
from reference import information as reference
from reference import kernel as kernels
from tests.conftest import INTERPRETED

conditional_entropy = mmkernels.conditional_entropy
conditional_information, interaction = mmkernels.conditional_mutual_information, mmkernels.interaction_information
ENTROPIES = [
    ("gaussian", {}),
    ("knn", {}),
    ("knn", {"k": 5, "norm": "euclidean"}),
    ("kde", {"bandwidth": (0.6, 0.8)}),
    ("renyi", {"gamma": (0.3, 0.2)}),
]
in_float64 = pytest.mark.skipif(INTERPRETED, reason="no Triton kernel serves float64")


def views(N, sizes, device, dtype=torch.float64):
    """Dependent normal views, not about 0."""
    z = torch.randn(N, 1, dtype=torch.float64, device=device)
    return [(z + torch.randn(N, D, dtype=torch.float64, device=device) + 1).to(dtype) for D in sizes]


def assert_equal(got, wanted):
    assert got.ndim == 0
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@in_float64
@pytest.mark.parametrize("sizes", [(1, 1), (2, 3)])
def test_the_textbook_entropies(sizes, device):
    x, y = views(60, sizes, device)
    both = torch.cat([x, y], 1)
    assert_equal(
        conditional_entropy(x, y, "gaussian"), reference.gaussian_entropy(both) - reference.gaussian_entropy(y)
    )
    for k, norm in ((1, "max"), (3, "euclidean")):
        terms = [reference.kozachenko_leonenko(t, k, norm == "euclidean") for t in (both, y)]
        assert_equal(conditional_entropy(x, y, "knn", k=k, norm=norm), terms[0] - terms[1])
    widths = [reference.scott(t) for t in (x, y)]
    wanted = reference.kde_entropy(both, torch.cat(widths)) - reference.kde_entropy(y, widths[1])
    assert_equal(conditional_entropy(x, y, "kde"), wanted)
    assert_equal(conditional_entropy(x, y, "kde", bandwidth=widths), wanted)
    gammas = [torch.tensor(g, dtype=x.dtype, device=device) for g in (0.3, 0.2)]
    K, L = (kernels.rbf(t, t, g) for t, g in zip((x, y), gammas, strict=True))
    wanted = reference.matrix_renyi([K, L]) - reference.matrix_renyi([L])
    assert_equal(conditional_entropy(x, y, "renyi", gamma=gammas), wanted)


@in_float64
@pytest.mark.parametrize(("method", "options"), [e for e in ENTROPIES if e[0] != "knn"])
def test_what_y_takes_from_the_entropy_is_the_information(method, options, device):
    x, y = views(60, (2, 1), device)
    own = {name: pair[0] for name, pair in options.items()}
    left = mmkernels.entropy(x, method, **own) - conditional_entropy(x, y, method, **options)
    assert_equal(left, mmkernels.mutual_information(x, y, method, **options))


@in_float64
def test_entropy_left_of_normal_data(device):
    x, e = torch.randn(2, 4000, 1, dtype=torch.float64, device=device)
    truth = 0.5 * math.log(2 * math.pi * math.e * 0.36)
    for method in ("gaussian", "knn", "kde"):
        assert abs(conditional_entropy(0.8 * x + 0.6 * e, x, method) - truth) < 0.06, method


@in_float64
def test_regularised(device):
    x, y = views(60, (2, 2), device)
    wanted = mmkernels.entropy(torch.cat([x, y, y], 1), "gaussian", reg=0.1)
    wanted = wanted - mmkernels.entropy(torch.cat([y, y], 1), "gaussian", reg=0.1)
    assert_equal(conditional_entropy(x, torch.cat([y, y], 1), "gaussian", reg=0.1), wanted)


@in_float64
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1, 3), (7, 6, 5)])
def test_the_textbook_information(sizes, device):
    x, y, z = views(70, sizes, device)
    for k in (1, 3, 69):
        assert_equal(conditional_information(x, y, z, k=k), reference.frenzel_pompe(x, y, z, k))
    h = [reference.gaussian_entropy(torch.cat(t, 1)) for t in ([x, z], [y, z], [z], [x, y, z])]
    assert_equal(conditional_information(x, y, z, "gaussian"), h[0] + h[1] - h[2] - h[3])
    same = torch.cat([z, z], 1)
    h = [mmkernels.entropy(torch.cat(t, 1), "gaussian", reg=0.1) for t in ([x, same], [y, same], [same], [x, y, same])]
    assert_equal(conditional_information(x, y, same, "gaussian", reg=0.1), h[0] + h[1] - h[2] - h[3])


@in_float64
def test_chain_rule(device):
    """I(x; y, z) = I(x; z) + I(x; y | z)."""
    x, y, z = views(70, (2, 1, 3), device)
    whole = mmkernels.mutual_information(x, torch.cat([y, z], 1), "gaussian")
    parts = mmkernels.mutual_information(x, z, "gaussian") + conditional_information(x, y, z, "gaussian")
    assert_equal(whole, parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (6, 1, 1), (8, 7, 1)])
def test_neighbours_of_rounded_distances(sizes, dtype, device):
    x, y, z = views(300, sizes, device, dtype)
    wide = torch.float32 if _knn._tree_of([x, y, z], "max") is None else torch.float64
    got = conditional_information(x, y, z)
    assert got.dtype == torch.float32
    wanted = reference.frenzel_pompe(*(t.to(wide) for t in (x, y, z)), 3)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=1e-6)


@in_float64
def test_a_common_cause_and_a_common_effect(device):
    """Of a cause nothing is left once it is known, redundancy; an effect makes its causes dependent, synergy."""
    a, b, c = torch.randn(3, 4000, 1, dtype=torch.float64, device=device)
    for method in ("knn", "gaussian"):
        x, y = c + a, c + b
        assert abs(conditional_information(x, y, c, method)) < 0.05
        assert abs(interaction(x, y, c, method) + 0.5 * math.log(1 - 0.25)) < 0.06
        effect = a + b + c
        truth = 0.5 * math.log(4 / 3)  # variance 2 of x once z is known too: rho^2 given z is 1/4
        assert abs(conditional_information(a, b, effect, method) - truth) < 0.05
        assert abs(interaction(a, b, effect, method) + truth) < 0.06


@in_float64
def test_interaction_is_symmetric(device):
    x, y, z = views(70, (2, 1, 3), device)
    value = interaction(x, y, z, "gaussian")
    for a, b, c in ((y, x, z), (x, z, y), (z, y, x)):
        assert_equal(interaction(a, b, c, "gaussian"), value)
    wanted = mmkernels.mutual_information(x, y, k=4) - conditional_information(x, y, z, k=4)
    assert_equal(interaction(x, y, z, k=4), wanted)
    wanted = mmkernels.mutual_information(x, y, "gaussian", reg=0.1)
    wanted = wanted - conditional_information(x, y, z, "gaussian", reg=0.1)
    assert_equal(interaction(x, y, z, "gaussian", reg=0.1), wanted)


@in_float64
@pytest.mark.parametrize(("method", "options"), ENTROPIES)
def test_gradients_of_entropy(method, options, device):
    x, y = (t.requires_grad_() for t in views(14, (2, 1), device))
    assert torch.autograd.gradcheck(lambda x, y: conditional_entropy(x, y, method, **options), (x, y))


@in_float64
@pytest.mark.parametrize("function", [conditional_information, interaction])
def test_gradients_of_information(function, device):
    x, y, z = (t.requires_grad_() for t in views(14, (2, 1, 2), device))
    assert torch.autograd.gradcheck(lambda x, y, z: function(x, y, z, "gaussian"), (x, y, z))
    with pytest.raises(NotImplementedError, match="counts neighbours and has no gradient"):
        function(x.detach(), y.detach(), z)
    with torch.no_grad():
        assert function(x, y, z).isfinite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("method", "options"), ENTROPIES)
def test_other_dtypes(method, options, dtype, device):
    x, y = views(70, (2, 1), device, dtype)
    got = conditional_entropy(x, y, method, **options)
    assert got.dtype == torch.float32
    wanted = conditional_entropy(x.double(), y.double(), method, **options)
    # 16-bit rows less their mean are rounded again in a Triton kernel
    triton = dtype == torch.float16 and (INTERPRETED or device.type == "cuda")
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=5e-4 if triton else 2e-5)


X, Y = torch.randn(9, 2), torch.randn(9, 1)
CE, CMI = conditional_entropy, conditional_information


@in_float64
@pytest.mark.parametrize(
    ("function", "arguments", "options", "error", "message"),
    [
        (CE, (X, Y[:8]), {}, ValueError, "y must have as many rows"),
        (CE, (X, Y.double()), {}, TypeError, "y must have the first view's dtype"),
        (CE, (X[None], Y[None]), {}, ValueError, r"x must have 2 dimension\(s\)"),
        (CE, (X, Y), {"method": "ksg1"}, ValueError, "method must be one of 'gaussian'.*got 'ksg1'"),
        (CE, (X, Y), {"k": 9}, ValueError, r"k must be in \[1, 8\], got 9"),
        (CE, (X, Y), {"norm": "l1"}, ValueError, "norm must be one of"),
        (CE, (X, Y), {"method": "kde", "bandwidth": (1.0,)}, ValueError, "bandwidth must be one value or one for each"),
        (CE, (X, Y), {"method": "renyi", "kernel": "linear"}, ValueError, r"kernels with k\(x, x\) = 1, got 'linear'"),
        (CE, (X, X), {"method": "gaussian"}, ValueError, "positive definite"),
        (CMI, (X, Y, Y[:8]), {}, ValueError, "z must have as many rows"),
        (CMI, (X, Y, Y.int()), {}, TypeError, "z must be float16.*got torch.int32"),
        (CMI, (X, Y, Y), {"method": "ksg1"}, ValueError, "method must be one of 'knn', 'gaussian', got 'ksg1'"),
        (CMI, (X, Y, Y), {"k": 0}, ValueError, r"k must be in \[1, 8\], got 0"),
        (CMI, (X, Y, Y), {"method": "gaussian"}, ValueError, "the yz covariance must be|the joint covariance must be"),
        (CMI, (X, Y, Y), {"method": "gaussian", "reg": -1}, ValueError, "reg must be finite"),
        (CMI, (X[:1], Y[:1], Y[:1]), {}, ValueError, r"at least 2 row\(s\) must be given"),
        (interaction, (X, Y, Y), {"method": "ksg1"}, ValueError, "method must be one of 'knn', 'gaussian', got 'ksg1'"),
        (interaction, (X, Y, Y[:8]), {}, ValueError, "z must have as many rows"),
    ],
)
def test_errors(function, arguments, options, error, message):
    with pytest.raises(error, match=message):
        function(*arguments, **options)

"""Mutual information against the textbook estimators, scikit-learn, and the values that are known of normal data."""

import math

import pytest
import torch

import mmkernels
from mmkernels.ops import _knn
from reference import information as reference
from reference import kernel as kernels
from tests.conftest import INTERPRETED

information, total_correlation = mmkernels.mutual_information, mmkernels.total_correlation
METHODS = ("gaussian", "ksg1", "ksg2", "kde", "renyi", "cauchy_schwarz", "euclidean")
SMOOTH = ("gaussian", "kde", "renyi", "cauchy_schwarz", "euclidean")
OPTIONS = {"kde": {"bandwidth": (0.6, 0.8)}} | {m: {"gamma": (0.3, 0.2)} for m in METHODS[4:]}
KSG = {"ksg1": reference.ksg1, "ksg2": reference.ksg2}
in_float64 = pytest.mark.skipif(INTERPRETED, reason="no Triton kernel serves float64")


def pairs(N, sizes, device, dtype=torch.float64, rho=0.7):
    """Dependent normal views, not about 0."""
    z = torch.randn(N, 1, dtype=torch.float64, device=device)
    noise = (torch.randn(N, D, dtype=torch.float64, device=device) for D in sizes)
    return [(rho * z + math.sqrt(1 - rho**2) * e + 1).to(dtype) for e in noise]


def rbf(views, gammas):
    return [
        kernels.rbf(v, v, torch.tensor(g, dtype=v.dtype, device=v.device)) for v, g in zip(views, gammas, strict=True)
    ]


def assert_equal(got, wanted):
    assert got.ndim == 0
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@in_float64
@pytest.mark.parametrize("sizes", [(1, 1), (2, 3), (9, 8), (1, 2, 2)])
def test_the_textbook_estimators(sizes, device):
    """Of two views both functions, of three the total correlation."""
    views = pairs(70, sizes, device)

    def both(method, **options):
        total = total_correlation(views, method, **options)
        if len(views) == 2:
            assert_equal(information(*views, method, **options), total)
        return total

    entropies = [reference.gaussian_entropy(v) for v in (*views, torch.cat(views, 1))]
    assert_equal(both("gaussian"), sum(entropies[:-1]) - entropies[-1])
    for method, formula in KSG.items():
        for k in (1, 3, 69):
            assert_equal(both(method, k=k), formula(views, k))
    assert_equal(both("kde"), reference.kde_total_correlation(views, [reference.scott(v) for v in views]))
    widths = [torch.linspace(0.5, 1.0, v.shape[1], dtype=v.dtype, device=device) for v in views]
    assert_equal(both("kde", bandwidth=widths), reference.kde_total_correlation(views, widths))
    same = [torch.full_like(h, 0.7) for h in widths]
    assert_equal(both("kde", bandwidth=0.7), reference.kde_total_correlation(views, same))
    gammas = (0.3, 0.2, 0.1)[: len(views)]
    K = rbf(views, gammas)
    total = sum(reference.matrix_renyi([k]) for k in K) - reference.matrix_renyi(K)
    assert_equal(both("renyi", gamma=gammas), total)
    if len(views) == 2:
        K2, L2 = (k.square().sum() for k in K)
        bits = torch.log2(70**2 * (K[0] * K[1]).square().sum() / (K2 * L2))
        assert_equal(both("renyi", gamma=gammas), bits * math.log(2))
        assert_equal(information(*views, "cauchy_schwarz", gamma=gammas), reference.cauchy_schwarz(*K))
        assert_equal(information(*views, "euclidean", gamma=gammas), reference.euclidean(*K))


@in_float64
def test_gaussian_is_of_canonical_correlations(device):
    x, y = pairs(80, (2, 3), device)
    rho = mmkernels.canonical_correlations(x, y)
    assert_equal(information(x, y, "gaussian"), -0.5 * torch.log(1 - rho**2).sum())
    regular = information(torch.cat([x, x], 1), y, "gaussian", reg=0.1)
    S = torch.cat([x, x, y], 1).mT.cov() + 0.1 * torch.eye(7, dtype=x.dtype, device=device)
    whole, of_x, of_y = (torch.linalg.slogdet(t)[1] for t in (S, S[:4, :4], S[4:, 4:]))
    assert_equal(regular, 0.5 * (of_x + of_y - whole))


@in_float64
@pytest.mark.parametrize(("rho", "tolerances"), [(0.0, (0.01, 0.03)), (0.5, (0.03, 0.04)), (0.9, (0.04, 0.05))])
def test_normal_pairs(rho, tolerances, device):
    """-1/2 log(1 - rho^2): "gaussian" has a standard deviation of about rho / 63, the others twice that and a bias."""
    x, e = torch.randn(2, 4000, 1, dtype=torch.float64, device=device)
    y = rho * x + math.sqrt(1 - rho**2) * e
    truth = -0.5 * math.log(1 - rho**2)
    assert abs(information(x, y, "gaussian") - truth) < tolerances[0]
    for method in ("ksg1", "ksg2", "kde"):
        assert abs(information(x, y, method) - truth) < tolerances[1], method
    # a plug-in estimate is too large by 81 / 2N where nothing is to be found, and coarse where y is nearly x
    assert -0.2 * rho < information(x, y, "binned") - truth < 0.02


@in_float64
@pytest.mark.parametrize("features", [2, 3])
def test_several_dimensions(features, device):
    x, e = torch.randn(2, 4000, features, dtype=torch.float64, device=device)
    truth = -features / 2 * math.log(1 - 0.36)
    for method in ("ksg1", "ksg2"):
        assert abs(information(x, 0.6 * x + 0.8 * e, method) - truth) < 0.1, method


@in_float64
def test_three_normal_variables(device):
    x, y, e = torch.randn(3, 4000, 1, dtype=torch.float64, device=device)
    views = [x, y, x + y + e]
    truth = 0.5 * math.log(3)  # z has variance 3, and 1 once x and y are known
    for method in ("gaussian", "ksg1", "ksg2"):
        assert abs(total_correlation(views, method) - truth) < 0.06, method


@pytest.mark.parametrize(
    ("method", "dtype"),
    [("ksg1", torch.float32), ("ksg1", torch.float16), ("ksg2", torch.float32)],  # float16 ties, as in test_equal_rows
)
@pytest.mark.parametrize("sizes", [(1, 1), (8, 1), (8, 8)])
def test_neighbours_of_rounded_distances(sizes, method, dtype, device):
    """Few features are compared in float64 by a tree, many in float32 by tiles: never some of the one and some so."""
    views = pairs(300, sizes, device, dtype)
    wide = torch.float32 if _knn._tree_of(views, "max") is None else torch.float64
    got = information(*views, method)
    assert got.dtype == torch.float32
    wanted = KSG[method]([v.to(wide) for v in views], 3)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=1e-6)


@in_float64
def test_shift_scale_and_order(device):
    x, y = pairs(200, (2, 1), device)
    x, y = (t.float().double() for t in (x, y))  # so that shifts by integers round nothing
    order = torch.randperm(200, device=device)
    for method in ("gaussian", "ksg1", "ksg2", "kde"):
        value = information(x, y, method)
        torch.testing.assert_close(information(x[order], y[order], method), value)
        torch.testing.assert_close(information(y, x, method), value)
        for a, b in ((x + 8, y - 4), (4 * x, y * 4), (x - 1, y + 2)):
            assert abs(information(a, b, method) - value) <= 1e-13, method
    assert information(8 * x, y) != information(x, y)  # a square in both: KSG is not free of their units


@in_float64
def test_monotone_transforms(device):
    x, y = pairs(4000, (1, 1), device)
    value = information(x, y)
    assert abs(information((x / 2).exp(), y + y**3 / 20) - value) < 0.03
    assert abs(information(x, y, "gaussian") - information(x.exp(), y, "gaussian")) > 0.03  # which is no such thing


@in_float64
def test_equal_rows(device):
    """Of rows that coincide with their k nearest all that coincide are counted: near the plug-in estimate."""
    x, y = ((t * 2).round() for t in pairs(2000, (1, 1), device))
    mixed = torch.where(x > 0, x, pairs(2000, (1, 1), device)[0])
    for a in (x, mixed):
        assert_equal(information(a, y), KSG["ksg1"]([a, y], 3))
        assert_equal(mmkernels.conditional_mutual_information(x, y, a), reference.frenzel_pompe(x, y, a, 3))
    labels = [t[:, 0].long() for t in (x, y)]
    plug_in = information(*labels).item()
    assert information(x, y).item() == pytest.approx(plug_in, abs=0.02)
    assert information(labels[0], y).item() == pytest.approx(plug_in, abs=0.02)
    assert_equal(information(labels[0], y), reference.ross(y, labels[0], 3))
    with pytest.raises(ValueError, match=r"row\(s\) coincide with their 3 nearest: 'ksg1' admits that"):
        information(x, y, "ksg2")
    assert information(x, y, "kde").isfinite()


@in_float64
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("features", [1, 16])  # by SciPy's tree, and by tiles
def test_rows_that_are_not_numbers(features, bad, device):
    if device.type != "cpu":
        pytest.skip("values are not read")
    x, y = pairs(300, (features, 1), device)
    x[5, 0] = bad
    for function, arguments in (
        (information, (x, y)),
        (information, (x, y, "ksg2")),
        (information, (x, (y[:, 0] > 0).long())),
        (mmkernels.conditional_mutual_information, (x, y, y)),
        (mmkernels.entropy, (x,)),
        (information, (x[:, :1], y, "binned")),
    ):
        with pytest.raises(ValueError, match="values must be finite"):
            function(*arguments)


@pytest.mark.skipif(INTERPRETED, reason="NumPy warns of the overflow")
def test_squares_that_overflow(device):
    if device.type != "cpu":
        pytest.skip("values are not read")
    x = torch.randn(300, 16) * 1e20
    with pytest.raises(ValueError, match="squared distances must be finite"):
        mmkernels.entropy(x, norm="euclidean")
    assert mmkernels.entropy(x).isfinite()


@pytest.mark.parametrize("step", [None, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counts_of_one_feature(dtype, step, device):
    """By bisection: those that comparing all pairs finds, at the edge too."""
    g = torch.Generator().manual_seed(0)
    for offset in (0.0, 1e3):
        x = torch.randn(500, 1, generator=g, dtype=torch.float64)
        x = ((x / step).round() * step if step else x).to(device, dtype) + offset
        radii = (x - x[torch.randperm(500, generator=g).to(device)]).abs()[:, 0]  # of which each is a distance
        radii[:3] = torch.tensor([0.0, torch.finfo(dtype).tiny, -1.0])
        d = (x - x.T).abs().fill_diagonal_(torch.inf)
        for strict in (True, False):
            wanted = (d < radii[:, None] if strict else d <= radii[:, None]).sum(1)
            assert torch.equal(_knn.within([x], radii, "max", strict), wanted)


@in_float64
@pytest.mark.parametrize("method", ["ksg1", "ksg2", "binned"])
def test_counts_have_no_gradient(method, device):
    x, y = pairs(30, (1, 1), device)
    value = information(x, y, method)
    x.requires_grad_()
    for a, b in ((x, y), (y, x), (x.clone(), y)):
        with pytest.raises(NotImplementedError, match=f"'{method}' counts neighbours and has no gradient"):
            information(a, b, method)
    with torch.no_grad():
        assert information(x, y, method) == value
    assert information(x.detach(), y, method) == value


@in_float64
@pytest.mark.parametrize("method", SMOOTH)
def test_gradients(method, device):
    x, y = (t.requires_grad_() for t in pairs(14, (2, 1), device))

    def value(x, y):
        return information(x, y, method, **OPTIONS.get(method, {}))

    assert torch.autograd.gradcheck(value, (x, y))
    assert torch.autograd.gradgradcheck(value, (x, y))


@in_float64
@pytest.mark.parametrize("method", ["kde", "renyi", "cauchy_schwarz", "euclidean"])
def test_gradients_of_parameters(method, device):
    x, y = pairs(14, (2, 1), device)
    p, q = (torch.tensor(v, dtype=x.dtype, device=device).requires_grad_() for v in (0.6, 0.9))
    name = "bandwidth" if method == "kde" else "gamma"
    assert torch.autograd.gradcheck(lambda p, q: information(x, y, method, **{name: (p, q)}), (p, q))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("method", SMOOTH)
def test_other_dtypes(method, dtype, device):
    x, y = pairs(70, (2, 1), device, dtype)
    got = information(x, y, method, **OPTIONS.get(method, {}))
    assert got.dtype == torch.float32
    wanted = information(x.double(), y.double(), method, **OPTIONS.get(method, {}))
    # 16-bit rows less their mean are rounded again in a Triton kernel
    triton = dtype == torch.float16 and (INTERPRETED or device.type == "cuda")
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=5e-4 if triton else 2e-5)


@in_float64
def test_bins(device):
    numpy, metrics = pytest.importorskip("numpy"), pytest.importorskip("sklearn.metrics")
    x, y = pairs(500, (1, 1), device)
    for bins in (1, 2, 10, 37):
        table = numpy.histogram2d(x[:, 0].cpu().numpy(), y[:, 0].cpu().numpy(), bins)[0]
        wanted = metrics.mutual_info_score(None, None, contingency=table)
        assert_equal(information(x, y, "binned", bins=bins), torch.tensor(wanted, dtype=x.dtype, device=device))
    assert information(x, torch.ones_like(y), "binned") == 0
    assert information(x.half(), y.half(), "binned").dtype == torch.float32


@in_float64
def test_scikit_learn_by_neighbours(device):
    estimators = pytest.importorskip("sklearn.feature_selection._mutual_info")
    x, y = pairs(300, (1, 1), device)
    for k in (1, 3, 10):
        wanted = estimators._compute_mi_cc(x[:, 0].cpu().numpy(), y[:, 0].cpu().numpy(), k)
        assert_equal(information(x, y, k=k), torch.tensor(wanted, dtype=x.dtype, device=device))


X, Y = torch.randn(9, 2), torch.randn(9, 1)
TC = total_correlation


@in_float64
@pytest.mark.parametrize(
    ("function", "arguments", "options", "error", "message"),
    [
        (information, (X.numpy(), Y), {}, TypeError, "x must be a torch.Tensor, got ndarray"),
        (information, (X, Y[:8]), {}, ValueError, r"y must have as many rows.*got shapes \(8, 1\) and \(9, 2\)"),
        (information, (X, Y.double()), {}, TypeError, "y must have the first view's dtype, got torch.float64"),
        (information, (X, Y.to("meta")), {}, ValueError, "y must be on the first view's device, got meta and cpu"),
        (information, (X[None], Y[None]), {}, ValueError, r"x must have 2 dimension\(s\), got shape \(1, 9, 2\)"),
        (information, (X[:1], Y[:1]), {}, ValueError, r"at least 2 row\(s\) must be given"),
        (information, (X, Y), {"method": "ksg"}, ValueError, "method must be one of 'gaussian', 'ksg1'.*got 'ksg'"),
        (information, (X, Y), {"k": 9}, ValueError, r"k must be in \[1, 8\], got 9"),
        (information, (X, Y), {"method": "ksg2", "k": 0}, ValueError, r"k must be in \[1, 8\], got 0"),
        (information, (X, Y), {"method": "binned"}, ValueError, r"takes one feature, got x of shape \(9, 2\)"),
        (information, (Y, Y), {"method": "binned", "bins": 0}, ValueError, "bins must be in"),
        (information, (Y, Y), {"method": "binned", "bins": 2.5}, TypeError, "bins must be an int, got float"),
        (information, (X, Y), {"method": "kde", "bandwidth": -1}, ValueError, "bandwidth must be finite"),
        (information, (X, Y), {"method": "kde", "bandwidth": [1.0]}, ValueError, "one for each of 2 views, got 1"),
        (information, (X, Y), {"method": "gaussian", "reg": -1}, ValueError, r"reg must be finite and in \[0, inf\)"),
        (information, (X, X), {"method": "gaussian"}, ValueError, "the joint covariance must be positive definite"),
        (information, (X, 0 * Y), {"method": "gaussian"}, ValueError, "covariance of view 1 must be positive"),
        (information, (X, Y), {"method": "renyi", "kernel": "energy"}, ValueError, r"k\(x, x\) = 1, got 'energy'"),
        (information, (X, Y), {"method": "renyi", "gamma": [1.0]}, ValueError, "gamma must be one value or one for"),
        (information, (X, Y), {"method": "renyi", "gamma": torch.ones(3)}, ValueError, "one gamma for each view"),
        (TC, (X,), {}, TypeError, "views must be a list or tuple of at least 2 tensors, got Tensor"),
        (TC, ([X],), {}, ValueError, "views must be at least 2 tensors, got 1"),
        (TC, ([X, Y],), {"method": "euclidean"}, ValueError, "method must be one of.*got 'euclidean'"),
        (TC, ([X, Y, Y],), {"method": "kde", "bandwidth": (1, 1)}, ValueError, "one for each of 3 views, got 2"),
        (TC, ([X, Y, Y[:8]],), {}, ValueError, "z must have as many rows"),
    ],
)
def test_errors(function, arguments, options, error, message):
    with pytest.raises(error, match=message):
        function(*arguments, **options)

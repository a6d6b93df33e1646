"""Sums over the kernel matrices of several views in one sweep: values and gradients against dense float64 matrices."""

import pytest
import torch

import mmkernels
from mmkernels.autograd.moments import moments
from reference import kernel as reference
from tests.accuracy import DTYPES, assert_accurate
from tests.conftest import INTERPRETED
from tests.ops.kernels import _sizes, data

only_tiles = pytest.mark.skipif(INTERPRETED, reason="float64, which goes by tiles")

# name: (the operators' kernel, its degree, gammas, coef, the row of tests/ops/kernels.py, formula(x, gamma, coef))
KERNELS = {
    "rbf": ("rbf", 1, [0.05], 0.0, "rbf", lambda x, g, c: reference.rbf_mixture(x, x, g)),
    "mixture": ("rbf", 1, [0.02, 0.05, 0.2], 0.0, "mixture", lambda x, g, c: reference.rbf_mixture(x, x, g)),
    "laplacian": ("laplacian", 1, [0.03], 0.0, "laplacian", lambda x, g, c: reference.laplacian(x, x, g)),
    "matern": ("matern32", 1, [0.1], 0.0, "matern 3/2", lambda x, g, c: reference.matern(x, x, g**-0.5, 1.5)),
    "energy": ("energy", 1, [1.0], 0.0, "energy", lambda x, g, c: g.sqrt() * reference.energy(x, x)),
    "polynomial": ("polynomial", 3, [0.1], 0.7, "polynomial", lambda x, g, c: reference.polynomial(x, x, g, c, 3)),
    "sigmoid": ("sigmoid", 1, [0.1], 0.2, "sigmoid", lambda x, g, c: reference.sigmoid(x, x, g, c)),
}
ALL, NAMES = (True, True, True, True), ("rows", "pairs", "product", "square")
WITH_COEF = ("polynomial", "sigmoid")
THREE = ("polynomial", "energy", "mixture")


def arguments(names, views, dtype):
    """Gammas, coefs and centres in the operators' layout: each batch entry has its own gamma and coef."""
    B, device = len(views[0]), views[0].device
    scale = 1 + 0.1 * torch.arange(B, dtype=dtype, device=device)
    gammas = [
        torch.tensor(KERNELS[n][2], dtype=dtype, device=device) * (1 if n == "energy" else scale[:, None])
        for n in names
    ]
    gammas = [g.expand(B, -1).contiguous() for g in gammas]
    coefs = [KERNELS[n][3] * scale for n in names]
    centres = [torch.full((B,), 0.1 * (v + 1), dtype=dtype, device=device) for v in range(len(names))]
    return gammas, coefs, centres


def formula(names, views, gammas, coefs):
    """The kernel matrices (B, N, N) of each view."""
    return [
        torch.stack([KERNELS[n][5](*entry) for entry in zip(x, g, c, strict=True)])
        for n, x, g, c in zip(names, views, gammas, coefs, strict=True)
    ]


def dense(matrices):
    """All four results, of matrices less their centres."""
    K = torch.stack(matrices, 1)
    product = K.prod(1)
    pairs = torch.einsum("buij,bvij->buv", K, K)
    return K.sum(3), pairs, product.sum((1, 2)), product.square().sum((1, 2))


def ours(names, views, gammas, coefs, centres, wants=ALL):
    kernels = tuple(KERNELS[n][0] for n in names), tuple(KERNELS[n][1] for n in names)
    return moments(views, gammas, coefs, centres, kernels, wants)


def textbook(names, views, gammas, coefs, centres):
    return dense([K - c[:, None, None] for K, c in zip(formula(names, views, gammas, coefs), centres, strict=True)])


def run(function, names, views, parameters, cotangents, dtypes):
    """Results and gradients by name; dtypes are those of the views and of all else."""
    narrow, wide = dtypes
    V = len(views)
    leaves = [t.detach().to(narrow).requires_grad_() for t in views]
    leaves += [t.detach().to(wide).requires_grad_() for t in (*parameters[0], *parameters[1])]
    out = function(names, leaves[:V], leaves[V : 2 * V], leaves[2 * V :], [c.to(wide) for c in parameters[2]])
    loss = sum((t * c.to(t.dtype)).sum() for t, c in zip(out, cotangents, strict=True))
    keys = [f"{name}{v}" for name in ("x", "gamma", "coef") for v in range(V)]
    asked = {k: t for k, t in zip(keys, leaves, strict=True) if k[:-1] != "coef" or names[int(k[-1])] in WITH_COEF}
    gradients = dict(zip(asked, torch.autograd.grad(loss, list(asked.values())), strict=True))
    return dict(zip(NAMES, (t.to(wide) for t in out), strict=True)) | gradients


def magnitudes(names, views, parameters, cotangents):
    """How large the terms are that each result sums, and how large a kernel's argument is."""
    views = [x.double() for x in views]
    gammas, coefs, centres = ([t.double() for t in ts] for ts in parameters)
    matrices = formula(names, views, gammas, coefs)
    large = [(K.abs() + c[:, None, None].abs()).requires_grad_() for K, c in zip(matrices, centres, strict=True)]
    sums = dense(large)
    weights = torch.autograd.grad(sum((t * c.abs()).sum() for t, c in zip(sums, cotangents, strict=True)), large)
    sizes, exponents = dict(zip(NAMES, (t.max().item() for t in sums), strict=True)), []
    for v, (name, x, p) in enumerate(zip(names, views, weights, strict=True)):
        given = {"gamma": gammas[v][0]} if len(gammas[v][0]) > 1 else {"gamma": gammas[v][-1:, :, None]}
        given |= {"coef0": coefs[v][-1]} if name in WITH_COEF else {}
        if name == "matern":
            given = {"length_scale": gammas[v][0, 0] ** -0.5}
        own, exponent = _sizes(KERNELS[name][4], x, None, None, p, given)
        sizes |= {f"x{v}": own["x"], f"gamma{v}": own["gamma"], f"coef{v}": own["coef0"]}
        exponents.append(exponent)
        if name == "matern":  # its gradient there is in the length scale
            sizes[f"gamma{v}"] = own["length_scale"] / gammas[v].min().item()
    return sizes, max(exponents)


def compare(names, views):
    """Check all results and gradients against the formula in float64."""
    dtype = views[0].dtype
    wide = torch.promote_types(dtype, torch.float32)
    B, N, V = *views[0].shape[:2], len(views)
    parameters = arguments(names, views, wide)
    shapes = ((B, V, N), (B, V, V), (B,), (B,))
    scales = (1, 1 / N, 1 / N, 1 / N)
    cotangents = [
        s * torch.randn(shape, dtype=torch.float64, device=views[0].device)
        for s, shape in zip(scales, shapes, strict=True)
    ]
    got = run(ours, names, views, parameters, cotangents, (dtype, wide))
    truth = run(textbook, names, views, parameters, cotangents, (torch.float64, torch.float64))
    same = run(textbook, names, views, parameters, cotangents, (wide, wide))
    sizes, exponent = magnitudes(names, views, parameters, cotangents)
    for key, result in got.items():
        wanted = same[key].to(result.dtype)
        label = f"{names}: {key}"
        assert_accurate(label, result, wanted, truth[key], roundings=8, magnitude=sizes[key], exponent=exponent)
    return got


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_one_view(name, dtype, device):
    compare((name,), [data(2, 35, 5, dtype=dtype, device=device)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_two_views(name, dtype, device):
    views = [data(1, 65, d, dtype=dtype, device=device) for d in (5, 17)]
    compare((name, "rbf"), views)
    if not INTERPRETED:
        compare(("energy", name), views)


@only_tiles
@pytest.mark.parametrize("dtype", DTYPES)
def test_three_views(dtype, device):
    compare(THREE, [data(2, 40, d, dtype=dtype, device=device) for d in (3, 1, 20)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("N", [1, 7] if INTERPRETED else [1, 2, 7, 300])
def test_any_number_of_rows(N, dtype, device):
    compare(("rbf", "energy"), [data(2, N, d, dtype=dtype, device=device) for d in (1, 33)])


def test_several_tiles_of_triton(device):
    compare(("energy", "sigmoid"), [data(1, 150, d, dtype=torch.float32, device=device) for d in (300, 70)])


@pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="tiles have no waves")
def test_several_waves_and_stored_blocks(device, monkeypatch):
    """More rows than a wave has, and than gradients of K's entries are stored of at once."""
    from mmkernels.kernels import moments as launchers

    monkeypatch.setattr(launchers, "WAVE", 64)
    monkeypatch.setattr(launchers, "_STORED", 8 * 150 * 67)
    compare(("rbf", "polynomial"), [data(1, 150, d, dtype=torch.float32, device=device) for d in (3, 5)])


@only_tiles
@pytest.mark.parametrize("names", [("mixture",), ("laplacian", "sigmoid"), THREE])
def test_many_tiles_agree(names, device):
    """The budget decides the tiles, never the result; the same call gives the same bits."""
    views = [data(2, 130, d, dtype=torch.float64, device=device).requires_grad_() for d in (3, 4, 5)[: len(names)]]
    gammas, coefs, centres = arguments(names, views, torch.float64)
    tensors = [*views, *(t.requires_grad_() for t in (*gammas, *coefs))]

    def step():
        out = ours(names, views, gammas, coefs, centres)
        loss = sum((t / t.detach().norm()).sin().sum() for t in out)
        first = torch.autograd.grad(loss, tensors, create_graph=True)
        return *out, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), tensors)

    whole = step()
    before = mmkernels.memory_budget()
    try:
        mmkernels.set_memory_budget(65536)
        tiled, again = step(), step()
    finally:
        mmkernels.set_memory_budget(before)
    for a, b, c in zip(whole, tiled, again, strict=True):
        assert torch.equal(b, c)
        assert (a - b).norm() <= 1e-11 * a.norm()


def test_only_what_is_asked_for(device):
    names = ("rbf", "polynomial")
    views = [data(1, 20, 3, dtype=torch.float32, device=device).requires_grad_() for _ in names]
    parameters = arguments(names, views, torch.float32)
    whole = ours(names, views, *parameters)
    for k in range(4):
        wants = tuple(j == k for j in range(4))
        out = ours(names, views, *parameters, wants)
        assert [t.numel() for j, t in enumerate(out) if j != k] == [0, 0, 0]
        torch.testing.assert_close(out[k], whole[k])
        got, wanted = (torch.autograd.grad(o[k].sum(), views[0], retain_graph=True)[0] for o in (out, whole))
        torch.testing.assert_close(got, wanted)


def test_nothing_to_sum(device):
    for B, N in ((2, 0), (0, 4)):
        views = [torch.randn(B, N, d, device=device, requires_grad=True) for d in (2, 3)]
        names = ("rbf", "energy")
        rows, *sums = ours(names, views, *arguments(names, views, torch.float32))
        assert rows.shape == (B, 2, N)
        assert all((t == 0).all() for t in sums)
        sum(t.sum() for t in (rows, *sums)).backward()
        assert all(x.grad.shape == x.shape for x in views)


def test_equal_rows(device):
    """Distance exactly 0, finite gradients; kernels with a kink there have gradient 0."""
    x = torch.full((1, 20, 3), 0.1, device=device, requires_grad=True)
    names = ("energy", "matern")
    out = ours(names, [x, x], *arguments(names, [x, x], torch.float32))
    sum(t.sum() for t in out).backward()
    assert (x.grad == 0).all()
    torch.testing.assert_close(out[0][0], torch.tensor([[-0.1 * 20], [0.8 * 20]], device=device).expand(2, 20))


@only_tiles
@pytest.mark.parametrize("names", [("mixture",), ("rbf", "energy"), ("polynomial", "matern"), THREE])
def test_derivatives(names, device):
    views = [torch.randn(1, 4, d, dtype=torch.float64, device=device, requires_grad=True) for d in (2, 1, 2)]
    views = views[: len(names)]
    V = len(views)
    gammas, coefs, centres = arguments(names, views, torch.float64)
    tensors = (*views, *(t.clone().requires_grad_() for t in (*gammas, *coefs)))

    def function(*t):
        return ours(names, t[:V], t[V : 2 * V], t[2 * V :], centres)

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_sixteen_bit_gradients_of_terms_that_cancel(offset, device):
    """They are rounded once, when they are summed up."""
    g = torch.Generator().manual_seed(0)
    x = (torch.randn(70, 3, generator=g) + offset).to(device, torch.float16)
    y = torch.randn(70, 2, generator=g).to(device, torch.float16)
    options = {"gamma": (None, 0.3)}
    wide = x.double().requires_grad_()
    (wanted,) = torch.autograd.grad(mmkernels.cka(wide, y.double(), ("polynomial", "rbf"), **options), wide)
    x.requires_grad_()
    (got,) = torch.autograd.grad(mmkernels.cka(x, y, ("polynomial", "rbf"), **options), x)
    assert (got - wanted).norm() <= 2e-3 * wanted.norm()


@only_tiles
def test_sums_of_many_entries_keep_their_digits(device):
    """A float32 sum of a million entries had five."""
    x = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)).to(device)
    y = x[:, :2] + 1
    for function in (
        lambda x, y: mmkernels.entropy(x, "renyi", gamma=0.5),
        lambda x, y: mmkernels.mutual_information(x, y, "renyi", gamma=0.5),
        lambda x, y: mmkernels.mutual_information(x, y, "cauchy_schwarz", gamma=0.5),
    ):
        torch.testing.assert_close(function(x, y).double(), function(x.double(), y.double()), rtol=2e-5, atol=1e-6)

"""Covariances in one read: values and gradients against the textbook formula in float64."""

import numpy as np
import pytest
import torch

import mmkernels
from mmkernels.autograd.covariance import scatter
from reference import covariance as reference
from tests.accuracy import DTYPES, assert_accurate
from tests.conftest import INTERPRETED

only_tiles = pytest.mark.skipif(INTERPRETED, reason="float64, which goes by tiles")
SHAPES = [(2, (1,)), (7, (5,)), (7, (1, 3)), (65, (4, 17, 2))] + (
    [] if INTERPRETED else [(300, (33,)), (40, (20, 150)), (300, (3, 5, 1, 40))]
)


def data(*shape, dtype, device):
    return (torch.randn(*shape, device=device, dtype=torch.float64) + 0.5).to(dtype)


def run(function, views, weights, dtype, cotangents):
    """Mean, covariance and gradients of function(views, weights), in dtype."""
    leaves = {f"views[{v}]": t.detach().to(dtype).requires_grad_() for v, t in enumerate(views)}
    wide = torch.promote_types(dtype, torch.float32)
    if weights is not None:
        leaves["weights"] = weights.detach().to(wide).requires_grad_()
    mean, cov = function([t for key, t in leaves.items() if key != "weights"], leaves.get("weights"))[:2]
    loss = sum((t * c.to(t.dtype)).sum() for t, c in zip((mean, cov), cotangents, strict=True))
    return {"mean": mean, "cov": cov} | dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def compare(views, weights=None, present=None, correction=1):
    """Check mean, covariance and their gradients against the formula in float64."""
    D, batch = sum(v.shape[-1] for v in views), views[0].shape[:-2]
    mask = None if present is None else reference.stacked_present(present, views)
    cotangents = [torch.randn(*batch, *s, device=views[0].device, dtype=torch.float64) for s in ((D,), (D, D))]
    dtype = views[0].dtype
    wide = torch.promote_types(dtype, torch.float32)
    # Triton rounds centred 16-bit rows to 16 bits before it multiplies them; tiles multiply in float32.
    rounded = dtype != wide and (INTERPRETED or views[0].is_cuda)
    narrow = dtype if rounded else wide

    def ours(views, weights):
        return mmkernels.covariance(*views, weights=weights, present=present, correction=correction)

    def dense(views, weights):
        return reference.covariance(torch.cat(views, -1), weights, mask, correction)

    got = run(ours, views, weights, dtype, cotangents)
    truth = run(dense, views, weights, torch.float64, cotangents)
    same = run(dense, views, weights, narrow, cotangents)
    for key, result in got.items():
        assert result.dtype == (dtype if key.startswith("views") else wide), key
        products = torch.finfo(dtype).eps / torch.finfo(wide).eps if rounded and key == "cov" else 0
        assert_accurate(key, result, same[key].to(result.dtype), truth[key], roundings=8 + products)
    torch.testing.assert_close(got["cov"], got["cov"].mT, rtol=0, atol=0)


def some_present(N, views, device):
    """Masks without which rows lack some views; absent rows hold NaN."""
    present = [torch.rand(N, device=device) < 0.8 for _ in views]
    for mask in present:
        mask[:4] = True
    present[-1] = None if len(views) > 1 else present[-1]
    holed = [v if p is None else torch.where(p[:, None], v, torch.nan) for v, p in zip(views, present, strict=True)]
    return present, holed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "sizes"), SHAPES)
def test_against_the_formula(N, sizes, dtype, device):
    compare([data(N, d, dtype=dtype, device=device) for d in sizes])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(5,), (3, 4), (2, 3, 1)])
def test_weights(sizes, dtype, device):
    views = [data(33, d, dtype=dtype, device=device) for d in sizes]
    weights = torch.rand(33, device=device) * 5
    weights[::5] = 0
    compare(views, weights)
    compare(views, weights, correction=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(5,), (3, 4), (2, 3, 1)])
def test_missing_views(sizes, dtype, device):
    present, views = some_present(41, [data(41, d, dtype=dtype, device=device) for d in sizes], device)
    compare(views, None, present)
    compare(views, torch.rand(41, device=device) + 0.1, present)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches(dtype, device):
    views = [data(2, 3, 20, d, dtype=dtype, device=device) for d in (4, 1)]
    compare(views)
    compare(views, torch.rand(2, 3, 20, device=device) + 0.1)
    weights = torch.rand(20, device=device) + 0.1
    one = mmkernels.covariance(*(v[1, 2] for v in views), weights=weights)
    all_of_them = mmkernels.covariance(*views, weights=weights)
    torch.testing.assert_close(all_of_them.cov[1, 2], one.cov)
    assert all_of_them.n == one.n
    assert mmkernels.covariance(*views, weights=weights.expand(2, 3, 20)).n.shape == (2, 3)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_groups(batch, device):
    x, y = (data(*batch, 30, 12, dtype=torch.float32, device=device) for _ in "xy")
    weights = torch.rand(*batch, 30, device=device) + 0.1
    got = mmkernels.covariance(x, y, groups=3, weights=weights)
    assert got.cov.shape == (*batch, 3, 8, 8)
    for g in range(3):
        own = [t[..., 4 * g : 4 * g + 4] for t in (x, y)]
        wanted = mmkernels.covariance(*own, weights=weights)
        torch.testing.assert_close(got.cov[..., g, :, :], wanted.cov)
        torch.testing.assert_close(got.mean[..., g, :], wanted.mean)


def test_the_result(device):
    x, y, z = (data(50, d, dtype=torch.float32, device=device) for d in (3, 2, 4))
    S = mmkernels.covariance(x, y, z)
    assert S.sizes == (3, 2, 4)
    assert S.n == 50
    torch.testing.assert_close(S.cov, torch.cat([x, y, z], 1).T.cov())
    assert torch.equal(S.xx, S.cov[:3, :3])
    assert torch.equal(S.xy, S.cov[:3, 3:5])
    assert torch.equal(S.yy, S.cov[3:5, 3:5])
    assert torch.equal(S.block(2, 0), S.cov[5:, :3])
    torch.testing.assert_close(S.mean_x, x.mean(0))
    torch.testing.assert_close(S.mean_y, y.mean(0))
    counts = torch.randint(1, 5, (50,), device=device)
    weighted = mmkernels.covariance(x, y, weights=counts.float())
    torch.testing.assert_close(weighted.cov, torch.cat([x, y], 1).T.cov(fweights=counts))
    repeated = mmkernels.covariance(*(t.repeat_interleave(counts, 0) for t in (x, y)))
    torch.testing.assert_close(weighted.cov, repeated.cov)
    torch.testing.assert_close(weighted.mean, repeated.mean)
    assert weighted.n == repeated.n == counts.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pairwise_complete_as_a_loop_has_it(dtype, device):
    """Each pair of features over the rows that have both, as pandas' DataFrame.cov."""
    present, views = some_present(60, [data(60, d, dtype=dtype, device=device) for d in (2, 3, 1)], device)
    counts = torch.randint(1, 4, (60,), device=device)
    S = mmkernels.covariance(*views, present=present, weights=counts.to(dtype))
    x, times = torch.cat(views, 1).double().cpu().numpy(), counts.cpu().numpy()
    wanted = np.empty((6, 6))
    for i in range(6):
        for j in range(6):
            both = ~np.isnan(x[:, i]) & ~np.isnan(x[:, j])
            wanted[i, j] = np.cov(x[both, i], x[both, j], fweights=times[both])[0, 1]
    error = np.abs(S.cov.double().cpu().numpy() - wanted).max()
    assert error <= 20 * torch.finfo(dtype).eps
    assert S.n.shape == (3, 3)
    masks = [torch.ones(60, dtype=torch.bool, device=device) if p is None else p for p in present]
    for u in range(3):
        for v in range(3):
            assert S.n[u, v] == counts[masks[u] & masks[v]].sum()
    for v, view in enumerate(views):
        own = masks[v]
        mean = (view[own] * counts[own, None]).sum(0) / counts[own].sum()
        torch.testing.assert_close(S.mean[S.features(v)], mean)


def test_a_pair_that_no_row_has_is_nan(device):
    x, y = (data(6, 2, dtype=torch.float32, device=device) for _ in "xy")
    first = torch.arange(6, device=device) < 3
    S = mmkernels.covariance(x, y, present=[first, ~first])
    assert S.xy.isnan().all()
    assert S.n.tolist() == [[3, 0], [0, 3]]
    torch.testing.assert_close(S.xx, x[:3].T.cov())
    torch.testing.assert_close(S.yy, y[3:].T.cov())


@pytest.mark.parametrize("N", [200] if INTERPRETED else [200, 20000])
def test_data_far_from_the_origin(N, device):
    """Float32 rows around 1e4: relative error at most 1e-5, also where the mean of the rows sampled is not theirs."""
    x, y = (torch.randn(N, d, device=device) + 1e4 for d in (5, 3))
    x[1::2] += 3.0
    both = [t.requires_grad_() for t in (x, y)]
    S = mmkernels.covariance(*both)
    wide = [t.detach().double().requires_grad_() for t in both]
    truth = reference.covariance(torch.cat(wide, 1))[1]
    assert (S.cov - truth).abs().max() <= 1e-5 * truth.abs().max()
    cotangent = torch.randn(8, 8, device=device)
    got = torch.autograd.grad((S.cov * cotangent).sum(), both)
    wanted = torch.autograd.grad((truth * cotangent).sum(), wide)
    for g, t in zip(got, wanted, strict=True):
        assert (g - t).abs().max() <= 1e-5 * t.abs().max()


def test_equal_rows(device):
    row = torch.randn(4, device=device) * 1e4
    x = row.expand(37, 4).clone().requires_grad_()
    S = mmkernels.covariance(x)
    assert S.cov.abs().max() <= (row.abs().max() * torch.finfo(torch.float32).eps).square() * 4
    S.cov.sum().backward()
    assert x.grad.isfinite().all()


def test_layouts(device):
    """Rows and columns far apart in memory, and expanded batches, are read as they are."""
    wide = data(40, 60, dtype=torch.float32, device=device)
    x, y = wide[:, ::2], wide.mT[:40].mT[:, 30:]
    got = mmkernels.covariance(x, y)
    torch.testing.assert_close(got.cov, mmkernels.covariance(x.contiguous(), y.contiguous()).cov)
    torch.testing.assert_close(mmkernels.covariance(wide.mT[:, 1::3]).cov, wide.mT[:, 1::3].contiguous().T.cov())
    batch = mmkernels.covariance(x.expand(3, 40, 30), y.expand(3, 40, 10))
    torch.testing.assert_close(batch.cov, got.cov.expand(3, 40, 40))
    leaf = wide.clone().requires_grad_()
    mmkernels.covariance(leaf[:, ::2], leaf.mT[:40].mT[:, 30:]).cov.square().sum().backward()
    other = wide.clone().requires_grad_()
    torch.cat([other[:, ::2], other[:, 30:40]], 1).T.cov().square().sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_the_same_bits(device):
    views = [data(300, d, dtype=torch.float32, device=device).requires_grad_() for d in (5, 18)]

    def once():
        S = mmkernels.covariance(*views)
        return S.mean, S.cov, *torch.autograd.grad(S.cov.sin().sum(), views)

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


@pytest.mark.parametrize("constant", [0.1, 1e4, 0.0])
def test_constant_features(constant, device):
    """Their covariances are 0, not the rounding of their means."""
    x, y = (data(60, d, dtype=torch.float32, device=device) for d in (3, 2))
    x[:, 1] = constant
    present = [torch.rand(60, device=device) < 0.8, None]
    weights = torch.rand(60, device=device) + 0.1
    for options in ({}, {"weights": weights}, {"present": present}, {"weights": weights, "present": present}):
        S = mmkernels.covariance(x, y, **options)
        assert (S.cov[1] == 0).all()
        assert (S.cov[:, 1] == 0).all()
        assert (S.cov.diagonal()[[0, 2, 3, 4]] > 0.1).all()
        torch.testing.assert_close(S.mean[1].item(), constant, rtol=1e-6, atol=0)


def test_no_rows(device):
    """The operators sum over nothing: zeros, and gradients as empty as the views."""
    x, y = (torch.zeros(2, 0, d, device=device, requires_grad=True) for d in (3, 1))
    shift = torch.randn(2, 4, device=device)
    for weights in (None, torch.zeros(2, 0, device=device)):
        for present in (None, torch.ones(1, 2, 0, device=device)):
            products, sums = scatter([x, y], shift, weights, present)
            assert torch.equal(products, torch.zeros(2, 4, 4, device=device))
            assert torch.equal(sums, torch.zeros(2, 1 if present is None else 2, 4, device=device))
            gradients = torch.autograd.grad(products.sum() + sums.sum(), (x, y))
            assert [g.shape for g in gradients] == [x.shape, y.shape]


def test_no_batch_entries(device):
    x = torch.zeros(0, 6, 3, device=device)
    S = mmkernels.covariance(x, x[..., :1], weights=torch.zeros(0, 6, device=device))
    assert S.cov.shape == (0, 4, 4)
    assert S.mean.shape == (0, 4)
    assert S.n.shape == (0,)


def test_too_few_rows(device):
    x = torch.randn(3, 2, device=device)
    for rows, options, least in ((0, {}, 1), (1, {}, 1), (3, {"correction": 3}, 3), (0, {"correction": 0}, 0)):
        with pytest.raises(ValueError, match=rf"more than {least} row\(s\), got shape \({rows}, 2\)"):
            mmkernels.covariance(x[:rows], **options)
    with pytest.raises(ValueError, match=r"more than 0 row\(s\)"):
        mmkernels.covariance(x[:0], weights=x[:0, 0])
    assert torch.equal(mmkernels.covariance(x[:1], correction=0).cov, torch.zeros(2, 2, device=device))

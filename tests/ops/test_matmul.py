"""Kernel products that store no matrix: values and gradients against the textbook formulas in float64."""

import pytest
import torch

import mmkernels
from mmkernels._memory import peak_bytes
from tests.accuracy import DTYPES, WORKING_DTYPES
from tests.conftest import INTERPRETED
from tests.ops.kernels import KERNELS, SHAPES, STREAMED, compare, data, parameters


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_two_samples(name, dtype, device):
    for N, M, D in SHAPES if name == "rbf" else SHAPES[2:3]:
        for E in (1, 3):
            x, y, v = (data(n, d, dtype=dtype, device=device) for n, d in ((N, D), (M, D), (M, E)))
            compare(name, x, y, v)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_one_sample(name, dtype, device):
    x, v = data(71, 20, dtype=dtype, device=device), data(71, 2, dtype=dtype, device=device)
    compare(name, x, None, v)


@pytest.mark.parametrize("dtype", WORKING_DTYPES)
@pytest.mark.parametrize("E", [16, 70])
def test_many_columns(E, dtype, device):
    x, y, v = (data(n, d, dtype=dtype, device=device) for n, d in ((50, 12), (90, 12), (90, E)))
    compare("rbf", x, y, v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["rbf", "polynomial", "laplacian", "rational quadratic"])
def test_batches(name, dtype, device):
    x, y, v = (data(*s, dtype=dtype, device=device) for s in ((3, 1, 20, 6), (2, 30, 6), (30, 2)))
    values = parameters(name, dtype, device)
    compare(name, x, y, v)
    per_entry = {k: t * torch.tensor([[[0.5]], [[1.0]]], dtype=dtype, device=device) for k, t in values.items()}
    compare(name, x, y, v, per_entry)
    compare(name, x[0, 0], y[0], data(4, 30, 2, dtype=dtype, device=device))  # one K for all of v


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["matern 5/2", "rational quadratic"])
def test_a_length_scale_per_feature(name, dtype, device):
    x, y, v = (data(*s, dtype=dtype, device=device) for s in ((40, 5), (30, 5), (30, 2)))
    values = parameters(name, dtype, device)
    values["length_scale"] = torch.tensor([0.5, 1.0, 2.0, 3.0, 1.5], dtype=dtype, device=device)
    compare(name, x, y, v, values)
    got = mmkernels.kernel_matmul(x, y, v, "rbf", length_scale=values["length_scale"])
    scaled = [t / values["length_scale"] for t in (x, y)]
    torch.testing.assert_close(got, mmkernels.kernel_matmul(*scaled, v, "rbf", gamma=0.5))


@pytest.mark.parametrize("name", STREAMED)
def test_equal_rows(name, device):
    """Distance exactly 0, finite gradients; kernels with a kink there have gradient 0."""
    x = data(6, 8, dtype=torch.float32, device=device)
    x = torch.cat([x, x + 100, x + 100, x])
    compare(name, x / 30 if name in ("polynomial", "square", "exponential") else x, None, torch.ones_like(x[:, :1]))
    if name in ("polynomial", "square", "exponential", "sigmoid"):
        return
    kernel, _, options, _ = KERNELS[name]
    one, other = x[:1].clone().requires_grad_(), x[:1].clone().requires_grad_()
    k = mmkernels.kernel_matrix(one, other, kernel, **options)
    assert k.item() == (0 if name == "energy" else 1)
    k.sum().backward()
    assert (one.grad == 0).all()
    assert (other.grad == 0).all()


@pytest.mark.parametrize("dtype", WORKING_DTYPES)
@pytest.mark.parametrize("gamma", [1e-4, 1.0, 1e4])
def test_any_bandwidth(gamma, dtype, device):
    x, y, v = (data(n, d, dtype=dtype, device=device) for n, d in ((45, 6), (61, 6), (61, 2)))
    x[3:9] = y[3:9]  # at 1e4 nothing else is near
    compare("rbf", x, y, v, {"gamma": torch.tensor(gamma, device=device)})


def test_data_far_from_the_origin(device):
    x, y = (data(300, 16, dtype=torch.float32, device=device) + 1e3 for _ in "xy")
    K = mmkernels.kernel_matrix(x, y, gamma=0.5)
    difference = x.double()[:, None] - y.double()
    assert (K - torch.exp(-0.5 * difference.square().sum(-1))).abs().max() <= 1e-4
    compare("rbf", x, y, torch.ones_like(y[:, :1]))


def test_symmetric_is_the_same(device):
    x = data(70, 9, dtype=torch.float32, device=device)
    v = data(70, 3, dtype=torch.float32, device=device)
    for call in (mmkernels.kernel_matmul(x, x, v), mmkernels.kernel_matmul(x, x.clone(), v)):
        torch.testing.assert_close(call, mmkernels.kernel_matmul(x, None, v), rtol=1e-5, atol=1e-5)
    K = mmkernels.kernel_matrix(x)
    torch.testing.assert_close(K, K.mT, rtol=0, atol=1e-6)
    assert (K.diagonal() == 1).all()


def test_row_sums_diagonal_and_normalised_rows(device):
    x, y = (data(n, 5, dtype=torch.float64, device=device).requires_grad_() for n in (20, 30))
    v = data(30, 2, dtype=torch.float64, device=device)
    K = mmkernels.kernel_matrix(x, y)
    torch.testing.assert_close(mmkernels.kernel_matmul(x, y), K.sum(1))
    torch.testing.assert_close(mmkernels.kernel_matmul(x, y, v[:, 0]), K @ v[:, 0])
    smooth = mmkernels.kernel_matmul(x, y, v, normalize="rows")
    torch.testing.assert_close(smooth, (K / K.sum(1, keepdim=True)) @ v)
    assert torch.autograd.gradcheck(lambda x, y, v: mmkernels.kernel_matmul(x, y, v, normalize="rows"), (x, y, v))
    noise = torch.rand(20, dtype=torch.float64, device=device).requires_grad_()
    square = mmkernels.kernel_matrix(x)
    for diag in (0.3, noise.detach(), noise.detach()[0]):
        wanted = (square + torch.eye(20, dtype=torch.float64, device=device) * torch.as_tensor(diag)) @ v[:20]
        torch.testing.assert_close(mmkernels.kernel_matmul(x, None, v[:20], diag=diag), wanted)
    assert torch.autograd.gradcheck(lambda x, d: mmkernels.kernel_matmul(x, None, v[:20], diag=d), (x, noise))


def test_nothing_to_sum(device):
    x = torch.randn(4, 3, device=device, requires_grad=True)
    none = torch.empty(0, 3, device=device)
    assert torch.equal(mmkernels.kernel_matmul(x, none, torch.empty(0, 2, device=device)), torch.zeros_like(x[:, :2]))
    assert mmkernels.kernel_matmul(none, x.detach(), x.detach()).shape == (0, 3)
    assert mmkernels.kernel_matmul(x, None, x.detach()[:, :0]).shape == (4, 0)
    assert mmkernels.kernel_matrix(none, x).shape == (0, 4)
    mmkernels.kernel_matmul(x, none, torch.empty(0, 2, device=device)).sum().backward()
    assert (x.grad == 0).all()
    assert mmkernels.kernel_matmul(torch.empty(0, 4, 3, device=device), None).shape == (0, 4)


def test_layouts(device):
    """Rows and columns far apart in memory, and expanded batches, are read as they are."""
    wide = data(40, 60, dtype=torch.float32, device=device)
    x, y, v = wide[:, ::2], wide.mT[:30].mT[:, :30], wide[:, 30:33]
    got = mmkernels.kernel_matmul(x, y, v)
    torch.testing.assert_close(got, mmkernels.kernel_matmul(*(t.contiguous() for t in (x, y, v))))
    batch = mmkernels.kernel_matmul(x.expand(3, 40, 30), y, v.expand(3, 40, 3))
    torch.testing.assert_close(batch, got.expand(3, 40, 3))


@pytest.mark.skipif(INTERPRETED, reason="the budget cuts tiles; the kernels have tiles of their own")
@pytest.mark.parametrize("itself", [False, True])
@pytest.mark.parametrize("name", ["rbf", "mixture", "sigmoid", "laplacian", "rational quadratic"])
def test_many_tiles_agree(name, itself, device):
    """The budget decides the tiles, never the result; the same call gives the same bits."""
    x, y = (data(150, 7, dtype=torch.float64, device=device).requires_grad_() for _ in "xy")
    v = data(150, 2, dtype=torch.float64, device=device).requires_grad_()
    values = {k: t.requires_grad_() for k, t in parameters(name, torch.float64, device).items()}
    tensors = [x, v, *values.values()] + ([] if itself else [y])
    kernel, _, options, _ = KERNELS[name]

    def run():
        product = mmkernels.kernel_matmul(x, None if itself else y, v, kernel, **values, **options)
        first = torch.autograd.grad(product.sin().sum(), tensors, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), tensors)
        K = mmkernels.kernel_matrix(x, None if itself else y, kernel, **values, **options)
        return product, *first, *second, K, *torch.autograd.grad(K.sin().sum(), [t for t in tensors if t is not v])

    whole = run()
    before = mmkernels.memory_budget()
    try:
        mmkernels.set_memory_budget(65536)
        tiled, again = run(), run()
    finally:
        mmkernels.set_memory_budget(before)
    for a, b, c in zip(whole, tiled, again, strict=True):
        assert torch.equal(b, c)
        assert (a - b).norm() <= 1e-12 * a.norm()


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes minutes")
@pytest.mark.parametrize("order", [1, 2])
def test_memory_does_not_grow_with_the_matrix(order, device):
    N = 6000
    x, v = data(N, 8, dtype=torch.float32, device=device).requires_grad_(), torch.ones(N, device=device)

    def step():
        out = mmkernels.kernel_matmul(x, None, v)
        (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=order == 2)
        if order == 2:
            torch.autograd.grad(gradient.square().sum(), x)

    peak = peak_bytes(step, x.device)
    assert peak is None or peak < (0.5 if order == 1 else 2) * 4 * N * N


@pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="tiles store no weights")
@pytest.mark.parametrize("itself", [False, True])
@pytest.mark.parametrize("name", ["rbf", "mixture", "sigmoid", "laplacian", "rational quadratic"])
def test_several_blocks_of_stored_weights(name, itself, device, monkeypatch):
    """Rows too wide for registers, and more of them than a block has."""
    from mmkernels.kernels import _weights

    monkeypatch.setattr(_weights, "_BLOCK", 128)
    x, y, v = (data(n, d, dtype=torch.float32, device=device) for n, d in ((150, 260), (290, 260), (290, 2)))
    compare(name, x, None if itself else y, v[:150] if itself else v)

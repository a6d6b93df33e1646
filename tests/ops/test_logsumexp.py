"""Row and column log-sum-exps, values and gradients, against the dense formula in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import mmkernels
from mmkernels.autograd.logsumexp import logsumexp
from reference import contrastive as reference
from tests.accuracy import DTYPES, WORKING_DTYPES, assert_accurate
from tests.conftest import INTERPRETED

SHAPES = [(1, 1, 1), (7, 5, 3), (5, 7, 64), (64, 32, 16), (65, 33, 100), (130, 200, 300)]


def inputs(N, M, D, dtype, device, scale=5.0):
    x = F.normalize(torch.randn(N, D, device=device, dtype=torch.float64), dim=1).to(dtype)
    y = F.normalize(torch.randn(M, D, device=device, dtype=torch.float64), dim=1).to(dtype)
    return x, y, torch.tensor(scale, device=device, dtype=torch.float64 if dtype == torch.float64 else torch.float32)


def outputs_and_gradients(function, tensors, dtype, cotangents):
    """Outputs of function and gradients of <outputs, cotangents> in the tensors that are not None, all in dtype."""
    leaves = [None if t is None else t.detach().to(dtype(t)).requires_grad_() for t in tensors]
    outputs = function(*leaves)
    total = sum((torch.where(o.isinf(), 0, o) * c.to(o.dtype)).sum() for o, c in zip(outputs, cotangents, strict=True))
    wanted = [t for t in leaves if t is not None]
    return outputs, torch.autograd.grad(total, wanted)


def compare(tensors, ids=None, offset=None):
    """Check rows, columns and all gradients of x, y, scale and log_weights (None where absent)."""
    x, y = tensors[:2]
    scale = tensors[2].abs().item()
    cotangents = [torch.randn(len(t), device=x.device, dtype=torch.float64) for t in (x, y)]

    def ours(x, y, scale, log_weights=None):
        return mmkernels.logsumexp_scores(x, y, scale, log_weights=log_weights, ids=ids, offset=offset)

    def dense(x, y, scale, log_weights=None):
        return reference.logsumexp_scores(x, y, scale, log_weights=log_weights, ids=ids, offset=offset)

    values, gradients = outputs_and_gradients(ours, tensors, lambda t: t.dtype, cotangents)
    true_values, true_gradients = outputs_and_gradients(dense, tensors, lambda t: torch.float64, cotangents)
    # 16-bit operands are exact, so what comes out in float32 has to be as good as the float32 formula's.
    wide = torch.promote_types(x.dtype, torch.float32)
    dense_values, wide_gradients = outputs_and_gradients(dense, tensors, lambda t: wide, cotangents)
    _, narrow_gradients = outputs_and_gradients(dense, tensors, lambda t: x.dtype, cotangents)
    in_turn = zip(gradients, wide_gradients, narrow_gradients, strict=True)
    dense_gradients = [w if g.dtype == wide else n for g, w, n in in_turn]
    dots = (x.double() @ y.double().T).abs().max().item()
    magnitude = scale * dots
    for name, got, low, truth in zip(("rows", "columns"), values, dense_values, true_values, strict=True):
        assert got.dtype == wide
        assert_accurate(name, got, low, truth, magnitude=magnitude)
    # A gradient is a sum of signed terms: its rounding follows their sizes, however small the sum. A stored
    # log-sum-exp is good to half a unit in its last place, and so, relatively, are the weights made from it: a quarter
    # of the allowance per exponent. In float64 the dense formula is the truth and has no error of its own to lend.
    largest, total = (max(f(c.abs()).item() for c in cotangents) for f in (torch.max, torch.sum))
    exponent = magnitude if x.dtype == torch.float64 else magnitude / 4
    sizes = {"x": scale * largest, "y": scale * largest, "scale": total * dots, "log_weights": largest}
    for name, got, low, truth in zip(sizes, gradients, dense_gradients, true_gradients, strict=False):
        assert got.isfinite().all()
        assert_accurate(f"gradient of {name}", got, low, truth, magnitude=sizes[name], exponent=exponent)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_pairs(shape, dtype, device):
    compare(inputs(*shape, dtype, device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "M", "offset"), [(1, 1, 0), (2, 7, 5), (65, 65, 0), (40, 130, 60), (33, 100, 67)])
def test_positives_left_out(N, M, offset, dtype, device):
    compare(inputs(N, M, 20, dtype, device), offset=offset)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [None, 0, 3])
def test_log_weights_and_ids(offset, dtype, device):
    N, M, K = 50, 70, 60
    log_weights = torch.randn(M, device=device, dtype=torch.float64)
    log_weights[[2, 69]] = -torch.inf
    wide = torch.promote_types(dtype, torch.float32)
    ids = torch.randint(0, 9, (N,), device=device), torch.randint(0, 9, (K,), device=device)
    compare((*inputs(N, M, 24, dtype, device), log_weights.to(wide)), ids=ids, offset=offset)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 200.0, 1e4, -20.0])
def test_any_scale(scale, dtype, device):
    compare(inputs(45, 61, 19, dtype, device, scale), offset=2)


@pytest.mark.parametrize("dtype", WORKING_DTYPES)
@pytest.mark.parametrize("case", ["identical rows", "orthogonal", "zeros", "one huge row", "large offset"])
def test_extreme_inputs(case, dtype, device):
    x, y, scale = inputs(48, 48, 48, dtype, device, 200.0)
    if case == "identical rows":
        x = y = x[:1].expand(48, 48)
    elif case == "orthogonal":
        x = y = torch.eye(48, device=device, dtype=dtype)
    elif case == "zeros":
        x[3], y[5] = 0, 0
    elif case == "one huge row":
        x[7] *= 50  # its scores reach 1e4, those of other rows 200: no common reference serves both
    elif case == "large offset":
        x, y, scale = x + 1000, y + 1000, scale / 1e5
    compare((x, y, scale), offset=0)


@pytest.mark.parametrize(("N", "M"), [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_empty(N, M, dtype, device):
    x, y, scale = (t.requires_grad_() for t in inputs(N, M, 4, dtype, device))
    rows, columns = mmkernels.logsumexp_scores(x, y, scale)
    assert rows.shape == (N,)
    assert columns.shape == (M,)
    assert (rows == -torch.inf).all()
    assert (columns == -torch.inf).all()
    gradients = torch.autograd.grad(rows.sum() + columns.sum(), (x, y, scale))
    assert [tuple(g.shape) for g in gradients] == [(N, 4), (M, 4), ()]
    assert all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("dtype", DTYPES)
def test_everything_left_out(dtype, device):
    x, y, scale = (t.requires_grad_() for t in inputs(6, 6, 4, dtype, device))
    same = torch.zeros(6, dtype=torch.int64, device=device)
    rows, columns = mmkernels.logsumexp_scores(x, y, scale, ids=(same, same))
    assert (rows == -torch.inf).all()
    assert (columns == -torch.inf).all()
    gradients = torch.autograd.grad((rows * 0 + columns * 0).nan_to_num().sum(), (x, y, scale))
    assert all((g == 0).all() for g in gradients)


def test_positives_and_maxima(device):
    x, y, scale = inputs(30, 50, 12, torch.float32, device)
    ids = torch.randint(0, 5, (30,), device=device), torch.randint(0, 5, (50,), device=device)
    log_weights = torch.randn(50, device=device)
    *_, positives, row_max, column_max = logsumexp(x, y, scale, log_weights, *ids, 20)
    s = reference.scores(x.double(), y.double(), scale.double(), log_weights.double())
    negative = s.masked_fill(reference.left_out(s, ids, 20), -torch.inf)
    torch.testing.assert_close(positives.double(), s.diagonal(20), atol=2e-6, rtol=0)
    torch.testing.assert_close(row_max.double(), negative.amax(1), atol=2e-6, rtol=0)
    torch.testing.assert_close(column_max.double(), negative.amax(0), atol=2e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradient_of_positives_alone(dtype, device):
    x, y, scale = (t.requires_grad_() for t in inputs(20, 33, 12, dtype, device))
    log_weights = torch.randn(33, device=device, requires_grad=True)
    positives = logsumexp(x, y, scale, log_weights, None, None, 5)[2]
    cotangent = torch.randn(20, device=device)
    got = torch.autograd.grad(positives, (x, y, scale, log_weights), cotangent)
    leaves = [t.detach().double().requires_grad_() for t in (x, y, scale, log_weights)]
    truth = torch.autograd.grad(reference.scores(*leaves).diagonal(5), leaves, cotangent.double())
    for g, t in zip(got, truth, strict=True):
        assert_accurate("gradient", g, t, t, roundings=8)


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=4))[1:], ids=str)
def test_only_the_gradients_asked_for(needs, device):
    tensors = [*inputs(20, 30, 8, torch.float32, device), torch.randn(30, device=device)]
    everything = [t.clone().requires_grad_() for t in tensors]
    some = [t.clone().requires_grad_(need) for t, need in zip(tensors, needs, strict=True)]
    for leaves in (everything, some):
        rows, columns, positives, *_ = logsumexp(*leaves, None, None, 4)
        (rows.sum() + 2 * columns.square().sum() + positives.sum()).backward()
    for a, b, need in zip(everything, some, needs, strict=True):
        assert (b.grad is not None) == need
        assert not need or torch.equal(a.grad, b.grad)


def test_rows_alone(device):
    x, y, scale = (t.requires_grad_() for t in inputs(20, 30, 8, torch.float32, device))
    both = logsumexp(x, y, scale, offset=3)
    alone = logsumexp(x, y, scale, offset=3, columns=False)
    assert alone[1].numel() == alone[4].numel() == 0
    torch.testing.assert_close(both[0], alone[0], atol=1e-6, rtol=1e-6)
    wanted = torch.autograd.grad(both[0].square().sum(), (x, y, scale))
    got = torch.autograd.grad(alone[0].square().sum(), (x, y, scale))
    for a, b in zip(wanted, got, strict=True):
        torch.testing.assert_close(a, b, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", WORKING_DTYPES)
def test_strided_and_expanded_inputs(dtype, device):
    x, y, scale = inputs(40, 40, 16, dtype, device)
    wanted = mmkernels.logsumexp_scores(x, y, scale)
    wide = torch.zeros(40, 40, device=device, dtype=dtype)
    wide[:, 7:23] = x
    strided = mmkernels.logsumexp_scores(wide[:, 7:23], y.T.contiguous().T, scale)
    assert all(torch.equal(a, b) for a, b in zip(wanted, strided, strict=True))
    repeated = mmkernels.logsumexp_scores(x[:1].expand(40, 16), y, scale)
    copied = mmkernels.logsumexp_scores(x[:1].repeat(40, 1), y, scale)
    assert all(torch.equal(a, b) for a, b in zip(repeated, copied, strict=True))


def test_bitwise_reproducible(device):
    x, y, scale = (t.requires_grad_() for t in inputs(150, 170, 40, torch.float32, device))

    def run():
        rows, columns = mmkernels.logsumexp_scores(x, y, scale, offset=1)
        return rows, columns, *torch.autograd.grad(rows.sum() + columns.sin().sum(), (x, y, scale))

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


def test_nan_propagates(device):
    x, y, scale = inputs(10, 12, 8, torch.float32, device)
    x[3, 2] = torch.nan
    rows, columns = mmkernels.logsumexp_scores(x, y, scale)
    assert rows.isnan().nonzero().flatten().tolist() == [3]
    assert columns.isnan().all()


@pytest.mark.skipif(INTERPRETED, reason="the budget cuts tiles; the kernels have tiles of their own")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_tiles_and_kept_scores_agree(dtype, device):
    """The budget decides the tiles and whether scores are kept, never the result."""
    tensors = [t.requires_grad_() for t in inputs(150, 210, 24, dtype, device)]
    ids = torch.randint(0, 40, (150,), device=device), torch.randint(0, 40, (190,), device=device)

    def run():
        rows, columns = mmkernels.logsumexp_scores(*tensors, ids=ids, offset=60)
        first = torch.autograd.grad(rows.sin().sum() + columns.sin().sum(), tensors, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), tensors)
        return rows, columns, *first, *second

    whole = run()
    before = mmkernels.memory_budget()
    try:
        mmkernels.set_memory_budget(65536)
        tiled = run()
    finally:
        mmkernels.set_memory_budget(before)
    for a, b in zip(whole, tiled, strict=True):
        assert (a - b).norm() <= 50 * torch.finfo(dtype).eps * a.norm()

"""Nearest neighbours and counts within a radius against all distances: equal, with ties too."""

import math

import pytest
import torch

import mmkernels
from mmkernels.ops import _knn
from reference import information as reference
from reference.kernel import squared_distances
from tests.conftest import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the kernels have tests of their own")

TOPK, COUNT = torch.ops.mmkernels.nearest_topk, torch.ops.mmkernels.nearest_count
FEATURES = [(1,), (3,), (2, 1), (1, 4, 2)]


def rows(N, features, dtype, device, step=None):
    """Views of normal rows; with a step on a lattice, where distances tie and rows coincide."""
    views = [torch.randn(N, D, dtype=torch.float64, device=device) for D in features]
    return [(v if step is None else (v / step).round() * step).to(dtype) for v in views]


def all_distances(views, euclidean):
    """What the operators promise, in the dtype they compute in; squares if Euclidean."""
    if euclidean:
        squares = [squared_distances(v.double(), v.double()) for v in views]
        return torch.stack(squares).amax(0).fill_diagonal_(torch.inf)
    return reference.distances([v.to(torch.promote_types(v.dtype, torch.float32)) for v in views])


def check_topk(views, k, euclidean):
    d = all_distances(views, euclidean)
    values, found = TOPK(views, k, euclidean)
    assert values.dtype == torch.promote_types(views[0].dtype, torch.float32)
    wanted = d.sort(1)[0][:, :k]
    at_found = d.gather(1, found)
    if euclidean:  # squares are summed in another order
        torch.testing.assert_close(values.double(), wanted, rtol=16 * torch.finfo(values.dtype).eps, atol=0)
        torch.testing.assert_close(values.double(), at_found, rtol=16 * torch.finfo(values.dtype).eps, atol=0)
    else:
        assert torch.equal(values, wanted)
        assert torch.equal(values, at_found)
    ordered = found.sort(1)[0]
    assert (ordered.diff(dim=1) > 0).all()  # no row twice, and none its own neighbour
    assert (found != torch.arange(len(d), device=d.device)[:, None]).all()
    return values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("euclidean", [False, True])
@pytest.mark.parametrize("features", FEATURES)
def test_nearest_rows(features, euclidean, dtype, device):
    for N, k in ((2, 1), (9, 8), (70, 1), (70, 5)):
        check_topk(rows(N, features, dtype, device), k, euclidean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("features", FEATURES)
def test_counts_in_the_maximum_norm(features, strict, dtype, device):
    for step in (None, 0.5):
        views = rows(70, features, dtype, device, step)
        d = all_distances(views, False)
        for radii in (d.sort(1)[0][:, 3], torch.full_like(d[:, 0], 0.5), torch.zeros_like(d[:, 0])):
            inside = d < radii[:, None] if strict else d <= radii[:, None]
            count = COUNT(views, radii, False, strict)
            assert count.dtype == torch.int64
            assert torch.equal(count, inside.sum(1))


@pytest.mark.parametrize("strict", [False, True])
def test_counts_in_the_euclidean_norm(strict, device):
    views = rows(70, (2, 3), torch.float64, device)
    d = all_distances(views, True)
    radii = d.sort(1)[0][:, 4:6].mean(1)  # between two distances, so that rounding decides nothing
    assert (COUNT(views, radii, True, strict) == 5).all()
    lattice = rows(70, (2, 3), torch.float32, device, 0.5)  # squares are exact
    d = all_distances(lattice, True)
    inside = d < 0.5 if strict else d <= 0.5
    assert torch.equal(COUNT(lattice, torch.full((70,), 0.5, device=device), True, strict), inside.sum(1))


@pytest.mark.parametrize("budget", [None, 65536])
@pytest.mark.parametrize("euclidean", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [None, 0.5, 4.0])
def test_both_sweeps_form_the_same_distances(step, dtype, euclidean, budget, device):
    """The k-th neighbour is on the edge of its own ball, whatever the tiles: never nearer, and never farther."""
    before = mmkernels.memory_budget()
    views = rows(150, (3, 2), dtype, device, step)
    try:
        mmkernels.set_memory_budget(budget or before)
        for k in (1, 4, 149):
            values = TOPK(views, k, euclidean)[0]
            nearer = COUNT(views, values[:, -1].contiguous(), euclidean, True)
            no_farther = COUNT(views, values[:, -1].contiguous(), euclidean, False)
            assert torch.equal(nearer, (values < values[:, -1:]).sum(1))
            assert (no_farther >= k).all()
            if step is None:
                assert (nearer == k - 1).all()
                assert (no_farther == k).all()
    finally:
        mmkernels.set_memory_budget(before)


@pytest.mark.parametrize("euclidean", [False, True])
@pytest.mark.parametrize("step", [None, 0.5])
def test_many_tiles_agree(step, euclidean, device):
    views = rows(150, (2, 2), torch.float64, device, step)
    radii = torch.full((150,), 0.5, dtype=torch.float64, device=device)
    whole, count = TOPK(views, 7, euclidean), COUNT(views, radii, euclidean, False)
    before = mmkernels.memory_budget()
    try:
        mmkernels.set_memory_budget(65536)
        values = check_topk(views, 7, euclidean)
        assert torch.equal(values, whole[0])
        if step is None:
            assert torch.equal(TOPK(views, 7, euclidean)[1], whole[1])
        assert torch.equal(COUNT(views, radii, euclidean, False), count)
    finally:
        mmkernels.set_memory_budget(before)


def test_equal_rows(device):
    x = torch.ones(6, 2, device=device)
    x[4:] += 1
    values, _ = TOPK([x], 3, False)
    assert values.tolist() == [[0, 0, 0]] * 4 + [[0, 1, 1]] * 2
    zero = torch.zeros(6, device=device)
    assert COUNT([x], zero, False, True).tolist() == [0] * 6
    assert COUNT([x], zero, False, False).tolist() == [3] * 4 + [1] * 2


def test_layouts(device):
    wide = torch.randn(40, 30, device=device)
    x, y = wide[:, ::7], wide.mT[:3].mT
    assert torch.equal(TOPK([x, y], 4, False)[0], TOPK([x.contiguous(), y.contiguous()], 4, False)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_operators_are_opaque(dtype, device):
    views = rows(9, (2, 1), dtype, device)
    radii = torch.ones(9, dtype=torch.promote_types(dtype, torch.float32), device=device)
    for op, arguments in (
        (TOPK.default, (views, 3, False)),
        (COUNT.default, (views, radii, False, True)),
        (COUNT.default, (views, radii, True, False)),
    ):
        results = torch.library.opcheck(op, arguments)
        assert all(result == "SUCCESS" for result in results.values()), results


@pytest.mark.skipif(torch.cuda.is_available(), reason="SciPy's tree serves a CPU")
@pytest.mark.parametrize("features", [(1,), (2,), (3,), (2, 2), (4, 1), (1, 2, 3)])
@pytest.mark.parametrize("step", [None, 0.5, 4.0])
def test_the_tree_and_the_tiles_agree(step, features, device, monkeypatch):
    pytest.importorskip("scipy")
    N = 2000  # so many that the tree serves six features
    views = [v * 2.0**-40 for v in rows(N, features, torch.float64, device, step)]  # near is what is nearer, not 1e-9

    def run():
        values, found = _knn.nearest(views, 4, "max")
        assert (found != torch.arange(N)[:, None]).all()
        counts = [_knn.within(views, values[:, j].contiguous(), "max", strict) for j in (0, 3) for strict in (0, 1)]
        return [values, *counts, *(_knn.within(views[:1], values[:, 3], "max", strict) for strict in (0, 1))]

    tree = run()
    assert _knn._tree_of(views, "max") is not None
    monkeypatch.setattr(_knn, "TREE_FEATURES", 0)
    assert _knn._tree_of(views, "max") is None
    for by_tree, by_tiles in zip(tree, run(), strict=True):
        assert by_tree.dtype == by_tiles.dtype
        assert torch.equal(by_tree, by_tiles)


@pytest.mark.skipif(torch.cuda.is_available(), reason="SciPy's tree serves a CPU")
def test_the_tree_in_the_euclidean_norm(device, monkeypatch):
    pytest.importorskip("scipy")
    views = rows(500, (3,), torch.float64, device)
    assert _knn._tree_of(views, "euclidean") is not None
    values, found = _knn.nearest(views, 4, "euclidean")
    monkeypatch.setattr(_knn, "TREE_FEATURES", 0)
    by_tiles = _knn.nearest(views, 4, "euclidean")
    torch.testing.assert_close(values, by_tiles[0], rtol=1e-14, atol=0)
    assert torch.equal(found, by_tiles[1])


def test_without_neighbours_nearer_than_infinity(device):
    """Rows too far apart for float32's squares are no neighbours, but count nothing either."""
    x = torch.tensor([[0.0], [1e30]], device=device)
    assert math.isinf(TOPK([x], 1, True)[0][0].item())
    assert TOPK([x], 1, False)[0].tolist() == [[x[1].item()]] * 2

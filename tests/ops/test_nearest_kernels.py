"""Nearest neighbours and counts within a radius by the Triton kernels, against all distances at once.

A difference of two numbers is rounded once, so distances in the maximum norm must be equal, not close.
"""

import pytest
import torch

import mmkernels  # noqa: F401  (defines the operators)
from mmkernels.tiled import nearest as tiled
from tests.conftest import INTERPRETED

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="Triton needs a GPU or TRITON_INTERPRET=1"
)

SHAPES = [  # N and the features of each view
    (7, (1,)),
    (65, (3,)),
    (300, (6,)),
    (7, (2, 1)),
    (65, (1, 4)),
    (300, (3, 2)),
]
NORMS = [False, True]  # euclidean


@pytest.fixture(scope="module")
def room():
    from mmkernels.kernels import nearest

    return nearest


def normal(device, N, widths, dtype=torch.float32):
    return [torch.randn(N, D, device=device).to(dtype) for D in widths]


def lattice(device, N, widths, dtype=torch.float32):
    """Few different rows, at distances exact in every dtype."""
    return [torch.randint(-2, 3, (N, D), device=device).to(dtype) for D in widths]


def distances(views, euclidean, dtype=torch.float64):
    """All distances, infinite from a row to itself."""
    own = [(x.to(dtype)[:, None] - x.to(dtype)).abs() for x in views]
    far = torch.stack([d.square().sum(2) if euclidean else d.amax(2) for d in own]).amax(0)
    return far.fill_diagonal_(torch.inf)


def check_rows(values, rows, far, rtol):
    """The rows found are different ones, where the distances are."""
    assert values.dtype == torch.float32
    assert rows.dtype == torch.int64
    assert all(len(set(found)) == len(found) for found in rows.tolist())
    torch.testing.assert_close(far.gather(1, rows).float(), values, rtol=rtol, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("euclidean", NORMS)
@pytest.mark.parametrize(("N", "widths"), SHAPES)
def test_nearest_rows(N, widths, euclidean, dtype, room, device):
    views = normal(device, N, widths, dtype)
    far = distances(views, euclidean)
    for k in (1, 3, 16, 20):
        if k < N:
            values, rows = room.nearest_topk(views, k, euclidean, "ieee")
            expected = far.topk(k, largest=False).values.float()
            torch.testing.assert_close(values, expected, rtol=1e-6 if euclidean else 0, atol=0)
            check_rows(values, rows, far, 1e-6 if euclidean else 0)


@pytest.mark.parametrize("euclidean", NORMS)
@pytest.mark.parametrize(("N", "widths"), SHAPES)
def test_a_distance_ties_with_itself(N, widths, euclidean, room, device):
    """The k-th neighbour is at the radius: not inside, and the only one on the edge."""
    views = normal(device, N, widths)
    for k in (1, 3, 15, 20):  # one more is found: the last of them in memory, the others in registers
        if k + 1 < N:
            values, _ = room.nearest_topk(views, k + 1, euclidean, "ieee")
            assert (values[:, max(0, k - 2) :].diff() > 0).all()  # no other row is on the edge
            for strict in (True, False):
                count = room.nearest_count(views, values[:, k - 1], euclidean, strict, "ieee")
                assert count.dtype == torch.int64
                assert count.tolist() == [k - strict] * N


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("euclidean", NORMS)
@pytest.mark.parametrize("widths", [(2,), (5,), (1, 2)])
def test_ties_and_duplicates(widths, euclidean, dtype, room, device):
    views = lattice(device, 150, widths, dtype)
    far = distances(views, euclidean)
    assert (far == 0).any()
    for k in (1, 5, 20):
        values, rows = room.nearest_topk(views, k, euclidean, "ieee")
        assert torch.equal(values, far.topk(k, largest=False).values.float())
        check_rows(values, rows, far, 0)
    for radii in (values[:, -1], torch.zeros(150, device=device), torch.full((150,), 1.5, device=device)):
        inside, within = (room.nearest_count(views, radii, euclidean, strict, "ieee") for strict in (True, False))
        assert torch.equal(inside, (far < radii[:, None]).sum(1))
        assert torch.equal(within, (far <= radii[:, None]).sum(1))


@pytest.mark.parametrize("euclidean", NORMS)
@pytest.mark.parametrize("widths", [(1,), (6,), (3, 4)])
def test_both_rooms_find_the_same(widths, euclidean, room, device):
    views = normal(device, 190, widths)
    for k in (4, 17):
        (values, rows), (expected, of) = (r.nearest_topk(views, k, euclidean, "ieee") for r in (room, tiled))
        torch.testing.assert_close(values, expected, rtol=3e-7 if euclidean else 0, atol=0)
        assert torch.equal(rows, of)
    radii = expected[:, 7] * 1.01  # where no distance is
    for strict in (True, False):
        count, of = (r.nearest_count(views, radii, euclidean, strict, "ieee") for r in (room, tiled))
        assert torch.equal(count, of)


def test_what_spans_find_meets(room, device):
    """Several programs share a tile of rows; the nearest are in the first span, in the last, or in both."""
    N = 190
    assert room._grid(N, torch.empty(0, device=device))[2] > 1
    x = torch.randn(N, 1, device=device)
    for order in (x.argsort(0), torch.arange(N, device=device)[:, None]):
        views = [x.gather(0, order)]
        far = distances(views, False)
        values, rows = room.nearest_topk(views, 9, False, "ieee")
        assert torch.equal(values, far.topk(9, largest=False).values.float())
        check_rows(values, rows, far, 0)
        count = room.nearest_count(views, torch.full((N,), 0.5, device=device), False, True, "ieee")
        assert torch.equal(count, (far < 0.5).sum(1))


def test_stored_distances_of_some_rows_at_a_time(monkeypatch, room, device):
    views = normal(device, 300, (3, 2))
    whole = room.nearest_topk(views, 20, True, "ieee")
    monkeypatch.setattr(room, "_STORED", 1)  # a tile of rows
    parts = room.nearest_topk(views, 20, True, "ieee")
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize("N", [0, 1, 7])
@pytest.mark.parametrize("k", [16, 20])
def test_too_few_others(N, k, room, device):
    views = normal(device, N, (2,))
    values, rows = room.nearest_topk(views, k, False, "ieee")
    others = max(0, N - 1)
    assert values.shape == rows.shape == (N, k)
    assert values[:, :others].isfinite().all()
    assert (values[:, others:] == torch.inf).all()
    assert (rows[:, others:] == -1).all()
    count = room.nearest_count(views, torch.full((N,), torch.inf, device=device), False, False, "ieee")
    assert count.tolist() == [others] * N


@pytest.mark.parametrize("euclidean", NORMS)
def test_a_row_of_nan_is_near_nothing(euclidean, room, device):
    (x,) = normal(device, 80, (2,))
    broken = torch.cat([x[:40], x.new_tensor([[0.0, torch.nan]]), x[40:]])
    rest = torch.arange(81, device=device) != 40
    for k in (3, 17):
        values, rows = room.nearest_topk([broken], k, euclidean, "ieee")
        expected, of = room.nearest_topk([x], k, euclidean, "ieee")
        assert torch.equal(values[rest], expected)
        assert torch.equal(rows[rest], of + (of >= 40))
        assert (values[40] == torch.inf).all()
        assert (rows[40] == -1).all()
    count = room.nearest_count([broken], torch.full((81,), 100.0, device=device), euclidean, False, "ieee")
    assert count.tolist() == [79] * 40 + [0] + [79] * 40


def test_any_memory_layout(room, device):
    """Views by columns, and radii that lie apart."""
    views = normal(device, 65, (3, 2))
    values, rows = room.nearest_topk(views, 3, True, "ieee")
    apart = [torch.stack([x.mT, x.mT], 2)[..., 1].mT for x in views]
    assert not any(x.is_contiguous() for x in apart)
    found = room.nearest_topk(apart, 3, True, "ieee")
    assert torch.equal(found[0], values)
    assert torch.equal(found[1], rows)
    assert not values[:, 1].is_contiguous()
    assert room.nearest_count(apart, values[:, 1], True, True, "ieee").tolist() == [1] * 65


def test_triton_serves_up_to_two_views(monkeypatch, room, device):
    served = []
    for name in ("nearest_topk", "nearest_count"):
        launcher = getattr(room, name)

        def spy(views, *args, launcher=launcher):
            served.append(len(views))
            return launcher(views, *args)

        monkeypatch.setattr(room, name, spy)
    for V in (1, 2, 3):
        views = normal(device, 20, (2,) * V)
        values, _ = torch.ops.mmkernels.nearest_topk(views, 2, False)
        assert torch.equal(values, distances(views, False).topk(2, largest=False).values.float())
        assert torch.ops.mmkernels.nearest_count(views, values[:, -1], False, False).tolist() == [2] * 20
    assert served == [1, 1, 2, 2]

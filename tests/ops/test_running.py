"""Covariances of rows that arrive in pieces, against those of all rows together."""

import pytest
import torch

import mmkernels
from mmkernels import RunningCovariance
from reference import covariance as reference
from tests.conftest import INTERPRETED

DTYPES = [torch.float32] if INTERPRETED else [torch.float32, torch.float64]
SIZES = [1, 3, 50, 0, 64, 7]
N = sum(SIZES)


def drifting(dtype, device, D=(3, 1, 2)):
    """Views whose pieces have means further and further away."""
    drift = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))[:, None] * 100.0
    return [(torch.randn(N, d, dtype=torch.float64) + drift).to(device, dtype) for d in D]


def pieces(t):
    return [None] * len(SIZES) if t is None else torch.split(t, SIZES)


def in_pieces(views, weights=None, present=None):
    running = RunningCovariance()
    masks = [None] * len(views) if present is None else present
    parts = zip(*map(pieces, views), *map(pieces, masks), pieces(weights), strict=True)
    for *tensors, w in parts:
        V = len(views)
        running.update(*tensors[:V], weights=w, present=None if present is None else tensors[V:])
    return running


def some_present(views):
    """Masks, also one that leaves a whole piece without a pair of views; absent rows hold NaN."""
    masks = [torch.rand(N, device=views[0].device) < 0.7, None, torch.rand(N, device=views[0].device) < 0.7]
    masks[0][4:54] = False
    masks[2][54:118] = False
    return masks, [v if p is None else torch.where(p[:, None], v, torch.nan) for v, p in zip(views, masks, strict=True)]


def check(got, views, weights=None, present=None):
    """Against the formula in float64 of the same rows."""
    mask = None if present is None else reference.stacked_present(present, views)
    mean, cov, n = reference.covariance(torch.cat(views, 1).double(), weights, mask)
    assert got.cov.dtype == got.mean.dtype == torch.float64
    rtol = 1e-12 if views[0].dtype == torch.float64 else 1e-6
    assert (got.mean - mean).abs().max() <= rtol * mean.abs().max()
    assert (got.cov - cov).abs().max() <= rtol * cov.abs().max()
    if present is None:
        torch.testing.assert_close(got.n, n.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(got.cov, got.cov.mT, rtol=0, atol=0)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_pieces_are_the_whole(dtype, masked, weighted, device):
    views = drifting(dtype, device)
    weights = torch.rand(N, dtype=dtype, device=device) + 0.1 if weighted else None
    present, views = some_present(views) if masked else (None, views)
    check(in_pieces(views, weights, present).covariance(), views, weights, present)


def test_as_covariance_has_it(device):
    views = drifting(DTYPES[-1], device)
    present, views = some_present(views)
    running, whole = in_pieces(views, present=present), mmkernels.covariance(*views, present=present)
    for correction in (0, 1):
        wanted = mmkernels.covariance(*views, present=present, correction=correction)
        torch.testing.assert_close(running.covariance(correction).cov, wanted.cov.double(), rtol=1e-5, atol=1e-3)
    assert running.covariance().sizes == whole.sizes == (3, 1, 2)
    assert torch.equal(running.n, whole.n.double())
    assert torch.equal(running.covariance().n, whole.n.double())
    assert running.covariance().xy.shape == (3, 1)


def test_complete_rows_have_one_n(device):
    x, y = (torch.randn(9, d, device=device) for d in (2, 3))
    running = RunningCovariance()
    running.update(x[:4], y[:4])
    assert running.n.tolist() == [[4, 4], [4, 4]]
    running.update(x[4:], y[4:], present=[torch.ones(5, dtype=torch.bool, device=device), None])
    S = running.covariance()
    assert S.n == 9
    assert S.n.ndim == 0
    torch.testing.assert_close(S.cov, torch.cat([x, y], 1).T.cov().double(), rtol=1e-5, atol=1e-6)
    assert repr(running) == "RunningCovariance(sizes=(2, 3), n=[[9.0, 9.0], [9.0, 9.0]])"
    assert repr(RunningCovariance()) == "RunningCovariance()"


def test_a_pair_that_no_row_has_is_nan(device):
    """As in `covariance`: no rows say nothing, not 0."""
    x, y = (torch.randn(6, 2, device=device) for _ in "xy")
    first = torch.arange(6, device=device) < 3
    running = RunningCovariance()
    running.update(x, y, present=[first, ~first])
    S = running.covariance()
    assert S.xy.isnan().all()
    torch.testing.assert_close(S.xx, x[:3].T.cov().double(), rtol=1e-5, atol=1e-6)
    running.update(x, y)  # and rows that have both make it known
    torch.testing.assert_close(running.covariance().xy, mmkernels.covariance(x, y).xy.double(), rtol=1e-5, atol=1e-6)


def test_merge(device):
    views = drifting(DTYPES[-1], device)
    present, views = some_present(views)
    halves = [slice(0, 30), slice(30, None)]
    parts = []
    for rows in halves:
        running = RunningCovariance()
        running.update(*(v[rows] for v in views), present=[None if p is None else p[rows] for p in present])
        parts.append(running)
    first = RunningCovariance()
    for order in ((0, 1), (1, 0)):
        merged = RunningCovariance()
        for k in order:
            merged.merge(parts[k])
        check(merged.covariance(), views, None, present)
        first = first if first.n.numel() else merged
        torch.testing.assert_close(merged.covariance().cov, first.covariance().cov, rtol=1e-9, atol=1e-9)
    before = merged.covariance()
    merged.merge(RunningCovariance())
    assert torch.equal(merged.covariance().cov, before.cov)
    assert parts[0].n[1, 1] == 30  # what is merged stays what it was


def test_save_and_load(tmp_path, device):
    running = in_pieces(drifting(torch.float32, device))
    for _ in range(2):  # the second time over a file that is there
        running.save(tmp_path / "sums.pt")
        assert [p.name for p in tmp_path.iterdir()] == ["sums.pt"]
    again = RunningCovariance.load(tmp_path / "sums.pt")
    assert torch.equal(again.covariance().cov, running.covariance().cov.cpu())
    again.update(*(torch.randn(5, d) for d in (3, 1, 2)))
    assert again.n[0, 0] == N + 5
    assert running.n[0, 0] == N
    RunningCovariance().save(tmp_path / "sums.pt")
    assert RunningCovariance.load(tmp_path / "sums.pt").n.shape == (0, 0)


def test_a_save_that_fails_leaves_what_was_there(tmp_path, device, monkeypatch):
    running = in_pieces(drifting(torch.float32, device))
    running.save(tmp_path / "sums.pt")

    def fail(state, path):
        path.write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        running.save(tmp_path / "sums.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["sums.pt"]
    assert torch.equal(RunningCovariance.load(tmp_path / "sums.pt").n, running.n.cpu())


def test_states_that_do_not_fit(device):
    running = in_pieces(drifting(torch.float32, device))
    state = running.state_dict()
    assert all(t.device.type == "cpu" for t in state.values() if isinstance(t, torch.Tensor))
    for broken, message in (
        ({"n": state["n"]}, "state must have the entries of a state_dict.*means, scatter, sizes missing"),
        (state | {"n": state["n"][:2]}, r"state\['n'\] must have shape \(3, 3\), got \(2, 3\)"),
        (state | {"sizes": [3, 1]}, r"state\['n'\] must have shape \(2, 2\)"),
        (state | {"scatter": state["scatter"][:5]}, r"state\['scatter'\] must have shape \(6, 6\), got \(5, 6\)"),
    ):
        with pytest.raises(ValueError, match=message):
            running.load_state_dict(broken)
    assert running.n[0, 0] == N  # and keeps what it had
    running.load_state_dict({})
    assert running.n.shape == (0, 0)


def test_rows_that_do_not_fit(device):
    running = RunningCovariance()
    x = torch.randn(4, 3, device=device)
    with pytest.raises(ValueError, match=r"more than 1 row.* of every view, got 0"):
        running.covariance()
    running.update(x[:0], x[:0])
    with pytest.raises(ValueError, match=r"more than 1 row"):
        running.covariance()
    running.update(x[:1], x[:1])
    with pytest.raises(ValueError, match=r"more than 1 row.* got 1"):
        running.covariance()
    assert torch.equal(running.covariance(correction=0).cov, torch.zeros(6, 6, dtype=torch.float64, device=device))
    running.update(x, x)
    with pytest.raises(ValueError, match=r"views must have \[3, 3\] features as before, got \[3, 2\]"):
        running.update(x, x[:, :2])
    with pytest.raises(ValueError, match=r"x must have 2 dimension\(s\), got shape \(1, 4, 3\)"):
        running.update(x[None], x[None])
    with pytest.raises(ValueError, match="weights must have shape"):
        running.update(x, x, weights=x[:3, 0])
    assert running.n[0, 0] == 5


def test_no_gradients(device):
    x = torch.randn(5, 2, device=device, requires_grad=True)
    running = RunningCovariance()
    running.update(x)
    assert not running.covariance().cov.requires_grad

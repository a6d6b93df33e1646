"""The memory budget decides how many rows a covariance takes at a time, never the result."""

import pytest
import torch

import mmkernels
from tests.conftest import INTERPRETED
from tests.ops.test_covariance import data, some_present

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the budget cuts tiles; the kernels have tiles of their own")


@pytest.mark.parametrize("N", [4096, 4097, 8200])  # chunks: as many as go to float64 at once, one more, twice as many
def test_many_chunks_agree(N, device):
    """The budget decides the chunks, never the result."""
    views = [data(N, d, dtype=torch.float64, device=device).requires_grad_() for d in (1, 4, 3)]
    present, _ = some_present(N, views, device)
    weights = torch.rand(N, dtype=torch.float64, device=device).requires_grad_()

    def once(**options):
        S = mmkernels.covariance(*views, **options)
        first = torch.autograd.grad(S.cov.sin().sum(), [*views, *([weights] if options else [])], create_graph=True)
        return S.mean, S.cov, *first, *torch.autograd.grad(sum(g.square().sum() for g in first) * N, views)

    calls = {}, {"weights": weights, "present": present}
    whole = [once(**options) for options in calls]
    before = mmkernels.memory_budget()
    try:
        mmkernels.set_memory_budget(65536)  # 512 rows
        cut = [once(**options) for options in calls]
    finally:
        mmkernels.set_memory_budget(before)
    for a, b in zip(sum(whole, ()), sum(cut, ()), strict=True):
        assert (a - b).norm() <= 1e-12 * a.norm()


def test_chunks_of_batch_entries_agree(device):
    views = [data(5, 100, d, dtype=torch.float64, device=device) for d in (4, 7)]
    weights = torch.rand(5, 100, dtype=torch.float64, device=device)
    before = mmkernels.memory_budget()
    for w in (None, weights, weights[0]):
        whole = mmkernels.covariance(*views, weights=w)
        try:
            mmkernels.set_memory_budget(65536)  # three entries at a time
            cut = mmkernels.covariance(*views, weights=w)
        finally:
            mmkernels.set_memory_budget(before)
        torch.testing.assert_close(cut.cov, whole.cov, rtol=1e-12, atol=1e-13)


def test_many_rows_in_float32(device):
    """Sums over many rows go to float64 in between."""
    x = torch.rand(100_000, 64, device=device)
    before = mmkernels.memory_budget()
    try:
        mmkernels.set_memory_budget(65536)
        cov = mmkernels.covariance(x).cov
    finally:
        mmkernels.set_memory_budget(before)
    truth = x.double().T.cov()
    # 3.5e-7 if they went to float32
    assert (cov - truth).abs().max() <= (2.5e-7 if device.type == "cpu" else 1e-6) * truth.max()

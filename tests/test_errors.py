"""Bad input gets a ValueError or TypeError that says what must hold and what was got."""

import math

import pytest
import torch

import mmkernels

X = torch.randn(6, 4)
IDS = torch.arange(6)
NAN = float("nan")


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X.numpy(), X), {}, TypeError, "x must be a torch.Tensor, got ndarray"),
        ((X, None), {}, TypeError, "y must be a torch.Tensor, got NoneType"),
        ((X[0], X), {}, ValueError, "x must have 2 dimension"),
        ((X[None], X), {}, ValueError, "x must have 2 dimension.*1, 6, 4"),
        ((X.int(), X), {}, TypeError, "x must be float16, bfloat16, float32 or float64, got torch.int32"),
        ((X.to(torch.complex64), X), {}, TypeError, "x must be float16.*complex64"),
        ((X[:, :0], X[:, :0]), {}, ValueError, "x must have at least one feature"),
        ((X, X[:, :3]), {}, ValueError, r"y must have as many features as x, got shapes \(6, 3\) and \(6, 4\)"),
        ((X, X.double()), {}, TypeError, "y must have x's dtype, got torch.float64 and torch.float32"),
        ((X, X.to("meta")), {}, ValueError, "y must be on x's device, got meta and cpu"),
        ((X, X[:5]), {}, ValueError, r"x and y must have the same shape, got \(6, 4\) and \(5, 4\)"),
        ((X[:0], X[:0]), {}, ValueError, "mean over an empty batch"),
        ((X, X), {"temperature": 0.1, "scale": 10.0}, ValueError, "either temperature or scale.*got both"),
        ((X, X), {"temperature": 0.0}, ValueError, r"temperature must be finite and in \(0, inf\), got 0.0"),
        ((X, X), {"temperature": -1}, ValueError, "temperature must be finite"),
        ((X, X), {"temperature": NAN}, ValueError, "temperature must be finite.*got nan"),
        ((X, X), {"scale": math.inf}, ValueError, "scale must be finite.*got inf"),
        ((X, X), {"scale": "10"}, TypeError, "scale must be a number, got str"),
        ((X, X), {"scale": True}, TypeError, "scale must be a number, got bool"),
        ((X, X), {"scale": torch.ones(1)}, ValueError, r"scale must have 0 dimension\(s\), got shape \(1,\)"),
        ((X, X), {"scale": torch.tensor(3)}, TypeError, "scale must be float16.*got torch.int64"),
        ((X, X), {"scale": torch.tensor(3.0, device="meta")}, ValueError, "scale must be on x's device"),
        ((X, X), {"negatives": X[:, :2]}, ValueError, "negatives must have as many features as x"),
        ((X, X), {"negatives": X.half()}, TypeError, "negatives must have x's dtype"),
        ((X, X), {"log_weights": X[0]}, ValueError, r"log_weights must have length N \+ M = 6, got 4"),
        ((X, X), {"log_weights": X[0], "negatives": X[:3]}, ValueError, r"length N \+ M = 9 or M = 3, got 4"),
        ((X, X), {"log_weights": IDS}, TypeError, "log_weights must be float16.*got torch.int64"),
        ((X, X), {"ids": IDS.float()}, TypeError, r"ids\[0\] must be an integer tensor, got torch.float32"),
        ((X, X), {"ids": IDS > 2}, TypeError, "must be an integer tensor, got torch.bool"),
        ((X, X), {"ids": IDS[:5]}, ValueError, r"ids\[0\] must have length N = 6, got 5"),
        ((X, X), {"ids": (IDS, IDS[:5])}, ValueError, r"ids must have length N = 6 or N \+ M = 6, got 5"),
        ((X, X), {"ids": (IDS,)}, TypeError, "ids must be an integer tensor or a pair of them"),
        ((X, X), {"ids": [[1, 2]]}, TypeError, "ids must be an integer tensor or a pair of them"),
        ((X, X), {"ids": IDS.to("meta")}, ValueError, "must be on x's device"),
        ((X, X), {"label_smoothing": 1.5}, ValueError, r"label_smoothing must be finite and in \[0, 1\), got 1.5"),
        ((X, X), {"label_smoothing": 0.1, "ids": IDS}, ValueError, "label_smoothing has no definition"),
        ((X, X), {"label_smoothing": 0.1, "exclude_positive": True}, ValueError, "label_smoothing has no definition"),
        ((X, X), {"weight": X[0]}, ValueError, "weight must have length N = 6, got 4"),
        ((X, X), {"weight": IDS}, TypeError, "weight must be float16"),
        ((X, X), {"reduction": "avg"}, ValueError, "reduction must be one of 'mean', 'sum', 'none', got 'avg'"),
    ],
)
def test_info_nce(arguments, options, error, message):
    with pytest.raises(error, match=message):
        mmkernels.info_nce(*arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X, X, NAN), {}, ValueError, "scale must be finite"),
        ((X, X, 1.0), {"offset": 1}, ValueError, r"offset must be in \[0, M - N\] = \[0, 0\], got 1"),
        ((X, X[:3], 1.0), {"offset": 0}, ValueError, "offset has no value where y has fewer rows than x"),
        ((X, X, 1.0), {"offset": 0.0}, TypeError, "offset must be an int or None, got float"),
        ((X, X, 1.0), {"ids": (IDS, torch.arange(7))}, ValueError, r"ids\[1\] must be no longer than y, got 7 and 6"),
        ((X, X, 1.0), {"ids": (IDS[:2], IDS)}, ValueError, r"ids\[0\] must have length N = 6, got 2"),
        ((X, X, 1.0), {"log_weights": X[0]}, ValueError, "log_weights must have length M = 6, got 4"),
    ],
)
def test_logsumexp_scores(arguments, options, error, message):
    with pytest.raises(error, match=message):
        mmkernels.logsumexp_scores(*arguments, **options)


@pytest.mark.parametrize(("value", "error"), [(1.5, TypeError), (True, TypeError), (10, ValueError), (-1, ValueError)])
def test_memory_budget(value, error):
    with pytest.raises(error, match="nbytes must be"):
        mmkernels.set_memory_budget(value)
    assert mmkernels.memory_budget() == 64 * 2**20


def test_empty_batches_without_a_mean():
    assert mmkernels.info_nce(X[:0], X[:0], reduction="sum") == 0
    assert mmkernels.info_nce(X[:0], X[:0], reduction="none").shape == (0,)


def test_values_of_tensors_are_not_read():
    """A tensor's value would have to be copied to the host: NaN propagates instead."""
    assert mmkernels.info_nce(X, X, scale=torch.tensor(NAN)).isnan()
    assert mmkernels.info_nce(X, X, scale=torch.tensor(-1.0)).isfinite()

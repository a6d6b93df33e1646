"""Mutual information of labels, with rows and with each other, against the textbook estimators and scikit-learn."""

import math

import pytest
import torch

import mmkernels
from reference import information as reference
from tests.conftest import INTERPRETED

information = mmkernels.mutual_information
pytestmark = pytest.mark.skipif(INTERPRETED, reason="no Triton kernel serves float64")


def assert_equal(got, wanted):
    assert got.ndim == 0
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_labels_and_rows(device):
    estimators = pytest.importorskip("sklearn.feature_selection._mutual_info")
    labels = torch.randint(0, 4, (300,), device=device)
    labels[:2] = torch.tensor([7, -3], device=device)  # which occur once
    labels[2:4] = 9  # and twice
    x = torch.randn(300, 1, dtype=torch.float64, device=device) + labels[:, None]
    for k in (1, 3, 10):
        wanted = estimators._compute_mi_cd(x[:, 0].cpu().numpy(), labels.cpu().numpy(), k)
        for got in (information(x, labels, k=k), information(labels, x, k=k), information(x, labels.int(), k=k)):
            assert_equal(got, torch.tensor(wanted, dtype=x.dtype, device=device))
            assert_equal(got, reference.ross(x, labels, k))


@pytest.mark.parametrize("D", [1, 4, 15])
def test_labels_and_float32(D, device):
    """Labels of few rows and of many are compared alike."""
    labels = (torch.arange(1200, device=device) < 60).long()
    x = torch.randn(1200, D, device=device) + labels[:, None]
    got = information(x, labels)
    assert got.dtype == torch.float32
    wide = x.double() if device.type == "cpu" else x
    torch.testing.assert_close(got.double(), reference.ross(wide, labels, 3), rtol=1e-6, atol=1e-6)


def test_labels_that_say_where_rows_are(device):
    """Two labels far apart: all of log 2; labels that say nothing: about 0."""
    labels = torch.arange(2000, device=device) % 2
    x = torch.randn(2000, 1, dtype=torch.float64, device=device)
    assert abs(information(x, labels)) < 0.05
    assert abs(information(x + 100 * labels[:, None], labels) - math.log(2)) < 1e-3
    with pytest.raises(NotImplementedError, match="labels counts neighbours and has no gradient"):
        information(x.requires_grad_(), labels)


def test_labels_alone(device):
    metrics = pytest.importorskip("sklearn.metrics")
    a = torch.randint(-2, 4, (500,), device=device)
    b = torch.where(torch.rand(500, device=device) < 0.5, a**2, torch.randint(0, 3, (500,), device=device))
    wanted = metrics.mutual_info_score(a.cpu().numpy(), b.cpu().numpy())
    for x, y in ((a, b), (b, a), (a.short(), b.int())):
        assert_equal(information(x, y), torch.tensor(wanted, dtype=torch.float64, device=device))
    assert_equal(information(a, b), reference.plug_in_information(a, b).to(device))
    assert_equal(information(a, a), mmkernels.entropy(a))


X, LABELS = torch.randn(9, 2), torch.arange(9) % 3


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X, LABELS[:8]), {}, ValueError, "y must have length N = 9, got 8"),
        ((LABELS, LABELS[:8]), {}, ValueError, "y must have length N = 9, got 8"),
        ((LABELS, X[0]), {}, ValueError, r"y must have 2 dimension\(s\), got shape \(2,\)"),
        ((LABELS, X.numpy()), {}, TypeError, "y must be a torch.Tensor, got ndarray"),
        ((LABELS.bool(), X), {}, TypeError, "x must be an integer tensor, got torch.bool"),
        ((LABELS, X), {"method": "kde"}, ValueError, "labels have one estimate and no method"),
        ((LABELS, X), {"k": 0}, ValueError, "k must be at least 1, got 0"),
        ((torch.arange(9), X), {}, ValueError, "no label occurs twice"),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match=message):
        information(*arguments, **options)

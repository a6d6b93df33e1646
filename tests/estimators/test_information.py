"""Information estimators as objects, with the protocol of benchmark-mi."""

import numpy as np
import pytest
import torch
from sklearn.base import clone

import mmkernels
from mmkernels.estimators import KDE, KSG, GaussianMI


@pytest.mark.parametrize(
    ("estimator", "method", "options"),
    [
        (KSG(k=4), "ksg1", {"k": 4}),
        (KSG(variant=2), "ksg2", {"k": 3}),
        (KDE(0.4), "kde", {"bandwidth": 0.4}),
        (GaussianMI(), "gaussian", {}),
    ],
    ids=str,
)
def test_estimates(estimator, method, options):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(500, 2)).astype(np.float32)
    y = x[:, 0] + generator.normal(size=500)
    got = clone(estimator).estimate(x, y)
    tensors = torch.from_numpy(x).double(), torch.from_numpy(y)[:, None]
    assert isinstance(got, float)
    assert got == pytest.approx(mmkernels.mutual_information(*tensors, method, **options).item())
    assert estimator.parameters().model_dump() == estimator.get_params()
    assert vars(estimator.parameters()) == estimator.parameters().dict()


def test_input():
    with pytest.raises(ValueError, match="x contains NaN"):
        KSG().estimate(np.full(10, np.nan), np.arange(10.0))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        KSG().estimate(np.arange(10.0), np.arange(9.0))
    with pytest.raises(ValueError, match="variant must be 1 or 2"):
        KSG(variant=3).estimate(np.arange(10.0), np.arange(10.0))

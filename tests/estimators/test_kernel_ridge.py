"""KernelRidge: scikit-learn's own checks, scikit-learn's own solutions, landmarks, and the message for its absence."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn import kernel_ridge
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

from mmkernels.estimators import KernelRidge


@parametrize_with_checks([KernelRidge(), KernelRidge(kernel="rbf", n_landmarks=20, random_state=0)])
def test_scikit_learn_checks(estimator, check):
    """A check is a function of scikit-learn's that raises where the estimator fails it."""
    check(estimator)


def data(n=300, targets=None, dtype=np.float64):
    generator = np.random.default_rng(0)
    X = generator.normal(size=(n, 3))
    y = np.sin(X).sum(1) if targets is None else np.sin(X @ generator.normal(size=(3, targets)))
    return X.astype(dtype), (y + 0.1 * generator.normal(size=y.shape)).astype(dtype)


CASES = [
    {"kernel": "linear"},
    {"kernel": "poly", "degree": 2, "gamma": 0.5, "coef0": 2.0},
    {"kernel": "rbf", "gamma": 0.3},
    {"kernel": "laplacian"},
    {"kernel": "cosine"},
]


@pytest.mark.parametrize("parameters", CASES, ids=lambda p: p["kernel"])
@pytest.mark.parametrize("targets", [None, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_scikit_learn(parameters, targets, weighted):
    X, y = data(targets=targets)
    weights = np.random.default_rng(1).integers(0, 4, len(X)) / 2 if weighted else None
    for alpha in (0.5,) if targets is None else (0.5, [0.1, 2.0]):
        ours = KernelRidge(alpha, **parameters, tol=1e-10).fit(X, y, weights)
        theirs = kernel_ridge.KernelRidge(alpha=alpha, **parameters).fit(X, y, weights)
        np.testing.assert_allclose(ours.dual_coef_, theirs.dual_coef_, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(ours.predict(X[:50]), theirs.predict(X[:50]), rtol=1e-6, atol=1e-6)
        assert ours.score(X, y) == pytest.approx(theirs.score(X, y), abs=1e-6)
        assert ours.residual_ <= 1e-10


def test_all_rows_as_landmarks_are_the_exact_solution():
    X, y = data(targets=2)
    weights = np.random.default_rng(1).integers(0, 4, len(X)) / 2
    for alpha in (0.5, [0.1, 2.0]):
        exact = KernelRidge(alpha, kernel="laplacian", tol=1e-10).fit(X, y, weights)
        landmarks = KernelRidge(alpha, kernel="laplacian", n_landmarks=1000).fit(X, y, weights)
        np.testing.assert_allclose(landmarks.predict(X), exact.predict(X), rtol=1e-6, atol=1e-6)


def test_landmarks_are_the_penalised_least_squares_solution():
    X, y = data()
    model = KernelRidge(0.1, kernel="matern", length_scale=2.0, n_landmarks=25, random_state=3).fit(X, y)
    K_nm = model_kernel(X, model.X_fit_)
    K_mm = model_kernel(model.X_fit_, model.X_fit_)
    expected = np.linalg.solve(K_nm.T @ K_nm + 0.1 * K_mm, K_nm.T @ y)
    np.testing.assert_allclose(model.dual_coef_, expected, rtol=1e-6)
    assert model.X_fit_.shape == (25, 3)
    assert model.score(X, y) > 0.9


def model_kernel(x, y):
    r = np.sqrt(3) * np.linalg.norm(x[:, None] - y, axis=-1) / 2
    return (1 + r) * np.exp(-r)


def test_duplicate_landmarks():
    X, y = data(40)
    X, y = np.repeat(X, 3, 0), np.repeat(y, 3)
    exact = KernelRidge(0.5, kernel="rbf").fit(X, y)
    landmarks = KernelRidge(0.5, kernel="rbf", n_landmarks=120).fit(X, y)
    np.testing.assert_allclose(landmarks.predict(X), exact.predict(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_landmarks", [None, 100])
def test_float32_and_tensors(n_landmarks):
    X, y = data()
    settings = {"kernel": "rbf", "gamma": "median", "n_landmarks": n_landmarks, "random_state": 0}
    double = KernelRidge(0.1, **settings).fit(X, y)
    single = KernelRidge(0.1, **settings).fit(torch.tensor(X).float(), torch.tensor(y).float())
    assert single.X_fit_.dtype == np.float32
    predicted = single.predict(torch.tensor(X).float())
    assert isinstance(predicted, np.ndarray)
    np.testing.assert_allclose(predicted, double.predict(X), atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_on_a_gpu():
    X, y = data()
    on_gpu = KernelRidge(0.1, kernel="rbf").fit(torch.tensor(X, device="cuda"), y)
    np.testing.assert_allclose(on_gpu.predict(X), KernelRidge(0.1, kernel="rbf").fit(X, y).predict(X), atol=1e-5)


def test_parameters_are_the_kernels():
    X, y = data(60)
    scales = KernelRidge(0.1, kernel="rbf", length_scale=np.array([1.0, 2.0, 1e6])).fit(X, y)
    shifted = X + np.array([0.0, 0.0, 1.0])
    np.testing.assert_allclose(scales.predict(shifted), scales.predict(X), atol=1e-6)
    smooth = KernelRidge(0.1, kernel="rational_quadratic", kernel_params={"alpha": 1e6}).fit(X, y)
    rbf = KernelRidge(0.1, kernel="rbf", length_scale=1.0).fit(X, y)
    np.testing.assert_allclose(smooth.predict(X), rbf.predict(X), atol=1e-4)
    search = GridSearchCV(KernelRidge(kernel="poly"), {"degree": np.arange(1, 4), "alpha": [0.1, 1.0]}, cv=2)
    assert search.fit(X, y).best_params_["degree"] == 3


def test_progress(capsys):
    X, y = data(60)
    for n_landmarks, title in ((None, "Conjugate gradients"), (10, "Landmarks")):
        KernelRidge(kernel="rbf", n_landmarks=n_landmarks, verbose=True).fit(X, y)
        assert title in capsys.readouterr().out


def test_a_missed_tolerance_is_a_warning():
    X, y = data()
    with pytest.warns(ConvergenceWarning, match="after 2 iterations, above tol"):
        model = KernelRidge(1e-3, kernel="laplacian", max_iter=2, rank=0).fit(X, y)
    assert model.n_iter_ == 2
    assert model.residual_ > 1e-6


@pytest.mark.parametrize(
    ("settings", "weight", "error", "message"),
    [
        ({"alpha": -1.0}, 1.0, ValueError, "alpha must be a number >= 0, or one for each of 1 target"),
        ({"alpha": [1.0, 2.0]}, 1.0, ValueError, r"got \[1.0, 2.0\]"),
        ({"kernel": "gauss"}, 1.0, ValueError, "kernel must be one of 'linear'"),
        ({"kernel": "rbf", "gamma": -1.0}, 1.0, ValueError, "gamma must be finite"),
        ({"n_landmarks": 0}, 1.0, ValueError, "n_landmarks == 0, must be >= 1"),
        ({"kernel": "rbf", "kernel_params": {"nu": 1}}, 1.0, TypeError, "no parameter 'nu'"),
        ({}, 0.0, ValueError, "at least one non-zero"),
    ],
)
def test_errors(settings, weight, error, message):
    X, y = data(10)
    with pytest.raises(error, match=message):
        KernelRidge(**settings).fit(X, y, np.full(10, weight))


def test_missing_scikit_learn_is_named():
    code = "import sys; sys.modules['sklearn'] = None; import mmkernels; import mmkernels.estimators"
    root = pathlib.Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert "ImportError: scikit-learn is missing: pip install 'mmkernels[estimators]'" in result.stderr

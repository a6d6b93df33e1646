"""KernelCCA: the dense generalized eigenproblem, the linear kernel, landmarks, what linear CCA cannot see."""

import numpy as np
import pytest
import scipy.linalg
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.utils.estimator_checks import parametrize_with_checks

from mmkernels.estimators import CCA, KernelCCA, RidgeCCA


@pytest.mark.filterwarnings("ignore:.*have no variance of their own")
@parametrize_with_checks([KernelCCA()])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def data(n=120):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(n, 2))
    y = np.stack([x[:, 0] ** 2, np.sin(2 * x[:, 1]), generator.normal(size=n)], 1)
    return x, y + 0.1 * generator.normal(size=y.shape)


def test_all_rows_are_the_exact_solution():
    """max a'KLb over a'(KK/(n-1) + reg K)a = b'(LL/(n-1) + reg L)b = 1, kernel matrices centred, N x N."""
    X, Y = data()
    n, reg = len(X), 0.01
    H = np.eye(n) - 1 / n
    K, L = H @ rbf_kernel(X, gamma=0.5) @ H, H @ rbf_kernel(Y, gamma=0.3) @ H
    zero = np.zeros((n, n))
    A = np.block([[zero, K @ L], [L @ K, zero]]) / (n - 1)
    # var f is taken about the mean, and so is the norm: the constant is no function of the centred kernel
    B = scipy.linalg.block_diag(K @ K / (n - 1) + reg * K, L @ L / (n - 1) + reg * L) + 1e-9 * np.eye(2 * n)
    wanted = scipy.linalg.eigh(A, B, eigvals_only=True)[::-1][:3]
    model = KernelCCA(3, gamma=(0.5, 0.3), reg=reg).fit(X, Y)
    np.testing.assert_allclose(model.correlations_, wanted, atol=1e-6)


def test_linear_kernel_is_linear_cca():
    X, Y = data()
    ours = KernelCCA(2, kernel="linear", gamma=None, reg=0.05).fit(X, Y)
    theirs = RidgeCCA(2, reg=0.05, shrinkage=None).fit(X, Y)
    np.testing.assert_allclose(ours.correlations_, theirs.correlations_, atol=1e-8)
    np.testing.assert_allclose(np.abs(ours.transform(X)), np.abs(theirs.transform(X)), atol=1e-6)


def test_sees_what_is_not_linear():
    X, Y = data(1000)
    held_out = X[800:], Y[800:]
    kernel = KernelCCA(2, random_state=0, n_landmarks=200).fit(X[:800], Y[:800])
    assert kernel.score(*held_out) > 0.9
    assert CCA(2).fit(X[:800], Y[:800]).score(*held_out) < 0.6
    result = kernel.permutation_test(X[:800], Y[:800], 49, 0)
    assert (result.pvalue == 0.02).all()


def test_landmarks_approximate_and_pieces_agree():
    X, Y = data(600)
    exact = KernelCCA(2, gamma=0.5, n_landmarks=600).fit(X, Y)
    some = KernelCCA(2, gamma=0.5, n_landmarks=150, random_state=0).fit(X, Y)
    np.testing.assert_allclose(some.correlations_, exact.correlations_, atol=5e-3)
    assert some.x_landmarks_.shape == (150, 2)
    pieces = KernelCCA(2, gamma=0.5, n_landmarks=600).partial_fit(X, Y)
    twice = pieces.partial_fit(X, Y)
    assert twice.n_samples_seen_ == 1200
    np.testing.assert_allclose(twice.correlations_, exact.correlations_, atol=5e-3)


@pytest.mark.parametrize("kernel", ["laplacian", ("polynomial", "matern"), "rational_quadratic"])
def test_other_kernels(kernel):
    X, Y = data()
    model = KernelCCA(2, kernel=kernel, gamma=None, reg=0.01).fit(X, Y)
    assert 0.3 < model.correlations_[1] <= model.correlations_[0] <= 1


def test_labels_as_a_view():
    """Most distances between labels are 0."""
    X = data()[0]
    labels = (X[:, 0] > 1).astype(float)
    assert KernelCCA(1).fit(X, labels).correlations_[0] > 0.6
    with pytest.raises(ValueError, match="y must not be constant"):
        KernelCCA(1).fit(X, np.ones(len(X)))

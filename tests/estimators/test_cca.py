"""CCA, RidgeCCA and PLS: scikit-learn's checks and solutions, significance, permutations, files larger than memory."""

import pickle

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from sklearn import cross_decomposition
from sklearn.base import clone
from sklearn.covariance import ledoit_wolf_shrinkage, oas
from sklearn.utils.estimator_checks import parametrize_with_checks

from mmkernels._memory import peak_bytes
from mmkernels.estimators import CCA, PLS, RidgeCCA, _rows


@pytest.mark.filterwarnings("ignore:.*have no variance of their own")  # some checks have fewer rows than features
@parametrize_with_checks([CCA(), RidgeCCA(), RidgeCCA(shrinkage=0.1, reg=1e-3), PLS()])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def data(n=300, p=5, q=4, noise=2.0, dtype=np.float64, seed=0):
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(n, p)) @ generator.normal(size=(p, p))
    Y = X @ generator.normal(size=(p, q)) + noise * generator.normal(size=(n, q))
    return (X + 3).astype(dtype), (Y - 5).astype(dtype)


def by_qr(X, Y):
    """The textbook: correlations are the singular values of the product of orthonormal bases."""
    Qx, Qy = (np.linalg.qr(t - t.mean(0))[0] for t in (X, Y))
    return np.linalg.svd(Qx.T @ Qy, compute_uv=False)


def test_equals_scikit_learn_and_the_textbook():
    X, Y = data()
    theirs = cross_decomposition.CCA(n_components=4, scale=False, tol=1e-20, max_iter=100_000).fit(X, Y)
    ours = CCA().fit(X, Y)
    for a, b in zip(theirs.transform(X, Y), ours.transform(X, Y), strict=True):
        a = a / a.std(0, ddof=1)
        np.testing.assert_allclose(np.abs(a), np.abs(b), atol=1e-8)
        np.testing.assert_allclose(np.cov(b.T), np.eye(4), atol=1e-12)
    x, y = theirs.transform(X, Y)
    for k, rho in enumerate(ours.correlations_):
        assert rho == pytest.approx(np.corrcoef(x[:, k], y[:, k])[0, 1], abs=1e-10)
    np.testing.assert_allclose(ours.correlations_, by_qr(X, Y), atol=1e-10)
    assert ours.score(X, Y) == pytest.approx(ours.correlations_.mean(), abs=1e-10)


def test_single_precision_far_from_the_origin():
    X, Y = data(2000)
    far = [(t + 1e3).astype(np.float32) for t in (X, Y)]
    model = CCA().fit(*far)
    np.testing.assert_allclose(model.correlations_, by_qr(*(t.astype(np.float64) for t in far)), atol=1e-5)
    assert model.transform(far[0]).dtype == np.float32
    assert model.x_weights_.dtype == np.float64


def test_population_correlations():
    """Two pairs of features with correlations 0.9 and 0.5, mixed."""
    generator = np.random.default_rng(0)
    z = generator.normal(size=(3, 200_000, 2))
    rho = np.array([0.9, 0.5])
    X = (np.sqrt(rho) * z[0] + np.sqrt(1 - rho) * z[1]) @ generator.normal(size=(2, 2))
    Y = (np.sqrt(rho) * z[0] + np.sqrt(1 - rho) * z[2]) @ generator.normal(size=(2, 2))
    np.testing.assert_allclose(CCA().fit(X, Y).correlations_, rho, atol=0.01)


@pytest.mark.parametrize("estimator", [CCA(3), RidgeCCA(2, reg=0.1), PLS()], ids=str)
def test_pieces_are_the_whole(estimator):
    X, Y = data()
    weights = np.random.default_rng(1).integers(0, 3, len(X))
    whole = clone(estimator).fit(X, Y, weights)
    pieces = pickle.loads(pickle.dumps(clone(estimator)))
    for start in range(0, len(X), 70):
        rows = slice(start, start + 70)
        pieces = pickle.loads(pickle.dumps(pieces.partial_fit(X[rows], Y[rows], weights[rows])))
    repeated = clone(estimator).fit(np.repeat(X, weights, 0), np.repeat(Y, weights, 0))
    for other in (pieces, repeated):
        np.testing.assert_allclose(other.x_weights_, whole.x_weights_, atol=1e-9)
        np.testing.assert_allclose(other.y_loadings_, whole.y_loadings_, atol=1e-9)
        assert other.n_samples_seen_ == weights.sum()


def test_pls_is_the_decomposition_of_the_cross_covariance():
    X, Y = data()
    theirs = cross_decomposition.PLSSVD(n_components=3, scale=False).fit(X, Y)
    ours = PLS(3).fit(X, Y)
    np.testing.assert_allclose(np.abs(ours.x_weights_), np.abs(theirs.x_weights_), atol=1e-10)
    x, y = ours.transform(X, Y)
    np.testing.assert_allclose(ours.covariances_, [np.cov(x[:, k], y[:, k])[0, 1] for k in range(3)], rtol=1e-10)


def test_ridge_lies_between():
    X, Y = data()
    np.testing.assert_allclose(
        RidgeCCA(shrinkage=0.0).fit(X, Y).correlations_, CCA().fit(X, Y).correlations_, atol=1e-12
    )
    scaled = [t / np.sqrt(np.trace(np.cov(t.T)) / t.shape[1]) for t in (X, Y)]
    np.testing.assert_allclose(
        np.abs(RidgeCCA(1, shrinkage=1.0).fit(*scaled).x_weights_), np.abs(PLS(1).fit(*scaled).x_weights_), atol=1e-10
    )
    many = data(30, 50, 40)
    model = RidgeCCA(1, shrinkage=("ledoit_wolf", "oas")).fit(*many)
    numbers = ledoit_wolf_shrinkage(many[0]), oas(many[1])[1]
    np.testing.assert_allclose(model.x_weights_, RidgeCCA(1, shrinkage=numbers).fit(*many).x_weights_, atol=1e-9)
    with pytest.raises(ValueError, match="ledoit_wolf"):
        RidgeCCA(shrinkage="ledoit_wolf").partial_fit(*many)
    with pytest.raises(ValueError, match="ledoit_wolf"):
        RidgeCCA(shrinkage="ledoit_wolf").fit(*many, np.ones(30))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_and_dependent_features_are_left_out(dtype):
    X, Y = data(dtype=dtype)
    wanted = CCA().fit(X, Y)
    constant = np.full((len(X), 1), 3.3, dtype=dtype)
    for extra in (constant, X[:, :1] + X[:, 1:2], np.concatenate([constant, constant], 1)):
        with pytest.warns(UserWarning, match="directions of X have no variance"):
            got = CCA().fit(np.concatenate([X, extra], 1), Y)
        np.testing.assert_allclose(got.correlations_, wanted.correlations_, atol=1e-5 if dtype == np.float32 else 1e-9)
    with pytest.warns(UserWarning, match="no variance"):
        alone = CCA().fit(constant, Y)
    assert alone.correlations_ == 0
    assert (alone.transform(constant) == 0).all()
    with pytest.warns(UserWarning, match="no variance"):
        assert CCA().fit(X[:4], Y[:4]).correlations_[0] == pytest.approx(1, abs=1e-3)


def test_loadings_and_reconstruction():
    X, Y = data()
    model = CCA(2).fit(X, Y)
    x, y = model.transform(X, Y)
    for view, scores, loadings in zip((X, Y), (x, y), model.loadings(), strict=True):
        wanted = np.corrcoef(view.T, scores.T)[: view.shape[1], view.shape[1] :]
        np.testing.assert_allclose(loadings, wanted, atol=1e-10)
    back = model.inverse_transform(x)
    coefficients, *_ = np.linalg.lstsq(x, X - X.mean(0), rcond=None)
    np.testing.assert_allclose(back, x @ coefficients + X.mean(0), atol=1e-9)
    square = CCA().fit(Y, X[:, :4])
    np.testing.assert_allclose(square.inverse_transform(*square.transform(Y, X[:, :4]))[1], X[:, :4], atol=1e-9)
    with pytest.raises(ValueError, match="2 variates, got 3"):
        model.inverse_transform(np.zeros((5, 3)))


def test_bartletts_statistic_is_the_textbooks():
    X, Y = data()
    result = CCA(2).fit(X, Y).significance()
    rho, n, p, q = by_qr(X, Y), 300, 5, 4
    for k in range(2):
        wilks = np.prod(1 - rho[k:] ** 2)
        assert result.wilks[k] == pytest.approx(wilks, rel=1e-9)
        assert result.statistic[k] == pytest.approx(-(n - 1 - (p + q + 1) / 2) * np.log(wilks), rel=1e-9)
        assert result.dof[k] == (p - k) * (q - k)


def test_p_values_under_independence_are_uniform():
    bartlett, permuted = [], []
    for seed in range(150):
        X, Y = np.random.default_rng(seed).normal(size=(2, 60, 3))
        model = CCA().fit(X, Y)
        bartlett.append(model.significance().pvalue[0])
        permuted.append(model.permutation_test(X, Y, 99, seed).pvalue[0])
    assert kstest(bartlett, "uniform").pvalue > 0.01
    assert kstest(permuted, "uniform").pvalue > 0.01


def test_permutations_find_as_many_components_as_there_are():
    generator = np.random.default_rng(0)
    X, Y = generator.normal(size=(2, 200, 4))
    Y[:, :2] += 2 * X[:, :2]
    for model in (CCA(), RidgeCCA(shrinkage=0.1), PLS()):
        result = model.fit(X, Y).permutation_test(X, Y, 199, 0)
        assert (result.pvalue[:2] == 1 / 200).all()
        assert (result.pvalue[2:] > 0.05).all()
        assert result.null.shape == (199, 4)
    again = model.permutation_test(X, Y, 199, 0)
    np.testing.assert_array_equal(again.null, result.null)
    permuted = CCA().fit(X, Y[np.random.RandomState(0).permutation(200)])
    assert CCA().fit(X, Y).permutation_test(X, Y, 1, 0).null[0, 0] == pytest.approx((permuted.correlations_**2).sum())


def test_files_are_read_in_pieces(tmp_path, monkeypatch):
    n = 100_000
    generator = np.random.default_rng(0)
    arrays = []
    for name in "xy":
        array = np.memmap(tmp_path / name, dtype=np.float32, mode="w+", shape=(n, 64))
        array[:] = generator.normal(size=(n, 64))
        array.flush()
        arrays.append(np.memmap(tmp_path / name, dtype=np.float32, mode="r", shape=(n, 64)))
    monkeypatch.setattr(_rows, "_BYTES", 2**20)
    CCA(2).fit(*(a[:5000] for a in arrays))
    models = []
    peak = peak_bytes(lambda: models.append(CCA(2).fit(*arrays)), torch.device("cpu"))
    in_memory = CCA(2).fit(*(np.array(a) for a in arrays))
    np.testing.assert_allclose(models[0].correlations_, in_memory.correlations_, atol=1e-6)
    if peak is not None:
        assert peak < 2.5e7  # the files are 51 MB


def test_tensors_and_bad_input():
    X, Y = data()
    from_tensors = CCA(2).fit(torch.from_numpy(X), torch.from_numpy(Y))
    np.testing.assert_allclose(from_tensors.x_weights_, CCA(2).fit(X, Y).x_weights_, atol=1e-12)
    np.testing.assert_allclose(from_tensors.transform(torch.from_numpy(X)), from_tensors.transform(X))
    model = CCA(2).fit(X, Y)
    with pytest.raises(ValueError, match="y contains NaN"):
        model.partial_fit(X, np.where(np.arange(300)[:, None] == 7, np.nan, Y))
    assert model.n_samples_seen_ == 300
    with pytest.raises(ValueError, match="y must have 4 features as before, got 3"):
        model.partial_fit(X, Y[:, :3])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        CCA().fit(X, Y[:-1])
    with pytest.raises(ValueError, match=r"n_components must be in \[1, 4\], got 5"):
        CCA(5).fit(X, Y)
    with pytest.raises(ValueError, match="n_permutations must be at least 1"):
        model.permutation_test(X, Y, 0)

"""MCCA and GCCA: two views, agreeing views, the N x N definition, pieces, permutations."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.covariance import ledoit_wolf_shrinkage

from mmkernels.estimators import CCA, GCCA, MCCA, RidgeCCA


def data(n=300, sizes=(4, 3, 5), noise=1.0):
    generator = np.random.default_rng(0)
    shared = generator.normal(size=(n, 2))
    return [shared @ generator.normal(size=(2, d)) + noise * generator.normal(size=(n, d)) + 3 for d in sizes]


def test_two_views_are_cca():
    X, Y, _ = data()
    wanted, got = CCA().fit(X, Y), MCCA().fit([X, Y])
    np.testing.assert_allclose(got.eigenvalues_, wanted.correlations_, atol=1e-12)
    for ours, theirs in zip(got.transform([X, Y]), wanted.transform(X, Y), strict=True):
        np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-9)
    ridge = RidgeCCA(reg=0.3, shrinkage=(0.1, 0.2)).fit(X, Y).correlations_
    np.testing.assert_allclose(MCCA(reg=0.3, shrinkage=(0.1, 0.2)).fit([X, Y]).eigenvalues_, ridge, atol=1e-12)


def test_gcca_is_its_definition():
    """The eigenvectors of the sum of the views' projections, N x N."""
    views, regs = data(), (0.1, 0.0, 0.5)
    n = len(views[0])
    total = np.zeros((n, n))
    for X, reg in zip(views, regs, strict=True):
        Xc = X - X.mean(0)
        total += Xc @ np.linalg.solve(Xc.T @ Xc + (n - 1) * reg * np.eye(X.shape[1]), Xc.T)
    values, vectors = np.linalg.eigh(total)
    model = GCCA(reg=regs).fit(views)
    np.testing.assert_allclose(model.eigenvalues_, values[::-1][:3], atol=1e-10)
    G = model.shared(views)
    np.testing.assert_allclose(np.cov(G.T), np.eye(3), atol=1e-9)
    np.testing.assert_allclose(np.abs(G.T @ vectors[:, ::-1][:, :3]) / np.sqrt(n - 1), np.eye(3), atol=1e-8)


def test_mcca_and_gcca_agree_without_regularisation():
    views = data()
    np.testing.assert_allclose(MCCA().fit(views).eigenvalues_ + 1, GCCA().fit(views).eigenvalues_, atol=1e-12)


def test_views_that_agree():
    X = data()[0]
    views = [X, X @ np.random.default_rng(1).normal(size=(4, 4)), X[:, ::-1] * 5]
    np.testing.assert_allclose(GCCA().fit(views).eigenvalues_, 3, atol=1e-9)
    model = MCCA().fit(views)
    np.testing.assert_allclose(model.eigenvalues_, 2, atol=1e-9)
    assert model.score(views) == pytest.approx(1)


@pytest.mark.parametrize("estimator", [MCCA(2), GCCA(2, shrinkage="oas")], ids=str)
def test_pieces_are_the_whole(estimator):
    views = data()
    weights = np.random.default_rng(1).integers(0, 3, len(views[0]))
    whole, pieces = clone(estimator).fit(views, None, weights), clone(estimator)
    for start in range(0, 300, 70):
        rows = slice(start, start + 70)
        pieces = pickle.loads(pickle.dumps(pieces.partial_fit([v[rows] for v in views], None, weights[rows])))
    for a, b in zip(pieces.weights_, whole.weights_, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


def test_ledoit_wolf():
    views = data(20)
    numbers = [ledoit_wolf_shrinkage(v) for v in views]
    got = MCCA(shrinkage="ledoit_wolf").fit(views).eigenvalues_
    np.testing.assert_allclose(got, MCCA(shrinkage=numbers).fit(views).eigenvalues_, atol=1e-10)


def test_loadings_and_reconstruction():
    views = data()
    model = MCCA().fit(views)
    scores = model.transform(views)
    for view, s, loadings, back in zip(views, scores, model.loadings(), model.inverse_transform(scores), strict=True):
        wanted = np.corrcoef(view.T, s.T)[: view.shape[1], view.shape[1] :]
        np.testing.assert_allclose(loadings, wanted, atol=1e-9)
        centred = s - s.mean(0)
        np.testing.assert_allclose(
            back, centred @ np.linalg.lstsq(centred, view - view.mean(0), rcond=None)[0] + view.mean(0), atol=1e-8
        )
    variances = np.mean([s.var(0, ddof=1) for s in scores], 0)
    np.testing.assert_allclose(variances, 1, atol=1e-10)


@pytest.mark.parametrize("estimator", [MCCA(), GCCA()], ids=str)
def test_permutations(estimator):
    views = data()
    result = estimator.fit(views).permutation_test(views, 99, 0)
    assert (result.pvalue[:2] == 0.01).all()
    assert result.pvalue[2] > 0.05
    unrelated = list(np.random.default_rng(0).normal(size=(3, 100, 3)))
    assert estimator.fit(unrelated).permutation_test(unrelated, 99, 0).pvalue[0] > 0.02


def test_a_constant_view():
    views = [*data(), np.full((300, 2), 3.3)]
    with pytest.warns(UserWarning, match=r"2 of 2 directions of views\[3\]"):
        got = MCCA(2).fit(views)
    np.testing.assert_allclose(got.eigenvalues_, MCCA(2).fit(views[:3]).eigenvalues_, atol=1e-10)
    assert (got.transform(views)[3] == 0).all()


def test_bad_input():
    views = data()
    model = MCCA().fit(views)
    for bad, message in (
        (views[0], "list of at least 2 arrays, got ndarray"),
        ([views[0]], "list of at least 2"),
        ([views[0], views[1][:-1]], "inconsistent numbers of samples"),
        ([views[0], np.full((300, 3), np.nan)], r"views\[1\] contains NaN"),
        ([v[:1] for v in views], "n_samples = 1"),
    ):
        with pytest.raises(ValueError, match=message):
            MCCA().fit(bad)
    with pytest.raises(ValueError, match=r"views must have \[4, 3, 5\] features as before, got \[4, 3\]"):
        model.transform(views[:2])
    with pytest.raises(ValueError, match="3 views"):
        model.inverse_transform([np.zeros((2, 3))])
    with pytest.raises(ValueError, match="one for each of 3 views, got 2"):
        MCCA(reg=[0.1, 0.2]).fit(views)

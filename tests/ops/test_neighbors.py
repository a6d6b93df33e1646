"""Ranks, recall and nearest candidates against the dense score matrix.

Small integers have exact products in every dtype, and many ties: ranks must be equal, not close.
"""

import pytest
import torch

import mmkernels
from reference import retrieval as reference
from tests.accuracy import DTYPES
from tests.conftest import INTERPRETED


def whole(device, *shape, low=-3, high=4):
    return torch.randint(low, high, shape, device=device).float()


def some_ids(device, N, M, number):
    return torch.randint(number, (N,), device=device), torch.randint(number, (M,), device=device)


def right_pairs(N, M, ids, device):
    return torch.eye(N, M, dtype=torch.bool, device=device) if ids is None else ids[0][:, None] == ids[1]


def check_ranks(x, y, ids):
    s, right = x.double() @ y.double().T, right_pairs(len(x), len(y), ids, x.device)
    rows, columns = mmkernels.ranks(x, y, ids=ids)
    assert rows.dtype == columns.dtype == torch.float32
    assert torch.equal(rows, reference.ranks(s, right).float())
    assert torch.equal(columns, reference.ranks(s.T, right.T).float())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "D"), [(1, 1), (7, 5), (65, 33), (200, 64)])
def test_ranks_of_pairs(N, D, dtype, device):
    check_ranks(whole(device, N, D).to(dtype), whole(device, N, D).to(dtype), None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "M", "D"), [(1, 9, 3), (33, 65, 17), (150, 70, 40)])
def test_ranks_with_several_right_answers(N, M, D, dtype, device):
    """Of 12 ids some are on one side only: their queries have no right answer."""
    check_ranks(whole(device, N, D).to(dtype), whole(device, M, D).to(dtype), some_ids(device, N, M, 12))


@pytest.mark.parametrize("with_ids", [False, True])
def test_ranks_over_many_tiles(with_ids, device):
    """The tiles' sums meet again, and each side's thresholds go to their own tiles."""
    before = mmkernels.memory_budget()
    mmkernels.set_memory_budget(65536)  # tiles of 64
    try:
        N = 300
        x, y = (whole(device, N, 20) for _ in "xy")
        check_ranks(x, y, some_ids(device, N, N, 50) if with_ids else None)
    finally:
        mmkernels.set_memory_budget(before)


@pytest.mark.skipif(
    INTERPRETED, reason="NumPy's product, which the interpreter takes, rounds equal columns differently"
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_candidates_tie(dtype, device):
    """Products are not exact here: a tie needs the positive's score from the same product as its rivals'."""
    N, D = 2500, 100
    x = torch.randn(N, D, device=device).to(dtype)
    y = torch.randn(N // 2, D, device=device).to(dtype).repeat(2, 1)  # every candidate twice, far apart
    rows, _ = mmkernels.ranks(x, y)
    _, columns = mmkernels.ranks(y, x)
    # Libraries' float64 products round one column in a hundred by where it stands; a product apart, most of them.
    share = 0.95 if dtype == torch.float64 else 1
    assert (rows % 1 == 0.5).double().mean() >= share
    assert (columns % 1 == 0.5).double().mean() >= share


def test_a_collapsed_model_recalls_nothing(device):
    x = whole(device, 1, 8).expand(100, 8)
    rows, columns = mmkernels.ranks(x, x)
    assert (rows == 99 / 2).all()
    assert (columns == 99 / 2).all()
    assert all((recall == 0).all() for recall in mmkernels.recall_at_k(x, x, (1, 5, 10)))


def test_nan_is_no_answer_and_beats_none(device):
    x, y = (whole(device, 40, 8) for _ in "xy")
    x[3] = torch.nan
    rows, columns = mmkernels.ranks(x, y)
    assert rows[3] == torch.inf
    assert columns[3] == torch.inf
    assert rows[torch.arange(40, device=device) != 3].isfinite().all()
    ids = torch.zeros(40, dtype=torch.int64, device=device)
    rows, columns = mmkernels.ranks(x, y, ids=ids)
    assert rows[3] == torch.inf
    assert (columns == 0).all()  # every other row is a right answer, and none is wrong
    values, indices = mmkernels.topk(x, y, 3)
    assert (values[3] == -torch.inf).all()
    assert (indices[3] == -1).all()
    assert (values.isfinite().sum(), (indices >= 0).sum()) == (39 * 3, 39 * 3)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy, in the interpreter, warns of overflow
def test_extremes_of_scale(device):
    x, y = (whole(device, 50, 4) * 1e19 for _ in "xy")  # products overflow to infinities of both signs
    rows, columns = mmkernels.ranks(x, y)
    assert (rows >= 0).all()
    assert (columns >= 0).all()
    x, y = (whole(device, 50, 4) * 2.0**-60 for _ in "xy")
    check_ranks(x, y, None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("N", "M", "D", "k"), [(1, 1, 1, 1), (7, 9, 5, 9), (65, 200, 33, 10), (40, 150, 8, 100), (5, 6, 2, 0)]
)
def test_topk(N, M, D, k, dtype, device):
    x, y = whole(device, N, D).to(dtype), whole(device, M, D).to(dtype)
    values, indices = mmkernels.topk(x, y, k)
    s = x.double() @ y.double().T
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert indices.dtype == torch.int64
    assert torch.equal(values.double(), s.topk(k).values)
    assert torch.equal(values.double(), s.gather(1, indices))
    assert all(len(set(row)) == k for row in indices.tolist())


def test_topk_over_many_tiles(device):
    before = mmkernels.memory_budget()
    mmkernels.set_memory_budget(65536)
    try:
        x, y = torch.randn(150, 16, device=device), torch.randn(400, 16, device=device)
        y[390] = 10 * x[5]  # found in the last tile
        values, indices = mmkernels.topk(x, y, 7)
        expected = (x @ y.T).topk(7)
        torch.testing.assert_close(values, expected.values)
        assert torch.equal(indices, expected.indices)
        assert indices[5, 0] == 390
    finally:
        mmkernels.set_memory_budget(before)


def test_recall(device):
    x, y = whole(device, 80, 6), whole(device, 120, 6)
    ids = some_ids(device, 80, 120, 9)
    s, right = x @ y.T, right_pairs(80, 120, ids, device)
    rows, columns = mmkernels.recall_at_k(x, y, (1, 3, 20), ids=ids)
    torch.testing.assert_close(rows, reference.recall_at_k(s, right, (1, 3, 20)).float())
    torch.testing.assert_close(columns, reference.recall_at_k(s.T, right.T, (1, 3, 20)).float())
    assert 0 < rows[0] < rows[1] < rows[2]


def brute_force_recall(scores, query_ids, candidate_ids, k):
    hits = 0
    for row, query in zip(scores.tolist(), query_ids.tolist(), strict=True):
        right = [s for s, c in zip(row, candidate_ids.tolist(), strict=True) if c == query]
        wrong = [s for s, c in zip(row, candidate_ids.tolist(), strict=True) if c != query]
        rank = 1 + sum(s > max(right) for s in wrong) + 0.5 * sum(s == max(right) for s in wrong)
        hits += rank <= k
    return hits / len(scores)


def recall_of_scores(scores, query_ids, candidate_ids, ks):
    """Queries are unit vectors, so that candidates' coordinates are the scores."""
    x = torch.eye(len(scores), device=scores.device)
    return mmkernels.recall_at_k(x, scores.T.contiguous(), ks, ids=(query_ids, candidate_ids))[0].tolist()


def test_recall_is_the_brute_force_one(device):
    """Several right answers a query, queries without one's own row, many ties."""
    candidates = torch.randint(0, 8, (30,), device=device)
    queries = candidates[torch.randint(0, 30, (40,), device=device)]
    scores = torch.randint(0, 6, (40, 30), device=device).float()
    expected = [brute_force_recall(scores, queries, candidates, k) for k in (1, 3, 10)]
    assert recall_of_scores(scores, queries, candidates, (1, 3, 10)) == pytest.approx(expected)
    assert 0 < expected[0] < expected[1] < expected[2] <= 1


def test_a_tie_counts_half(device):
    ids = torch.arange(3, device=device)
    one_tie = torch.tensor([[1.0, 1.0, 0.0]], device=device)  # rank 1.5 from 1
    assert recall_of_scores(one_tie, ids[:1], ids, (1, 2)) == [0.0, 1.0]
    two_ties = torch.ones(1, 3, device=device)  # rank 2
    assert recall_of_scores(two_ties, ids[:1], ids, (1, 2)) == [0.0, 1.0]


@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_scores_that_say_nothing_recall_nothing(value, device):
    x = torch.full((1000, 4), value, device=device)
    assert all(recall.tolist() == [0, 0, 0] for recall in mmkernels.recall_at_k(x, x))


def test_empty(device):
    x, y = torch.randn(0, 4, device=device), torch.randn(5, 4, device=device)
    ids = torch.zeros(0, dtype=torch.int64, device=device), torch.zeros(5, dtype=torch.int64, device=device)
    rows, columns = mmkernels.ranks(x, y, ids=ids)
    assert rows.shape == (0,)
    assert (columns == torch.inf).all()
    assert mmkernels.topk(x, y, 2)[1].shape == (0, 2)
    with pytest.raises(ValueError, match="recall needs queries"):
        mmkernels.recall_at_k(x, x)


def test_inputs_as_they_come(device):
    """Non-contiguous, expanded, differentiable, under autocast: the numbers of plain tensors, without a graph."""
    x, y = whole(device, 60, 32), whole(device, 60, 32)
    plain = mmkernels.ranks(x, y)
    other = mmkernels.ranks(x.T.contiguous().T.requires_grad_(), y.repeat(1, 2)[:, :32])
    assert all(torch.equal(a, b) and not b.requires_grad for a, b in zip(plain, other, strict=True))
    with torch.autocast(device.type, dtype=torch.float16 if INTERPRETED else torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(plain, mmkernels.ranks(x, y), strict=True))
    one = x[:1].expand(60, 32)
    assert torch.equal(mmkernels.topk(one, y, 3)[0], mmkernels.topk(one.contiguous(), y, 3)[0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: mmkernels.ranks(x, x[:3]), ValueError, "same length without ids, got 6 and 3"),
        (lambda x: mmkernels.ranks(x, x, ids=torch.zeros(6)), TypeError, r"ids\[0\] must be an integer tensor"),
        (
            lambda x: mmkernels.ranks(x, x[:3], ids=torch.zeros(6).long()),
            ValueError,
            r"ids\[1\] must have length M = 3",
        ),
        (lambda x: mmkernels.ranks(x[0], x), ValueError, "x must have 2 dimension"),
        (lambda x: mmkernels.recall_at_k(x, x, (0,)), ValueError, "every k must be at least 1, got 0"),
        (lambda x: mmkernels.recall_at_k(x, x, (1.5,)), TypeError, "every k must be an int, got float"),
        (lambda x: mmkernels.topk(x, x, 7), ValueError, r"k must be in \[0, 6\], got 7"),
        (lambda x: mmkernels.topk(x, x, True), TypeError, "k must be an int, got bool"),
        (lambda x: mmkernels.topk(x, x.double(), 1), TypeError, "y must have x's dtype"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.randn(6, 4))


@pytest.mark.skipif(INTERPRETED, reason="tracing does not enter the interpreter")
def test_operators_and_compile(device):
    x, y = whole(device, 30, 8), whole(device, 30, 8)
    ids = some_ids(device, 30, 30, 10)
    best = torch.ops.mmkernels.neighbors_best(x, y, *ids)
    for op, arguments in (
        (torch.ops.mmkernels.neighbors_best, (x, y, *ids)),
        (torch.ops.mmkernels.neighbors_best, (x, y, None, None)),
        (torch.ops.mmkernels.neighbors_count, (x, y, *ids, *best)),
        (torch.ops.mmkernels.neighbors_topk, (x, y, 3)),
    ):
        torch.library.opcheck(op, arguments)
    compiled = torch.compile(mmkernels.recall_at_k, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(x, y, (1, 5)), mmkernels.recall_at_k(x, y, (1, 5)), strict=True):
        torch.testing.assert_close(got, expected)

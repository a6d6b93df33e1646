"""The operators in whatever shape hypothesis thinks of, against the dense formulas in float64."""

import pytest
import torch

from tests.accuracy import DTYPES
from tests.conftest import INTERPRETED
from tests.ops.test_info_nce import arguments, compare
from tests.ops.test_neighbors import check_ranks, some_ids, whole

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")


@pytest.mark.skipif(INTERPRETED, reason="many sizes: the interpreter takes 25 ms a program")
@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    N=st.integers(1, 70),
    M=st.integers(0, 40),
    D=st.integers(1, 48),
    scale=st.floats(0.0, 300.0),
    dtype=st.sampled_from(DTYPES),
    symmetric=st.booleans(),
    with_ids=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape(N, M, D, scale, dtype, symmetric, with_ids, seed):
    torch.manual_seed(seed)
    options = {"symmetric": symmetric} | ({"negatives": M} if M else {}) | ({"ids": "shared"} if with_ids else {})
    tensors, rest = arguments(options, N, D, dtype, torch.device("cpu"))
    tensors["scale"] = torch.tensor(scale, dtype=tensors["scale"].dtype)
    compare(tensors, rest)


@hypothesis.settings(deadline=None, max_examples=5 if INTERPRETED else 40)
@hypothesis.given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.booleans(), st.integers(0, 2**16))
def test_ranks_of_any_shape(N, M, D, with_ids, seed):
    torch.manual_seed(seed)
    device = torch.device("cpu")
    M = M if with_ids else N
    check_ranks(whole(device, N, D), whole(device, M, D), some_ids(device, N, M, 20) if with_ids else None)

"""Every kernel compiles for GPUs that are not here, within their limits: one configuration a kernel, two chips."""

import pytest
import torch

from mmkernels._cases import Case
from tests.conftest import INTERPRETED

aot = pytest.importorskip("mmkernels.aot")
pytestmark = pytest.mark.skipif(INTERPRETED, reason="kernels cannot be compiled in the interpreter")


@pytest.fixture(scope="module")
def rows():
    totals = []
    rows = aot.compile_kernels(("sm_90", "gfx942"), quick=True, track=lambda jobs, total: totals.append(total) or jobs)
    assert len(totals) == 1
    assert totals[0] >= 4  # a wide and a narrow call for each chip
    return rows


def test_no_limit_is_broken(rows):
    assert aot.limits(rows) == []


def test_every_kernel_is_there_on_each_chip(rows):
    kernels = {row["kernel"] for row in rows}
    assert {"logsumexp_fwd_kernel", "logsumexp_bwd_kernel", "logsumexp_bwd_weight_kernel"} <= kernels
    assert len(rows) == 2 * len(kernels)


def test_products_run_on_tensor_cores(rows):
    products = [row for row in rows if row["product"]]
    assert len(products) == 2 * 13
    assert all(row["tensor_cores"] > 0 and row["fp32"] > 0 for row in products)
    assert all(row["exponentials"] > 0 for row in products if not row["kernel"].startswith(("neighbors", "covariance")))


def test_limits_name_what_is_broken(rows):
    product = next(row for row in rows if row["product"] and row["chip"] == "sm_90")
    broken = [product | {"spills": 16}, product | {"shared": 2**20}, product | {"tensor_cores": 0}]
    problems = aot.limits(broken)
    assert [p.split(": ")[1].split()[0] for p in problems] == ["16", "1048576", "no"]


def test_table_has_a_line_a_row(rows):
    lines = aot.table(rows).splitlines()
    assert len(lines) == len(rows) + 1
    assert lines[0].split()[:3] == ["kernel", "chip", "dtype"]


def test_launches_are_counted_at_full_size(rows):
    """The kernels are those of the fixture, found in Triton's cache."""
    found = {launch.kernel: launch for launch in aot.launches(Case("logsumexp", torch.bfloat16, 768, N=16384, M=16384))}
    forward, weight, product = (
        found[name] for name in ("logsumexp_fwd_kernel", "logsumexp_bwd_weight_kernel", "product by the library")
    )
    assert forward.launches == 2  # waves of 8,192 rows
    assert forward.tiles == 64 * 128
    assert forward.programs == 64 * 9  # spans of 15 column tiles, that 132 multiprocessors get 4 programs each
    assert weight.launches == 1  # a block of 16,384
    for launch in (forward, weight):
        assert launch.operands == 2 * 768 * (128 + 128)
        # The product is counted from the instructions of 128 x 128 tiles and four warps.
        assert launch.steps * launch.step.flops == 2 * 128 * 128 * 768
        assert launch.tile.exponentials >= 128
    assert weight.memory == pytest.approx(2 * 16384 * (16384 + 2 * 768) + 4 * 16384 * 128, rel=1e-3)
    assert product.launches == 2
    assert product.flops == 2 * 16384 * 16384 * 768
    row = next(r for r in rows if r["kernel"] == "logsumexp_fwd_kernel" and r["chip"] == "sm_90")
    assert (forward.registers, forward.shared) == (row["registers"], row["shared"])


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match="chips must be among sm_80, sm_90, sm_100, gfx942, got sm_75"):
        aot.compile_kernels(("sm_75",), quick=True)
    with pytest.raises(ValueError, match="no kernel's name begins with nonsense"):
        aot.compile_kernels(("sm_90",), ["nonsense"], quick=True)


def test_the_interpreter_is_refused(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="unset TRITON_INTERPRET"):
        aot.compile_kernels(quick=True)

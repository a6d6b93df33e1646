"""Every kernel compiles for GPUs that are not here, within their limits: one configuration a kernel, two chips."""

import pytest

from tests.conftest import INTERPRETED

aot = pytest.importorskip("mmkernels.aot")
pytestmark = pytest.mark.skipif(INTERPRETED, reason="kernels cannot be compiled in the interpreter")


@pytest.fixture(scope="module")
def rows():
    return aot.compile_kernels(("sm_90", "gfx942"), quick=True)


def test_no_limit_is_broken(rows):
    assert aot.limits(rows) == []


def test_every_kernel_is_there_on_each_chip(rows):
    kernels = {row["kernel"] for row in rows}
    assert {"logsumexp_fwd_kernel", "logsumexp_bwd_kernel", "logsumexp_bwd_weight_kernel"} <= kernels
    assert len(rows) == 2 * len(kernels)


def test_products_run_on_tensor_cores(rows):
    products = [row for row in rows if row["product"]]
    assert len(products) == 6
    assert all(row["tensor_cores"] > 0 and row["exponentials"] > 0 for row in products)


def test_limits_name_what_is_broken(rows):
    product = next(row for row in rows if row["product"] and row["chip"] == "sm_90")
    broken = [product | {"spills": 16}, product | {"shared": 2**20}, product | {"tensor_cores": 0}]
    problems = aot.limits(broken)
    assert [p.split(": ")[1].split()[0] for p in problems] == ["16", "1048576", "no"]


def test_table_has_a_line_a_row(rows):
    lines = aot.table(rows).splitlines()
    assert len(lines) == len(rows) + 1
    assert lines[0].split()[:3] == ["kernel", "chip", "dtype"]


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match="chips must be among sm_80, sm_90, sm_100, gfx942, got sm_75"):
        aot.compile_kernels(("sm_75",), quick=True)
    with pytest.raises(ValueError, match="no kernel's name begins with nonsense"):
        aot.compile_kernels(("sm_90",), ["nonsense"], quick=True)


def test_the_interpreter_is_refused(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="unset TRITON_INTERPRET"):
        aot.compile_kernels(quick=True)

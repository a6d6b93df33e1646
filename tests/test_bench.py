"""The benchmark suite runs, on a few pairs, in a copy of the tree whose op tests are stand-ins. No time is tested."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bench.__main__
from bench.measure import DENSE, FLOOR, OURS, Candidate, Case, Comparison
from bench.plots import draw, main_lines
from bench.report import exponent as fitted
from bench.report import load, write
from tests.conftest import INTERPRETED

for package in ("pytest_benchmark", "matplotlib"):
    pytest.importorskip(package)
pytestmark = pytest.mark.skipif(INTERPRETED, reason="the suite measures, it has no numerics of its own")

ROOT = Path(__file__).parent.parent
CANDIDATES = {"mmkernels", "dense", "bare products", "linear_cross_entropy"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """bench/ as it is, with op tests that pass."""
    tree = tmp_path_factory.mktemp("tree")
    shutil.copy(ROOT / "pyproject.toml", tree)
    for name in ("bench", "reference", "mmkernels"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    write_op_tests(tree, "pass")
    return tree


def write_op_tests(tree, body):
    names = (
        "test_logsumexp",
        "test_info_nce",
        "test_neighbors",
        "test_matmul",
        "test_covariance",
        "test_cca",
        "test_whitening",
        "test_moments",
        "test_dependence",
        "test_mutual_information",
        "test_permutation",
    )
    for folder in ("ops", "estimators"):
        (tree / "tests" / folder).mkdir(parents=True, exist_ok=True)
        (tree / "tests" / folder / "__init__.py").touch()
        for name in names:
            (tree / f"tests/{folder}/{name}.py").write_text(f"def {name}():\n    {body}\n")


def python(tree, *arguments):
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})


def run_suite(tree, out, *options, target="bench/ops"):
    return python(tree, "pytest", target, "--bench-smoke", "--benchmark-json", out, *options)


@pytest.fixture(scope="module")
def results(tree):
    """The JSON of a smoke run, and what it printed."""
    path = tree / "results/cpu.json"
    path.parent.mkdir()
    run = run_suite(tree, path)
    assert run.returncode == 0, run.stdout + run.stderr
    return path, run.stdout


def test_every_candidate_is_measured(results):
    data = json.loads(results[0].read_text())
    assert {b["extra_info"]["op"] for b in data["benchmarks"]} == {
        "info_nce",
        "ranks",
        "kernel_matmul",
        "kernel_matmul_16",
        "covariance",
        "cca",
        "cca_loss",
        "gcca_loss",
        "inverse_sqrt",
        "hsic",
        "cka",
        "ksg",
        "permutation",
    }
    benchmarks = {b["extra_info"]["pass"]: b for b in data["benchmarks"] if b["extra_info"]["op"] == "info_nce"}
    assert set(benchmarks) >= {"forward", "forward+backward"}
    for name, benchmark in benchmarks.items():
        info = benchmark["extra_info"]
        assert (info["op"], info["N"]) == ("info_nce", 64)
        assert info["flops"] == 2 * 64 * 64 * info["D"] * (4 if name == "forward+backward" else 1)
        expected = (
            CANDIDATES if hasattr(torch.nn, "LinearCrossEntropyOptions") else CANDIDATES - {"linear_cross_entropy"}
        )
        assert expected <= set(info["candidates"])
        assert info["skipped"]["torch.compile"] == "it compiles for seconds: not in a smoke run"
        ours = info["candidates"]["mmkernels"]
        # our times are pytest-benchmark's, taken inside its timer
        assert ours["wall_seconds"] == pytest.approx(benchmark["stats"]["median"], abs=2e-3)
        for row in info["candidates"].values():
            assert row["rounds"] == 1
            assert row["wall_seconds"] > 0
            assert row["ours_over_it"] == pytest.approx(ours["wall_seconds"] / row["wall_seconds"])
            assert row["tflops"] == pytest.approx(info["flops"] / row["wall_seconds"] / 1e12)
            assert row["peak_bytes"] is not None or sys.platform != "linux"
    assert data["machine_info"]["versions"]["torch"] == torch.__version__
    assert set(data["commit_info"]) <= {"id", "time", "dirty"}


def test_nothing_stored_names_a_computer_or_a_directory(results):
    text = results[0].read_text()
    for name in (os.uname().nodename, str(Path.home()), str(results[0].parent.parent), str(ROOT)):
        assert name == "/" or name not in text


def test_the_closing_table_has_the_ratios(results):
    output = results[1]
    assert "info_nce N64-D512-float32-forward+backward" in output
    assert re.search(r"case +ms +TFLOP/s +time / dense +/ floor", output)
    assert "ranks N64-D256-float32-forward" in output
    assert "not measured in 2 case(s), torch.compile: it compiles" in output or torch.cuda.is_available()


def report(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["bench", "report", *map(str, options)])
    bench.__main__.main()


def test_report(results, tmp_path, monkeypatch, capsys):
    report(monkeypatch, "--results", results[0].parent, "--out", tmp_path)
    assert capsys.readouterr().out == f"Page: {tmp_path / 'benchmarks.md'}\n"
    page = (tmp_path / "benchmarks.md").read_text()
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", page)
    assert len(pictures) == 18  # two passes of five ops, one of eight
    assert all((tmp_path / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert "| 64 | 512 | float32 | **mmkernels** |" in page
    assert "torch.compile: it compiles for seconds" in page
    rows = list(csv.DictReader((results[0].parent / "benchmarks.csv").read_text().splitlines()))
    assert {row["candidate"] for row in rows} >= CANDIDATES - {"linear_cross_entropy"}
    assert {row["pass"] for row in rows} == {"forward", "forward+backward"}


def test_pictures_against_the_width(tmp_path):
    """Where three widths were measured at one N."""
    row = {"dtype": "float32", "candidate": OURS, "pass": "forward", "wall_seconds": 1.0, "peak_bytes": 1e6}
    rows = [row | {"N": N, "D": D} for N, D in ((100, 8), (100, 16), (100, 32), (50, 8))]
    lines = main_lines(rows, "D")
    assert [r["D"] for r in lines[OURS]] == [8, 16, 32]
    assert [r["N"] for r in main_lines(rows)[OURS]] == [50, 100]
    draw(rows, tmp_path / "widths.png", "D")
    assert (tmp_path / "widths.png").read_bytes().startswith(b"\x89PNG")


def test_report_without_results(tmp_path, monkeypatch, capsys):
    (tmp_path / "tiles.json").write_text("{}")  # results that are no benchmarks
    with pytest.raises(SystemExit, match="1"):
        report(monkeypatch, "--results", tmp_path, "--out", tmp_path)
    assert "holds no benchmarks: `make bench` measures and stores them" in capsys.readouterr().err


def test_exponents():
    rows = [{"N": N, "seconds": 3e-9 * N**2, "bytes": None} for N in (64, 2048, 4096, 8192)]
    rows[0]["seconds"] = 1.0  # below the sizes that are fitted
    assert fitted(rows, "seconds") == pytest.approx(2)
    assert fitted(rows, "bytes") is None
    assert fitted(rows[:3], "seconds") is None


def test_the_later_of_two_results_counts(results, tmp_path):
    data = json.loads(results[0].read_text())
    for year, name in ((2001, "b"), (2002, "a")):
        data["datetime"] = f"{year}-01-01T00:00:00+00:00"
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    rows = [row for section in load(tmp_path) for row in section.rows]
    assert {row["date"] for row in rows} == {"2002-01-01"}
    assert len(rows) == sum(len(b["extra_info"]["candidates"]) for b in data["benchmarks"])


def test_what_was_interrupted_or_untested_is_told(results, tmp_path):
    data = json.loads(results[0].read_text())
    data["benchmarks"][0]["extra_info"] = {}
    data["benchmarks"][1]["extra_info"]["tested"] = False
    (tmp_path / "a.json").write_text(json.dumps(data))
    page = write(tmp_path, tmp_path).read_text()
    assert page.count("without running the op's tests first") == 1


def ones(case, device):
    return (torch.ones(case.N, device=device).requires_grad_(),)


# candidates of the wrong kinds, and what is said of them
def missing(x):
    raise ImportError("no such library in /usr/lib/python/site.py")


def another_loss(x):
    return x.sum() + 1


def too_large(x):
    raise torch.OutOfMemoryError


def broken(x):
    raise ValueError("not today")


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (Candidate("peer", missing), "no such library in site.py"),
        (Candidate("peer", another_loss), "its loss is 5, not 4"),
        (Candidate("peer", too_large), "out of memory"),
        (Candidate("peer", broken), "ValueError: not today"),
        (Candidate("peer", torch.sum, matrices=10**12), r"it needs about 6.4e\+04 GB, .* GB are free"),
        (Candidate("peer", torch.sum, compiles=True), "it compiles for seconds: not in a smoke run"),
    ],
    ids=lambda value: value.function.__name__ if isinstance(value, Candidate) else "",
)
def test_a_candidate_that_cannot_run_leaves_the_others_alone(candidate, reason):
    others = Candidate(OURS, torch.sum), Candidate(FLOOR, another_loss)
    comparison = Comparison(Case(4, 1, "float32", True), ones, (candidate, *others), smoke=True)
    assert [c.name for c in comparison.running] == [OURS, FLOOR]
    assert re.fullmatch(reason, comparison.skipped["peer"])
    assert set(comparison.results(1)) == {OURS, FLOOR}


def test_a_candidate_that_fails_later_leaves_the_others_alone():
    calls = []

    def once(x):
        calls.append(x)
        if len(calls) > 2:
            raise torch.OutOfMemoryError
        return x.sum()

    candidates = Candidate("peer", once), Candidate(DENSE, torch.sum), Candidate(OURS, torch.sum)
    comparison = Comparison(Case(4, 1, "float32", True), ones, candidates, smoke=False)
    comparison.sample_others()
    assert [c.name for c in comparison.running] == [OURS, DENSE]
    assert comparison.skipped == {"peer": "out of memory"}
    assert len(comparison.samples[DENSE].wall) == 2


def test_rounds_fill_the_time_that_is_left():
    def rounds(once, seconds, left):
        comparison = Comparison(Case(4, 1, "float32", False), ones, (Candidate(OURS, torch.sum),), smoke=False)
        comparison.samples[OURS].wall = [once]
        return comparison.rounds(seconds, left)

    assert rounds(1, 20, 1000) == 20
    assert rounds(1e-6, 20, 1000) == 100
    assert rounds(30, 20, 1000) == 3
    assert rounds(30, 20, 50) == 1
    assert rounds(90, 20, 1000) == 1


def test_a_spent_budget_skips_and_says_so(tree, results, tmp_path):
    run = run_suite(tree, tmp_path / "cpu.json", "--bench-seconds", "0", target="bench/ops/logsumexp.py")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 skipped" in run.stdout or torch.cuda.is_available()
    assert "the budget of 0 s is spent" in run.stdout


def test_no_speed_of_an_op_whose_tests_fail(tree, results, tmp_path):
    write_op_tests(tree, "assert False")
    try:
        run = run_suite(tree, tmp_path / "cpu.json")
    finally:
        write_op_tests(tree, "pass")
    assert run.returncode == 1, run.stdout + run.stderr
    assert "no speed is reported of an op whose tests fail" in run.stdout
    assert not (tmp_path / "cpu.json").exists()

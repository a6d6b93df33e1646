"""The suite: `pytest bench/ops` measures every op, `pytest bench/ops/logsumexp.py` one.

An op's file names its own TESTS and CASES, and calls the fixture `compare`. No speed is reported of an op whose tests
fail (`--bench-untested` says in the results that they were not run). Numbers land in the JSON that `--benchmark-json`
names; `python -m bench report` makes pages and pictures of it.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads distort CPU-seconds and starve each other

import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from bench import machine
from bench.measure import DENSE, FLOOR, OURS, Comparison

ROOT = Path(__file__).parent.parent
SMOKE_ROWS = 64
SECONDS = {"cpu": 20.0, "cuda": 2.0}  # of timing a case; what it takes once, where that is more
started, measured = pytest.StashKey[float](), pytest.StashKey[list]()


def pytest_addoption(parser):
    group = parser.getgroup("bench")
    group.addoption("--bench-seconds", type=float, help="begin no further case after so many seconds")
    group.addoption("--bench-untested", action="store_true", help="do not run the ops' own tests first")
    group.addoption("--bench-smoke", action="store_true", help=f"{SMOKE_ROWS} pairs, one round: does it all run?")


def pytest_configure(config):
    config.addinivalue_line("python_files", "bench/ops/[!_]*.py")  # named after their ops, without test_
    config.option.benchmark_quiet = True  # its table shows one candidate; ours all
    # the project makes warnings errors: not this one, after the last case was skipped or failed
    warnings.filterwarnings("ignore", message="Not saving anything")
    config.stash[started] = time.monotonic()
    config.stash[measured] = []


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        cases = metafunc.module.CASES
        if metafunc.config.option.bench_smoke:
            # one width of each kind will do
            cases = {(case.dtype, case.backward): case._replace(N=SMOKE_ROWS) for case in reversed(cases)}.values()
        theirs = pytest.mark.filterwarnings("ignore")  # candidates' warnings are not ours to mend
        metafunc.parametrize("case", [pytest.param(case, id=str(case), marks=theirs) for case in cases])


def pytest_benchmark_generate_machine_info():
    return machine.describe()


def pytest_benchmark_update_commit_info(commit_info):
    for key in commit_info.keys() - {"id", "time", "dirty"}:
        del commit_info[key]


@pytest.fixture(scope="module", autouse=True)
def op_tests_pass(request):
    """Run the op's own tests once."""
    if request.config.option.bench_untested:
        return
    command = [sys.executable, "-m", "pytest", "-x", "-q", *request.module.TESTS]
    tests = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if tests.returncode:
        tail = "\n".join(tests.stdout.splitlines()[-20:])
        pytest.fail(f"no speed is reported of an op whose tests fail: {' '.join(command[1:])}\n\n{tail}", pytrace=False)


@pytest.fixture
def compare(request, case, benchmark):
    """Measure one case of an op: compare(inputs, candidates, flops). Candidates take turns, ours last in each round."""
    options = request.config.option

    def left():
        spent = time.monotonic() - request.config.stash[started]
        return float("inf") if options.bench_seconds is None else options.bench_seconds - spent

    def run(inputs, candidates, flops):
        if left() <= 0:
            pytest.skip(f"the budget of {options.bench_seconds:g} s is spent")
        comparison = Comparison(case, inputs, candidates, options.bench_smoke)
        rounds = comparison.rounds(SECONDS[comparison.device.type], left())
        benchmark.pedantic(
            lambda: comparison.sample(comparison.running[0]),
            setup=comparison.sample_others,
            rounds=1 if options.bench_smoke else rounds,
        )
        if left() > 0:
            comparison.peaks()
        rows = comparison.results(flops(case))
        benchmark.extra_info |= {
            "op": (op := request.node.originalname.removeprefix("test_")),
            "case": f"{op} {case}",
            "pass": "forward+backward" if case.backward else "forward",
            "flops": flops(case),
            "candidates": rows,
            "skipped": comparison.skipped,
            "tested": not options.bench_untested,
        }
        benchmark.extra_info |= case._asdict()
        request.config.stash[measured].append(benchmark.extra_info)

    return run


def pytest_terminal_summary(terminalreporter, config):
    """Ours against dense and floor, a line a case, and what is missing. Without rich: it is none of the essentials."""
    lines = [("case", "ms", "TFLOP/s", "time / dense", "/ floor", "peak MB", "/ dense")]
    missing = {}
    for info in config.stash[measured]:
        ours, dense, floor = (info["candidates"].get(name, {}) for name in (OURS, DENSE, FLOOR))
        peak, dense_peak = ours["peak_bytes"], dense.get("peak_bytes")
        numbers = (
            (1e3 * ours["wall_seconds"], ".4g"),
            (ours["tflops"], ".3g"),
            (dense.get("ours_over_it"), ".3f"),
            (floor.get("ours_over_it"), ".3f"),
            (None if peak is None else peak / 1e6, ",.0f"),
            (peak / dense_peak if peak is not None and dense_peak else None, ".3f"),
        )
        lines.append((info["case"], *("-" if value is None else format(value, form) for value, form in numbers)))
        for candidate, reason in info["skipped"].items():
            missing.setdefault(f"{candidate}: {reason}", []).append(info["case"])
    for report in terminalreporter.stats.get("skipped", []):
        missing.setdefault(report.longrepr[2].removeprefix("Skipped: "), []).append(report.nodeid)
    if len(lines) > 1:
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        print(f"\n{OURS} against {DENSE} formula and floor of {FLOOR}")
        for case, *values in lines:
            cells = (value.rjust(width) for value, width in zip(values, widths[1:], strict=True))
            print(case.ljust(widths[0]), *cells, sep="  ")
    for reason, cases in missing.items():
        print(f"not measured in {len(cases)} case(s), {reason}")

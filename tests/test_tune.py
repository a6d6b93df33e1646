"""How `bench/tune.py` chooses tiles: with a stand-in for the clock, and whole in Triton's interpreter."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")
tune = pytest.importorskip("bench.tune")
_configs, Tile = tune._configs, tune.Tile

NEVER = float("inf")
PRESENT, SLOW, FAST, WRONG, BROKEN = (tune.Entry("_SCORES", "half", Tile(n, 64, 64, 4, 2)) for n in (1, 2, 3, 4, 5))


@pytest.fixture
def problems(monkeypatch):
    """Two problems whose result depends on the tile that is applied, and a clock that knows every tile."""
    monkeypatch.setitem(_configs._SCORES, "stand-in", {"half": PRESENT.value})
    monkeypatch.setattr(tune, "work", lambda problem: lambda: run())

    def run():
        m = _configs._SCORES["stand-in"]["half"].BLOCK_M
        if m == BROKEN.value.BLOCK_M:
            raise triton.runtime.errors.OutOfResources(300, 227, "shared memory")
        return (torch.full((3,), torch.nan if m == WRONG.value.BLOCK_M else 1 + 1e-6 * m),)

    return [tune.Problem("forward", torch.bfloat16, 64, D) for D in (64, 128)]


def clock(run):
    run()
    return {1: 5.0, 2: 7.0, 3: 3.0, 4: 0.1}[_configs._SCORES["stand-in"]["half"].BLOCK_M]


def test_the_fastest_that_agrees_is_chosen(problems):
    entries = [PRESENT, SLOW, FAST, WRONG, BROKEN]
    rows = tune.time_entries(entries, problems, "stand-in", clock, NEVER)
    assert [row["value"] for row in rows] == [str(entry) for entry in entries]
    assert rows[0]["ms"] == {"forward N=64 D=64": 5.0, "forward N=64 D=128": 5.0}
    assert "its result is another one" in rows[3]["skipped"]
    assert rows[4]["skipped"].startswith("OutOfResources")
    assert tune.fastest(rows) == rows[2]
    assert _configs._SCORES["stand-in"]["half"] == PRESENT.value


def test_nothing_is_timed_after_the_deadline(problems):
    rows = tune.time_entries([PRESENT, FAST], problems, "stand-in", clock, time.monotonic() - 1)
    assert all("no time was left" in row["skipped"] for row in rows)
    assert tune.fastest(rows) == rows[0]


def test_without_the_present_result_nothing_counts_but_the_next(problems):
    rows = tune.time_entries([BROKEN, SLOW, FAST], problems, "stand-in", clock, NEVER)
    assert tune.fastest(rows) == rows[2]


def test_the_geometric_mean_decides():
    rows = [{"value": "a", "ms": {"x": 12.0, "y": 12.0}}, {"value": "b", "ms": {"x": 1.0, "y": 100.0}}, {"value": "c"}]
    assert tune.fastest(rows)["value"] == "b"


def test_every_group_reaches_the_table_it_names(monkeypatch):
    """A table or number that is renamed would be tuned in vain."""
    monkeypatch.setattr(_configs, "chip", lambda device: "sm_90")
    for group in tune.groups():
        first = tune.present(group, "sm_90")
        for value in group.values:
            entry = tune.Entry(group.table, group.kind, value)
            with tune.applied(entry, "sm_90"):
                assert tune.present(group, "sm_90") == entry
                x = torch.empty(256, group.problems[0].D, dtype=group.problems[0].dtype)
                if group.table == "_NARROW":
                    assert _configs.narrow_tile(x, "tf32x3", 256) == value
                elif group.table == "_NEIGHBORS":
                    assert _configs.neighbors_tile(x, "tf32x3")[:2] == value[:2]
                elif group.kind:
                    assert _configs.scores_tile(x, "tf32x3")[:2] == value[:2]
        assert tune.present(group, "sm_90") == first


TINY = """
import sys
from pathlib import Path

import torch
from bench.tune import Group, Problem, Tile
from bench import tune

half = torch.float16
GROUPS = [
    Group("_SCORES", "half", (Tile(32, 64, 64, 4, 1),), tuple(Problem("backward", half, 70, D) for D in (48, 300))),
    Group("_NARROW", "half", (Tile(32, 64, 64, 4, 1),), (Problem("backward", half, 70, 48),)),
    Group("WAVE", "", (64,), (Problem("forward", half, 70, 48),)),
    Group("_NEIGHBORS", "half", (Tile(32, 64, 64, 4, 1),), (Problem("count", half, 70, 48),)),
]
if __name__ == "__main__":
    tune.PROCESSES = 1
    tune.groups = lambda: GROUPS
    tune._milliseconds = lambda run: (run(), 1.0)[1]
    tune.narrow_against_stored = lambda narrow, *rest: sorted(narrow)
    tune.tune(Path(sys.argv[1]))
"""


def test_tuning_in_the_interpreter(tmp_path):
    """All of it, on tiny problems: compile, time, choose, write."""
    (tmp_path / "tiny.py").write_text(TINY)
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(tune.__file__).parent.parent)}
    command = [sys.executable, tmp_path / "tiny.py", tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("compiled 6 of 6")
    found = json.loads(next(tmp_path.glob("tiles_*.json")).read_text())
    assert found["chip"] == "interpreter"
    assert [entry["entry"] for entry in found["entries"]] == [
        "_SCORES half",
        "_NARROW half D=48",
        "WAVE ",
        "_NEIGHBORS half",
    ]
    assert all("ms" in row for entry in found["entries"] for row in entry["candidates"]), found
    assert found["narrow_against_stored"] == [48]

"""The fastest tiles for the GPU at hand: candidates for every table in `mmkernels/kernels` against the present entry.

    python -m bench.tune OUT_DIR

Candidates are compiled side by side first, then timed one by one, and count only where their results agree with the
present entry's. Nothing is changed: OUT_DIR/tiles_<gpu>.json names the fastest as the tables are written, with times.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from triton.testing import do_bench

from bench import machine
from mmkernels._dispatch import float32_precision
from mmkernels.kernels import _configs, logsumexp, neighbors
from mmkernels.kernels._configs import Tile

_MODULES = _configs, logsumexp, neighbors

SECONDS = 88.0  # for everything
COMPILE_SECONDS = 55.0  # of these at most, on PROCESSES at once
PROCESSES = 8


class Problem(NamedTuple):
    """One call that is timed."""

    direction: str  # forward or backward of logsumexp, or count of neighbors
    dtype: torch.dtype
    N: int
    D: int

    def __str__(self) -> str:
        return f"{self.direction} N={self.N} D={self.D}"


class Entry(NamedTuple):
    """A value for an entry of a table, or for one of the numbers beside them (kind is empty then)."""

    table: str
    kind: str
    value: Tile | int | None  # None in _NARROW: nothing is streamed

    def __str__(self) -> str:
        return "weights stored" if self.value is None else repr(self.value)


class Group(NamedTuple):
    """Candidates for one entry, and what they are timed on: the geometric mean of the times decides."""

    table: str
    kind: str
    values: tuple[Tile | int, ...]
    problems: tuple[Problem, ...]


def _tiles(*shapes: tuple[int, ...]) -> tuple[Tile, ...]:
    return tuple(Tile(*shape) for shape in shapes)


# Shapes that compile for sm_90 with no spilled bytes, or few; another chip skips what does not fit it.
_SCORES_HALF = _tiles(
    *((128, 256, 64, 8, 3), (128, 128, 64, 8, 3), (128, 128, 64, 8, 4), (128, 128, 64, 4, 4), (128, 128, 128, 8, 2)),
    *((128, 128, 32, 8, 4), (256, 128, 64, 8, 3), (128, 256, 64, 8, 4), (64, 256, 64, 4, 3), (64, 256, 64, 8, 3)),
    *((64, 128, 64, 4, 4), (128, 64, 64, 4, 4)),
)
_SCORES_SINGLE = _tiles(
    *((128, 128, 32, 8, 3), (128, 128, 32, 8, 2), (128, 64, 32, 8, 3), (64, 128, 32, 8, 2), (64, 128, 32, 4, 3)),
    *((64, 64, 32, 4, 3),),
)
_NEIGHBORS_HALF = _tiles((128, 256, 64, 8, 3), (128, 128, 64, 8, 4), (128, 128, 64, 4, 3), (64, 128, 64, 4, 3))
_NARROW_HALF = {
    64: _tiles((128, 64, 64, 8, 4), (128, 128, 64, 8, 2), (64, 128, 64, 4, 3), (64, 64, 64, 4, 3)),
    128: _tiles((128, 64, 128, 8, 3), (64, 64, 128, 4, 3), (128, 32, 128, 8, 3), (64, 32, 128, 4, 3)),
    256: _tiles((64, 64, 256, 8, 2), (128, 64, 256, 8, 2), (128, 32, 256, 8, 3), (64, 32, 256, 4, 2)),
    512: _tiles((64, 32, 512, 8, 2), (64, 64, 512, 8, 2)),
}
_NARROW_SINGLE = {64: _tiles((128, 32, 64, 8, 2), (64, 64, 64, 4, 2)), 128: _tiles((128, 32, 128, 8, 2))}


def groups() -> list[Group]:
    """What is tuned, the most valuable first."""
    half, single = torch.bfloat16, torch.float32
    many = tuple(Problem("forward", half, 65536, D) for D in (128, 512, 768))
    return [
        Group(
            *("_SCORES", "half", _SCORES_HALF),
            tuple(Problem("forward", half, 32768, D) for D in (64, 256, 768))
            + tuple(Problem("backward", half, 32768, D) for D in (512, 768)),
        ),
        *(Group("_NARROW", "half", t, (Problem("backward", half, 32768, D),)) for D, t in _NARROW_HALF.items()),
        Group("_SPAN", "", (4, 8, 32, 64), many),
        Group("WAVE", "", (4096, 16384, 32768), many),
        Group("_NEIGHBORS", "half", _NEIGHBORS_HALF, tuple(Problem("count", half, 32768, D) for D in (64, 768))),
        Group("_BLOCK", "", (8192, 32768), (Problem("backward", half, 65536, 768),)),
        Group(
            *("_SCORES", "single", _SCORES_SINGLE),
            tuple(Problem(d, single, 16384, D) for d, D in (("forward", 64), ("forward", 768), ("backward", 768))),
        ),
        *(Group("_NARROW", "single", t, (Problem("backward", single, 16384, D),)) for D, t in _NARROW_SINGLE.items()),
    ]


def present(group: Group, chip: str) -> Entry:
    """The entry as it is; in _NARROW the tile that serves the group's width."""
    if not group.kind:
        value = next(getattr(m, group.table) for m in _MODULES if hasattr(m, group.table))
    else:
        value = getattr(_configs, group.table)[chip][group.kind]
    if group.table == "_NARROW":
        value = next((tile for tile in value if group.problems[0].D <= tile.BLOCK_D), None)
    return Entry(group.table, group.kind, value)


@contextmanager
def applied(entry: Entry, chip: str) -> Iterator[None]:
    """Run with the entry in its table."""
    table, kind, value = entry
    with ExitStack() as stack:
        if table == "_NARROW":
            stack.enter_context(patch.dict(_configs._NARROW[chip], {kind: () if value is None else (value,)}))
            stack.enter_context(patch.object(_configs, "multiprocessors", lambda device: 1))  # at any N
        elif kind:
            stack.enter_context(patch.dict(getattr(_configs, table)[chip], {kind: value}))
        else:
            for module in _MODULES:  # wherever the number is, or was imported to
                if hasattr(module, table):
                    stack.enter_context(patch.object(module, table, value))
        yield


def work(problem: Problem) -> Callable[[], tuple[Tensor, ...]]:
    """The problem's launches, on random pairs."""
    torch.manual_seed(0)
    N, device = problem.N, machine.device()
    x, y = (F.normalize(torch.randn(N, problem.D, device=device), dim=1).to(problem.dtype) for _ in "xy")
    precision = float32_precision(x.device)
    if problem.direction == "count":
        thresholds = (x.new_zeros(N, dtype=torch.float32),) * 2
        return lambda: neighbors.neighbors_count(x, y, None, None, *thresholds, precision)
    arguments = (x, y, x.new_full((), 20.0, dtype=torch.float32), None, None, None, 0)
    if problem.direction == "forward":
        return lambda: logsumexp.logsumexp_fwd(*arguments, True, False, precision)
    rows, columns, *_, scores = logsumexp.logsumexp_fwd(*arguments, True, False, precision)
    g = rows.new_full((N,), 0.5 / N)
    needs = [True, True, True, False]
    return lambda: logsumexp.logsumexp_bwd(*arguments, rows, columns, scores, g, g, -g, needs, precision)


def check_agreement(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    """Raise where results differ by more than roundings; NaN never passes."""
    for g, w in zip(got, wanted, strict=True):
        error = (g.double() - w.double()).norm().item()
        if not error <= (1e-2 if g.element_size() == 2 else 1e-4) * w.double().norm().item():
            raise ArithmeticError(f"its result is another one: error {error:.3g} in a tensor of shape {tuple(g.shape)}")


def time_entries(
    entries: Sequence[Entry],
    problems: Sequence[Problem],
    chip: str,
    milliseconds: Callable[[Callable[[], Any]], float],
    deadline: float,
) -> list[dict[str, Any]]:
    """Time entries, of which the first sets the results of all: a row each, with times or why there are none."""
    rows: list[dict[str, Any]] = []
    works = {str(problem): work(problem) for problem in problems}
    wanted: dict[str, tuple[Tensor, ...]] = {}
    for entry in entries:
        row: dict[str, Any] = {"value": str(entry)}
        rows.append(row)
        try:
            if time.monotonic() > deadline:
                raise TimeoutError("no time was left")
            with applied(entry, chip):
                results = {name: run() for name, run in works.items()}
                wanted = wanted or results
                for name in works:
                    check_agreement(results[name], wanted[name])
                row["ms"] = {name: milliseconds(run) for name, run in works.items()}
        except Exception as error:  # it does not compile, or does not fit the chip: others may
            row["skipped"] = f"{type(error).__name__}: {error}"[:200]
    return rows


def fastest(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row with the lowest geometric mean of its times, the first if none has times."""
    return min(rows, key=lambda row: math.prod(row["ms"].values()) if "ms" in row else math.inf)


def _compile(entry: Entry, problems: Sequence[Problem], chip: str) -> None:
    """Leave the entry's kernels in Triton's cache: they do not depend on N."""
    with applied(entry, chip):
        for problem in problems:
            work(problem._replace(N=min(problem.N, 2048)))()


def compile_entries(jobs: Sequence[tuple[Entry, Sequence[Problem], str]], deadline: float) -> list[str]:
    """Compile side by side until the deadline; for each job what went wrong, or "". A compiler may crash or hang."""
    reasons = []
    with get_context("spawn").Pool(min(PROCESSES, len(jobs))) as pool:  # leaving it ends what still runs
        results = [pool.apply_async(_compile, job) for job in jobs]
        for result in results:
            try:
                result.get(max(0.0, deadline - time.monotonic()))
                reasons.append("")
            except Exception as error:  # TimeoutError among them
                reasons.append(f"not compiled: {type(error).__name__} {error}"[:200])
    return reasons


def narrow_against_stored(narrow: dict[int, Entry], chip: str, deadline: float) -> list[dict[str, Any]]:
    """Times of the backward with weights stored and streamed, by width and number of pairs."""
    found = []
    for D, entry in narrow.items():
        for N in (4096, 8192, 16384, 65536):
            entries = [entry._replace(value=None), entry]
            rows = time_entries(entries, [Problem("backward", torch.bfloat16, N, D)], chip, _milliseconds, deadline)
            print(f"D={D} N={N}: {_line(rows[0])}; {_line(rows[1])}", flush=True)
            found.append({"D": D, "N": N, "rows": rows})
    return found


def _milliseconds(run: Callable[[], Any]) -> float:
    return float(do_bench(run, warmup=10, rep=50, return_mode="median"))


def tune(out: Path) -> None:
    """Time everything that fits into SECONDS, and write the findings after every group."""
    start = time.monotonic()
    chip = _configs.chip(torch.device(machine.device()))
    plan = []
    for g in groups():
        first = present(g, chip)
        plan.append((g, [first] + [e for v in g.values if (e := Entry(g.table, g.kind, v)) != first]))
    jobs = [(entry, g.problems, chip) for g, entries in plan if g.kind for entry in entries]
    reasons = compile_entries(jobs, start + COMPILE_SECONDS)
    broken = {job[:2]: reason for job, reason in zip(jobs, reasons, strict=True) if reason}
    print(f"compiled {len(jobs) - len(broken)} of {len(jobs)} in {time.monotonic() - start:.0f} s", flush=True)
    found: dict[str, Any] = {"machine": machine.describe(), "chip": chip, "entries": []}
    narrow: dict[int, Entry] = {}
    with ExitStack() as winners:
        for g, entries in plan:
            ready = [e for e in entries if (e, g.problems) not in broken]
            rows = time_entries(ready, g.problems, chip, _milliseconds, start + SECONDS)
            skipped = [{"value": str(e), "skipped": broken[e, g.problems]} for e in entries if e not in ready]
            name = f"{g.table} {g.kind}" + (f" D={g.problems[0].D}" if g.table == "_NARROW" else "")
            found["entries"].append({"entry": name, "present": str(entries[0]), "candidates": rows + skipped})
            if any("ms" in row for row in rows):
                best = fastest(rows)
                found["entries"][-1]["fastest"] = best["value"]
                print(f"{name}: present {_line(rows[0])}; fastest {_line(best)}", flush=True)
                winner = ready[rows.index(best)]
                if g.table != "_NARROW":
                    winners.enter_context(applied(winner, chip))  # what follows is timed with it
                elif g.kind == "half" and winner.value is not None:
                    narrow[g.problems[0].D] = winner
            _write(out, found)
        found["narrow_against_stored"] = narrow_against_stored(narrow, chip, start + SECONDS)
    _write(out, found)


def _line(row: dict[str, Any]) -> str:
    return row["value"] + "".join(f", {name} {ms:.3f} ms" for name, ms in row.get("ms", {}).items())


def _write(out: Path, found: dict[str, Any]) -> None:
    (out / f"tiles_{machine.name()}.json").write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="where tiles_<gpu>.json is written")
    out = parser.parse_args().out
    if not torch.cuda.is_available():
        parser.exit(2, "tiles are timed on a GPU, and PyTorch sees none here\n")
    out.mkdir(parents=True, exist_ok=True)
    tune(out)


if __name__ == "__main__":
    main()

"""From the stored JSONs to one page, its pictures and one CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.measure import FLOOR, OURS
from bench.plots import draw, main_lines
from mmkernels.data._files import write_atomically

Row = dict[str, Any]

FIT_FROM = 2048  # pairs; below, the cost of a call itself bends the line
PASSES = {"forward+backward": "Forward and backward", "forward": "Forward alone"}
HOW = f"""\
# Benchmarks

Made by `make bench`, which runs an op's own tests before it measures the op. Candidates take turns on the same
inputs; times are medians. CPU s are seconds of processor time, all threads together. Peak memory is above the inputs,
gradients included; on a CPU that of a fresh process each. TFLOP/s are the op's own floating-point operations over a
candidate's time, whatever the candidate computes. *{FLOOR}* are the matrix products alone, without the op: the floor.
*ours / it* below 1 means that {OURS} is faster. All numbers are in `benchmarks.csv`, beside the stored results.
"""


@dataclass
class Section:
    """An op on a machine: a row a case and candidate, and what was not measured."""

    op: str
    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=dict)  # cases by candidate and reason
    tested: bool = True


def load(results: Path) -> list[Section]:
    """Read every benchmark JSON in a directory; where two hold the same case on the same machine, the later counts."""
    latest: dict[tuple[str, str, str], tuple[dict[str, Any], dict[str, Any]]] = {}
    files = [json.loads(path.read_text()) for path in results.glob("*.json")]
    for data in sorted((data for data in files if "benchmarks" in data), key=lambda data: data["datetime"]):
        for benchmark in data["benchmarks"]:
            info = benchmark["extra_info"]
            if "op" not in info:
                continue  # interrupted
            latest[info["op"], data["machine_info"]["name"], info["case"]] = info, data
    sections: dict[tuple[str, str], Section] = {}
    for (op, name, _), (info, data) in sorted(latest.items(), key=lambda item: item[0][:2]):
        section = sections.setdefault((op, name), Section(op, data["machine_info"]))
        section.machine = data["machine_info"]
        section.rows += _rows(info, data)
        section.tested &= info["tested"]
        for candidate, reason in info["skipped"].items():
            section.skipped.setdefault(f"{candidate}: {reason}", []).append(info["case"].removeprefix(f"{op} "))
    for section in sections.values():
        section.rows.sort(key=lambda row: (list(PASSES).index(row["pass"]), row["dtype"], row["D"], row["N"]))
    return list(sections.values())


def _rows(info: dict[str, Any], data: dict[str, Any]) -> Iterator[Row]:
    machine = data["machine_info"]
    for candidate, numbers in info["candidates"].items():
        yield (
            {"op": info["op"], "machine": machine["name"], "pass": info["pass"], "dtype": info["dtype"]}
            | {"N": info["N"], "D": info["D"], "candidate": candidate}
            | numbers
            | {"date": data["datetime"][:10], "hardware": machine["hardware"], "threads": machine["threads"]}
            | {package: machine["versions"].get(package) for package in ("mmkernels", "torch", "triton")}
        )


def exponent(rows: Iterable[Row], value: str) -> float | None:
    """The p of value ~ N^p, fitted from FIT_FROM pairs on; None below three sizes."""
    points = [(row["N"], row[value]) for row in rows if row["N"] >= FIT_FROM and row[value]]
    if len(points) < 3:
        return None
    log_n, log_value = np.log(np.array(points, dtype=float)).T
    return float(np.polyfit(log_n, log_value, 1)[0])


def write(results: Path, out: Path) -> Path:
    """Write out/benchmarks.md, out/img/*.png and results/benchmarks.csv, and return the page."""
    sections = load(results)
    if not sections:
        raise FileNotFoundError(f"{results} holds no benchmarks: `make bench` measures and stores them")
    with write_atomically(results / "benchmarks.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(sections[0].rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for section in sections for row in section.rows)
    page = out / "benchmarks.md"
    lines = [HOW]
    for section in sections:
        lines += _section(section, out)
    with write_atomically(page) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    return page


def _section(section: Section, out: Path) -> Iterator[str]:
    machine = section.machine
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    threads = "" if machine["device"] == "cuda" else f", {machine['threads']} threads"
    if machine.get("wait_policy", "passive") != "passive":
        threads += f" that wait actively (OMP_WAIT_POLICY: {machine['wait_policy']})"
    yield f"## {section.op}, {machine['hardware']}{threads}\n"
    if not section.tested:
        yield "Some of these numbers were taken without running the op's tests first.\n"
    yield f"{max(row['date'] for row in section.rows)}; {versions}; Python {machine['python']}, {machine['system']}.\n"
    for key, title in PASSES.items():
        rows = [row for row in section.rows if row["pass"] == key]
        if not rows:
            continue
        yield f"### {title}\n"
        name = f"{section.op}_{machine['name']}{'' if key == 'forward+backward' else '_' + key}"
        for along in ("N", "D"):
            if along == "D" and max(len(line) for line in main_lines(rows, "D").values()) < 3:
                continue
            picture = Path("img", f"{name}{'' if along == 'N' else '_D'}.png")
            draw(rows, out / picture, along)
            yield f"![Time and peak memory against {along}]({picture.as_posix()})\n"
        yield from _table(rows)
        yield from _exponents(rows)
    if section.skipped:
        yield "Not measured:\n"
        for reason, cases in section.skipped.items():
            yield f"- {reason} ({', '.join(cases) if len(cases) <= 3 else f'{len(cases)} cases'})"
        yield ""


def _table(rows: list[Row]) -> Iterator[str]:
    yield "| N | D | dtype | candidate | time | CPU s | TFLOP/s | peak memory | ours / it |"
    yield "|--:|--:|---|---|--:|--:|--:|--:|--:|"
    for row in rows:
        bold = "**" if row["candidate"] == OURS else ""
        wall, peak = row["wall_seconds"], row["peak_bytes"]
        cells = (
            f"{row['N']:,}",
            row["D"],
            row["dtype"],
            f"{bold}{row['candidate']}{bold}",
            f"{bold}{wall:.3g} s{bold}" if wall >= 1 else f"{bold}{1e3 * wall:.3g} ms{bold}",
            f"{row['cpu_seconds']:.3g}",
            f"{row['tflops']:.3g}",
            "–" if peak is None else f"{bold}{peak / 1e6:,.0f} MB{bold}",
            f"{row['ours_over_it']:.2f}",
        )
        yield f"| {' | '.join(map(str, cells))} |"
    yield ""


def _exponents(rows: list[Row]) -> Iterator[str]:
    """Fits for the D of most sizes, where there are sizes enough."""
    fits = []
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        lines = main_lines([row for row in rows if row["dtype"] == dtype])
        for candidate, line in lines.items():
            values = [exponent(line, value) for value in ("wall_seconds", "peak_bytes")]
            if any(value is not None for value in values):
                shown = ("–" if value is None else f"{value:.2f}" for value in values)
                fits.append(f"| {candidate} | {dtype} | {' | '.join(shown)} |")
    if fits:
        yield f"Exponents p of time and peak memory, fitted as N^p from N = {FIT_FROM:,} on:\n"
        yield from ("| candidate | dtype | time | peak memory |", "|---|---|--:|--:|", *fits, "")

"""python -m bench report: the page, its pictures and the CSV, from the stored JSONs."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.report import write


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description="What the benchmarks measured.")
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser("report", help="write OUT/benchmarks.md, OUT/img/*.png and RESULTS/benchmarks.csv")
    report.add_argument("--results", type=Path, default=Path("bench/results"), help="directory of the JSONs")
    report.add_argument("--out", type=Path, default=Path("docs"), help="directory of the page")
    options = parser.parse_args()
    try:
        print(f"Page: {write(options.results, options.out)}")
    except (FileNotFoundError, ImportError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()

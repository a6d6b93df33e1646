"""Time and peak memory against N or D, a line a candidate, ours on top."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.measure import DENSE, FLOOR, OURS
from mmkernels.data._files import needs_extra, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = {
    OURS: {"color": "#138a43", "linewidth": 3.5, "markersize": 8, "zorder": 10},
    DENSE: {"color": "#333333"},
    FLOOR: {"color": "#8a8f98", "linestyle": "--"},
}
COLORS = ("#1f77b4", "#e07b00", "#9467bd", "#c23b3b", "#17a2a2", "#b5762a")  # of the others, in order
PANELS = {"wall_seconds": ("Time", "s"), "peak_bytes": ("Peak memory above the inputs", "B")}


def main_lines(rows: list[dict[str, Any]], along: str = "N") -> dict[str, list[dict[str, Any]]]:
    """The rows of the D with the most sizes, by candidate, in order of N; along="D", those of the N with the most D."""
    other = "D" if along == "N" else "N"
    sizes = {(row["D"], row["N"]) for row in rows}
    fixed = Counter(D if along == "N" else N for D, N in sizes).most_common(1)[0][0]
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row[along]):
        if row[other] == fixed:
            lines.setdefault(row["candidate"], []).append(row)
    return lines


def draw(rows: list[dict[str, Any]], path: Path, along: str = "N") -> None:
    """Write a PNG of one pass of one op on one machine: a row of panels a dtype, against N or D.

    Raises:
        ImportError: matplotlib is missing; the message says the command that brings it.
    """
    with needs_extra("bench"):
        from matplotlib.figure import Figure

    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    others = [name for name in dict.fromkeys(row["candidate"] for row in rows) if name not in STYLES]
    styles = STYLES | {name: {"color": color} for name, color in zip(others, COLORS, strict=False)}
    figure = Figure(figsize=(10, 0.9 + 3.9 * len(dtypes)), layout="constrained")
    grid = figure.subplots(len(dtypes), len(PANELS), squeeze=False)
    for dtype, panels in zip(dtypes, grid, strict=True):
        lines = main_lines([row for row in rows if row["dtype"] == dtype], along)
        for axes, value in zip(panels, PANELS, strict=True):
            _panel(axes, lines, value, styles, along)
        fixed = "D" if along == "N" else "N"
        panels[0].set_ylabel(f"{dtype}, {fixed} = {next(iter(lines.values()))[0][fixed]:,}")
    handles = {line.get_label(): line for axes in grid.flat for line in axes.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=13)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=140, facecolor="white")


def _panel(axes: Axes, lines: dict[str, list[dict[str, Any]]], value: str, styles: dict[str, Any], along: str) -> None:
    from matplotlib.ticker import EngFormatter, NullLocator

    title, unit = PANELS[value]
    axes.set(title=title, xlabel="pairs N" if along == "N" else "features D", xscale="log", yscale="log")
    for name, line in lines.items():
        points = [(row[along], row[value]) for row in line if row[value]]
        if points:
            style = {"linestyle": "-", "linewidth": 1.8, "markersize": 5} | styles[name]
            axes.plot(*zip(*points, strict=True), marker="o", label=name, **style)
    sizes = sorted({row[along] for line in lines.values() for row in line})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(EngFormatter(unit))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.title.set_fontsize(14)
    axes.tick_params(labelsize=11.5)
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)

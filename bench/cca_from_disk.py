"""Linear CCA of more rows than memory should hold, from files.

    python -m bench.cca_from_disk [N] [--folder DIR]

Writes two files of N = 10,000,000 rows of 64 float32 features (2.6 GB each) that share 8 signals, maps them into memory
and prints time, peak memory and how far the correlations are from those of the signals.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from mmkernels._memory import peak_bytes
from mmkernels.estimators import CCA

D, SHARED, BLOCK = 64, 8, 100_000
SIGNAL = np.linspace(0.9, 0.2, SHARED)  # population correlations


def write(folder: Path, rows: int) -> None:
    """Two normal views, mixed, whose canonical correlations are SIGNAL and 0."""
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(2, D, D)).astype(np.float32) / D**0.5
    with (folder / "x").open("wb") as x_file, (folder / "y").open("wb") as y_file:
        for start in range(0, rows, BLOCK):
            n = min(BLOCK, rows - start)
            views = generator.standard_normal(size=(2, n, D), dtype=np.float32)
            shared = generator.standard_normal(size=(n, SHARED), dtype=np.float32)
            weight = np.sqrt(SIGNAL).astype(np.float32)
            views[:, :, :SHARED] = weight * shared + np.sqrt(1 - SIGNAL).astype(np.float32) * views[:, :, :SHARED]
            for file, view, M in zip((x_file, y_file), views, mixing, strict=True):
                (view @ M).tofile(file)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cca_from_disk", description=__doc__)
    parser.add_argument("rows", type=int, nargs="?", default=10_000_000, metavar="N")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary one by default")
    arguments = parser.parse_args()
    n = arguments.rows
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        write(Path(name), n)
        X, Y = (np.memmap(Path(name, view), dtype=np.float32, mode="r", shape=(n, D)) for view in "xy")
        model = CCA(SHARED, verbose=True)
        CCA(SHARED).fit(X[:BLOCK], Y[:BLOCK])  # what a first call imports is not measured
        start = time.perf_counter()
        peak = peak_bytes(lambda: model.fit(X, Y), torch.device("cpu"))
        seconds = time.perf_counter() - start
    memory = "" if peak is None else f", {peak / 1e6:,.0f} MB above the start"
    error = np.abs(model.correlations_ - SIGNAL).max()
    print(f"N = {n:,}, {D} + {D} features, {seconds:.1f} s{memory}; largest error of a correlation {error:.1e}")


if __name__ == "__main__":
    main()

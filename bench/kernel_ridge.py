"""Kernel ridge regression on more rows than their kernel matrix has room for.

    python -m bench.kernel_ridge [N]

Fits N = 100,000 rows of D = 10 features (40 GB as a matrix in float32) to a known function with noise, exactly and by
landmarks, and prints time, iterations, residual, peak memory and R^2 against the function itself on held-out rows.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from mmkernels._memory import peak_bytes
from mmkernels.estimators import KernelRidge

D, HELD_OUT, NOISE, LANDMARKS = 10, 2000, 0.1, 1000


def data(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a unit normal, and a smooth function of three of their features (that of Friedman 1991, in sines)."""
    X = np.random.default_rng(0).normal(size=(n, D)).astype(np.float32)
    return X, np.sin(X[:, 0] + X[:, 1]) + np.cos(X[:, 2]) + 0.5 * X[:, 3]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.kernel_ridge", description=__doc__)
    parser.add_argument("rows", type=int, nargs="?", default=100_000, metavar="N")
    n = parser.parse_args().rows
    X, f = data(n + HELD_OUT)
    noisy = (f + NOISE * np.random.default_rng(1).normal(size=len(f))).astype(np.float32)
    exact = KernelRidge(1.0, kernel="rbf", gamma=0.05, tol=1e-3, rank=300, verbose=True)
    landmarks = KernelRidge(1.0, kernel="rbf", gamma=0.05, n_landmarks=LANDMARKS, random_state=0, verbose=True)
    KernelRidge(kernel="rbf").fit(X[:100], noisy[:100])  # what a first call imports is not measured
    for name, model in (("exact", exact), (f"{LANDMARKS:,} landmarks", landmarks)):
        start = time.perf_counter()
        peak = peak_bytes(lambda model=model: model.fit(X[:n], noisy[:n]), torch.device("cpu"))
        seconds = time.perf_counter() - start
        memory = "" if peak is None else f", {peak / 1e6:,.0f} MB above the data"
        print(
            f"{name}: N = {n:,}, {seconds:.1f} s{memory}, {model.n_iter_} iterations, residual {model.residual_:.1e}, "
            f"R² {model.score(X[n:], f[n:]):.4f} on {HELD_OUT:,} held-out rows without noise"
        )


if __name__ == "__main__":
    main()

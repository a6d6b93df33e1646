"""Estimates of mutual information against the true value: normal, transformed and heavy-tailed pairs.

    python -m bench.mutual_information

Every estimator sees the same 2,000 rows of 2 + 2 features. Writes bench/results/mutual_information.csv,
docs/img/mutual_information.png and docs/mutual_information.md.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

import mmkernels
from mmkernels.data._files import write_atomically
from mmkernels.models.mi_estimator import estimate_mi
from mmkernels.ops._progress import track

ROOT = Path(__file__).parent.parent
N, D, SEEDS, NU = 2000, 2, 2, 3.0
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)  # of the normal part, nats


def pair(kind: str, information: float, seed: int) -> tuple[Tensor, Tensor, float]:
    """x, y (N, D) and their true mutual information."""
    generator = torch.Generator().manual_seed(seed)
    rho = math.sqrt(1 - math.exp(-2 * information / D))
    x, noise = torch.randn(2, N, D, generator=generator)
    y = rho * x + math.sqrt(1 - rho**2) * noise
    if kind == "transformed":  # feature by feature and one to one: the information stays
        return x.sign() * x.abs() ** 1.5, y.sinh(), information
    if kind == "heavy-tailed":  # a common scale: Student's t, which shares the scale too
        scale = torch.distributions.Chi2(torch.tensor(NU))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            root = (NU / scale.sample((N, 1))).sqrt()
        return root * x, root * y, information + 2 * _entropy_of_t(D) - _entropy_of_t(2 * D)
    return x, y, information


def _entropy_of_t(d: int) -> float:
    """Differential entropy of Student's t in d dimensions with the identity for a scale matrix."""
    half, full = torch.tensor(NU / 2, dtype=torch.float64), torch.tensor((NU + d) / 2, dtype=torch.float64)
    value = half.lgamma() + d / 2 * math.log(NU * math.pi) - full.lgamma() + full * (full.digamma() - half.digamma())
    return float(value)


def _sampled(method: str) -> Callable[[Tensor, Tensor, int], float]:
    return lambda x, y, seed: float(mmkernels.mutual_information(x, y, method))


def _trained(bound: str) -> Callable[[Tensor, Tensor, int], float]:
    return lambda x, y, seed: estimate_mi(x, y, bound=bound, max_steps=300, lr=1e-3, seed=seed).value


ESTIMATORS = {name: _sampled(name) for name in ("gaussian", "ksg1", "ksg2", "kde")}
ESTIMATORS |= {f"{name}, trained": _trained(name) for name in ("info_nce", "dv", "nwj", "smile", "js")}
KINDS = ("normal", "transformed", "heavy-tailed")


def rows() -> Iterator[dict[str, object]]:
    """An estimate a row."""
    cases = [(kind, value, seed) for kind in KINDS for value in VALUES for seed in range(SEEDS)]
    for kind, value, seed in track(cases, "Estimates", True):
        x, y, truth = pair(kind, value, seed)
        for name, estimate in ESTIMATORS.items():
            yield {"pairs": kind, "truth": truth, "seed": seed, "estimator": name, "estimate": estimate(x, y, seed)}


def mean_and_deviation(table: list[dict[str, object]], kind: str, name: str) -> list[tuple[float, float, float]]:
    """(truth, mean, standard deviation over samples) of an estimator, in order of the truth."""
    own = [row for row in table if row["pairs"] == kind and row["estimator"] == name]
    out = []
    for truth in sorted({row["truth"] for row in own}):
        values = torch.tensor([row["estimate"] for row in own if row["truth"] == truth])
        out.append((truth, float(values.mean()), float(values.std())))
    return out


def draw(table: list[dict[str, object]], path: Path) -> None:
    """A panel for each kind of pairs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(KINDS), sharey=True), KINDS, strict=True):
        for name in ESTIMATORS:
            line = mean_and_deviation(table, kind, name)
            truths, means, deviations = zip(*line, strict=True)
            style = "--" if "trained" in name else "-"
            axes.errorbar(truths, means, deviations, label=name, linestyle=style, marker="o", markersize=4, capsize=2)
        low, high = truths[0], truths[-1]
        axes.plot((low, high), (low, high), color="#999999", zorder=0)
        axes.set(title=f"{kind} pairs", xlabel="true mutual information, nats", ylim=(-0.5, 4.5))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("estimate, nats")
    figure.axes[0].legend(fontsize=8)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=80)


def page(table: list[dict[str, object]]) -> Iterator[str]:
    """The page's lines."""
    yield "# Estimators of mutual information"
    yield ""
    yield f"Made by `python -m bench.mutual_information`: {N:,} rows of {D} + {D} features, nats; the mean and the"
    yield f"standard deviation of {SEEDS} samples."
    yield f"*Heavy-tailed* is Student's t with {NU:g} degrees of freedom, whose common scale adds to the information."
    yield "The grey line is the truth; trained estimates are held-out bounds of `estimate_mi` after at most 300 steps."
    yield ""
    yield "![Estimates against the true mutual information](img/mutual_information.png)"
    for kind in KINDS:
        lines = {name: mean_and_deviation(table, kind, name) for name in ESTIMATORS}
        truths = [truth for truth, _, _ in next(iter(lines.values()))]
        yield ""
        yield f"## {kind.capitalize()} pairs"
        yield ""
        yield f"| true value | {' | '.join(f'{truth:.2f}' for truth in truths)} |"
        yield f"|---|{'--:|' * len(truths)}"
        for name, line in lines.items():
            yield f"| {name} | {' | '.join(f'{_shown(mean)} ± {_shown(deviation)}' for _, mean, deviation in line)} |"


def _shown(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0e}"


def main() -> None:
    table = list(rows())
    with write_atomically(ROOT / "bench/results/mutual_information.csv") as path, path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    draw(table, ROOT / "docs/img/mutual_information.png")
    with write_atomically(ROOT / "docs/mutual_information.md") as path:
        path.write_text("\n".join(page(table)) + "\n")


if __name__ == "__main__":
    main()

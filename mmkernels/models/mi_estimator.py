"""Mutual information by a critic that is trained: variational bounds with held-out evaluation and early stopping."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmkernels import _check
from mmkernels.ops import bounds
from mmkernels.ops._autocast import without_autocast
from mmkernels.ops._progress import progress

BOUNDS = ("info_nce", "dv", "mine", "nwj", "smile", "js")
CRITICS = ("separable", "concat")


class SeparableCritic(nn.Module):
    """f(x, y) = <g(x), h(y)>: two networks, and scores that are never stored.

    Args:
        x_features, y_features: of the rows.
        hidden: width of the two hidden layers of each network.
        embedding: features of g and h.
    """

    def __init__(self, x_features: int, y_features: int, hidden: int = 256, embedding: int = 32) -> None:
        super().__init__()
        self.x_tower = _mlp(x_features, hidden, embedding)
        self.y_tower = _mlp(y_features, hidden, embedding)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embedded rows, each (N, embedding)."""
        return self.x_tower(x), self.y_tower(y)


class ConcatCritic(nn.Module):
    """f(x, y) of one network of both rows side by side: its layers hold all N^2 pairs, each `hidden` wide.

    Args:
        x_features, y_features: of the rows.
        hidden: width of the two hidden layers.
    """

    def __init__(self, x_features: int, y_features: int, hidden: int = 256) -> None:
        super().__init__()
        self.network = _mlp(x_features + y_features, hidden, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the scores (N, N), f(x_i, y_j) at (i, j)."""
        pairs = torch.cat([x[:, None].expand(-1, len(y), -1), y.expand(len(x), -1, -1)], 2)
        scores: Tensor = self.network(pairs).squeeze(2)
        return scores


def _mlp(features: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, out)
    )


class MIEstimate(NamedTuple):
    """Result of `estimate_mi`.

    Attributes:
        value: the bound on the held-out rows, in nats, of the critic that was best there.
        critic: that critic.
        history: the bound on the held-out rows, each time it was evaluated.
        steps: taken in all.
    """

    value: float
    critic: nn.Module
    history: list[float]
    steps: int


@without_autocast
@torch.inference_mode(False)
@torch.enable_grad()
def estimate_mi(
    x: Tensor,
    y: Tensor,
    critic: str | nn.Module = "separable",
    bound: str = "info_nce",
    *,
    batch_size: int = 256,
    max_steps: int = 2000,
    evaluate_every: int = 50,
    patience: int = 10,
    held_out: float = 0.3,
    lr: float = 5e-4,
    clip: float = 5.0,
    seed: int = 0,
    verbose: bool = False,
) -> MIEstimate:
    r"""Train a critic on some of the pairs, and give its bound of mutual information on the others.

    Rows are standardised; a held-out bound is not inflated by what the critic has memorised. "smile" trains with the
    Jensen-Shannon objective and evaluates SMILE; "js" trains with it and evaluates `nwj` of its scores plus 1, which is
    a bound; "mine" trains with a moving average and evaluates `dv`.

    Args:
        x: (N, D_x) in float32 or float64.
        y: (N, D_y), x's dtype and device.
        critic: "separable" (<g(x), h(y)>, scores in O(N) memory), "concat" (one network of both rows), or a module that
            returns either kind of result: two tensors of embedded rows, or the scores (N, N); a copy is trained.
        bound: "info_nce" (at most log batch_size while training, log of the held-out rows' number at evaluation), "dv",
            "mine", "nwj", "smile" or "js" (`mmkernels.ops.bounds`).
        batch_size: rows a step, at least 2.
        max_steps: of Adam.
        evaluate_every: steps between evaluations on the held-out rows.
        patience: evaluations without a better one after which training ends.
        held_out: share of the rows that are not trained on, in (0, 1).
        lr: learning rate.
        clip: of "smile".
        seed: of the split, the initial weights and the batches, drawn on the CPU; torch's own generators are left as
            they were.
        verbose: show a progress bar, where rich is installed.

    Returns:
        A `MIEstimate`.

    Raises:
        TypeError, ValueError: arguments that do not fit; fewer than 10 rows; values that are not finite.

    Source: Poole et al. 2019 (arXiv 1905.06922); Song and Ermon 2020 (1910.06222); Czyz et al. 2023 (2306.11078) for
    held-out evaluation.

    Example:
        >>> import torch
        >>> from mmkernels.models.mi_estimator import estimate_mi
        >>> x = torch.randn(2000, 1)
        >>> result = estimate_mi(x, 0.8 * x + 0.6 * torch.randn(2000, 1), max_steps=300)  # true value 0.511
        >>> 0.3 < result.value < 0.7
        True
    """
    _check.embeddings("x", x)
    _check.embeddings("y", y)
    if x.dtype not in (torch.float32, torch.float64) or y.dtype != x.dtype:
        raise TypeError(f"x and y must both be float32 or float64, got {x.dtype} and {y.dtype}")
    if len(x) != len(y) or len(x) < 10:
        raise ValueError(f"x and y must have the same number of rows, at least 10, got {len(x)} and {len(y)}")
    _check.choice("bound", bound, BOUNDS)
    _check.integer("batch_size", batch_size, 2)
    for name, number in (("max_steps", max_steps), ("evaluate_every", evaluate_every), ("patience", patience)):
        _check.integer(name, number, 1)
    _check.number("held_out", held_out, 0, 1)
    _check.number("lr", lr, 0)
    _check.number("clip", clip, 0)
    seed = _check.seed(seed)
    for name, t in (("x", x), ("y", y)):
        if not torch.isfinite(t).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    x, y = (_standardised(t.detach().clone()) for t in (x, y))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone: what is random is drawn there
        order = torch.randperm(len(x)).to(x.device)
        tested = order[: min(len(x) - 2, max(2, round(held_out * len(x))))]
        trained = order[len(tested) :]
        model = _critic(critic, x, y)
        train, evaluate = _objectives(bound, clip)
        if not any(p.requires_grad for p in model.parameters()):
            raise ValueError("critic must have parameters that require gradients")
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        best, kept, step = -math.inf, copy.deepcopy(model), 0
        history: list[float] = []
        with progress(verbose, "Critic", max_steps) as show:
            while step < max_steps and not _settled(history, patience):
                model.train()
                for _ in range(min(evaluate_every, max_steps - step)):
                    rows = trained[torch.randperm(len(trained))[:batch_size].to(x.device)]
                    optimizer.zero_grad(set_to_none=True)
                    (-train(model(x[rows], y[rows]))).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    step += 1
                model.eval()
                with torch.no_grad():
                    found = float(evaluate(_in_parts(model, x[tested], y[tested])))
                history.append(-math.inf if math.isnan(found) else found)
                if history[-1] > best:
                    best, kept = history[-1], copy.deepcopy(model)
                show(step, f"{step}: {history[-1]:.3f} nats, best {best:.3f}")
    return MIEstimate(best, kept, history, step)


Output = Tensor | tuple[Tensor, Tensor]
Objective = Callable[[Output], Tensor]


def _critic(critic: str | nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    if isinstance(critic, nn.Module):
        return copy.deepcopy(critic)
    _check.choice("critic", critic, CRITICS)
    kind = SeparableCritic if critic == "separable" else ConcatCritic
    return kind(x.shape[1], y.shape[1]).to(x)


def _in_parts(critic: nn.Module, x: Tensor, y: Tensor) -> Output:
    """The critic's output, of one that takes pairs some rows at a time: its layers hold every pair of rows."""
    if isinstance(critic, ConcatCritic):
        parts = torch.split(x, max(1, 2**16 // len(y)))
        return torch.cat([critic(part, y) for part in parts])
    output: Output = critic(x, y)
    if not isinstance(output, Tensor) and not (isinstance(output, tuple | list) and len(output) == 2):
        raise TypeError(f"critic must return the scores or two tensors of embedded rows, got {type(output).__name__}")
    return output


def _objectives(bound: str, clip: float) -> tuple[Objective, Objective]:
    """What is maximised in training, and what is reported of held-out rows."""

    def value(name: str) -> Objective:
        def of(output: Output) -> Tensor:
            if isinstance(output, Tensor):
                return bounds.of_scores(output, name, clip=clip)
            if name == "smile":
                return bounds.smile(*output, clip)
            bound: Tensor = getattr(bounds, "info_nce_bound" if name == "info_nce" else name)(*output)
            return bound

        return of

    def shifted_nwj(output: Output) -> Tensor:
        """nwj of scores larger by 1, which a critic of the Jensen-Shannon objective has."""
        if isinstance(output, Tensor):
            return bounds.of_scores(output + 1, "nwj")
        return bounds.tuba(*output, 0.0)

    average: list[Tensor] = []

    def moving(output: Output) -> Tensor:
        """MINE: the average of the normaliser, a tenth of which each batch replaces."""
        if isinstance(output, Tensor):
            raise ValueError("bound 'mine' takes a critic of embedded rows: 'separable'")
        with torch.no_grad():
            log_mean = (output[0] * output[1]).sum(1).mean() - bounds.dv(*output)
            last = average.pop() if average else log_mean
            average.append(torch.logaddexp(last + math.log(0.9), log_mean + math.log(0.1)))
        return bounds.mine(*output, average[0])

    if bound == "mine":
        return moving, value("dv")
    if bound == "js":
        return value("js"), shifted_nwj
    return value("js" if bound == "smile" else bound), value(bound)


def _standardised(t: Tensor) -> Tensor:
    deviation = t.std(0)
    return (t - t.mean(0)) / torch.where(deviation > 0, deviation, 1)


def _settled(history: list[float], patience: int) -> bool:
    """Whether the best evaluation is that many evaluations ago."""
    return len(history) > patience and max(history[:-patience]) >= max(history[-patience:])

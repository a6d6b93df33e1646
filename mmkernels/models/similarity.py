"""How similar the layers of two networks are: CKA over any number of batches, as a heat map."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmkernels.data._files import needs_extra, write_atomically
from mmkernels.ops._autocast import without_autocast
from mmkernels.ops.kernel import kernel_matrix


class CKAMeter:
    r"""Debiased CKA between every layer of one network and every layer of another, summed up over batches.

    .. math::
        \mathrm{CKA}_{uv} = \frac{\sum_b \mathrm{HSIC}_u(K_b, L_b)}
        {\sqrt{\sum_b \mathrm{HSIC}_u(K_b, K_b) \sum_b \mathrm{HSIC}_u(L_b, L_b)}}

    with the unbiased HSIC of each batch: sums first, the ratio last. The mean of the CKA of batches is biased; this
    estimates the CKA of all rows together whatever the batch size, the better the larger. A batch has 4 rows or more
    (n), and costs the V layers' V n^2 numbers of memory.

    Args:
        kernel: a name listed at `mmkernels.kernel_matrix`.
        **parameters: the kernel's, as for `kernel_matrix`.

    Source: Nguyen, Raghu and Kornblith 2021 (arXiv 2010.15327), equations 2 and 3.

    Example:
        >>> import torch
        >>> from mmkernels.models.similarity import CKAMeter
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> meter = CKAMeter()
        >>> with meter.watch(net, ["0", "2"], net, ["0", "2"]):
        ...     for _ in range(10):
        ...         net(torch.randn(64, 8))
        ...         meter.update()
        >>> meter.compute().shape
        torch.Size([2, 2])
    """

    def __init__(self, kernel: str = "linear", **parameters: Any) -> None:
        self.kernel = kernel
        self.parameters = parameters
        self.names: tuple[list[str], list[str]] = ([], [])
        self._hsic: Tensor | None = None  # (V, V) of all layers, those of the first network first
        self._sizes = (0, 0)
        self._caught: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})

    @torch.no_grad()
    def update(self, x: Sequence[Tensor] | None = None, y: Sequence[Tensor] | None = None) -> None:
        """Add a batch.

        Args:
            x, y: for each layer of the first and of the second network its activations (N, ...), which are flattened to
                rows; None takes what was caught by `watch` since the last call.

        Raises:
            ValueError: numbers of layers or rows that do not fit, fewer than 4 rows, nothing caught.
        """
        if (x is None) != (y is None):
            raise ValueError("give the activations of both networks, or of none")
        if x is None or y is None:
            x, y = (
                [caught[n] for n in names if n in caught]
                for caught, names in zip(self._caught, self.names, strict=True)
            )
            if not x or not y or (len(x), len(y)) != tuple(map(len, self.names)):
                raise ValueError("nothing was caught of some layers: run both networks inside `watch`, then update()")
            for caught in self._caught:
                caught.clear()
        x, y = list(x), list(y)
        if not x or not y or any(not isinstance(t, Tensor) or t.ndim < 2 for t in (*x, *y)):
            raise ValueError("each network must have at least one layer, its activations a tensor (N, ...)")
        rows = {len(t) for t in (*x, *y)}
        if len(rows) != 1 or min(rows) < 4:
            raise ValueError(f"all layers must have the same number of rows, at least 4, got {sorted(rows)}")
        if self._hsic is not None and self._sizes != (len(x), len(y)):
            raise ValueError(f"there must be {self._sizes} layers as before, got {(len(x), len(y))}")
        n = rows.pop()
        grams = torch.stack([self._gram(t) for t in (*x, *y)])
        sums = grams.sum(2)
        totals, flat = sums.sum(1), grams.flatten(1)
        products = flat @ flat.T + totals[:, None] * totals / ((n - 1) * (n - 2)) - 2 / (n - 2) * sums @ sums.T
        hsic = (products / (n * (n - 3))).cpu()
        self._hsic = hsic if self._hsic is None else self._hsic + hsic
        self._sizes = (len(x), len(y))

    @without_autocast
    def _gram(self, t: Tensor) -> Tensor:
        """The kernel matrix (n, n) of a layer, float64, without its diagonal and its mean."""
        rows = t.detach().flatten(1)
        rows = rows if rows.dtype == torch.float64 else rows.float()
        K = kernel_matrix(
            rows - rows.mean(0) if self.kernel == "linear" else rows, kernel=self.kernel, **self.parameters
        )
        return K.double().fill_diagonal_(0)

    def compute(self) -> Tensor:
        """Return CKA (layers of the first, layers of the second), float64; at most 1, about 0 for unrelated layers.

        Raises:
            ValueError: no batch was added.
        """
        if self._hsic is None:
            raise ValueError("no batch was added: call update() first")
        first = self._sizes[0]
        own = self._hsic.diagonal().sqrt()
        return self._hsic[:first, first:] / (own[:first, None] * own[first:])

    @contextmanager
    def watch(
        self, first: nn.Module, first_layers: Sequence[str], second: nn.Module, second_layers: Sequence[str]
    ) -> Iterator[CKAMeter]:
        """Catch the outputs of layers, named as in `named_modules()`, while the networks run; `update()` adds them.

        Raises:
            ValueError: a layer does not exist.
        """
        if self._hsic is not None and self.names != (list(first_layers), list(second_layers)):
            raise ValueError("batches of other layers were added: take another meter for these")
        self.names = (list(first_layers), list(second_layers))
        self._caught = ({}, {})
        handles = []
        try:
            for network, names, caught in zip((first, second), self.names, self._caught, strict=True):
                modules = dict(network.named_modules())
                unknown = [name for name in names if name not in modules]
                if unknown:
                    raise ValueError(
                        f"there is no layer {', '.join(unknown)}; layers are {', '.join(filter(None, modules))}"
                    )
                for name in names:
                    handles.append(modules[name].register_forward_hook(_catch(caught, name)))
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Write the heat map as a picture.

        Raises:
            ImportError: matplotlib is missing; the message says the command that brings it.
        """
        with needs_extra("train"):
            from matplotlib.figure import Figure
        values = self.compute()
        figure = Figure(figsize=(2 + 0.5 * values.shape[1], 1.5 + 0.5 * values.shape[0]), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(values.numpy(), vmin=0, vmax=1, cmap="magma", origin="lower")
        for axis, names, count in ((axes.yaxis, self.names[0], 0), (axes.xaxis, self.names[1], 1)):
            if len(names) == values.shape[count]:
                axis.set_ticks(range(len(names)), names)
        axes.tick_params(axis="x", rotation=90)
        axes.set(xlabel="layers of the second network", ylabel="layers of the first", title="CKA")
        figure.colorbar(image)
        with write_atomically(Path(path)) as temporary:
            figure.savefig(temporary, dpi=120, format="png")
        return Path(path)


def _catch(caught: dict[str, Tensor], name: str) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple | list) else output
        if not isinstance(first, Tensor):
            raise TypeError(f"layer {name!r} must return a tensor, or a tuple of which the first is one")
        caught[name] = first.detach()

    return hook

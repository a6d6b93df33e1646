"""One loss step of info_nce beside the dense formula, on this machine: what `mmkernels bench` shows."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkernels._memory import peak_bytes
from mmkernels.ops.contrastive import info_nce

_WARM_UP_ROWS = 128
TEMPERATURE = 0.07


class Cost(NamedTuple):
    """Of one forward and backward pass."""

    seconds: float
    peak_bytes: int | None
    """Above the inputs, gradients included; None where the system does not say."""


def _dense(x: Tensor, y: Tensor) -> Tensor:
    scores = x @ y.T / TEMPERATURE
    labels = torch.arange(len(x), device=x.device)
    return (F.cross_entropy(scores, labels) + F.cross_entropy(scores.T, labels)) / 2


def _ours(x: Tensor, y: Tensor) -> Tensor:
    return info_nce(x, y, temperature=TEMPERATURE)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"info_nce": _ours, "dense cross-entropy both ways": _dense}


def _step(name: str, N: int, D: int, device: torch.device) -> Cost:
    def run(pairs: tuple[Tensor, Tensor]) -> None:
        LOSSES[name](*pairs).backward()  # type: ignore[no-untyped-call]
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def pairs(rows: int) -> tuple[Tensor, Tensor]:
        x, y = (F.normalize(torch.randn(rows, D, device=device), dim=1).requires_grad_() for _ in "xy")
        return x, y

    torch.manual_seed(0)
    run(pairs(_WARM_UP_ROWS))  # thread pools and workspaces belong to the process; kernels are compiled once
    tensors = pairs(N)
    start = time.perf_counter()
    peak = peak_bytes(lambda: run(tensors), device)
    return Cost(time.perf_counter() - start, peak)


def cost(name: str, N: int, D: int, device: torch.device) -> Cost | None:
    """Of the loss of that name, measured in a fresh process; None if there is not enough memory."""
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(_step, name, N, D, device).result()
    except RuntimeError:  # the allocator's, or BrokenProcessPool where the system killed the process
        return None

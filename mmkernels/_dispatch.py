"""Operator schemas, and which room serves a call: Triton kernels on a GPU, tiled PyTorch everywhere else.

Each reduction is an opaque operator (`torch.library.define` + `impl` + `register_fake`), so `torch.compile` neither
traces nor unrolls it; gradients live outside, in `autograd/`. The rooms are imported on first use: importing mmkernels
needs neither Triton nor a GPU. Operators run with autocast off: their dtypes are those of their arguments.
"""

from __future__ import annotations

import importlib
import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mmkernels.tiled._tiles import compute_dtype as compute_dtype  # for ops, which see no tiles
from mmkernels.tiled._tiles import memory_budget as memory_budget
from mmkernels.tiled._tiles import slices as slices

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton asks once too, when it is imported


def serves_triton(x: Tensor) -> bool:
    """Whether Triton kernels serve x: on a GPU, not in float64; on a CPU only in Triton's interpreter."""
    return (x.is_cuda or (x.device.type == "cpu" and _INTERPRETED)) and x.dtype != torch.float64


@cache
def _room(reduction: str, triton: bool) -> ModuleType:
    return importlib.import_module(f"mmkernels.{'kernels' if triton else 'tiled'}.{reduction}")


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which autocast is off on x's device."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def float32_precision(device: torch.device) -> str:
    """Return how float32 operands are multiplied in Triton, from the caller's float32 matmul setting.

    'highest' asks for float32 accuracy, which three TF32 products give at tensor-core speed (six bfloat16 ones on AMD,
    where the former does not compile); every other setting admits plain TF32.
    """
    if device.type != "cuda":
        return "ieee"
    # torch.get_float32_matmul_precision() raises once this newer setting is in use, so it is read alone.
    if torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return "bf16x6" if torch.version.hip else "tf32x3"


def _define(reduction: str, name: str, schema: str, views: int | None = None) -> None:
    """Define the operator mmkernels::name, served by the function of that name in `kernels` or `tiled`.

    Triton kernels serve up to so many views, where the first argument is a list of them.
    """

    def serve(first: Tensor | list[Tensor], *args: object) -> Tensor | tuple[Tensor, ...]:
        x = first if isinstance(first, Tensor) else first[0]
        triton = serves_triton(x) and (views is None or len(first) <= views)
        with no_autocast(x):
            result: Tensor | tuple[Tensor, ...] = getattr(_room(reduction, triton), name)(
                first, *args, float32_precision(x.device)
            )
            return result

    torch.library.define(f"mmkernels::{name}", schema)
    torch.library.impl(f"mmkernels::{name}", "CompositeExplicitAutograd")(serve)


_define(
    "logsumexp",
    "logsumexp_fwd",
    "(Tensor x, Tensor y, Tensor scale, Tensor? log_weights, Tensor? row_ids, Tensor? column_ids, SymInt? offset, "
    "bool columns, bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
_define(
    "logsumexp",
    "logsumexp_bwd",
    "(Tensor x, Tensor y, Tensor scale, Tensor? log_weights, Tensor? row_ids, Tensor? column_ids, SymInt? offset, "
    "Tensor rows, Tensor columns, Tensor scores, Tensor grad_rows, Tensor? grad_columns, Tensor? grad_positives, "
    "bool[4] needs) -> (Tensor, Tensor, Tensor, Tensor)",
)
_define(
    "neighbors",
    "neighbors_best",
    "(Tensor x, Tensor y, Tensor? row_ids, Tensor? column_ids) -> (Tensor, Tensor)",
)
_define(
    "neighbors",
    "neighbors_count",
    "(Tensor x, Tensor y, Tensor? row_ids, Tensor? column_ids, Tensor row_thresholds, Tensor column_thresholds) "
    "-> (Tensor, Tensor)",
)
_define("neighbors", "neighbors_topk", "(Tensor x, Tensor y, SymInt k) -> (Tensor, Tensor)")
_define(
    "matmul",
    "matmul_fwd",
    "(Tensor x, Tensor? y, Tensor v, Tensor gamma, Tensor coef, str kernel, int degree) -> Tensor",
)
_define(
    "matmul",
    "matmul_bwd",
    "(Tensor x, Tensor? y, Tensor v, Tensor gamma, Tensor coef, str kernel, int degree, Tensor grad, bool[5] needs) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
_define("gram", "gram_fwd", "(Tensor x, Tensor? y, Tensor gamma, Tensor coef, str kernel, int degree) -> Tensor")
_define(
    "gram",
    "gram_bwd",
    "(Tensor x, Tensor? y, Tensor gamma, Tensor coef, str kernel, int degree, Tensor grad, bool[4] needs) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
_define(
    "covariance",
    "covariance_fwd",
    "(Tensor[] views, Tensor shift, Tensor? factors) -> (Tensor, Tensor)",
)
_define(
    "covariance",
    "covariance_bwd",
    "(Tensor[] views, Tensor shift, Tensor? factors, Tensor grad_scatter, Tensor grad_sums, bool[] needs) -> Tensor[]",
)
_define(
    "moments",
    "moments_fwd",
    "(Tensor[] views, Tensor[] gammas, Tensor[] coefs, Tensor[] centres, str[] kernels, int[] degrees, bool[4] wants) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    views=2,
)
_define(
    "moments",
    "moments_bwd",
    "(Tensor[] views, Tensor[] gammas, Tensor[] coefs, Tensor[] centres, str[] kernels, int[] degrees, "
    "Tensor grad_rows, Tensor grad_pairs, Tensor grad_product, Tensor grad_square, bool[] needs) -> Tensor[]",
    views=2,
)
_define("nearest", "nearest_topk", "(Tensor[] views, SymInt k, bool euclidean) -> (Tensor, Tensor)", views=2)
_define("nearest", "nearest_count", "(Tensor[] views, Tensor radii, bool euclidean, bool strict) -> Tensor", views=2)


@torch.library.register_fake("mmkernels::logsumexp_fwd")  # type: ignore[untyped-decorator]
def _logsumexp_fwd_fake(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    log_weights: Tensor | None,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    offset: int | None,
    columns: bool,
    keep: bool,
) -> tuple[Tensor, ...]:
    N, M = x.shape[0], y.shape[0]
    sizes = [(N,), (M if columns else 0,)]
    shapes = [*sizes, (0 if offset is None else N,), *sizes, (N, M) if keep else (0,)]
    return tuple(scale.new_empty(shape) for shape in shapes)


@torch.library.register_fake("mmkernels::logsumexp_bwd")  # type: ignore[untyped-decorator]
def _logsumexp_bwd_fake(x: Tensor, y: Tensor, scale: Tensor, *args: Any) -> tuple[Tensor, ...]:
    like, shapes = (x, y, scale, scale), (x.shape, y.shape, (), y.shape[:1])
    return tuple(t.new_empty(shape if need else (0,)) for t, shape, need in zip(like, shapes, args[-1], strict=True))


@torch.library.register_fake("mmkernels::neighbors_best")  # type: ignore[untyped-decorator]
def _neighbors_best_fake(x: Tensor, y: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape[0], dtype=compute_dtype(t.dtype)) for t in (x, y))


@torch.library.register_fake("mmkernels::neighbors_count")  # type: ignore[untyped-decorator]
def _neighbors_count_fake(x: Tensor, y: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape[0], dtype=torch.int64) for t in (x, y))


@torch.library.register_fake("mmkernels::neighbors_topk")  # type: ignore[untyped-decorator]
def _neighbors_topk_fake(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape[0], k, dtype=dtype) for dtype in (compute_dtype(x.dtype), torch.int64))


@torch.library.register_fake("mmkernels::matmul_fwd")  # type: ignore[untyped-decorator]
def _matmul_fwd_fake(x: Tensor, y: Tensor | None, v: Tensor, gamma: Tensor, *args: Any) -> Tensor:
    return gamma.new_empty(*x.shape[:2], v.shape[2])


@torch.library.register_fake("mmkernels::matmul_bwd")  # type: ignore[untyped-decorator]
def _matmul_bwd_fake(
    x: Tensor, y: Tensor | None, v: Tensor, gamma: Tensor, coef: Tensor, *args: Any
) -> tuple[Tensor, ...]:
    return _fake_gradients((x, y, v, gamma, coef), args[-1])


@torch.library.register_fake("mmkernels::gram_fwd")  # type: ignore[untyped-decorator]
def _gram_fwd_fake(x: Tensor, y: Tensor | None, gamma: Tensor, *args: Any) -> Tensor:
    return gamma.new_empty(*x.shape[:2], (x if y is None else y).shape[1])


@torch.library.register_fake("mmkernels::gram_bwd")  # type: ignore[untyped-decorator]
def _gram_bwd_fake(x: Tensor, y: Tensor | None, gamma: Tensor, coef: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return _fake_gradients((x, y, gamma, coef), args[-1])


@torch.library.register_fake("mmkernels::covariance_fwd")  # type: ignore[untyped-decorator]
def _covariance_fwd_fake(views: list[Tensor], shift: Tensor, factors: Tensor | None) -> tuple[Tensor, ...]:
    B, D = shift.shape
    return shift.new_empty(B, D, D), shift.new_empty(B, 1 if factors is None else factors.shape[1], D)


@torch.library.register_fake("mmkernels::covariance_bwd")  # type: ignore[untyped-decorator]
def _covariance_bwd_fake(views: list[Tensor], *args: Any) -> list[Tensor]:
    return [v.new_empty(v.shape if need else (0,)) for v, need in zip(views, args[-1], strict=True)]


@torch.library.register_fake("mmkernels::moments_fwd")  # type: ignore[untyped-decorator]
def _moments_fwd_fake(views: list[Tensor], gammas: list[Tensor], *args: Any) -> tuple[Tensor, ...]:
    V, (B, N, _), g = len(views), views[0].shape, gammas[0]
    shapes: tuple[tuple[int, ...], ...] = ((B, V, N), (B, V, V), (B,), (B,))
    dtypes = (g.dtype, torch.float64, torch.float64, torch.float64)
    wanted = zip(shapes, dtypes, args[-1], strict=True)
    return tuple(g.new_empty(shape if want else (0,), dtype=dtype) for shape, dtype, want in wanted)


@torch.library.register_fake("mmkernels::moments_bwd")  # type: ignore[untyped-decorator]
def _moments_bwd_fake(views: list[Tensor], gammas: list[Tensor], coefs: list[Tensor], *args: Any) -> list[Tensor]:
    tensors = (*views, *gammas, *coefs)
    return [t.new_empty(t.shape if need else (0,)) for t, need in zip(tensors, args[-1], strict=True)]


@torch.library.register_fake("mmkernels::nearest_topk")  # type: ignore[untyped-decorator]
def _nearest_topk_fake(views: list[Tensor], k: int, euclidean: bool) -> tuple[Tensor, ...]:
    x = views[0]
    return tuple(x.new_empty(x.shape[0], k, dtype=dtype) for dtype in (compute_dtype(x.dtype), torch.int64))


@torch.library.register_fake("mmkernels::nearest_count")  # type: ignore[untyped-decorator]
def _nearest_count_fake(views: list[Tensor], radii: Tensor, *args: Any) -> Tensor:
    return radii.new_empty(radii.shape, dtype=torch.int64)


def _fake_gradients(tensors: tuple[Tensor | None, ...], needs: list[bool]) -> tuple[Tensor, ...]:
    """Each tensor's gradient, empty where it is not needed or there is no such tensor."""
    x = tensors[0]
    assert x is not None
    wanted = zip(tensors, needs, strict=True)
    return tuple(x.new_empty(0) if t is None else t.new_empty(t.shape if need else (0,)) for t, need in wanted)

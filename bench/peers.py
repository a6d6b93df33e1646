"""How other libraries compute the symmetric contrastive loss, each as its documentation asks, none of them required.

Every function takes x and y (N, D), normalised, and a 0-dimensional scale. A library that is missing raises
ImportError.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.contrastive import cross_entropy_both_ways

TEMPERATURE = 0.07  # 1 / scale, for a peer that takes a number only


class BareProducts(torch.autograd.Function):
    """The floor of any pairwise op: the scores, and in backward the scores again and a product with either side."""

    ROWS = 1024  # of scores held at once

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor) -> Tensor:
        """One product, chunk by chunk."""
        ctx.save_for_backward(x, y)
        s = x.new_empty(min(BareProducts.ROWS, len(x)), len(y))
        for rows in x.split(BareProducts.ROWS):
            torch.mm(rows, y.T, out=s[: len(rows)])
        return x.new_zeros(())

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """Three products."""
        x, y = ctx.saved_tensors
        dx, dy = torch.empty_like(x), torch.zeros_like(y)
        s = x.new_empty(min(BareProducts.ROWS, len(x)), len(y))
        for rows, out in zip(x.split(BareProducts.ROWS), dx.split(BareProducts.ROWS), strict=True):
            torch.mm(rows, y.T, out=s[: len(rows)])
            torch.mm(s[: len(rows)], y, out=out)
            dy.addmm_(s[: len(rows)].T, rows)
        return dx, dy


def bare_products(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Matrix products alone, in the inputs' dtype: no loss, no exponential, no gradient of the scale."""
    return BareProducts.apply(x, y)


@functools.cache
def _compiled():
    return torch.compile(cross_entropy_both_ways, dynamic=True)


def compiled_cross_entropy(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """torch.compile of the dense formula, once for all sizes (as fast as a static shape)."""
    return _compiled()(x, y, scale)


def torch_linear_cross_entropy(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """torch's chunked linear cross-entropy, a direction a call; it computes its gradients in forward."""
    if not hasattr(nn, "LinearCrossEntropyOptions"):
        raise ImportError(
            f"torch.nn.functional.linear_cross_entropy needs torch 2.13 or later, not {torch.__version__}"
        )
    loss = functools.partial(F.linear_cross_entropy, options=nn.LinearCrossEntropyOptions())
    return _both_ways(loss, x, y, scale)


@functools.cache
def _open_clip_loss() -> nn.Module:
    try:
        # its file alone: the package asks for torchvision
        path = importlib.metadata.distribution("open_clip_torch").locate_file("open_clip/loss.py")
    except importlib.metadata.PackageNotFoundError:
        raise ImportError("open_clip_torch is not installed") from None
    spec = importlib.util.spec_from_file_location("open_clip_loss", str(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ClipLoss()


def open_clip(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """open_clip's ClipLoss on one device: two products forward, one a direction."""
    return _open_clip_loss()(x, y, scale)


def memeff(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """memeff's loss, its true gradient (stable=False). It has no gradient of the temperature."""
    from memeff import MemoryEfficientCLIPLoss

    return MemoryEfficientCLIPLoss(TEMPERATURE, normalized_inputs=True, stable=False)(x, y)


def inf_cl(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Inf-CL's single-device loss, one-sided, so called twice. It computes in TF32, whatever the inputs."""
    from inf_cl import cal_flash_loss

    return (cal_flash_loss(x, y, scale=scale).mean() + cal_flash_loss(y, x, scale=scale).mean()) / 2


def cut_cross_entropy(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Cut cross-entropy, one-sided, so called twice; unfiltered, as its filter drops most of a contrastive gradient.

    Its backward takes 16-bit inputs only, and adds up gradients in their dtype.
    """
    from cut_cross_entropy import linear_cross_entropy

    return _both_ways(functools.partial(linear_cross_entropy, filter_eps=None), x, y, scale)


def _both_ways(loss, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """The mean of a classifier's loss over rows and over columns: loss(features, weights, labels)."""
    labels = torch.arange(len(x), device=x.device)
    scale = scale.to(x.dtype)
    return (loss(scale * x, y, labels) + loss(scale * y, x, labels)) / 2


def compared_ranks(x: Tensor, y: Tensor) -> Tensor:
    """Mean rank from the whole score matrix, by comparison with its diagonal."""
    s = x @ y.T
    p = s.diagonal()
    return torch.cat([(s > p[:, None]).sum(1), (s > p).sum(0)]).float().mean()


def sorted_ranks(x: Tensor, y: Tensor) -> Tensor:
    """Mean rank as evaluation scripts have it, open_clip's among them: sort the whole score matrix, find the answer."""
    s = x @ y.T
    answers = torch.arange(len(x), device=x.device)[:, None]
    return torch.cat([(t.argsort(descending=True) == answers).nonzero()[:, 1] for t in (s, s.T)]).float().mean()

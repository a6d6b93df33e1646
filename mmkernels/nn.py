"""Losses and layers as torch.nn.Module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmkernels import _check
from mmkernels.ops._autocast import without_autocast
from mmkernels.ops._regularize import regularized
from mmkernels.ops.contrastive import clip_loss_and_accuracy, info_nce
from mmkernels.ops.covariance import covariance, into_groups
from mmkernels.ops.whitening import check_options, whitening_matrix

__all__ = ["CLIPLoss", "InfoNCE", "Whitening"]


class InfoNCE(nn.Module):
    """`mmkernels.info_nce` with its options fixed; formula, shapes and errors are described there.

    Args:
        temperature: a positive number, or a 0-dimensional tensor or Parameter that is learned with the model.
        symmetric, exclude_positive, label_smoothing, reduction: as in `info_nce`.

    Example:
        >>> import torch, mmkernels
        >>> criterion = mmkernels.nn.InfoNCE(temperature=0.1)
        >>> loss = criterion(torch.randn(32, 8), torch.randn(32, 8))
    """

    def __init__(
        self,
        temperature: Tensor | float = 0.07,
        *,
        symmetric: bool = True,
        exclude_positive: bool = False,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.symmetric = symmetric
        self.exclude_positive = exclude_positive
        self.label_smoothing = label_smoothing
        self.reduction = reduction

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        *,
        negatives: Tensor | None = None,
        log_weights: Tensor | None = None,
        ids: Tensor | tuple[Tensor, Tensor] | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of N pairs x (N, D), y (N, D), in nats."""
        return info_nce(
            x,
            y,
            temperature=self.temperature,
            symmetric=self.symmetric,
            negatives=negatives,
            log_weights=log_weights,
            ids=ids,
            exclude_positive=self.exclude_positive,
            label_smoothing=self.label_smoothing,
            weight=weight,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """Return the options, for repr()."""
        temperature = "learned" if isinstance(self.temperature, nn.Parameter) else self.temperature
        return (
            f"temperature={temperature}, symmetric={self.symmetric}, exclude_positive={self.exclude_positive}, "
            f"label_smoothing={self.label_smoothing}, reduction={self.reduction!r}"
        )


class CLIPLoss(nn.Module):
    """CLIP's loss with the call of open_clip's single-process `ClipLoss`, and its values, in O(N) memory.

    Args:
        accuracy: add the in-batch accuracy, the share of images and texts whose partner scores above all others, to
            the output dictionary as "accuracy". It is free: the loss finds every row's largest score on its way.

    Source: Radford et al. 2021 (arXiv 2103.00020). See `mmkernels.info_nce` for the formula and the cost.
    """

    def __init__(self, *, accuracy: bool = False) -> None:
        super().__init__()
        self.accuracy = accuracy

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Return the loss, or {"contrastive_loss": loss} and the accuracy, if output_dict.

        Args:
            image_features: (N, D), normalised rows.
            text_features: (N, D), likewise.
            logit_scale: factor of the cosine similarities, a number or a 0-dimensional tensor.
            logit_bias: cancels in a softmax: it changes nothing, and its gradient is 0.
            output_dict: return a dictionary.
        """
        loss, accuracy = clip_loss_and_accuracy(image_features, text_features, logit_scale)
        if logit_bias is not None:
            loss = loss + 0 * logit_bias.sum()  # keeps a learned bias in the graph, where DDP expects it
        if not output_dict:
            return loss
        return {"contrastive_loss": loss, "accuracy": accuracy} if self.accuracy else {"contrastive_loss": loss}


class Whitening(nn.Module):
    r"""Batch normalisation that decorrelates too: in training, features of the batch get the identity for a covariance.

    .. math::
        z_i = W (x_i - \mu), \qquad W (\Sigma + \mathrm{reg}) W^\top = 1

    `mmkernels.whiten` with running averages of mean and covariance, from which evaluation takes W. Decorrelated batch
    normalisation is the default; `solver="newton_schulz", iterations=5` is IterNorm, by the coupled iteration, which
    comes closer in as many steps; `method="cholesky", sub_batch=2 * num_features` is the whitening of W-MSE.

    Args:
        num_features: D.
        method: "zca", "zca_cor", "pca" or "cholesky" (`mmkernels.whiten`).
        solver, iterations: of "zca" and "zca_cor" (`mmkernels.inverse_sqrt`).
        groups: whiten this many equal groups of features each for itself.
        sub_batch: in training, cut the rows at random into parts of this many and whiten each for itself.
        reg: added to the variances, above 0.
        momentum: weight of a batch in the running averages.
        group: a torch.distributed process group whose processes' rows are whitened together (not with sub_batch).

    Buffers:
        running_mean (D,), running_cov (groups, D / groups, D / groups), over N - 1.

    Shapes: (N, D) or (N, D, ...), in and out; every position counts as a row. Statistics are float32, or float64 for
    float64, also under autocast.

    Raises:
        TypeError, ValueError: options or inputs that do not fit; in training, fewer than 2 rows, or a number of rows
            that sub_batch does not divide.

    Cost: N D^2 / groups for covariance and product, D^3 / groups^2 for W, in evaluation too.

    Source: Huang et al. 2018 (arXiv 1804.08450) and 2019 (IterNorm, arXiv 1904.03441); Ermolov et al. 2021 (W-MSE,
    arXiv 2007.06346).

    Example:
        >>> import torch, mmkernels
        >>> z = mmkernels.nn.Whitening(4)(torch.randn(100, 4))
        >>> bool((z.T.cov() - torch.eye(4)).abs().max() < 1e-2)
        True
    """

    running_mean: Tensor
    running_cov: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        method: str = "zca",
        solver: str = "eigh",
        iterations: int | None = None,
        groups: int = 1,
        sub_batch: int | None = None,
        reg: float = 1e-5,
        momentum: float = 0.1,
        group: Any = None,
    ) -> None:
        super().__init__()
        check_options(method, solver, iterations)
        self.num_features = _check.integer("num_features", num_features, 1)
        self.method, self.solver, self.iterations = method, solver, iterations
        self.groups = _check.integer("groups", groups, 1)
        if num_features % groups:
            raise ValueError(f"groups must divide num_features, got {groups} and {num_features}")
        if sub_batch is not None:
            _check.integer("sub_batch", sub_batch, 2)
            if group is not None:
                raise ValueError("sub_batch and group exclude each other: parts are whitened each for itself")
        self.sub_batch = sub_batch
        self.reg = _check.number("reg", reg, 0)
        self.momentum = _check.number("momentum", momentum, 0)
        if momentum > 1:
            raise ValueError(f"momentum must be at most 1, got {momentum}")
        self.group = group
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_cov", torch.eye(num_features // groups).repeat(groups, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the whitened x, (N, D) or (N, D, ...)."""
        return without_autocast(self._forward)(x)

    def _forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Tensor) and x.ndim > 2:
            rows = x.movedim(1, -1)
            return self._forward(rows.flatten(0, -2)).view(rows.shape).movedim(-1, 1)
        _check.embeddings("x", x)
        if x.shape[1] != self.num_features:
            raise ValueError(f"x must have {self.num_features} features, got shape {tuple(x.shape)}")
        if not self.training:
            return self._whitened(x, self.running_mean, self.running_cov)
        if self.sub_batch is None:
            z, mean, cov = self._of_batch(x)
        else:
            N = x.shape[0]
            if N % self.sub_batch:
                raise ValueError(f"x must have a multiple of sub_batch = {self.sub_batch} rows, got {N}")
            order = torch.randperm(N, device=x.device)
            parts, mean, cov = self._of_batch(x[order].view(-1, self.sub_batch, x.shape[1]))
            z = torch.empty_like(x).index_copy(0, order, parts.flatten(0, 1))
            mean, cov = mean.mean(0), cov.mean(0)
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_cov.lerp_(cov.to(self.running_cov.dtype), self.momentum)
        return z

    def _of_batch(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The whitened rows (..., N, D), their mean (..., D) and the groups' covariances."""
        mean, cov, _, _ = covariance(x, groups=self.groups, group=self.group)
        mean, cov = (mean.flatten(-2), cov) if self.groups > 1 else (mean, cov[..., None, :, :])
        return self._whitened(x, mean, cov), mean.detach(), cov.detach()

    def _whitened(self, x: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
        S = regularized(cov, cov.new_ones(()), self.reg, None)
        W = whitening_matrix(S, self.method, self.solver, self.iterations, regularized=True)
        z = into_groups((x - mean[..., None, :]).to(W.dtype), self.groups) @ W.mT
        return z.transpose(-3, -2).flatten(-2).to(x.dtype)

    def extra_repr(self) -> str:
        """Return the options, for repr()."""
        options = {"method": "zca", "solver": "eigh", "iterations": None, "groups": 1, "sub_batch": None}
        given = [
            f"{name}={getattr(self, name)!r}" for name, default in options.items() if getattr(self, name) != default
        ]
        return ", ".join([str(self.num_features), *given, f"reg={self.reg:g}", f"momentum={self.momentum:g}"])

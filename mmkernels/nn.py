"""Losses as torch.nn.Module."""

from __future__ import annotations

from torch import Tensor, nn

from mmkernels.ops.contrastive import clip_loss_and_accuracy, info_nce

__all__ = ["CLIPLoss", "InfoNCE"]


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

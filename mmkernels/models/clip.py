"""A small CLIP: a convolutional image tower and a bag-of-words text tower in one space, trained with InfoNCE.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision" (arXiv 2103.00020).
Large batches in little memory: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup" (arXiv 2101.06983).
"""

from __future__ import annotations

import math
import zlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkernels.ops.contrastive import info_nce

BUCKETS = 16384
WIDTH = 256
DIMENSION = 128
MICRO_BATCH = 512


class CLIP(nn.Module):
    """Two towers with unit-norm outputs (N, 128) and a learned scale (1 / temperature, 1 / 0.07 at first)."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            *_convolution(1, 32, stride=2),
            *_convolution(32, 64),
            nn.MaxPool2d(2),
            *_convolution(64, 128),
            nn.MaxPool2d(2),
            *_convolution(128, 256),
            nn.Flatten(),
            nn.Linear(256 * 4 * 4, DIMENSION),
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.words = nn.EmbeddingBag(BUCKETS, WIDTH, mode="mean", padding_idx=0)
        nn.init.normal_(self.words.weight, std=0.01)  # small, so that tokens never trained on are no noise
        self.text = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, DIMENSION)
        )
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def embed_images(self, images: Tensor) -> Tensor:
        """Return (N, 128) of images (N, 32, 32), floating, 0 where there is no ink and 1 inside."""
        return F.normalize(self.image(images[:, None].contiguous(memory_format=torch.channels_last)), dim=1)

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """Return (N, 128) of tokens (N, L) int64 as `tokenize` gives them."""
        return F.normalize(self.text(self.words(tokens)), dim=1)

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return both embeddings of N pairs."""
        return self.embed_images(images), self.embed_texts(tokens)

    def scale(self) -> Tensor:
        """Return the factor of the cosine similarities, a 0-dimensional tensor, at most 100 (Radford 2021, 2.5)."""
        return self.log_scale.clamp(max=math.log(100)).exp()


def _convolution(channels: int, out: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(inplace=True),
    ]


def tokenize(names: list[str]) -> Tensor:
    """Return (N, L) int64: each name's words and their character trigrams, hashed to [1, 16384), padded with 0.

    'bell off' has the words 'bell' and 'off' and the trigrams of '<bell>' and '<off>', so that a word never seen in
    training still finds its relatives ('bells'). L is the longest name's count, at least 1.
    """
    rows = [[_bucket(part) for word in name.split() for part in _parts(word)] for name in names]
    tokens = torch.zeros(len(rows), max(map(len, rows), default=0) or 1, dtype=torch.int64)
    for row, buckets in zip(tokens, rows, strict=True):
        row[: len(buckets)] = torch.tensor(buckets, dtype=torch.int64)
    return tokens


def _parts(word: str) -> list[str]:
    framed = f"<{word}>"
    return [f"={word}", *(framed[i : i + 3] for i in range(len(framed) - 2))]


def _bucket(part: str) -> int:
    return 1 + zlib.crc32(part.encode()) % (BUCKETS - 1)


def backward(model: CLIP, images: Tensor, tokens: Tensor, ids: Tensor, micro_batch: int = MICRO_BATCH) -> Tensor:
    """Add the gradient of the whole batch's InfoNCE to the parameters, holding activations of a micro-batch only.

    A batch that is no micro-batch is embedded twice: first without a graph, which gives the loss and its gradient in
    the embeddings; then part by part with one, to carry that gradient on into the towers. Both passes see the same
    micro-batches, so batch normalisation gives the same values in both, and the gradient is exact.

    Args:
        model: in training mode.
        images: (N, 32, 32) floating, N >= 1.
        tokens: (N, L) int64.
        ids: (N,) int64; other pairs of equal id are no negatives.
        micro_batch: rows whose activations are held at once, N <= micro_batch costs one pass only.

    Returns:
        The loss, 0-dimensional, detached.
    """
    count = -(-len(images) // micro_batch)
    parts = list(zip(torch.tensor_split(images, count), torch.tensor_split(tokens, count), strict=True))
    if count == 1:
        x, y = model(images, tokens)
    else:
        with torch.no_grad():
            x, y = (torch.cat(z).requires_grad_() for z in zip(*(model(*part) for part in parts), strict=True))
    loss = info_nce(x, y, scale=model.scale(), ids=ids)
    torch.autograd.backward(loss)
    if count > 1:
        gradients = (torch.tensor_split(z.grad, count) for z in (x, y) if z.grad is not None)
        for part, *gradient in zip(parts, *gradients, strict=True):
            torch.autograd.backward(model(*part), gradient)
    return loss.detach()

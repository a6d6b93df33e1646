"""A kernel between rows as a launcher sees it: operands ready for the kernels, and their arguments."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmkernels.kernels._configs import Tile, aligned

DOTS = ("polynomial", "exponential", "sigmoid")
L1 = "laplacian"


class Pairs(NamedTuple):
    """k(x_i, y_j) for every batch entry."""

    x: Tensor  # (B, N, D)
    y: Tensor  # (B, M, D)
    x_norms: Tensor  # (B, N); for kernels of dot products or L1 distances anything
    y_norms: Tensor
    gamma: Tensor  # (B, Q)
    coef: Tensor  # (B,)
    kernel: str
    degree: int
    symmetric: bool
    precision: str

    @classmethod
    def of(
        cls, x: Tensor, y: Tensor | None, gamma: Tensor, coef: Tensor, kernel: str, degree: int, precision: str
    ) -> Pairs:
        """Centre what distances are formed of, pad it, and take the norms of what is multiplied."""
        symmetric = y is None
        other = x if y is None else y
        if kernel == L1:  # features far apart, rows side by side
            x, other = (t.mT.contiguous().mT for t in (x, other))
        else:
            if kernel not in DOTS and x.dtype == torch.float32:  # 16-bit operands are exact as they are
                centre = x.mean(1, keepdim=True)
                x, other = x - centre, other - centre
            if precision == "tf32" and x.dtype == torch.float32:
                x, other = _round_to_tf32(x), _round_to_tf32(other)
            x, other = aligned(x), aligned(other)
        distance = kernel not in (*DOTS, L1)
        x_norms, y_norms = (t.float().square().sum(2) if distance else coef for t in (x, other))
        return cls(
            x, other, x_norms, y_norms, gamma.contiguous(), coef.contiguous(), kernel, degree, symmetric, precision
        )

    @property
    def distance(self) -> bool:
        """Whether the kernel is one of squared distances."""
        return self.kernel not in (*DOTS, L1)

    def transpose(self) -> Pairs:
        """The same with the roles of x and y swapped."""
        return self._replace(x=self.y, y=self.x, x_norms=self.y_norms, y_norms=self.x_norms)

    def entry(self, b: int) -> Pairs:
        """One batch entry, its dimension kept out."""
        return self._replace(
            x=self.x[b],
            y=self.y[b],
            x_norms=self.x_norms[b],
            y_norms=self.y_norms[b],
            gamma=self.gamma[b],
            coef=self.coef[b : b + 1],
        )

    def arguments(self, tile: Tile, features: bool = True) -> dict[str, Any]:
        """What every kernel that forms the arguments is launched with; features: it walks them one by one too."""
        N, D = self.x.shape[-2:]
        batched = {"stride_xb": self.x.stride(0), "stride_yb": self.y.stride(0)} if self.x.ndim == 3 else {}
        by_feature = {"stride_xd": self.x.stride(-1), "stride_yd": self.y.stride(-1)} if features else {}
        return {
            "x_ptr": self.x,
            "y_ptr": self.y,
            "x_norms_ptr": self.x_norms,
            "y_norms_ptr": self.y_norms,
            "gamma_ptr": self.gamma,
            "coef_ptr": self.coef,
            "stride_xm": self.x.stride(-2),
            "stride_yn": self.y.stride(-2),
            "N": N,
            "M": self.y.shape[-2],
            "D": D,
            "KERNEL": self.kernel,
            "DEGREE": self.degree,
            "Q": self.gamma.shape[-1],
            "SYMMETRIC": self.symmetric,
            "EVEN_D": D % tile.BLOCK_D == 0,
            "INPUT_PRECISION": "ieee" if self.x.element_size() == 2 else self.precision,
            **batched,
            **by_feature,
            **tile._asdict(),
        }

    def product(self, v: Tensor) -> tuple[Tensor, str]:
        """What tiles of K or of weights are multiplied by: v in a dtype that holds them, and the precision.

        bfloat16 has float32's range. float16 has not, but TF32 has its digits, where there is TF32.
        """
        if self.x.dtype == torch.bfloat16:
            return v.to(torch.bfloat16).contiguous(), "ieee"
        half_precision = "tf32" if self.x.is_cuda and not torch.version.hip else "ieee"
        return v.float().contiguous(), half_precision if self.x.dtype == torch.float16 else self.precision


def _round_to_tf32(x: Tensor) -> Tensor:
    """x with the 10 bits that a TF32 product reads, rounded to nearest."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

"""The matrix of scores as a launcher sees it: its operands, its blocks, its transpose, and its kernel arguments."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from mmkernels.kernels._configs import Tile


class Scores(NamedTuple):
    """scale <x_i, y_j> + log_weights_j, or a block of it; column i + offset of row i and equal ids are left out."""

    x: Tensor  # (N, D)
    y: Tensor  # (M, D)
    scale: Tensor
    log_weights: Tensor | None  # (M,), or (N,) if transposed
    row_ids: Tensor | None  # of the first rows
    column_ids: Tensor | None  # of the first columns
    offset: int | None
    precision: str
    transposed: bool = False

    @classmethod
    def of(
        cls,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        log_weights: Tensor | None,
        row_ids: Tensor | None,
        column_ids: Tensor | None,
        offset: int | None,
        precision: str,
    ) -> Scores:
        """The whole matrix; vectors are made contiguous."""
        log_weights, row_ids, column_ids = (
            None if v is None else v.contiguous() for v in (log_weights, row_ids, column_ids)
        )
        return cls(x, y, scale, log_weights, row_ids, column_ids, offset, precision)

    def block(self, rows: slice, columns: slice) -> Scores:
        """The scores of some rows and columns."""
        return self._replace(
            x=self.x[rows],
            y=self.y[columns],
            log_weights=None if self.log_weights is None else self.log_weights[columns],
            row_ids=None if self.row_ids is None else self.row_ids[rows],
            column_ids=None if self.column_ids is None else self.column_ids[columns],
            offset=None if self.offset is None else self.offset + rows.start - columns.start,
        )

    def transpose(self) -> Scores:
        """The same scores with the roles of x and y swapped."""
        return self._replace(
            x=self.y,
            y=self.x,
            row_ids=self.column_ids,
            column_ids=self.row_ids,
            offset=None if self.offset is None else -self.offset,
            transposed=True,
        )

    def arguments(self, tile: Tile) -> dict[str, Any]:
        """What every kernel that forms the scores is launched with."""
        N, D = self.x.shape
        return {
            "x_ptr": self.x,
            "y_ptr": self.y,
            "stride_xm": self.x.stride(0),
            "stride_yn": self.y.stride(0),
            "scale_ptr": self.scale,
            "log_weights_ptr": self.log_weights,
            "row_ids_ptr": self.row_ids,
            "column_ids_ptr": self.column_ids,
            "row_ids": 0 if self.row_ids is None else len(self.row_ids),
            "column_ids": 0 if self.column_ids is None else len(self.column_ids),
            "offset": self.offset or 0,
            "N": N,
            "M": len(self.y),
            "D": D,
            "HAS_LOG_WEIGHTS": self.log_weights is not None,
            "HAS_IDS": self.row_ids is not None,
            "HAS_OFFSET": self.offset is not None,
            "EVEN_D": D % tile.BLOCK_D == 0,
            "INPUT_PRECISION": "ieee" if self.x.element_size() == 2 else self.precision,
            "enable_fp_fusion": False,  # scores must be rounded alike in every kernel: see _pair.py
            **tile._asdict(),
        }

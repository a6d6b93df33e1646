"""A picture of what a trained `clip` retrieves among icons that it has never seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mmkernels.data._files import needs_extra, write_atomically
from mmkernels.data.icons import Icons, name_ids
from mmkernels.models._training import embed
from mmkernels.models.clip import CLIP
from mmkernels.ops.retrieval import topk

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_QUERIES = 12
_ICONS, _NAMES = 6, 5  # answers shown to a name, to an icon
_RIGHT, _WRONG = "#138a43", "#8a8f98"


def draw(model: CLIP, icons: Icons, path: Path, seed: int = 0) -> None:
    """Write a PNG of a dozen random queries each way, with the best answers, the right ones in green.

    Args:
        model: a trained model.
        icons: the candidates, at least 12; queries are drawn from them, not picked.
        path: of the PNG; missing parent directories are made.
        seed: of the draw.

    Raises:
        ImportError: matplotlib is missing; the message says the command that brings it.
    """
    with needs_extra("train"):
        from matplotlib.figure import Figure
    x, y = (z.cpu() for z in embed(model, icons))
    ids = name_ids(icons.names)
    queries = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))[: 2 * _QUERIES]
    by_name, by_icon = queries[:_QUERIES], queries[-_QUERIES:]
    found_icons, found_names = topk(y[by_name], x, _ICONS)[1], topk(x[by_icon], y, _NAMES)[1]
    figure = Figure(figsize=(11, 8.8))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.text(0.3, 0.35, f"Name to icon, among {len(ids):,} never seen in training", fontsize=13, weight="bold")
    for place, query in enumerate(by_name.tolist()):
        left, top = 0.3 + 3.6 * (place % 3), 0.8 + 0.9 * (place // 3)
        axes.text(left, top, icons.names[query], fontsize=10)
        for rank, answer in enumerate(found_icons[place].tolist()):
            _icon(axes, icons, answer, left + 0.55 * rank, top + 0.1, framed=bool(ids[answer] == ids[query]))
    axes.text(0.3, 4.5, "Icon to name", fontsize=13, weight="bold")
    for place, query in enumerate(by_icon.tolist()):
        left, top = 0.3 + 2.7 * (place % 4), 4.9 + 1.3 * (place // 4)
        axes.text(left, top, icons.names[query], fontsize=10)
        _icon(axes, icons, query, left, top + 0.14, side=0.7)
        for rank, answer in enumerate(found_names[place].tolist()):
            right = bool(ids[answer] == ids[query])
            color, weight = (_RIGHT, "bold") if right else (_WRONG, "normal")
            axes.text(
                left + 0.85,
                top + 0.24 + 0.17 * rank,
                _shorten(icons.names[answer]),
                fontsize=8.5,
                color=color,
                weight=weight,
            )
    axes.set(xlim=(0, 11), ylim=(8.8, 0))
    axes.axis("off")
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=130, facecolor="white")


def _icon(
    axes: Axes, icons: Icons, row: int, left: float, top: float, side: float = 0.45, framed: bool = False
) -> None:
    box = (left, left + side, top + side, top)
    axes.imshow(icons.images[row].numpy(), cmap="gray_r", vmin=0, vmax=255, extent=box, interpolation="antialiased")
    if framed:
        edge = 0.03
        corner, length = (left - edge, top - edge), side + 2 * edge
        from matplotlib.patches import Rectangle

        axes.add_patch(Rectangle(corner, length, length, fill=False, edgecolor=_RIGHT, linewidth=2.5))


def _shorten(name: str, length: int = 28) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"

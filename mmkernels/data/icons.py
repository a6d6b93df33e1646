"""Icons and their names: about 17,000 real image-text pairs from the fonts in the wheel `qtawesome`.

The wheel (MIT) is read, never imported: that would ask for Qt. Its fonts keep their own licences:

=======================  =================================  ======
font                     licence                            pairs
=======================  =================================  ======
Material Design Icons 6  Apache-2.0                         7,367
Phosphor (five weights)  MIT                                4,470
Remix Icon               Apache-2.0                         2,271
Font Awesome 6 Free      SIL OFL 1.1                        2,060
Codicons                 CC-BY-4.0                          568
Elusive Icons            SIL OFL 1.1                        304
=======================  =================================  ======

Brand icons remain trade marks of their owners. The wheel's older Material Design Icons 5 and Font Awesome 5 are left
out: they repeat the newer ones.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor

from mmkernels.data._files import cache_directory, needs_extra, write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

_T = TypeVar("_T")

SIZE = 32
_FORMAT = 1  # raised whenever the content of the cache file changes

# font -> (files' stems in the wheel, suffix of a name that tells the weight and not the thing)
_FONTS: dict[str, tuple[tuple[str, ...], str]] = {
    "Material Design Icons 6": (("materialdesignicons6-webfont",), ""),
    "Phosphor": (("phosphor",), "-(thin|light|bold|fill)$"),
    "Remix Icon": (("remixicon",), "-(line|fill)$"),
    "Font Awesome 6": (("fontawesome6-solid", "fontawesome6-regular", "fontawesome6-brands"), ""),
    "Codicons": (("codicon",), ""),
    "Elusive Icons": (("elusiveicons",), ""),
}


class Icons(NamedTuple):
    """Icons with their names, one row a pair."""

    images: Tensor
    """(N, 32, 32) uint8: the ink, 0 where there is none and 255 inside, fitted to the square and centred."""
    names: list[str]
    """N names as a person reads them, 'account alert outline'. Weights of one icon share a name."""
    fonts: Tensor
    """(N,) int64, an index into `font_names`."""
    font_names: list[str]

    def select(self, rows: Tensor) -> Icons:
        """Return the rows that an int64 tensor gives, in its order."""
        return Icons(self.images[rows], [self.names[i] for i in rows.tolist()], self.fonts[rows], self.font_names)


class Split(NamedTuple):
    """Rows of an `Icons`, int64 and ascending. No name occurs in two of the three."""

    train: Tensor
    validation: Tensor
    test: Tensor


def load_icons(cache: Path | None = None, progress: bool = True) -> Icons:
    """Return all icons, rendered on first use (about five seconds) and read from one cached file ever after.

    Args:
        cache: directory of that file; $XDG_CACHE_HOME/mmkernels or ~/.cache/mmkernels if None.
        progress: show a progress bar while rendering, where rich is installed.

    Raises:
        ImportError: a package of the extra 'train' is missing; the message says the command that brings it.
    """
    with needs_extra("train"):
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import save_file

        wheel = importlib.metadata.distribution("qtawesome")
    path = (cache or cache_directory()) / f"icons-qtawesome{wheel.version}-{SIZE}px-format{_FORMAT}.safetensors"
    if path.exists():
        try:
            with safe_open(path, "pt") as file:
                names = json.loads(file.metadata()["names"])
                return Icons(file.get_tensor("images"), names, file.get_tensor("fonts"), list(_FONTS))
        except SafetensorError:
            pass  # damaged outside our hands: render again
    icons = _render(wheel, progress)
    with write_atomically(path) as temporary:
        tensors = {"images": icons.images, "fonts": icons.fonts}
        save_file(tensors, temporary, {"names": json.dumps(icons.names)})
    return icons


def split(icons: Icons, held_out: int = 1000, seed: int = 0) -> Split:
    """Hold names out: `held_out` Material Design icons for test, as many for validation, all other names for training.

    An icon of any font whose name is held out is in no training set. Names of test icons are new, their words are
    mostly not: what is asked is to put known words together ('account' + 'alert' + 'outline'). A third of the names
    differ from a training name by 'outline' alone and are the easy ones. Choose on validation, report on test.

    Raises:
        ValueError: there are fewer than 2 * held_out Material Design icons.
    """
    candidates = (icons.fonts == 0).nonzero()[:, 0]
    if not 0 < 2 * held_out <= len(candidates):
        raise ValueError(f"held_out must be in [1, {len(candidates) // 2}], half of the font's icons, got {held_out}")
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))
    test, validation = candidates[order[: 2 * held_out]].view(2, held_out).sort().values
    ids = name_ids(icons.names)
    held = torch.isin(ids, ids[torch.cat((test, validation))])
    return Split((~held).nonzero()[:, 0], validation, test)


def name_ids(names: list[str]) -> Tensor:
    """Return (N,) int64, equal where names are equal."""
    ids: dict[str, int] = {}
    return torch.tensor([ids.setdefault(name, len(ids)) for name in names], dtype=torch.int64)


def _render(wheel: importlib.metadata.Distribution, progress: bool) -> Icons:
    with needs_extra("train"):
        import numpy as np
        from PIL import ImageFont

    files = {Path(str(file)).name: Path(str(wheel.locate_file(file))) for file in wheel.files or ()}
    jobs = []
    for index, (stems, weight) in enumerate(_FONTS.values()):
        for stem in stems:
            font = ImageFont.truetype(str(_find(files, stem, ".ttf")), 3 * SIZE)
            charmap = json.loads(_find(files, stem, ".json").read_text())
            jobs += [(index, font, re.sub(weight, "", name), chr(int(code, 16))) for name, code in charmap.items()]
    images, names, fonts = [], [], []
    for index, font, name, character in _track(jobs, "Rendering icons") if progress else jobs:
        image = _draw(font, character)
        if image is not None:
            images.append(np.asarray(image))
            names.append(name.replace("-", " "))
            fonts.append(index)
    return Icons(torch.from_numpy(np.stack(images)), names, torch.tensor(fonts), list(_FONTS))


def _draw(font: FreeTypeFont, character: str) -> Image | None:
    """The glyph fitted to the square, centred, with a margin of one pixel; None if it has no ink."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = (round(edge) for edge in font.getbbox(character))
    if left == right or top == bottom:
        return None
    glyph = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(glyph).text((-left, -top), character, fill=255, font=font)
    ink = glyph.getbbox()
    if ink is None:
        return None
    glyph = glyph.crop(ink)
    factor = (SIZE - 2) / max(glyph.size)
    width, height = (max(1, round(factor * side)) for side in glyph.size)
    square = Image.new("L", (SIZE, SIZE))
    glyph = glyph.resize((width, height), Image.Resampling.LANCZOS)
    square.paste(glyph, ((SIZE - width) // 2, (SIZE - height) // 2))
    return square


def _find(files: dict[str, Path], stem: str, suffix: str) -> Path:
    found = [path for name, path in files.items() if name.startswith(stem) and name.endswith(suffix)]
    if len(found) != 1 or not found[0].is_file():
        raise FileNotFoundError(
            f"the wheel qtawesome should hold one file {stem}*{suffix}, found {len(found)}: "
            "pip install --force-reinstall 'mmkernels[train]'"
        )
    return found[0]


def _track(jobs: list[_T], description: str) -> Iterable[_T]:
    """The jobs, with a progress bar where rich is installed."""
    try:
        from rich.progress import track
    except ImportError:
        return jobs
    return track(jobs, description)

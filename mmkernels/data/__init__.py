"""Real paired data that needs no download at run time."""

from mmkernels.data.icons import Icons, Split, load_icons, name_ids, split

__all__ = ["Icons", "Split", "load_icons", "name_ids", "split"]

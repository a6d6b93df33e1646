"""A progress bar for those who want one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(verbose: bool, title: str, total: float) -> Iterator[Callable[[float, str], None]]:
    """Give show(done, text), which moves a progress bar where one is wanted and rich is installed."""
    try:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        verbose = False
    if not verbose:
        yield lambda done, text: None
        return
    with Progress(TextColumn(title), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn()) as progress:
        task = progress.add_task("", total=total)
        yield lambda done, text: progress.update(task, completed=done, description=text)

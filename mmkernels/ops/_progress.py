"""A progress bar for those who want one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


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


def track(steps: Sequence[T], title: str, verbose: bool) -> Iterator[T]:
    """Yield the steps, and move a progress bar where one is wanted and rich is installed."""
    with progress(verbose, title, len(steps)) as show:
        for done, step in enumerate(steps, 1):
            yield step
            show(done, f"{done} of {len(steps)}")

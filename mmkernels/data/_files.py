"""Files that are whole or absent, the user's cache directory, and the message for a missing extra."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, and put it in `path`'s place if the block ends without an exception.

    Whatever happens meanwhile, `path` holds either its old content or the whole new one. The temporary path keeps the
    suffix, which some writers read as the format. Missing parent directories are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as directory:
        temporary = Path(directory) / path.name
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # a rename may reach the disk before the content that it names
        os.replace(temporary, path)


def cache_directory() -> Path:
    """Return the directory for what can be made again: $XDG_CACHE_HOME/mmkernels, or ~/.cache/mmkernels."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmkernels"


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Let an import in the block that fails say which extra of mmkernels brings the package."""
    try:
        yield
    except ImportError as error:
        message = f"{error.name or error} is missing: pip install 'mmkernels[{extra}]'"
        raise ImportError(message, name=error.name) from error

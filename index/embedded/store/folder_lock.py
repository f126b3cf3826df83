"""Lock of a gallery's folder: shared by the processes that use the gallery, exclusive for a restore."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from index.errors import GalleryError


@contextmanager
def lock(folder: Path, *, exclusive: bool) -> Iterator[None]:
    """Lock the folder. The lock ends with the context, or with the process.

    Raises:
        GalleryError: another process holds a lock that excludes this one.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            state = "in use; stop what uses it first" if exclusive else "being restored; try again when that is done"
            raise GalleryError(f"the gallery in {folder} is {state}") from error
        yield
    finally:
        os.close(descriptor)

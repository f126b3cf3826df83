"""Who has a gallery's folder: any number of processes that use it, or one that puts another ledger in."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from index.errors import GalleryError


@contextmanager
def held(folder: Path, *, alone: bool) -> Iterator[None]:
    """Have the folder, beside others or `alone`. A process that dies lets go of it.

    Raises:
        GalleryError: another has it alone, or others have it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            who = "in use; stop what uses it first" if alone else "being restored; try again when that is done"
            raise GalleryError(f"the gallery in {folder} is {who}") from error
        yield
    finally:
        os.close(descriptor)

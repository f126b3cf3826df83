"""The first line of a file that grows, and the lock of a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from index.errors import GalleryError
from index.folders import sync, sync_folder


def begin_file(path: Path, file: IO[bytes], header: bytes) -> None:
    """Replace the content of the open file by its first line, durably."""
    file.truncate(0)
    file.write(header)
    sync(file)
    sync_folder(path.parent)


@contextmanager
def lock_folder(folder: Path, *, exclusive: bool) -> Iterator[None]:
    """Lock a gallery's folder: shared by the processes that use the gallery, exclusive for a restore.

    The lock ends with the context, or with the process.

    Raises:
        GalleryError: another process holds a lock that excludes this one.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            state = "in use; stop the service first" if exclusive else "being restored; try again when that is done"
            raise GalleryError(f"the gallery in {folder} is {state}") from error
        yield
    finally:
        os.close(descriptor)

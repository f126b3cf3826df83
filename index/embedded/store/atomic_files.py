"""Durable file operations, and the lock of a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from index.errors import GalleryError
from index.folders import sync_folder


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Yield a new file of mode 0600, and rename it to `path` when the context ends; delete it if that raises.

    After a power cut there is the old file, the new file, or none.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.touch(mode=0o600)
        yield temporary
        with temporary.open("rb+") as file:
            sync(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_atomically(path: Path, parts: Iterable[bytes | bytearray | memoryview]) -> None:
    """Write a file by way of a temporary one."""
    with temporary_file(path) as temporary, temporary.open("wb") as file:
        file.writelines(parts)


def sync(file: IO[bytes]) -> None:
    """Make the data written to the file durable."""
    file.flush()
    os.fsync(file.fileno())


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

"""Durable creation of folders and files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def make_folder(folder: Path) -> None:
    """Create the folder and its missing parents durably."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the creation, renaming and deletion of files in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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

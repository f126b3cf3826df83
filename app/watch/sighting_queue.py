"""The sightings that the service has not stored yet: a bounded queue of files, kept through outages and restarts.

Each file is one passage that has ended: its times, its best shots until they have been searched for, then the decision.
It is deleted when the service has stored the sighting. The files contain faces, so only the owner may read them.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout
from pydantic import ValidationError

from app.watch.decisions import PendingSighting

# The oldest passage is deleted when there are more: at 100 kB each, a full queue has 100 MB.
MOST_PENDING = 1000
# Passages that could not be stored for this long are deleted, since the service keeps unknown people for a day, too.
LONGEST_PENDING_S = 86_400.0


class QueueError(Exception):
    """The folder of the queue cannot be used."""


@dataclass(frozen=True)
class QueueEntry:
    """A file of the queue and its contents."""

    path: Path
    sighting: PendingSighting


class SightingQueue:
    """The files in `folder`, which one process at a time may use."""

    def __init__(self, folder: Path) -> None:
        """Open the queue; the folder is created if it is missing.

        Raises:
            QueueError: the folder cannot be written, or another process uses it.
        """
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = FileLock(folder / "lock", timeout=0)
            self._lock.acquire()
        except Timeout as error:
            raise QueueError(
                f"{folder}: another watcher uses this queue; give each camera a name of its own"
            ) from error
        except OSError as error:
            raise QueueError(f"{folder}: {error.strerror or error}") from error
        for part in folder.glob("*.part"):
            part.unlink(missing_ok=True)

    def close(self) -> None:
        """Let other processes use the folder."""
        self._lock.release()

    def __enter__(self) -> Self:
        """Return the queue, which is closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the queue."""
        self.close()

    def __len__(self) -> int:
        """Return the number of sightings."""
        return len(self._paths())

    def add(self, sighting: PendingSighting) -> int:
        """Store a sighting durably; return how many older ones were deleted because the queue was full.

        Raises:
            OSError: the disk is full or damaged.
        """
        self._write(self._folder / f"{time.time_ns():020d}-{sighting.passage}.json", sighting)
        surplus = self._paths()[:-MOST_PENDING]
        for path in surplus:
            path.unlink(missing_ok=True)
        return len(surplus)

    def first(self) -> QueueEntry | None:
        """Return the oldest sighting; None if there is none. Files that cannot be read are deleted."""
        for path in self._paths():
            try:
                return QueueEntry(path, PendingSighting.model_validate_json(path.read_bytes()))
            except (ValidationError, FileNotFoundError):
                path.unlink(missing_ok=True)
        return None

    def update(self, entry: QueueEntry, sighting: PendingSighting) -> QueueEntry:
        """Replace the contents of a file durably.

        Raises:
            OSError.
        """
        self._write(entry.path, sighting)
        return QueueEntry(entry.path, sighting)

    def remove(self, entry: QueueEntry) -> None:
        """Delete a sighting."""
        entry.path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        """Return the files, the oldest first."""
        return sorted(self._folder.glob("*.json"))

    def _write(self, path: Path, sighting: PendingSighting) -> None:
        part = path.with_suffix(".part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(sighting.model_dump_json().encode())
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

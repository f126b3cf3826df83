"""Errors of a gallery.

GalleryError
├── NotFoundError, ConflictError, InvalidError    the request is at fault
├── LockedError                                   the operator's key is missing
├── DiskFullError, UnavailableError               the storage cannot work at present; send the request again later
├── MaintenanceError                              some steps of a round of maintenance failed
└── CorruptError, TooNewError                     a file is at fault
"""

from __future__ import annotations

import errno
from collections.abc import Mapping


class GalleryError(Exception):
    """Base class of all errors of a gallery."""


class NotFoundError(GalleryError):
    """The collection, subject, face, job or receipt does not exist."""


class ConflictError(GalleryError):
    """The object exists already, or the collection's pipeline or state does not permit the operation."""


class InvalidError(GalleryError, ValueError):
    """A vector, a name or another value cannot be stored."""


class LockedError(GalleryError):
    """The data is encrypted, and the operator's key for it is missing."""


class CorruptError(GalleryError):
    """A file is damaged."""


class TooNewError(GalleryError):
    """A file was written by a later version of this program."""


class DiskFullError(GalleryError):
    """The disk of the storage is full."""


class UnavailableError(GalleryError):
    """The database cannot be reached, or does not accept changes at present."""


class MaintenanceError(GalleryError):
    """Some steps of a round failed; all others were done. `failures`: the exceptions by step."""

    def __init__(self, failures: Mapping[str, Exception]):
        super().__init__("; ".join(f"{step}: {error}" for step, error in failures.items()))
        self.failures = failures


def is_disk_full(error: Exception) -> bool:
    """Return whether the error means that the disk, or the user's quota on it, is full."""
    return isinstance(error, DiskFullError) or (
        isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    )

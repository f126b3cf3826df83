"""What a gallery answers when it cannot do what it was asked."""

from __future__ import annotations

import errno

import apsw


class GalleryError(Exception):
    """Base of all."""


class NotFoundError(GalleryError):
    """No collection, subject, face or receipt of that name."""


class ConflictError(GalleryError):
    """There is one already, or it was made by another pipeline."""


class InvalidError(GalleryError, ValueError):
    """A vector or a name that cannot be stored."""


class CorruptError(GalleryError):
    """A file that is not what was written."""


class TooNewError(GalleryError):
    """Written by a later version of this program."""


class LockedError(GalleryError):
    """Encrypted, and the operator's key for it is not here."""


def is_full(error: Exception) -> bool:
    """Whether a write failed because the disk, or the share of it that this user may have, is full."""
    return isinstance(error, apsw.FullError) or (
        isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    )

"""Errors of a gallery.

GalleryError
├── NotFoundError, ConflictError, InvalidError    the request is at fault
├── LockedError                                   the operator's key is missing
└── CorruptError, TooNewError                     a file is at fault
"""

from __future__ import annotations


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

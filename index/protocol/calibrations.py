"""Calibrations of collections, fitted to comparisons of the site's own photos."""

from __future__ import annotations

from typing import Protocol

from index.protocol.changes import changes
from index.types import Calibration


class Calibrations(Protocol):
    """The calibrations of each collection, by version. All methods raise NotFoundError if there is no such collection.

    At most one is in use: the latest, unless `use` chose another one. A calibration is of one pipeline; after a
    re-embedding with another pipeline none is in use.
    """

    @changes
    def add(self, collection: str, fingerprint: str, data: str, *, actor: str | None = None) -> Calibration:
        """Store a calibration of the pipeline `fingerprint`, and use it.

        `data`: JSON without names, keys or vectors of people.

        Raises:
            ConflictError: the collection has another pipeline.
        """
        ...

    @changes
    def use(self, collection: str, token: str | None, *, actor: str | None = None) -> Calibration | None:
        """Use this calibration from now on, and return it; None: the embedder's own.

        Raises:
            NotFoundError: there is no such calibration. ConflictError: it is of another pipeline.
        """
        ...

    def in_use(self, collection: str) -> Calibration | None:
        """Return the calibration in use for the collection's pipeline; None if the embedder's own is used."""
        ...

    def find(self, collection: str, token: str) -> Calibration:
        """Return the calibration.

        Raises:
            NotFoundError: there is none.
        """
        ...

    def page(self, collection: str, after: int = 0, limit: int = 100) -> list[Calibration]:
        """Return at most `limit` calibrations with versions above `after`, oldest first."""
        ...

"""Sightings of people in front of cameras."""

from __future__ import annotations

from typing import Protocol

from index.protocol.changes import changes
from index.sightings import ALL_SIGHTINGS, NewSighting, Sighting, SightingFilter, SightingSettings
from index.types import Receipt


class Sightings(Protocol):
    """Sightings of people in front of cameras, each of a subject or of an unknown person.

    A sighting is erased with its subject or its collection. It expires by the collection's settings: from then on it
    does not exist, and maintenance erases it soon. Neither does a sighting of an expired subject exist.

    Every method raises NotFoundError if a collection, a subject or a sighting does not exist, and LockedError if it
    needs a key that is missing. Every change is in the audit log; `actor` as in `Gallery`.
    """

    @changes
    def add(self, collection: str, sighting: NewSighting, *, actor: str | None = None) -> Sighting:
        """Store a sighting and return it. The alerts that it causes are stored in the same transaction.

        If the collection gives pseudonyms and there is a face, which is of an unknown person and from the collection's
        pipeline, its vector is stored, and the sighting gets the pseudonym of the most similar stored face if that is
        similar enough, else a new one. Otherwise the face is ignored.

        Raises:
            InvalidError: see `index.sightings.check_sighting` and `expiry`; or the vector, as in `Gallery.enrol`.
        """
        ...

    def page(
        self,
        collection: str,
        where: SightingFilter = ALL_SIGHTINGS,
        after: int = 0,
        limit: int = 100,
        *,
        newest_first: bool = False,
    ) -> list[Sighting]:
        """Return at most `limit` sightings that the filter selects, in the order in which they were committed.

        Their positions are above `after`. `newest_first`: in the reverse order, with positions below `after`, where 0
        stands for the end. A sighting that is committed later has a greater position than all that were returned.
        """
        ...

    def sighting(self, token: str) -> Sighting:
        """Return the sighting with this token."""
        ...

    def crop(self, token: str) -> bytes:
        """Return the encoded best shot of a sighting."""
        ...

    @changes
    def remove(self, token: str, *, actor: str | None = None) -> Receipt:
        """Erase a sighting."""
        ...

    def settings(self, collection: str) -> SightingSettings:
        """Return the collection's settings."""
        ...

    @changes
    def put_settings(
        self, collection: str, settings: SightingSettings, *, actor: str | None = None
    ) -> SightingSettings:
        """Replace the collection's settings and return them.

        A shorter retention applies to all sightings, a longer one to new sightings. Where pseudonyms are not given any
        more, all pseudonyms and vectors of sightings are erased; the id of the event in the audit log is the token of
        the receipt, which counts the vectors as faces.

        Raises:
            InvalidError: see `index.sightings.check_settings`.
        """
        ...

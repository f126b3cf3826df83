"""Rows of the sightings and of their settings. A best shot is sealed, as the crops of faces are."""

from __future__ import annotations

from collections.abc import Iterable

from psycopg import sql

from index.errors import NotFoundError
from index.postgres.store import subject_records
from index.postgres.store.database import MAX_INT, Connection, Row, scalar
from index.postgres.store.sealing import seal, unseal
from index.sightings import (
    NewSighting,
    RecognisedFace,
    Sighting,
    SightingFilter,
    SightingSettings,
    UnknownFace,
    named,
    new_ids,
)
from index.types import Collection
from index.validation import unit_vectors

_SIGHTING = f"""
SELECT camera, started_at, ended_at, frames, probability, distance, fpir, threshold, position, sightings.id, token,
    collections.name, sightings.created_at, sightings.expires_at,
    EXISTS (SELECT FROM sighting_crops WHERE sighting_id = sightings.id), pseudonym, {subject_records.COLUMNS}
FROM sightings JOIN collections ON collections.id = sightings.collection_id
    LEFT JOIN subjects ON subjects.id = sightings.subject_id
    LEFT JOIN sighting_faces ON sighting_id = sightings.id
WHERE sightings.expires_at > %(now)s AND (subjects.expires_at IS NULL OR subjects.expires_at > %(now)s)
"""  # noqa: S608  constants
_CONDITIONS = {
    "camera": "camera = %(camera)s",
    "subject_id": "sightings.subject_id = %(subject_id)s",
    "pseudonym": "pseudonym = %(pseudonym)s",
    "unknown": "(sightings.subject_id IS NULL) = %(unknown)s",
    "since": "ended_at >= %(since)s",
    "until": "started_at < %(until)s",
}


def _sighting(row: Row) -> Sighting:
    position, number, token, collection, created_at, expires_at, has_crop, pseudonym, *subject = row[8:]
    return Sighting(
        *row[:8],
        position=position,
        id=number,
        token=token,
        collection=collection,
        subject=None if subject[0] is None else subject_records.read(tuple(subject)),
        created_at=created_at,
        expires_at=expires_at,
        has_crop=has_crop,
        pseudonym=pseudonym,
    )


def insert(
    db: Connection,
    collection_id: int,
    subject_id: int | None,
    sighting: NewSighting,
    recognised: RecognisedFace | None,
    now: float,
    expires_at: float,
) -> str:
    """Insert a checked sighting of this subject (None: an unknown person) and return its token.

    Lock the settings first.
    """
    number, token = new_ids()
    db.execute(
        "INSERT INTO sightings (id, token, collection_id, subject_id, camera, started_at, ended_at, frames,"
        " probability, distance, fpir, threshold, created_at, expires_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (number, token, collection_id, subject_id, *sighting.observed(), now, expires_at),
    )
    if sighting.crop is not None:
        statement = "INSERT INTO sighting_crops (sighting_id, seal, crop) VALUES (%s, %s, %s)"
        db.execute(statement, (number, *seal(sighting.crop)))
    if recognised is not None:
        db.execute(
            "INSERT INTO sighting_faces (sighting_id, collection_id, pseudonym, vector) VALUES (%s, %s, %s, %s)",
            (number, collection_id, recognised.pseudonym, recognised.vector),
        )
    return token


def recognise(db: Connection, collection: Collection, face: UnknownFace, now: float) -> RecognisedFace:
    """Return the face with the pseudonym of the most similar stored face, or a new one.

    Lock the settings first.

    Raises:
        InvalidError: see `unit_vectors`.
    """
    (vector,) = unit_vectors(face.vector[None], collection.dimensions)
    of_collection = (
        "FROM sighting_faces JOIN sightings ON sightings.id = sighting_id"
        " WHERE sighting_faces.collection_id = %s AND expires_at > %s"
    )
    count = scalar(db, sql.SQL(f"SELECT count(*) {of_collection}"), (collection.id, now))
    nearest = db.execute(
        sql.SQL(f"SELECT pseudonym, -(vector <#> %s) {of_collection} ORDER BY 2 DESC, position LIMIT 1"),
        (vector, collection.id, now),
    ).fetchone()
    return named(vector, face, count, nearest and (nearest[0], nearest[1]))


def forget_faces(db: Connection, collection_id: int) -> int:
    """Delete all pseudonyms and vectors of the collection's sightings, and return the number of vectors."""
    return db.execute("DELETE FROM sighting_faces WHERE collection_id = %s", (collection_id,)).rowcount


def find(db: Connection, token: str, now: float) -> Sighting:
    """Return the sighting with this token.

    Raises:
        NotFoundError: also where it, or its subject, has expired at `now`.
    """
    row = db.execute(f"{_SIGHTING} AND token = %(token)s", {"now": now, "token": token}).fetchone()
    if row is None:
        raise NotFoundError("there is no such sighting")
    return _sighting(row)


def by_position(db: Connection, positions: Iterable[int], now: float) -> dict[int, Sighting]:
    """Return the sightings with these positions, by position, without those that have expired at `now`."""
    values = {"now": now, "positions": list(positions)}
    rows = db.execute(f"{_SIGHTING} AND position = ANY(%(positions)s)", values)
    return {sighting.position: sighting for sighting in map(_sighting, rows)}


def page(
    db: Connection,
    collection_id: int,
    where: SightingFilter,
    after: int,
    limit: int,
    now: float,
    *,
    newest_first: bool,
) -> list[Sighting]:
    """Return a page of the collection's sightings; see `Sightings.page`.

    Raises:
        NotFoundError: there is no subject with the key of the filter.
    """
    subject = None if where.subject is None else subject_records.find(db, collection_id, where.subject, now)
    values = where.values(None if subject is None else subject.id)
    conditions = [text for name, text in _CONDITIONS.items() if values[name] is not None]
    conditions.append("position < %(after)s" if newest_first else "position > %(after)s")
    if newest_first and not after:
        after = MAX_INT
    statement = (
        f"{_SIGHTING} AND sightings.collection_id = %(collection_id)s AND {' AND '.join(conditions)}"
        f" ORDER BY position {'DESC' if newest_first else 'ASC'} LIMIT %(limit)s"
    )
    rows = db.execute(
        sql.SQL(statement), {**values, "collection_id": collection_id, "after": after, "limit": limit, "now": now}
    )
    return [_sighting(row) for row in rows]


def crop(db: Connection, token: str, now: float) -> bytes:
    """Return the encoded best shot of the sighting with this token.

    Raises:
        NotFoundError: there is no such sighting, or it has no best shot. CorruptError: the best shot is damaged.
    """
    sighting = find(db, token, now)
    row = db.execute("SELECT seal, crop FROM sighting_crops WHERE sighting_id = %s", (sighting.id,)).fetchone()
    if row is None:
        raise NotFoundError("the sighting has no best shot")
    return unseal(*row)


def delete(db: Connection, token: str) -> tuple[int, int, int | None]:
    """Delete the sighting with this token; return the ids of its collection, of the sighting, and of its subject.

    Raises:
        NotFoundError.
    """
    row = db.execute(
        "DELETE FROM sightings WHERE token = %s RETURNING collection_id, id, subject_id", (token,)
    ).fetchone()
    if row is None:
        raise NotFoundError("there is no such sighting")
    return row[0], row[1], row[2]


def expired_collections(db: Connection, now: float) -> list[int]:
    """Return the ids of the collections with sightings that have expired at `now`."""
    rows = db.execute("SELECT DISTINCT collection_id FROM sightings WHERE expires_at <= %s", (now,))
    return [row[0] for row in rows]


def delete_expired(db: Connection, collection_id: int, now: float, limit: int) -> list[int]:
    """Delete at most `limit` expired sightings of the collection, and return their ids."""
    rows = db.execute(
        "DELETE FROM sightings WHERE position IN (SELECT position FROM sightings"
        " WHERE collection_id = %s AND expires_at <= %s ORDER BY expires_at LIMIT %s) RETURNING id",
        (collection_id, now, limit),
    )
    return [row[0] for row in rows]


def settings(db: Connection, collection_id: int) -> SightingSettings:
    """Return the settings of the collection."""
    row = db.execute(
        "SELECT unknown_s, known_s, pseudonyms FROM sighting_settings WHERE collection_id = %s", (collection_id,)
    ).fetchone()
    return SightingSettings() if row is None else SightingSettings(*row)


def lock_settings(db: Connection, collection_id: int) -> SightingSettings:
    """Return the settings of the collection, and insert them if they are missing.

    Until the transaction ends, others wait who add sightings to the collection or change its settings. So sightings are
    committed in the order of their positions, and by the settings at that time.
    """
    defaults = SightingSettings()
    db.execute(
        "INSERT INTO sighting_settings VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
        (collection_id, defaults.unknown_s, defaults.known_s, defaults.pseudonyms),
    )
    scalar(db, sql.SQL("SELECT 1 FROM sighting_settings WHERE collection_id = %s FOR UPDATE"), (collection_id,))
    return settings(db, collection_id)


def put_settings(db: Connection, collection_id: int, settings: SightingSettings) -> None:
    """Replace the settings, which are locked, and shorten the retention of the sightings where that is shorter."""
    db.execute(
        "UPDATE sighting_settings SET unknown_s = %s, known_s = %s, pseudonyms = %s WHERE collection_id = %s",
        (settings.unknown_s, settings.known_s, settings.pseudonyms, collection_id),
    )
    kept = "least(ended_at, created_at) + CASE WHEN subject_id IS NULL THEN %(unknown_s)s ELSE %(known_s)s END"
    statement = (
        f"UPDATE sightings SET expires_at = {kept} WHERE collection_id = %(collection_id)s"  # noqa: S608  constants
        f" AND expires_at > {kept}"
    )
    values = {"collection_id": collection_id, "unknown_s": settings.unknown_s, "known_s": settings.known_s}
    db.execute(sql.SQL(statement), values)

"""Rows of the sightings and of their settings; best shots and vectors of an encrypted collection are encrypted here."""

from __future__ import annotations

import json
from collections.abc import Iterable

import apsw
import numpy as np

from index.embedded.encryption import Cipher, cipher_of
from index.embedded.store import subject_records
from index.embedded.store.ledger import Row
from index.errors import NotFoundError
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

MAX_POSITION = 2**63 - 1

_SIGHTING = f"""
SELECT sightings.collection_id, camera, started_at, ended_at, frames, probability, distance, fpir, threshold, position,
    sightings.id, token, collections.name, sightings.created_at, sightings.expires_at,
    EXISTS (SELECT 1 FROM sighting_crops WHERE sighting_id = sightings.id), pseudonym,
    {subject_records.COLUMNS}
FROM sightings JOIN collections ON collections.id = sightings.collection_id
    LEFT JOIN subjects ON subjects.id = sightings.subject_id
    LEFT JOIN sighting_faces ON sighting_id = sightings.id
WHERE sightings.expires_at > :now AND (subjects.expires_at IS NULL OR subjects.expires_at > :now)
"""  # noqa: S608  constants
_CONDITIONS = {
    "camera": "camera = :camera",
    "subject_id": "sightings.subject_id = :subject_id",
    "pseudonym": "pseudonym = :pseudonym",
    "unknown": "(sightings.subject_id IS NULL) = :unknown",
    "since": "ended_at >= :since",
    "until": "started_at < :until",
}


def _sighting(cipher: Cipher, row: Row) -> Sighting:
    _, *observed = row[:9]
    position, number, token, collection, created_at, expires_at, has_crop, pseudonym, *subject = row[9:]
    return Sighting(
        *observed,
        position=position,
        id=number,
        token=token,
        collection=collection,
        subject=None if subject[0] is None else subject_records.read_subject(cipher, subject),
        created_at=created_at,
        expires_at=expires_at,
        has_crop=bool(has_crop),
        pseudonym=pseudonym,
    )


def insert(
    db: apsw.Connection,
    collection_id: int,
    subject_id: int | None,
    sighting: NewSighting,
    recognised: RecognisedFace | None,
    now: float,
    expires_at: float,
) -> str:
    """Insert a checked sighting of this subject (None: an unknown person) and return its token."""
    number, token = new_ids()
    cipher = cipher_of(db, collection_id)
    db.execute(
        "INSERT INTO sightings (id, token, collection_id, subject_id, camera, started_at, ended_at, frames,"
        " probability, distance, fpir, threshold, created_at, expires_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (number, token, collection_id, subject_id, *sighting.observed(), now, expires_at),
    )
    if sighting.crop is not None:
        crop = cipher.encrypt(sighting.crop, "crop", -number)
        db.execute("INSERT INTO sighting_crops VALUES (?, ?)", (number, crop))
    if recognised is not None:
        vector = cipher.encrypt(recognised.vector.astype("<f4").tobytes(), "vector", -number)
        face = (number, collection_id, recognised.pseudonym, vector)
        db.execute("INSERT INTO sighting_faces VALUES (?, ?, ?, ?)", face)
    return token


def recognise(db: apsw.Connection, collection: Collection, face: UnknownFace, now: float) -> RecognisedFace:
    """Return the face with the pseudonym of the most similar stored face, or a new one.

    Raises:
        InvalidError: see `unit_vectors`.
    """
    cipher, (vector,) = cipher_of(db, collection.id), unit_vectors(face.vector[None], collection.dimensions)
    rows: list[Row] = db.execute(
        "SELECT id, vector, pseudonym FROM sighting_faces JOIN sightings ON sightings.id = sighting_id"
        " WHERE sighting_faces.collection_id = ? AND expires_at > ? ORDER BY position",
        (collection.id, now),
    ).fetchall()
    stored = b"".join(cipher.decrypt(encrypted, "vector", -number) for number, encrypted, _ in rows)
    similarities = np.frombuffer(stored, "<f4").reshape(len(rows), collection.dimensions) @ vector
    nearest = (rows[int(similarities.argmax())][2], similarities.max()) if rows else None
    return named(vector, face, len(rows), nearest)


def forget_faces(db: apsw.Connection, collection_id: int) -> int:
    """Delete all pseudonyms and vectors of the collection's sightings, and return the number of vectors."""
    db.execute("DELETE FROM sighting_faces WHERE collection_id = ?", (collection_id,))
    return db.changes()


def find(db: apsw.Connection, token: str, now: float) -> tuple[int, Sighting]:
    """Return the id of its collection, and the sighting with this token.

    Raises:
        NotFoundError: also where it, or its subject, has expired at `now`.
    """
    row = db.execute(f"{_SIGHTING} AND token = :token", {"now": now, "token": token}).fetchone()
    if row is None:
        raise NotFoundError("there is no such sighting")
    return row[0], _sighting(cipher_of(db, row[0]), row)


def by_position(db: apsw.Connection, positions: Iterable[int], now: float) -> dict[int, Sighting]:
    """Return the sightings with these positions, by position, without those that have expired at `now`."""
    rows: list[Row] = db.execute(
        f"{_SIGHTING} AND position IN (SELECT value FROM json_each(:positions))",  # noqa: S608  constants
        {"now": now, "positions": json.dumps(list(positions))},
    ).fetchall()
    sightings = (_sighting(cipher_of(db, row[0]), row) for row in rows)
    return {sighting.position: sighting for sighting in sightings}


def page(
    db: apsw.Connection,
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
    cipher = cipher_of(db, collection_id)
    subject = None if where.subject is None else subject_records.find(db, collection_id, where.subject, now)
    values = where.values(None if subject is None else subject.id)
    conditions = [text for name, text in _CONDITIONS.items() if values[name] is not None]
    conditions.append("position < :after" if newest_first else "position > :after")
    if newest_first and not after:
        after = MAX_POSITION
    rows = db.execute(
        f"{_SIGHTING} AND sightings.collection_id = :collection_id AND {' AND '.join(conditions)}"
        f" ORDER BY position {'DESC' if newest_first else 'ASC'} LIMIT :limit",
        {**values, "collection_id": collection_id, "after": after, "limit": limit, "now": now},
    )
    return [_sighting(cipher, row) for row in rows]


def crop(db: apsw.Connection, token: str, now: float) -> bytes:
    """Return the encoded best shot of the sighting with this token.

    Raises:
        NotFoundError: there is no such sighting, or it has no best shot.
    """
    collection_id, sighting = find(db, token, now)
    stored = db.execute("SELECT data FROM sighting_crops WHERE sighting_id = ?", (sighting.id,)).get
    if stored is None:
        raise NotFoundError("the sighting has no best shot")
    return cipher_of(db, collection_id).decrypt(stored, "crop", -sighting.id)


def ids_of_token(db: apsw.Connection, token: str) -> tuple[int, int, int | None]:
    """Return the ids of its collection, of the sighting with this token, and of its subject, also if it has expired.

    Raises:
        NotFoundError.
    """
    row = db.execute("SELECT collection_id, id, subject_id FROM sightings WHERE token = ?", (token,)).fetchone()
    if row is None:
        raise NotFoundError("there is no such sighting")
    return row[0], row[1], row[2]


def expired_collections(db: apsw.Connection, now: float) -> list[int]:
    """Return the ids of the collections with sightings that have expired at `now`."""
    rows = db.execute("SELECT DISTINCT collection_id FROM sightings WHERE expires_at <= ?", (now,))
    return [row[0] for row in rows]


def delete_expired(db: apsw.Connection, collection_id: int, now: float, limit: int) -> list[int]:
    """Delete at most `limit` expired sightings of the collection, and return their ids."""
    rows: list[Row] = db.execute(
        "DELETE FROM sightings WHERE position IN (SELECT position FROM sightings"
        " WHERE collection_id = ? AND expires_at <= ? ORDER BY expires_at LIMIT ?) RETURNING id",
        (collection_id, now, limit),
    ).fetchall()
    return [row[0] for row in rows]


def settings(db: apsw.Connection, collection_id: int) -> SightingSettings:
    """Return the settings of the collection."""
    row = db.execute(
        "SELECT unknown_s, known_s, pseudonyms FROM sighting_settings WHERE collection_id = ?", (collection_id,)
    ).fetchone()
    return SightingSettings() if row is None else SightingSettings(row[0], row[1], bool(row[2]))


def put_settings(db: apsw.Connection, collection_id: int, settings: SightingSettings) -> None:
    """Replace the settings of the collection, and shorten the retention of its sightings where that is shorter."""
    db.execute(
        "INSERT INTO sighting_settings VALUES (?, ?, ?, ?) ON CONFLICT (collection_id) DO UPDATE SET"
        " unknown_s = excluded.unknown_s, known_s = excluded.known_s, pseudonyms = excluded.pseudonyms",
        (collection_id, settings.unknown_s, settings.known_s, settings.pseudonyms),
    )
    db.execute(
        "UPDATE sightings SET expires_at = kept.expires_at FROM (SELECT position, min(ended_at, created_at)"
        " + CASE WHEN subject_id IS NULL THEN ?2 ELSE ?3 END AS expires_at FROM sightings WHERE collection_id = ?1)"
        " AS kept WHERE kept.position = sightings.position AND kept.expires_at < sightings.expires_at",
        (collection_id, settings.unknown_s, settings.known_s),
    )

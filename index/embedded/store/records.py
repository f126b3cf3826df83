"""What the ledger holds, row by row: each function is one statement or a few, on a connection it is given.

Those that change something are called in a write of `index.embedded.store.ledger`. Times are seconds since 1970. What
is of an encrypted collection is sealed and unsealed here, so that its rows are the only ones that look otherwise.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import apsw
import numpy as np
import numpy.typing as npt

from index.embedded.encryption.aead import Cipher
from index.embedded.encryption.data_keys import cipher_of, ciphers, insert_key
from index.errors import ConflictError, CorruptError, NotFoundError
from index.unicode_forms import normalised, normalised_json, normalised_metadata
from index.validation import (
    check_key,
    check_moment,
    check_object,
    check_subject,
    parse_object,
    read_object,
    unit_vectors,
)

Row = tuple[Any, ...]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Collection:
    """Vectors of one pipeline: `fingerprint` names detector, alignment, preprocessing and weights of the `embedder`.

    `generation` is another number after each time that all its vectors were made anew
    (index/embedded/tasks/reembedding.py). `encrypted`: nothing of who is in it is written openly
    (index/embedded/encryption/aead.py).
    """

    id: int
    name: str
    embedder: str
    fingerprint: str
    dimensions: int
    settings: dict[str, Any]
    created_at: float
    generation: int = 0
    encrypted: bool = False


@dataclass(frozen=True)
class Subject:
    """Someone, or something, by the caller's own `key`."""

    id: int
    key: str
    name: str | None
    metadata: dict[str, Any]
    created_at: float
    expires_at: float | None


@dataclass(frozen=True)
class CountedSubject(Subject):
    """With how many faces there are."""

    faces: int


@dataclass(frozen=True)
class Face:
    """One enrolled picture; `token` is what the caller knows it by, `details` what was measured of it."""

    id: int
    token: str
    subject: str
    details: dict[str, Any]
    created_at: float


@dataclass(frozen=True)
class NewFace:
    """A vector [D] to enrol, which is scaled to length 1. `crop`, an encoded picture, is kept if there is one."""

    subject: str
    vector: Floats
    details: Mapping[str, Any] = field(default_factory=dict)
    crop: bytes | None = None


@dataclass(frozen=True)
class Receipt:
    """What was erased; `erased_at` is None while files still hold some of it."""

    token: str
    subjects: int
    faces: int
    requested_at: float
    erased_at: float | None


def token() -> str:
    """A name that nobody can guess and that says nothing."""
    return secrets.token_hex(16)


def insert_collection(db: apsw.Connection, made: Collection) -> Collection:
    """With an id of the ledger's, that of `made` does not count; and its name in Unicode form C.

    Raises:
        ConflictError: there is one of that name. LockedError: it is to be encrypted, and there is no operator's key.
        InvalidError: the name cannot stand in a URL, or its settings or time cannot be answered.
    """
    check_key(made.name, "collection")
    check_object(made.settings, "settings")
    check_moment(made.created_at, "created_at")
    name, settings = normalised(made.name), json.dumps(made.settings)
    if db.execute("SELECT 1 FROM collections WHERE name IN (?, ?)", (name, made.name)).get is not None:
        raise ConflictError(f"there is a collection {made.name!r} already")
    number = db.execute(
        "INSERT INTO collections (name, embedder, fingerprint, dimensions, settings, created_at, encrypted)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id",
        (name, made.embedder, made.fingerprint, made.dimensions, settings, made.created_at, made.encrypted),
    ).get
    if made.encrypted:
        insert_key(db, number)
    return Collection(**{**made.__dict__, "id": number, "name": name})


_COLLECTION = (
    "SELECT id, name, embedder, fingerprint, dimensions, settings, created_at, generation, encrypted FROM collections"
)


def _collection(row: Row) -> Collection:
    number, name, embedder, fingerprint, dimensions, settings, created_at, generation, encrypted = row
    kept = read_object(settings)
    return Collection(number, name, embedder, fingerprint, dimensions, kept, created_at, generation, bool(encrypted))


def collection(db: apsw.Connection, name: str) -> Collection:
    """The collection of exactly this name, or else of this name in Unicode form C.

    Raises:
        NotFoundError.
    """
    row: Row | None = db.execute(
        f"{_COLLECTION} WHERE name IN (?1, ?2) ORDER BY name != ?1 LIMIT 1", (name, normalised(name))
    ).fetchone()
    if row is None:
        raise NotFoundError(f"there is no collection {name!r}")
    return _collection(row)


def counts(db: apsw.Connection, collection_id: int) -> tuple[int, int]:
    """How many subjects and how many faces there are."""
    subjects, faces = db.execute("SELECT subjects, faces FROM collections WHERE id = ?", (collection_id,)).get
    return subjects, faces


def totals(db: apsw.Connection) -> tuple[int, int, int]:
    """How many collections, subjects and faces there are in all."""
    collections, subjects, faces = db.execute(
        "SELECT (SELECT count(*) FROM collections), (SELECT count(*) FROM subjects), (SELECT count(*) FROM faces)"
    ).get
    return collections, subjects, faces


def gallery_id(db: apsw.Connection) -> str:
    """What tells this gallery from all others; a backup of it has the same."""
    return str(db.execute("SELECT id FROM gallery").get)


def check_fingerprint(found: Collection, fingerprint: str | None) -> None:
    """See that vectors of this pipeline (None: whichever) can be compared with the collection's.

    Raises:
        ConflictError: they cannot.
    """
    if fingerprint not in (None, found.fingerprint):
        raise ConflictError(f"{found.name!r} holds vectors of {found.fingerprint}, not of {fingerprint}")


def check_current(db: apsw.Connection, known: Collection) -> None:
    """See that the collection is there, with the vectors that it had when it was read.

    Raises:
        ConflictError: it was dropped, or has others by now.
    """
    if db.execute("SELECT generation FROM collections WHERE id = ?", (known.id,)).get != known.generation:
        raise ConflictError(f"{known.name!r} was dropped, or embedded anew, meanwhile")


def exists(db: apsw.Connection, collection_id: int) -> bool:
    """Whether the collection was not dropped."""
    return db.execute("SELECT 1 FROM collections WHERE id = ?", (collection_id,)).get is not None


def collections(db: apsw.Connection, after: str, limit: int) -> list[Collection]:
    """In the order of names, those after `after`."""
    rows = db.execute(f"{_COLLECTION} WHERE name > ? ORDER BY name LIMIT ?", (after, limit))
    return [_collection(row) for row in rows]


_COLUMNS = (
    "subjects.collection_id, subjects.id, subjects.key, name, metadata, subjects.sealed, subjects.created_at,"
    " expires_at"
)
_SUBJECT = f"SELECT {_COLUMNS}, (SELECT count(*) FROM faces WHERE subject_id = subjects.id) FROM subjects"  # noqa: S608
# Faces first: a search has a few of them, and nothing is to be read but their rows and those of their subjects.
_OWNER = f"""
SELECT faces.id, token, {_COLUMNS} FROM (VALUES %s) AS wanted
CROSS JOIN faces ON faces.id = wanted.column1 CROSS JOIN subjects ON subjects.id = subject_id
"""  # noqa: S608
# Faces that one statement asks for; a list in JSON would take twice as long.
_OWNERS_AT_ONCE = 256


def _subject(cipher: Cipher, row: Row) -> CountedSubject:
    _, number, *who, created_at, expires_at, count = row
    key, name, metadata = _who(cipher, number, *who)
    return CountedSubject(number, key, name, read_object(metadata), created_at, expires_at, count)


def _who(
    cipher: Cipher, number: int, key: str, name: str | None, metadata: str, sealed: bytes | None
) -> tuple[str, str | None, str]:
    """The caller's key of a subject, its name, and its metadata, JSON."""
    if cipher.encrypted:
        key, name, metadata = json.loads(cipher.unseal(sealed, "subject", key, number))
    return key, name, metadata


def seal_subjects(db: apsw.Connection, cipher: Cipher, rows: Iterable[Row]) -> None:
    """Write what subjects of an encrypted collection are: of each its id, key, name and metadata, JSON."""
    values = [
        (cipher.seal(json.dumps((key, *what)).encode(), "subject", cipher.lookup(key), number), number)
        for number, key, *what in rows
    ]
    db.executemany("UPDATE subjects SET sealed = ? WHERE id = ?", values)


def current_key(db: apsw.Connection, cipher: Cipher, collection_id: int, key: str) -> str:
    """The key under which the ledger has, or would have, this subject: its Unicode form C.

    Exactly `key` only where a subject has that: one whose key could not be normalised
    (index/embedded/store/id_normalisation.py).
    """
    form_c = normalised(key)
    there = "SELECT 1 FROM subjects WHERE collection_id = ? AND key = ?"
    if form_c != key and db.execute(there, (collection_id, cipher.lookup(key))).get is not None:
        return key
    return form_c


def same_subjects(db: apsw.Connection, collection_id: int, key: str) -> list[int]:
    """Ids of the subjects whose keys are this one in Unicode form C: more than one where a key could not be normalised.

    Raises:
        NotFoundError: there is none.
    """
    found = cipher_of(db, collection_id).lookup(normalised(key))
    rows = db.execute(
        "SELECT id FROM subjects WHERE collection_id = ?1 AND key = ?2"
        " UNION SELECT subject_id FROM clashes WHERE collection_id = ?1 AND key = ?2",
        (collection_id, found),
    )
    ids = [row[0] for row in rows]
    if not ids:
        raise NotFoundError(f"there is no subject {key!r}")
    return ids


def subject(db: apsw.Connection, collection_id: int, key: str, now: float | None = None) -> CountedSubject:
    """The subject; see `current_key`.

    Raises:
        NotFoundError: also where its time is over at `now` (None: whether or not it is over).
    """
    cipher = cipher_of(db, collection_id)
    row = db.execute(
        f"{_SUBJECT} WHERE collection_id = ? AND subjects.key = ?",
        (collection_id, cipher.lookup(current_key(db, cipher, collection_id, key))),
    ).fetchone()
    found = None if row is None else _subject(cipher, row)
    if found is None or (now is not None and found.expires_at is not None and found.expires_at <= now):
        raise NotFoundError(f"there is no subject {key!r}")
    return found


def subjects(
    db: apsw.Connection, collection_id: int, after: str, limit: int, now: float | None = None
) -> list[CountedSubject]:
    """In the order of keys, those after `after`; of an encrypted collection in an order that means nothing.

    Without those whose time is over at `now` (None: with them).
    """
    cipher = cipher_of(db, collection_id)
    rows = db.execute(
        f"{_SUBJECT} WHERE collection_id = ? AND subjects.key > ?"
        " AND (?3 IS NULL OR expires_at IS NULL OR expires_at > ?3) ORDER BY subjects.key LIMIT ?4",
        (collection_id, after and cipher.lookup(after), now, limit),
    )
    return [_subject(cipher, row) for row in rows]


def lapsed(db: apsw.Connection, collection_id: int, keys: Iterable[str], now: float) -> list[int]:
    """Ids of those of the subjects whose time is over."""
    cipher = cipher_of(db, collection_id)
    wanted = [cipher.lookup(current_key(db, cipher, collection_id, key)) for key in keys]
    rows: list[Row] = db.execute(
        "SELECT id FROM subjects WHERE collection_id = ? AND expires_at <= ?"
        " AND key IN (SELECT value FROM json_each(?)) ORDER BY id",
        (collection_id, now, json.dumps(wanted)),
    ).fetchall()
    return [row[0] for row in rows]


def is_unscaled(db: apsw.Connection, collection_id: int) -> bool:
    """Whether the collection may have vectors, from an older version, whose length is not 1."""
    return bool(db.execute("SELECT unscaled FROM collections WHERE id = ?", (collection_id,)).get)


def set_scaled(db: apsw.Connection, collection_id: int) -> None:
    """Note that all vectors of the collection have length 1."""
    db.execute("UPDATE collections SET unscaled = 0 WHERE id = ?", (collection_id,))


def replace_vectors(db: apsw.Connection, known: Collection, made: Mapping[int, Floats]) -> list[int]:
    """Put these vectors in place of those that the faces have, which are erased from all files; ids of the faces."""
    cipher = cipher_of(db, known.id)
    rows = [
        (cipher.seal(vector_bytes(vector, known.dimensions), "vector", face), face) for face, vector in made.items()
    ]
    db.executemany("UPDATE vectors SET data = ? WHERE face_id = ?", rows)
    db.execute("UPDATE collections SET generation = generation + 1 WHERE id = ?", (known.id,))
    db.execute("DELETE FROM segments WHERE collection_id = ?", (known.id,))
    drop_index(db, known.id)
    return list(made)


def subjects_by_id(db: apsw.Connection, ids: Iterable[int]) -> dict[int, Subject]:
    """Those of the ids that there are."""
    of = ciphers(db)
    rows = db.execute(f"{_SUBJECT} JOIN json_each(?) ON value = subjects.id", (json.dumps(list(ids)),))
    return {row[1]: _subject(of(row[0]), row) for row in rows}


def metadata_of(
    db: apsw.Connection, cipher: Cipher, collection_id: int, ids: Iterable[int] | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The metadata of these subjects of the collection, or of all; ids ascending."""
    among = "" if ids is None else " AND id IN (SELECT value FROM json_each(?))"
    rows = db.execute(
        f"SELECT id, key, name, metadata, sealed FROM subjects WHERE collection_id = ?{among} ORDER BY id",  # noqa: S608
        (collection_id,) if ids is None else (collection_id, json.dumps(list(ids))),
    )
    return ((number, read_object(_who(cipher, number, *who)[2])) for number, *who in rows)


def readable_subjects(
    db: apsw.Connection, cipher: Cipher, collection_id: int
) -> Iterator[tuple[int, str, str | None, str]]:
    """Id, key, name and metadata (JSON) of each subject but those that cannot be unsealed; ids ascending."""
    rows = db.execute(
        "SELECT id, key, name, metadata, sealed FROM subjects WHERE collection_id = ? ORDER BY id", (collection_id,)
    )
    for number, *who in rows:
        with suppress(CorruptError):
            yield number, *_who(cipher, number, *who)


def upsert_subject(
    db: apsw.Connection,
    collection_id: int,
    key: str,
    *,
    name: str | None,
    metadata: Mapping[str, Any],
    expires_at: float | None,
    now: float,
) -> CountedSubject:
    """Make the subject, or give it these properties in place of those it had; see `current_key`.

    Raises:
        InvalidError: see `check_subject`.
    """
    check_subject(key, name, metadata, expires_at)
    cipher = cipher_of(db, collection_id)
    key, metadata = current_key(db, cipher, collection_id, key), normalised_metadata(metadata)
    openly = (None, "{}") if cipher.encrypted else (name, json.dumps(metadata))
    number = db.execute(
        "INSERT INTO subjects (collection_id, key, name, metadata, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (collection_id, key) DO UPDATE"
        " SET name = excluded.name, metadata = excluded.metadata, expires_at = excluded.expires_at RETURNING id",
        (collection_id, cipher.lookup(key), *openly, now, expires_at),
    ).get
    if cipher.encrypted:
        seal_subjects(db, cipher, [(number, key, name, json.dumps(metadata))])
    return subject(db, collection_id, key)


def faces(db: apsw.Connection, subject_id: int, after: int = 0, limit: int = -1) -> list[Face]:
    """The subject's faces in the order they were enrolled, those with ids above `after`; all if `limit` is -1."""
    found: list[Row] = db.execute(
        "SELECT collection_id, id, token, details, sealed, created_at FROM faces WHERE subject_id = ? AND id > ?"
        " ORDER BY id LIMIT ?",
        (subject_id, after, limit),
    ).fetchall()
    if not found:
        return []
    cipher, key = cipher_of(db, found[0][0]), subjects_by_id(db, [subject_id])[subject_id].key
    return [
        Face(number, name, key, read_object(unsealed_details(cipher, name, details, sealed)), made)
        for _, number, name, details, sealed, made in found
    ]


def sealed_details(cipher: Cipher, face: str, details: str) -> tuple[str, bytes | None]:
    """What was measured of the face of this token, JSON, for the two columns that it may lie in."""
    if cipher.encrypted and details != "{}":
        return "{}", cipher.seal(details.encode(), "details", face)
    return details, None


def unsealed_details(cipher: Cipher, face: str, details: str, sealed: bytes | None) -> str:
    """What `sealed_details` put there."""
    return details if sealed is None else cipher.unseal(sealed, "details", face).decode()


def owners(db: apsw.Connection, faces: Sequence[int]) -> dict[int, tuple[str, Subject]]:
    """The token and the subject of those of the faces that there are."""
    found, of = {}, ciphers(db)
    for start in range(0, len(faces), _OWNERS_AT_ONCE):
        some = faces[start : start + _OWNERS_AT_ONCE]
        for face, token, collection_id, number, *who, made, until in db.execute(
            _OWNER % ",".join(["(?)"] * len(some)), some
        ):
            key, name, metadata = _who(of(collection_id), number, *who)
            found[face] = token, Subject(number, key, name, read_object(metadata), made, until)
    return found


def crop(db: apsw.Connection, collection_id: int, face_token: str) -> bytes:
    """The encoded picture that was kept of a face.

    Raises:
        NotFoundError: no such face, or no picture of it.
    """
    row = db.execute(
        "SELECT face_id, data FROM crops JOIN faces ON faces.id = face_id WHERE collection_id = ? AND token = ?",
        (collection_id, face_token),
    ).fetchone()
    if row is None:
        raise NotFoundError("there is no crop of that face")
    return cipher_of(db, collection_id).unseal(row[1], "crop", row[0])


def vectors_of_subjects(db: apsw.Connection, ids: Iterable[int], dimensions: int) -> dict[int, Floats]:
    """All vectors of each subject, [faces, D]."""
    found: dict[int, list[Floats]] = {}
    of = ciphers(db)
    rows = db.execute(
        "SELECT collection_id, subject_id, faces.id, data FROM faces JOIN vectors ON face_id = faces.id"
        " WHERE subject_id IN (SELECT value FROM json_each(?)) ORDER BY faces.id",
        (json.dumps(list(ids)),),
    )
    for collection_id, subject_id, face_id, data in rows:
        vector = of(collection_id).unseal(data, "vector", face_id)
        found.setdefault(subject_id, []).append(np.frombuffer(vector, "<f4", dimensions))
    return {subject_id: np.stack(vectors) for subject_id, vectors in found.items()}


def faces_of(db: apsw.Connection, collection_id: int, tokens: Sequence[str]) -> list[int]:
    """Ids of the faces with these tokens.

    Raises:
        NotFoundError: there is none of that token in the collection.
    """
    # The plus keeps SQLite from going through the whole collection instead of the index of tokens.
    found: list[Row] = db.execute(
        "SELECT id FROM faces WHERE token IN (SELECT value FROM json_each(?)) AND +collection_id = ? ORDER BY id",
        (json.dumps(list(tokens)), collection_id),
    ).fetchall()
    if len(found) != len(set(tokens)):
        raise NotFoundError("there is no such face")
    return [row[0] for row in found]


def remove_faces(db: apsw.Connection, collection_id: int, ids: Sequence[int], *, subjects: int, now: float) -> Receipt:
    """Delete these faces of the collection, and note it for other processes. `subjects` is for the receipt."""
    db.execute("DELETE FROM faces WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(ids),))
    db.executemany("INSERT INTO removals (collection_id, face_id) VALUES (?, ?)", [(collection_id, id_) for id_ in ids])
    through = last_removal(db)
    made = Receipt(token(), subjects, len(ids), now, None)
    db.execute(
        "INSERT INTO receipts VALUES (?, ?, ?, ?, ?, ?, NULL)",
        (made.token, collection_id, subjects, made.faces, through, now),
    )
    return made


def faces_of_subject(db: apsw.Connection, subject_id: int) -> list[int]:
    """Ids of the subject's faces, ascending."""
    return [row[0] for row in db.execute("SELECT id FROM faces WHERE subject_id = ? ORDER BY id", (subject_id,))]


def remove_subjects(db: apsw.Connection, collection_id: int, subject_ids: Sequence[int], now: float) -> Receipt:
    """Delete the subjects and all their faces."""
    faces = [face for subject_id in subject_ids for face in faces_of_subject(db, subject_id)]
    made = remove_faces(db, collection_id, faces, subjects=len(subject_ids), now=now)
    for subject_id in subject_ids:
        db.execute("DELETE FROM subjects WHERE id = ?", (subject_id,))
        _note(db, collection_id, subject_id)
    return made


def remove_collection(db: apsw.Connection, found: Collection, now: float) -> Receipt:
    """Delete the collection and all that is in it."""
    made = Receipt(token(), *counts(db, found.id), now, None)
    db.execute("DELETE FROM collections WHERE id = ?", (found.id,))
    db.execute("DELETE FROM removals WHERE collection_id = ?", (found.id,))
    _note(db, found.id)
    db.execute(
        "INSERT INTO receipts VALUES (?, ?, ?, ?, 0, ?, NULL)", (made.token, found.id, made.subjects, made.faces, now)
    )
    return made


def _note(db: apsw.Connection, collection_id: int, subject_id: int = 0) -> None:
    """The removal of a whole subject, or of a whole collection."""
    db.execute(
        "INSERT INTO removals (collection_id, subject_id, face_id) VALUES (?, ?, 0)", (collection_id, subject_id)
    )


def receipt(db: apsw.Connection, name: str) -> Receipt:
    """The receipt.

    Raises:
        NotFoundError.
    """
    row = db.execute(
        "SELECT token, subjects, faces, requested_at, erased_at FROM receipts WHERE token = ?", (name,)
    ).fetchone()
    if row is None:
        raise NotFoundError("there is no such receipt")
    return Receipt(*row)


@dataclass(frozen=True)
class Rows:
    """Faces as an index wants them: ids [N] ascending, subjects' ids [N], vectors [N, D]."""

    faces: Ints
    subjects: Ints
    vectors: Floats


def rows_after(
    db: apsw.Connection, collection_id: int, dimensions: int, after: int, limit: int = -1, through: int | None = None
) -> Rows:
    """The collection's faces whose id is greater than `after` (and at most `through`), at most `limit` of them."""
    found, cipher = list(_rows(db, collection_id, after, limit, through)), cipher_of(db, collection_id)
    count = len(found)
    data = b"".join(cipher.unseal(row[2], "vector", row[0]) for row in found)
    vectors = np.frombuffer(data, "<f4").reshape(count, dimensions)
    ids = np.fromiter((row[0] for row in found), np.int64, count)
    return Rows(ids, np.fromiter((row[1] for row in found), np.int64, count), vectors)


def _rows(
    db: apsw.Connection, collection_id: int, after: int, limit: int, through: int | None
) -> Iterator[tuple[int, int, bytes]]:
    return db.execute(
        "SELECT faces.id, subject_id, data FROM faces JOIN vectors ON face_id = faces.id"
        " WHERE collection_id = ? AND faces.id > ? AND faces.id <= ? ORDER BY faces.id LIMIT ?",
        (collection_id, after, 2**63 - 1 if through is None else through, limit),
    )


def has_rows_after(db: apsw.Connection, collection_id: int, after: int, count: int) -> bool:
    """Whether there are `count` faces whose id is greater than `after`, which is faster than to read their vectors."""
    found = "SELECT 1 FROM faces WHERE collection_id = ? AND id > ? ORDER BY id LIMIT 1 OFFSET ?"
    return db.execute(found, (collection_id, after, count - 1)).get is not None


def removals_after(db: apsw.Connection, collection_id: int, after: int) -> tuple[Ints, int]:
    """Ids of faces removed since, and the number of the last removal."""
    rows: list[Row] = db.execute(
        "SELECT face_id, seq FROM removals WHERE collection_id = ? AND seq > ? AND face_id != 0 ORDER BY seq",
        (collection_id, after),
    ).fetchall()
    return np.array([row[0] for row in rows], np.int64), rows[-1][1] if rows else after


def last_removal(db: apsw.Connection) -> int:
    """The number of the last removal of all."""
    return int(db.execute("SELECT coalesce(max(seq), 0) FROM removals").get)


@dataclass(frozen=True)
class Removal:
    """What was erased: a face; where `face_id` is 0 a whole subject; where both are 0 a whole collection."""

    seq: int
    collection_id: int
    subject_id: int
    face_id: int


def removals(db: apsw.Connection, after: int, through: int = 2**63 - 1, limit: int = -1) -> list[Removal]:
    """Those of all collections whose numbers are greater than `after` and at most `through`, in their order."""
    rows = db.execute(
        "SELECT seq, collection_id, subject_id, face_id FROM removals WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
        (after, through, limit),
    )
    return [Removal(*row) for row in rows]


def is_there(db: apsw.Connection, removal: Removal) -> bool:
    """Whether what was to be removed is in the ledger."""
    if removal.face_id:
        return db.execute("SELECT 1 FROM faces WHERE id = ?", (removal.face_id,)).get is not None
    if removal.subject_id:
        return db.execute("SELECT 1 FROM subjects WHERE id = ?", (removal.subject_id,)).get is not None
    return exists(db, removal.collection_id)


def replay(db: apsw.Connection, removal: Removal) -> None:
    """Erase what was erased before, if it is there."""
    db.execute(
        "INSERT OR IGNORE INTO removals (seq, collection_id, subject_id, face_id) VALUES (?, ?, ?, ?)",
        (removal.seq, removal.collection_id, removal.subject_id, removal.face_id),
    )
    if removal.face_id:
        db.execute("DELETE FROM faces WHERE id = ?", (removal.face_id,))
    elif removal.subject_id:
        db.execute("DELETE FROM subjects WHERE id = ?", (removal.subject_id,))
    else:
        db.execute("DELETE FROM collections WHERE id = ?", (removal.collection_id,))


def skip_ids(db: apsw.Connection, gap: Callable[[], int]) -> None:
    """Let the next ids be greater than all there were, those removed among them, by more than the next `gap`."""
    greatest = db.execute(
        "SELECT coalesce(max(collection_id), 0), coalesce(max(subject_id), 0), coalesce(max(face_id), 0),"
        " coalesce(max(seq), 0) FROM removals"
    ).get
    for table, removed in zip(("collections", "subjects", "faces", "removals"), greatest, strict=True):
        given = db.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?", (table,)).get
        db.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
        db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, max(removed, given) + gap()))


def forget_files(db: apsw.Connection) -> None:
    """No segment and no inverted file is there any more, and nobody works on them."""
    db.execute("DELETE FROM segments; DELETE FROM indexes; DELETE FROM leases")


@dataclass(frozen=True)
class WholeFace:
    """A face with all that is known of it and of its subject. Metadata and details are JSON, the vector float32."""

    id: int
    subject: str
    name: str | None
    metadata: str
    expires_at: float | None
    token: str
    details: str
    created_at: float
    vector: bytes
    crop: bytes | None


def whole_faces(
    db: apsw.Connection, collection_id: int, after: int, through: int, limit: int, now: float
) -> list[WholeFace]:
    """At most `limit` faces, whose ids are greater than `after` and at most `through`; not who has expired."""
    rows = db.execute(
        f"SELECT {_COLUMNS}, faces.id, token, details, faces.sealed, faces.created_at, vectors.data, crops.data"  # noqa: S608
        " FROM faces JOIN subjects ON subjects.id = subject_id JOIN vectors ON vectors.face_id = faces.id"
        " LEFT JOIN crops ON crops.face_id = faces.id"
        " WHERE faces.collection_id = ? AND faces.id > ? AND faces.id <= ? AND (expires_at IS NULL OR expires_at > ?)"
        " ORDER BY faces.id LIMIT ?",
        (collection_id, after, through, now, limit),
    )
    cipher = cipher_of(db, collection_id)
    return [_whole_face(cipher, row) for row in rows]


def _whole_face(cipher: Cipher, row: Row) -> WholeFace:
    _, subject_id, *who, _, expires_at, number, name, details, sealed, created_at, vector, crop = row
    key, called, metadata = _who(cipher, subject_id, *who)
    return WholeFace(
        number,
        key,
        called,
        metadata,
        expires_at,
        name,
        unsealed_details(cipher, name, details, sealed),
        created_at,
        cipher.unseal(vector, "vector", number),
        None if crop is None else cipher.unseal(crop, "crop", number),
    )


def put_whole_face(db: apsw.Connection, collection_id: int, face: WholeFace) -> bool:
    """Enrol the face under its token; False where it is enrolled already. A subject that is there stays as it is.

    Raises:
        ConflictError: the token is that of another face. InvalidError: see `checked_face`.
    """
    dimensions = db.execute("SELECT dimensions FROM collections WHERE id = ?", (collection_id,)).get
    face, cipher = checked_face(face, dimensions), cipher_of(db, collection_id)
    face = replace(face, subject=current_key(db, cipher, collection_id, face.subject))
    there: Row | None = db.execute(
        "SELECT faces.collection_id, key, faces.id, data FROM faces JOIN subjects ON subjects.id = subject_id"
        " JOIN vectors ON face_id = faces.id WHERE token = ?",
        (face.token,),
    ).fetchone()
    if there is not None:
        *where, number, vector = there
        if where != [collection_id, cipher.lookup(face.subject)] or (
            cipher.unseal(vector, "vector", number) != face.vector
        ):
            raise ConflictError(f"face {face.token} is enrolled with another collection, subject or vector")
        return False
    subject_id = _whole_subject(db, cipher, collection_id, face)
    details = sealed_details(cipher, face.token, face.details)
    face_id = db.execute(
        "INSERT INTO faces (collection_id, subject_id, token, details, sealed, created_at) VALUES (?, ?, ?, ?, ?, ?)"
        " RETURNING id",
        (collection_id, subject_id, face.token, *details, face.created_at),
    ).get
    db.execute("INSERT INTO vectors VALUES (?, ?)", (face_id, cipher.seal(face.vector, "vector", face_id)))
    if face.crop is not None:
        db.execute("INSERT INTO crops VALUES (?, ?)", (face_id, cipher.seal(face.crop, "crop", face_id)))
    db.execute("UPDATE collections SET faces = faces + 1 WHERE id = ?", (collection_id,))
    return True


def checked_face(face: WholeFace, dimensions: int) -> WholeFace:
    """The face with its vector scaled to length 1, if it can be enrolled.

    Raises:
        InvalidError: see `unit_vectors`, `check_subject`, `check_object` and `check_moment`.
    """
    check_subject(face.subject, face.name, parse_object(face.metadata, "metadata"), face.expires_at)
    parse_object(face.details, "details")
    check_moment(face.created_at, "created_at")
    return replace(face, vector=vector_bytes(np.frombuffer(face.vector, "<f4"), dimensions))


def vector_bytes(vector: npt.ArrayLike, dimensions: int) -> bytes:
    """A vector [D] as the ledger stores it: scaled to length 1, little-endian float32.

    Raises:
        InvalidError: see `unit_vectors`.
    """
    return unit_vectors(np.asarray(vector)[None], dimensions).astype("<f4").tobytes()


def _whole_subject(db: apsw.Connection, cipher: Cipher, collection_id: int, face: WholeFace) -> int:
    """The face's subject, made unless it is there; its id."""
    metadata = normalised_json(face.metadata)
    openly = (None, "{}") if cipher.encrypted else (face.name, metadata)
    key = cipher.lookup(face.subject)
    db.execute(
        "INSERT INTO subjects (collection_id, key, name, metadata, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        (collection_id, key, *openly, face.created_at, face.expires_at),
    )
    number, sealed = db.execute(
        "SELECT id, sealed FROM subjects WHERE collection_id = ? AND key = ?", (collection_id, key)
    ).get
    if cipher.encrypted and sealed is None:
        seal_subjects(db, cipher, [(number, face.subject, face.name, metadata)])
    return int(number)


def face_ids(db: apsw.Connection, collection_id: int, through: int) -> Ints:
    """Ids of the collection's faces up to `through`, ascending."""
    rows = db.execute("SELECT id FROM faces WHERE collection_id = ? AND id <= ? ORDER BY id", (collection_id, through))
    return np.fromiter((row[0] for row in rows), np.int64)


def faces_without_vector(db: apsw.Connection, collection_id: int, size: int) -> int:
    """How many of the collection's faces have no vector of `size` bytes."""
    return int(
        db.execute(
            "SELECT count(*) FROM faces LEFT JOIN vectors ON face_id = id"
            " WHERE collection_id = ? AND length(data) IS NOT ?",
            (collection_id, size),
        ).get
    )


def faces_of_strangers(db: apsw.Connection) -> int:
    """How many faces are in another collection than their subject."""
    return int(
        db.execute(
            "SELECT count(*) FROM faces JOIN subjects ON subjects.id = subject_id"
            " WHERE faces.collection_id != subjects.collection_id"
        ).get
    )


def miscounted(db: apsw.Connection) -> int:
    """How many collections say another number of subjects or faces than they have."""
    return int(
        db.execute(
            "SELECT count(*) FROM collections AS it"
            " WHERE subjects != (SELECT count(*) FROM subjects WHERE collection_id = it.id)"
            " OR faces != (SELECT count(*) FROM faces WHERE collection_id = it.id)"
        ).get
    )


def rows_without_json(db: apsw.Connection) -> dict[str, int]:
    """How many rows of a table have something else than JSON where that should be; of those that have any."""
    rows = db.execute(
        "SELECT 'collections', count(*) FROM collections WHERE NOT json_valid(settings)"
        " UNION ALL SELECT 'subjects', count(*) FROM subjects WHERE NOT json_valid(metadata)"
        " UNION ALL SELECT 'faces', count(*) FROM faces WHERE NOT json_valid(details)"
    )
    return {table: count for table, count in rows if count}


def last_face(db: apsw.Connection, collection_id: int) -> int:
    """The greatest id of the collection's faces."""
    return int(db.execute("SELECT coalesce(max(id), 0) FROM faces WHERE collection_id = ?", (collection_id,)).get)


@dataclass(frozen=True)
class Sealed:
    """A segment's file, and the ids it is about: all of the collection's from `first_face` to `last_face`."""

    file: str
    first_face: int
    last_face: int
    removals_through: int


def segments(db: apsw.Connection, collection_id: int) -> list[Sealed]:
    """The collection's, in the order of ids."""
    columns = "SELECT file, first_face, last_face, removals_through FROM segments"
    rows = db.execute(f"{columns} WHERE collection_id = ? ORDER BY first_face", (collection_id,))
    return [Sealed(*row) for row in rows]


def put_segment(db: apsw.Connection, collection_id: int, new: Sealed, old: str | None = None) -> None:
    """A new one, in place of the `old` file if there is one."""
    db.execute("DELETE FROM segments WHERE file = ?", (old,))
    db.execute(
        "INSERT INTO segments (file, collection_id, first_face, last_face, removals_through) VALUES (?, ?, ?, ?, ?)",
        (new.file, collection_id, new.first_face, new.last_face, new.removals_through),
    )


def seen_through(db: apsw.Connection, collection_id: int, files: Sequence[str], through: int) -> None:
    """These files hold nothing of what was removed up to `through`."""
    values = [(through, collection_id, file) for file in files]
    sets = "SET removals_through = max(removals_through, ?) WHERE collection_id = ? AND file = ?"
    db.executemany(f"UPDATE segments {sets}", values)
    db.executemany(f"UPDATE indexes {sets}", values)


@dataclass(frozen=True)
class Indexed:
    """An inverted file: what it has is in the segments up to `last_face`. It was trained for `trained_rows`."""

    file: str
    last_face: int
    removals_through: int
    trained_rows: int


def index(db: apsw.Connection, collection_id: int) -> Indexed | None:
    """The collection's inverted file, if it has one."""
    row: Row | None = db.execute(
        "SELECT file, last_face, removals_through, trained_rows FROM indexes WHERE collection_id = ?", (collection_id,)
    ).fetchone()
    return Indexed(*row) if row else None


def put_index(db: apsw.Connection, collection_id: int, new: Indexed) -> None:
    """In place of the one there was."""
    db.execute(
        "INSERT OR REPLACE INTO indexes (collection_id, file, last_face, removals_through, trained_rows)"
        " VALUES (?, ?, ?, ?, ?)",
        (collection_id, new.file, new.last_face, new.removals_through, new.trained_rows),
    )


def drop_index(db: apsw.Connection, collection_id: int) -> None:
    """Every face is compared from now on."""
    db.execute("DELETE FROM indexes WHERE collection_id = ?", (collection_id,))


def files(db: apsw.Connection) -> set[str]:
    """Every file that the ledger knows."""
    return {row[0] for row in db.execute("SELECT file FROM segments UNION ALL SELECT file FROM indexes")}


def unscrubbed(db: apsw.Connection) -> list[tuple[str, int, int]]:
    """Receipts of what may lie in files still: (token, collection's id, the removal it goes up to)."""
    return [
        (row[0], row[1], row[2])
        for row in db.execute("SELECT token, collection_id, removals_through FROM receipts WHERE erased_at IS NULL")
    ]


def erased(db: apsw.Connection, tokens: Sequence[str], now: float) -> None:
    """These are done."""
    db.executemany("UPDATE receipts SET erased_at = ? WHERE token = ?", [(now, name) for name in tokens])


def expired(db: apsw.Connection, now: float, limit: int) -> list[tuple[int, int]]:
    """Subjects whose time is over: each one's collection's id, and its own."""
    rows = db.execute(
        "SELECT collection_id, id FROM subjects WHERE expires_at <= ? ORDER BY expires_at LIMIT ?", (now, limit)
    )
    return [(row[0], row[1]) for row in rows]


def take_lease(db: apsw.Connection, name: str, holder: str, now: float, seconds: float) -> bool:
    """Get the lease or keep it; False while another holds it.

    A lease that ends later than a new one would was taken while the clock was ahead, and counts as lapsed.
    """
    db.execute(
        "INSERT INTO leases VALUES (?1, ?2, ?3) ON CONFLICT (name) DO UPDATE"
        " SET holder = excluded.holder, expires_at = excluded.expires_at"
        " WHERE holder = excluded.holder OR expires_at <= ?4 OR expires_at > ?3",
        (name, holder, now + seconds, now),
    )
    return bool(db.execute("SELECT holder = ? FROM leases WHERE name = ?", (holder, name)).get)


def is_leased(db: apsw.Connection, name: str, now: float, seconds: float) -> bool:
    """Whether somebody holds the lease, which lasts `seconds` from each renewal; see `take_lease`."""
    held = "SELECT 1 FROM leases WHERE name = ? AND expires_at > ? AND expires_at <= ?"
    return db.execute(held, (name, now, now + seconds)).get is not None


def drop_lease(db: apsw.Connection, name: str, holder: str) -> None:
    """Let another have it."""
    db.execute("DELETE FROM leases WHERE name = ? AND holder = ?", (name, holder))

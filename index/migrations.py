"""The ledger's schema, as the numbered steps that lead to it. A step that was released is never changed.

Ids are never used again (AUTOINCREMENT): what another process knows as deleted cannot come back as something else.
`faces.id` rises in the order of commits, since writers take turns, so that what is new is what is greater.
"""

from __future__ import annotations

STEPS: tuple[str, ...] = (
    """
    CREATE TABLE collections (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        embedder TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        dimensions INTEGER NOT NULL CHECK (dimensions > 0),
        settings TEXT NOT NULL,
        generation INTEGER NOT NULL DEFAULT 0,
        created_at REAL NOT NULL
    ) STRICT;
    CREATE TABLE subjects (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        collection_id INTEGER NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        key TEXT NOT NULL,
        name TEXT,
        metadata TEXT NOT NULL,
        created_at REAL NOT NULL,
        expires_at REAL,
        UNIQUE (collection_id, key)
    ) STRICT;
    CREATE INDEX subjects_by_expiry ON subjects (expires_at) WHERE expires_at IS NOT NULL;
    CREATE TABLE faces (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        collection_id INTEGER NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        subject_id INTEGER NOT NULL REFERENCES subjects (id) ON DELETE CASCADE,
        token TEXT NOT NULL UNIQUE,
        details TEXT NOT NULL,
        created_at REAL NOT NULL
    ) STRICT;
    CREATE INDEX faces_by_collection ON faces (collection_id, id);
    CREATE INDEX faces_by_subject ON faces (subject_id, id);
    CREATE TABLE vectors (
        face_id INTEGER PRIMARY KEY REFERENCES faces (id) ON DELETE CASCADE,
        data BLOB NOT NULL
    ) STRICT;
    CREATE TABLE crops (
        face_id INTEGER PRIMARY KEY REFERENCES faces (id) ON DELETE CASCADE,
        data BLOB NOT NULL
    ) STRICT;
    CREATE TABLE removals (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        collection_id INTEGER NOT NULL,
        face_id INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX removals_by_collection ON removals (collection_id, seq);
    CREATE TABLE segments (
        file TEXT PRIMARY KEY,
        collection_id INTEGER NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        first_face INTEGER NOT NULL,
        last_face INTEGER NOT NULL,
        removals_through INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE indexes (
        collection_id INTEGER PRIMARY KEY REFERENCES collections (id) ON DELETE CASCADE,
        file TEXT NOT NULL,
        last_face INTEGER NOT NULL,
        removals_through INTEGER NOT NULL,
        trained_rows INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE receipts (
        token TEXT PRIMARY KEY,
        collection_id INTEGER NOT NULL,
        subjects INTEGER NOT NULL,
        faces INTEGER NOT NULL,
        removals_through INTEGER NOT NULL,
        requested_at REAL NOT NULL,
        erased_at REAL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE leases (
        name TEXT PRIMARY KEY,
        holder TEXT NOT NULL,
        expires_at REAL NOT NULL
    ) STRICT, WITHOUT ROWID;
    """,
    # Removals are of faces, or of a whole subject (no face), or of a whole collection (neither), so that each can be
    # told to a ledger that comes back from a backup; the gallery's id says whose removals they are.
    """
    ALTER TABLE removals ADD COLUMN subject_id INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE gallery (id TEXT NOT NULL) STRICT;
    INSERT INTO gallery VALUES (lower(hex(randomblob(16))));
    """,
)

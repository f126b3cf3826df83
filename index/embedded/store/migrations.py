"""The ledger's schema, as the numbered steps that lead to it. A step that was released is never changed.

Ids are never used again (AUTOINCREMENT): what another process knows as deleted cannot come back as something else.
`faces.id` rises in the order of commits, since writers take turns, so that what is new is what is greater.
"""

from __future__ import annotations

# What was done and is not in the audit log yet, and how far that goes (index/embedded/audit/log.py): its last line, of
# which `start` is the place.
AUDITED = """
    CREATE TABLE acts (seq INTEGER PRIMARY KEY, act TEXT NOT NULL) STRICT;
    CREATE TABLE audit (sequence INTEGER NOT NULL, hash TEXT NOT NULL, start INTEGER) STRICT;
    """

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
    # Bulk jobs, with what is still to be enrolled. An item that is done, or whose subject was erased meanwhile, keeps
    # nothing of what was sent.
    """
    CREATE TABLE jobs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        collection_id INTEGER NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        token TEXT NOT NULL UNIQUE,
        state TEXT NOT NULL,
        settings TEXT NOT NULL,
        created_at REAL NOT NULL,
        finished_at REAL,
        problem TEXT
    ) STRICT;
    CREATE INDEX jobs_by_collection ON jobs (collection_id, id);
    CREATE TABLE job_items (
        job_id INTEGER NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        status TEXT NOT NULL,
        result TEXT,
        subject TEXT,
        properties TEXT,
        kind TEXT,
        data BLOB,
        PRIMARY KEY (job_id, number)
    ) STRICT;
    CREATE INDEX job_items_by_status ON job_items (job_id, status, number);
    CREATE INDEX job_items_by_subject ON job_items (subject) WHERE subject IS NOT NULL;
    CREATE TRIGGER subjects_leave_jobs AFTER DELETE ON subjects BEGIN
        UPDATE job_items SET status = 'erased', subject = NULL, properties = NULL, kind = NULL, data = NULL
        WHERE subject = old.key AND job_id IN (SELECT id FROM jobs WHERE collection_id = old.collection_id);
    END;
    CREATE TRIGGER jobs_leave_leases AFTER DELETE ON jobs BEGIN
        DELETE FROM leases WHERE name = 'job:' || old.token;
    END;
    """,
    AUDITED,
    # Values in subjects' metadata, to choose subjects by: each a text, a number or a boolean (1 or 0).
    """
    CREATE TABLE subject_values (
        collection_id INTEGER NOT NULL,
        key TEXT NOT NULL,
        kind TEXT NOT NULL,
        value ANY NOT NULL,
        subject_id INTEGER NOT NULL REFERENCES subjects (id) ON DELETE CASCADE,
        PRIMARY KEY (collection_id, key, kind, value, subject_id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX subject_values_by_subject ON subject_values (subject_id);
    CREATE VIEW metadata_values AS
        SELECT collection_id, json.key AS key,
            CASE type WHEN 'text' THEN 'text' WHEN 'integer' THEN 'number' WHEN 'real' THEN 'number' ELSE 'boolean' END
                AS kind,
            value, subjects.id AS subject_id
        FROM subjects, json_each(CASE WHEN json_valid(metadata) THEN metadata ELSE '{}' END) AS json
        WHERE type IN ('text', 'integer', 'real', 'true', 'false');
    INSERT OR IGNORE INTO subject_values SELECT * FROM metadata_values;
    CREATE TRIGGER subjects_bring_values AFTER INSERT ON subjects WHEN new.metadata != '{}' BEGIN
        INSERT OR IGNORE INTO subject_values SELECT * FROM metadata_values WHERE subject_id = new.id;
    END;
    CREATE TRIGGER subjects_change_values AFTER UPDATE OF metadata ON subjects BEGIN
        DELETE FROM subject_values WHERE subject_id = new.id;
        INSERT OR IGNORE INTO subject_values SELECT * FROM metadata_values WHERE subject_id = new.id;
    END;
    """,
    # Faces that were said not to be a subject's. Their ids are random, and negative where they stand among removals:
    # so a ledger that comes back from a backup is told of those that were taken back since.
    """
    CREATE TABLE rejections (
        id INTEGER PRIMARY KEY,
        subject_id INTEGER NOT NULL REFERENCES subjects (id) ON DELETE CASCADE,
        token TEXT NOT NULL UNIQUE,
        created_at REAL NOT NULL,
        data BLOB NOT NULL
    ) STRICT;
    CREATE INDEX rejections_by_subject ON rejections (subject_id, id);
    CREATE TRIGGER removals_of_rejections AFTER INSERT ON removals WHEN new.face_id < 0 BEGIN
        DELETE FROM rejections WHERE id = -new.face_id;
    END;
    """,
    # Collections whose vectors are made anew by another pipeline, and what there is of that: a vector for each face,
    # and for each face that is said not to be a subject's, if a crop was kept of it.
    """
    CREATE TABLE reembeddings (
        collection_id INTEGER PRIMARY KEY REFERENCES collections (id) ON DELETE CASCADE,
        token TEXT NOT NULL UNIQUE,
        embedder TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        dimensions INTEGER NOT NULL CHECK (dimensions > 0),
        actor TEXT,
        requested_at REAL NOT NULL,
        problem TEXT
    ) STRICT;
    CREATE TABLE reembedded (
        face_id INTEGER PRIMARY KEY REFERENCES faces (id) ON DELETE CASCADE,
        collection_id INTEGER NOT NULL REFERENCES reembeddings (collection_id) ON DELETE CASCADE,
        data BLOB NOT NULL
    ) STRICT;
    CREATE INDEX reembedded_by_collection ON reembedded (collection_id);
    ALTER TABLE rejections ADD COLUMN crop BLOB;
    ALTER TABLE rejections ADD COLUMN reembedded BLOB;
    CREATE TRIGGER reembeddings_end AFTER DELETE ON reembeddings BEGIN
        UPDATE rejections SET reembedded = NULL
        WHERE subject_id IN (SELECT id FROM subjects WHERE collection_id = old.collection_id);
        DELETE FROM leases WHERE name = 'reembed:' || old.token;
    END;
    """,
    # How many subjects and faces a collection has: every search asks, and to count millions takes longer than it does.
    # Whoever enrols counts the faces that come: a trigger would have SQLite keep what each statement undoes, in a list
    # that it walks to its end after each face of a transaction.
    """
    ALTER TABLE collections ADD COLUMN subjects INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE collections ADD COLUMN faces INTEGER NOT NULL DEFAULT 0;
    UPDATE collections SET
        subjects = (SELECT count(*) FROM subjects WHERE collection_id = collections.id),
        faces = (SELECT count(*) FROM faces WHERE collection_id = collections.id);
    CREATE TRIGGER subjects_come AFTER INSERT ON subjects BEGIN
        UPDATE collections SET subjects = subjects + 1 WHERE id = new.collection_id;
    END;
    CREATE TRIGGER subjects_go AFTER DELETE ON subjects BEGIN
        UPDATE collections SET subjects = subjects - 1 WHERE id = old.collection_id;
    END;
    CREATE TRIGGER faces_go AFTER DELETE ON faces BEGIN
        UPDATE collections SET faces = faces - 1 WHERE id = old.collection_id;
    END;
    """,
    # Encrypted collections: their data keys, wrapped by the operator's (index/embedded/encryption/data_keys.py), and
    # what stands in sealed columns instead of others. A subject's key, there and in jobs, is then an HMAC of what the
    # caller calls it.
    """
    ALTER TABLE collections ADD COLUMN encrypted INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE collection_keys (
        collection_id INTEGER PRIMARY KEY REFERENCES collections (id) ON DELETE CASCADE,
        name TEXT NOT NULL UNIQUE,
        wrapped_by TEXT NOT NULL,
        wrapped BLOB NOT NULL
    ) STRICT;
    ALTER TABLE subjects ADD COLUMN sealed BLOB;
    ALTER TABLE faces ADD COLUMN sealed BLOB;
    ALTER TABLE job_items ADD COLUMN sealed BLOB;
    DROP TRIGGER subjects_leave_jobs;
    CREATE TRIGGER subjects_leave_jobs AFTER DELETE ON subjects BEGIN
        UPDATE job_items
        SET status = 'erased', subject = NULL, properties = NULL, kind = NULL, data = NULL, sealed = NULL
        WHERE subject = old.key AND job_id IN (SELECT id FROM jobs WHERE collection_id = old.collection_id);
    END;
    """,
    # Ids in Unicode form C (index/embedded/store/id_normalisation.py): collections whose ids are not looked through
    # yet, and subjects that keep another form, since a subject has their `key` in form C.
    """
    ALTER TABLE collections ADD COLUMN normalised INTEGER NOT NULL DEFAULT 1;
    UPDATE collections SET normalised = 0;
    CREATE TABLE clashes (
        subject_id INTEGER PRIMARY KEY REFERENCES subjects (id) ON DELETE CASCADE,
        collection_id INTEGER NOT NULL,
        key TEXT NOT NULL
    ) STRICT;
    CREATE INDEX clashes_by_key ON clashes (collection_id, key);
    """,
    # Who sent a job, for the audit log. Collections that older versions filled may have vectors of another length than
    # 1, which maintenance scales once.
    """
    ALTER TABLE jobs ADD COLUMN actor TEXT;
    ALTER TABLE collections ADD COLUMN unscaled INTEGER NOT NULL DEFAULT 0;
    UPDATE collections SET unscaled = 1;
    """,
)

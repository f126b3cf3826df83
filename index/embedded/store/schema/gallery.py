"""Collections, subjects, faces, filters, feedback, bulk jobs, re-embeddings and encryption."""

# Audit entries that are not in the audit log yet, and the log's last line, which begins at the byte `start`
# (index/embedded/audit/log.py).
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
    # A removal is of a face, of a whole subject (face 0) or of a whole collection (both 0), so that a ledger restored
    # from a backup can repeat it; the gallery's id says to which gallery the removals belong.
    """
    ALTER TABLE removals ADD COLUMN subject_id INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE gallery (id TEXT NOT NULL) STRICT;
    INSERT INTO gallery VALUES (lower(hex(randomblob(16))));
    """,
    # Bulk jobs and their items. An item that is finished, or whose subject was erased, keeps nothing that was sent.
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
    # Values in subjects' metadata, for filters: each a text, a number or a boolean (1 or 0).
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
    # Feedback: faces that a caller said are not the subject's. Their ids are random, and negative in `removals`, so
    # that a ledger restored from a backup repeats their removals, too.
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
    # Re-embeddings of collections by another pipeline, and the vectors computed so far: one for each face, and one for
    # each feedback face with a crop.
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
    # The numbers of subjects and faces of a collection: every search needs them, and counting millions takes longer
    # than the search. New faces are counted by the code that inserts them: with a trigger SQLite would keep an undo
    # list for each statement, and walk it to its end after each face of a transaction.
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
    # Encrypted collections: data keys, wrapped by the operator's key (index/embedded/encryption.py), and the
    # columns `sealed`, which replace others. A subject's key, also in jobs, is then an HMAC of the caller's key.
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
    # Ids in Unicode form C (index/embedded/audit/id_normalisation.py): collections that are not normalised yet, and
    # subjects that keep another form because another subject has the `key` in form C.
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
    # The API key that sent a job, for the audit log. Collections of older versions may have vectors of another length
    # than 1, which maintenance scales once.
    """
    ALTER TABLE jobs ADD COLUMN actor TEXT;
    ALTER TABLE collections ADD COLUMN unscaled INTEGER NOT NULL DEFAULT 0;
    UPDATE collections SET unscaled = 1;
    """,
    # Results of changes with an idempotency key, encrypted by the request, whose SHA-256 is stored.
    """
    CREATE TABLE idempotency_keys (
        key TEXT PRIMARY KEY,
        request BLOB NOT NULL,
        result BLOB NOT NULL,
        created_at REAL NOT NULL DEFAULT (unixepoch('subsec'))
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX idempotency_keys_by_time ON idempotency_keys (created_at);
    """,
)

"""Migrations: the database's schema as numbered steps. A released step is never changed.

Names, metadata, crops and the data of bulk jobs are stored encrypted, each with a key of its own in the same row
(index/postgres/store/sealing.py): an erasure overwrites the short keys in their pages, wherever the long ciphertexts
lie. Subjects and values of metadata are looked up by an HMAC. Vectors are plain, because PostgreSQL compares them.

A trigger records the page of each deleted or replaced row of the tables from which data is erased (`scrubs`), for
maintenance to overwrite (index/postgres/store/scrubbing.py). No statistics are collected of their content.
The faces of a collection have a table of their own (index/postgres/store/face_tables.py).
"""

from __future__ import annotations

import secrets

import psycopg

from index.errors import GalleryError, TooNewError, UnavailableError
from index.postgres.store import scrub_schema

OLDEST_PGVECTOR = (0, 8, 6)  # earlier versions can damage an index, or return too few rows to a filtered search
LOCK = 0x76657374  # the advisory lock of migrations: "vest"

_TABLES = """
    CREATE TABLE gallery (id text NOT NULL, secret bytea NOT NULL);
    CREATE TABLE collections (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        name text COLLATE "C" NOT NULL UNIQUE,
        embedder text NOT NULL,
        fingerprint text NOT NULL,
        dimensions integer NOT NULL CHECK (dimensions > 0),
        settings text NOT NULL,
        generation integer NOT NULL DEFAULT 0,
        created_at double precision NOT NULL
    );
    -- The numbers of subjects and faces are sums over rows, so that concurrent enrolments do not wait for one row.
    CREATE TABLE collection_counts (collection_id bigint NOT NULL, subjects bigint NOT NULL, faces bigint NOT NULL);
    CREATE INDEX collection_counts_by_collection ON collection_counts (collection_id);
    CREATE TABLE subjects (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        collection_id bigint NOT NULL REFERENCES collections ON DELETE CASCADE,
        lookup bytea NOT NULL,
        seal bytea NOT NULL,
        sealed bytea NOT NULL,
        created_at double precision NOT NULL,
        expires_at double precision,
        filler text,
        UNIQUE (collection_id, lookup)
    ) WITH (fillfactor = 95);
    CREATE INDEX subjects_by_expiry ON subjects (expires_at) WHERE expires_at IS NOT NULL;
    CREATE TABLE subject_values (
        collection_id bigint NOT NULL,
        lookup bytea NOT NULL,
        subject_id bigint NOT NULL REFERENCES subjects ON DELETE CASCADE,
        PRIMARY KEY (collection_id, lookup, subject_id)
    );
    CREATE INDEX subject_values_by_subject ON subject_values (subject_id);
    CREATE SEQUENCE face_ids;
    CREATE TABLE rejections (
        id bigint PRIMARY KEY,
        collection_id bigint NOT NULL,
        subject_id bigint NOT NULL REFERENCES subjects ON DELETE CASCADE,
        token text NOT NULL UNIQUE,
        created_at double precision NOT NULL,
        vector vector,
        seal bytea,
        crop bytea,
        reembedded vector,
        filler text
    ) WITH (fillfactor = 95);
    ALTER TABLE rejections ALTER vector SET STORAGE PLAIN, ALTER crop SET STORAGE EXTERNAL,
        ALTER reembedded SET STORAGE MAIN;
    CREATE INDEX rejections_by_subject ON rejections (subject_id, created_at, id);
    CREATE INDEX rejections_by_collection ON rejections (collection_id, id);
    CREATE TABLE receipts (
        token text PRIMARY KEY,
        collection_id bigint NOT NULL,
        subjects bigint NOT NULL,
        faces bigint NOT NULL,
        requested_at double precision NOT NULL,
        erased_at double precision,
        xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
        lsn pg_lsn
    );
    CREATE INDEX receipts_unfinished ON receipts (requested_at) WHERE erased_at IS NULL;
    CREATE TABLE leases (
        name text PRIMARY KEY,
        holder text NOT NULL,
        expires_at double precision NOT NULL
    );
    CREATE TABLE jobs (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        collection_id bigint NOT NULL REFERENCES collections ON DELETE CASCADE,
        token text NOT NULL UNIQUE,
        state text NOT NULL,
        settings text NOT NULL,
        created_at double precision NOT NULL,
        finished_at double precision,
        problem text,
        actor text,
        holder text NOT NULL,
        leased_until double precision NOT NULL
    );
    CREATE INDEX jobs_by_collection ON jobs (collection_id, id);
    CREATE INDEX jobs_unfinished ON jobs (id) WHERE finished_at IS NULL;
    CREATE INDEX jobs_finished ON jobs (finished_at) WHERE finished_at IS NOT NULL;
    CREATE TABLE job_items (
        job_id bigint NOT NULL REFERENCES jobs ON DELETE CASCADE,
        number bigint NOT NULL,
        status text NOT NULL,
        result text,
        lookup bytea,
        kind text,
        seal bytea,
        sealed bytea,
        filler text,
        PRIMARY KEY (job_id, number)
    ) WITH (fillfactor = 95);
    ALTER TABLE job_items ALTER sealed SET STORAGE EXTERNAL;
    CREATE INDEX job_items_pending ON job_items (job_id, number) WHERE status = 'pending';
    CREATE INDEX job_items_by_subject ON job_items (lookup) WHERE lookup IS NOT NULL;
    CREATE TABLE reembeddings (
        collection_id bigint PRIMARY KEY REFERENCES collections ON DELETE CASCADE,
        token text NOT NULL UNIQUE,
        embedder text NOT NULL,
        fingerprint text NOT NULL,
        dimensions integer NOT NULL CHECK (dimensions > 0),
        actor text,
        requested_at double precision NOT NULL,
        problem text
    );
    -- Events in the order of their insertion, until maintenance chains them; then the lines of the audit log.
    CREATE TABLE audit_events (seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, event text NOT NULL);
    CREATE TABLE audit_lines (sequence bigint PRIMARY KEY, line text NOT NULL);
    CREATE TABLE audit_head (sequence bigint NOT NULL, hash text NOT NULL);
    INSERT INTO audit_head VALUES (0, '');
    CREATE TABLE idempotency_keys (
        lookup bytea PRIMARY KEY,
        request bytea NOT NULL,
        salt bytea NOT NULL,
        sealed bytea NOT NULL,
        created_at double precision NOT NULL
    );
    CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
    CREATE TABLE api_keys (
        id text PRIMARY KEY,
        hash bytea NOT NULL UNIQUE,
        name text NOT NULL,
        scopes text NOT NULL,
        created_at double precision NOT NULL,
        expires_at double precision,
        revoked_at double precision,
        rate_per_minute integer,
        concurrency integer
    );
    CREATE TABLE reloads (model text PRIMARY KEY, token text NOT NULL);
    CREATE TABLE quotas (
        key text NOT NULL,
        starts_at double precision NOT NULL,
        used integer NOT NULL,
        PRIMARY KEY (key, starts_at)
    );
"""

# Merges of subjects (index/postgres/curation/merge_records.py), and what an undo needs: the absorbed subjects, with the
# columns of their rows; the earlier subjects of faces, and of rejected faces, with negative ids; and the ids of the
# subjects that an undo has restored. A rejected face that contradicts a merge is suspended by it.
_MERGES = """
    CREATE TABLE merges (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        collection_id bigint NOT NULL REFERENCES collections ON DELETE CASCADE,
        token text NOT NULL UNIQUE,
        subject_id bigint NOT NULL,
        created_at double precision NOT NULL,
        undo_until double precision NOT NULL,
        undone_at double precision,
        restored bigint[] NOT NULL DEFAULT '{}'
    );
    CREATE INDEX merges_by_collection ON merges (collection_id, id);
    CREATE INDEX merges_by_subject ON merges (subject_id);
    CREATE INDEX merges_by_time ON merges (undo_until);
    CREATE TABLE absorbed_subjects (
        id bigint PRIMARY KEY,
        collection_id bigint NOT NULL REFERENCES collections ON DELETE CASCADE,
        merge_id bigint NOT NULL,
        lookup bytea NOT NULL,
        seal bytea NOT NULL,
        sealed bytea NOT NULL,
        created_at double precision NOT NULL,
        expires_at double precision,
        filler text
    ) WITH (fillfactor = 95);
    CREATE INDEX absorbed_subjects_by_lookup ON absorbed_subjects (collection_id, lookup);
    CREATE INDEX absorbed_subjects_by_merge ON absorbed_subjects (merge_id);
    CREATE TABLE merged_faces (
        merge_id bigint NOT NULL REFERENCES merges ON DELETE CASCADE,
        face_id bigint NOT NULL,
        subject_id bigint NOT NULL,
        PRIMARY KEY (merge_id, face_id)
    );
    CREATE INDEX merged_faces_by_face ON merged_faces (face_id);
    ALTER TABLE rejections ADD COLUMN suspended_by bigint;
    CREATE INDEX rejections_suspended ON rejections (suspended_by) WHERE suspended_by IS NOT NULL;
"""

# How many rows of each part of an export of a gallery were loaded, so that none is loaded twice. `collection_id`: of
# the collection that the export created; NULL for receipts.
_IMPORTS = """
    CREATE TABLE imports (
        export text NOT NULL,
        part text NOT NULL,
        source text NOT NULL,
        exported_at double precision NOT NULL,
        collection_id bigint,
        rows bigint NOT NULL,
        PRIMARY KEY (export, part)
    );
"""

# `position` is the order of the commits: the row of the settings is locked before a sighting is inserted.
_SIGHTINGS = """
    CREATE TABLE sighting_settings (
        collection_id bigint PRIMARY KEY REFERENCES collections ON DELETE CASCADE,
        unknown_s double precision NOT NULL,
        known_s double precision NOT NULL,
        pseudonyms boolean NOT NULL
    );
    CREATE TABLE sightings (
        position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        id bigint NOT NULL UNIQUE,
        token text NOT NULL UNIQUE,
        collection_id bigint NOT NULL REFERENCES collections ON DELETE CASCADE,
        subject_id bigint REFERENCES subjects ON DELETE CASCADE,
        camera text NOT NULL,
        started_at double precision NOT NULL,
        ended_at double precision NOT NULL,
        frames integer NOT NULL,
        probability double precision,
        distance double precision,
        fpir double precision,
        threshold double precision,
        created_at double precision NOT NULL,
        expires_at double precision NOT NULL,
        pseudonym text,
        generation integer,
        vector vector,
        seal bytea,
        crop bytea,
        filler text
    ) WITH (fillfactor = 95);
    ALTER TABLE sightings ALTER vector SET STORAGE PLAIN, ALTER crop SET STORAGE EXTERNAL;
    CREATE INDEX sightings_by_collection ON sightings (collection_id, position);
    CREATE INDEX sightings_by_subject ON sightings (subject_id, position);
    CREATE INDEX sightings_by_expiry ON sightings (expires_at);
    -- The earlier subjects of the sightings that a merge moved.
    CREATE TABLE merged_sightings (
        merge_id bigint NOT NULL REFERENCES merges ON DELETE CASCADE,
        sighting_id bigint NOT NULL REFERENCES sightings (id) ON DELETE CASCADE,
        subject_id bigint NOT NULL,
        PRIMARY KEY (merge_id, sighting_id)
    );
    CREATE INDEX merged_sightings_by_sighting ON merged_sightings (sighting_id);
    ALTER TABLE receipts ADD COLUMN sightings bigint NOT NULL DEFAULT 0;
"""

STEPS: tuple[str, ...] = (
    _TABLES + scrub_schema.FUNCTIONS + "".join(map(scrub_schema.set_up, ("subjects", "rejections", "job_items"))),
    _MERGES + scrub_schema.set_up("absorbed_subjects"),
    _IMPORTS,
    _SIGHTINGS + scrub_schema.set_up("sightings"),
)


def migrate_database(url: str) -> int:
    """Migrate the database with this URL and return its version. No message contains the URL.

    Raises:
        UnavailableError: it cannot be reached. TooNewError, GalleryError: see `migrate`; or the role lacks a privilege.
    """
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            migrate(connection)
    except psycopg.OperationalError as error:
        raise UnavailableError(f"the database cannot be reached: {_one_line(error)}") from error
    except psycopg.Error as error:
        raise GalleryError(f"the database cannot be migrated: {_one_line(error)}") from error
    return len(STEPS)


def _one_line(error: psycopg.Error) -> str:
    return " ".join((error.diag.message_primary or str(error)).split())


def migrate(connection: psycopg.Connection[tuple[object, ...]], steps: tuple[str, ...] = STEPS) -> None:
    """Run the `steps` that the database lacks, each in its own transaction; other processes wait meanwhile.

    Raises:
        TooNewError: it has more steps than these. GalleryError: pgvector is missing or too old.
    """
    connection.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
    try:
        _require_pgvector(connection)
        # IF NOT EXISTS would need the privilege to create tables also where there is nothing to migrate.
        if connection.execute("SELECT to_regclass('migrations')").fetchone() == (None,):
            connection.execute("CREATE TABLE migrations (step integer PRIMARY KEY)")
        row = connection.execute("SELECT coalesce(max(step), 0) FROM migrations").fetchone()
        done = int(str(row[0])) if row else 0
        if done > len(steps):
            raise TooNewError(f"the database is of version {done}; this program knows {len(steps)}")
        for number, step in enumerate(steps[done:], done + 1):
            with connection.transaction():
                connection.execute(step)
                if number == 1:
                    values = (secrets.token_hex(16), secrets.token_bytes(32))
                    connection.execute("INSERT INTO gallery VALUES (%s, %s)", values)
                connection.execute("INSERT INTO migrations VALUES (%s)", (number,))
    finally:
        connection.execute("SELECT pg_advisory_unlock(%s)", (LOCK,))


def _require_pgvector(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    try:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    except psycopg.Error as error:
        raise GalleryError(f"pgvector is needed, and CREATE EXTENSION vector failed: {error}") from error
    row = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    version = str(row[0]) if row else ""
    if tuple(int(part) for part in version.split(".")) < OLDEST_PGVECTOR:
        oldest = ".".join(map(str, OLDEST_PGVECTOR))
        raise GalleryError(f"pgvector {version} can damage an index; {oldest} or later is needed: ALTER EXTENSION")

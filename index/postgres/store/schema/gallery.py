"""Collections, subjects, feedback, bulk jobs, re-embeddings, audit log, API keys and quotas."""

from index.postgres.store import scrub_schema

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

STEP = _TABLES + scrub_schema.FUNCTIONS + "".join(map(scrub_schema.set_up, ("subjects", "rejections", "job_items")))

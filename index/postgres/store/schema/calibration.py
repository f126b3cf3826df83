"""Calibrations of collections on site."""

# At most one calibration of a collection is in use.
STEP = """
    CREATE TABLE calibrations (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        collection_id bigint NOT NULL REFERENCES collections ON DELETE CASCADE,
        token text NOT NULL UNIQUE,
        version bigint NOT NULL,
        fingerprint text NOT NULL,
        data text NOT NULL,
        created_at double precision NOT NULL,
        in_use boolean NOT NULL DEFAULT false,
        UNIQUE (collection_id, version)
    );
"""

"""Calibrations of collections on site."""

# At most one calibration of a collection is in use.
STEP = """
    CREATE TABLE calibrations (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        collection_id INTEGER NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        token TEXT NOT NULL UNIQUE,
        version INTEGER NOT NULL,
        fingerprint TEXT NOT NULL,
        data TEXT NOT NULL,
        created_at REAL NOT NULL,
        in_use INTEGER NOT NULL DEFAULT 0,
        UNIQUE (collection_id, version)
    ) STRICT;
    """

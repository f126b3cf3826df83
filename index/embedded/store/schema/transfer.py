"""Imports of exported galleries."""

# How many rows of each part of an export of a gallery were loaded, so that none is loaded twice. `collection_id`:
# of the collection that the export created; NULL for receipts.
STEP = """
    CREATE TABLE imports (
        export TEXT NOT NULL,
        part TEXT NOT NULL,
        source TEXT NOT NULL,
        exported_at REAL NOT NULL,
        collection_id INTEGER,
        rows INTEGER NOT NULL,
        PRIMARY KEY (export, part)
    ) STRICT, WITHOUT ROWID;
    """
